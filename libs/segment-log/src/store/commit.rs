//! The two drivers' work: commit units, and large frames beside them.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use super::shared::{LargeItem, Shared, count};
use crate::group::{GroupLog, InstallJob, SwitchError};
use crate::types::{CommitOutcome, LargeOutcome, Work};
use crate::wal::{Unit, UnitKind};

impl Shared {
    /// Writes and syncs one unit of what is queued, then calls its completions.
    pub(crate) fn commit_pending(&self) -> CommitOutcome {
        let _fail = FailAtPanic(self);
        let mut committer = self.committer.lock();
        let _latch = LatchAtPanic(self, "commit");
        if let Some(text) = self.failure() {
            drop(committer);
            self.fail_queued(&text);
            return CommitOutcome::Failed(text);
        }
        let Some((mut unit, more)) = self.queue.take() else {
            return CommitOutcome::Idle;
        };
        for completion in &unit.completions {
            committer.note(completion.group.spec().group.get(), completion.number);
        }
        let written = match committer.write(&self.wal, &mut unit, UnitKind::Data) {
            Ok(written) => written,
            Err(error) => {
                self.latch("write to the write-ahead log", &error);
                drop(committer);
                let text = self.failure().unwrap_or_default();
                fail_unit(&mut unit, &text, self);
                self.fail_queued(&text);
                return CommitOutcome::Failed(text);
            }
        };
        count(&self.counters.wal_syncs, 1);
        count(&self.counters.units, 1);
        count(&self.counters.wal_bytes, written.bytes);
        self.since_checkpoint.fetch_add(written.bytes, Ordering::Relaxed);
        let completions = unit.completions.len();
        let mut queued = 0;
        for completion in unit.completions.drain(..) {
            completion
                .group
                .completed(completion.number, &completion.effect, written.file);
            queued += completion.bytes;
            completion.done.give(Ok(()));
        }
        self.completed_seq.store(written.seq, Ordering::Release);
        self.sub_queued(queued);
        drop(committer);
        count(&self.counters.completions, completions as u64);
        self.queue.give_back(unit);
        self.after_commit();
        CommitOutcome::Committed {
            completions,
            bytes: written.bytes,
            more,
        }
    }

    fn after_commit(&self) {
        self.tell_room();
        if self.large.len() > 0 {
            self.large.signal();
            self.wake(Work::Large);
        }
        self.wake_all(self.want_checkpoint());
    }

    /// Proves the last unit, when nothing else did.
    pub(crate) fn seal(&self) -> CommitOutcome {
        let _fail = FailAtPanic(self);
        let mut committer = self.committer.lock();
        let _latch = LatchAtPanic(self, "seal");
        if let Some(text) = self.failure() {
            return CommitOutcome::Failed(text);
        }
        if !committer.is_unsealed() || self.queue.has_more() {
            return CommitOutcome::Idle;
        }
        match committer.seal(&self.wal) {
            Ok(written) => {
                self.completed_seq.store(written.seq, Ordering::Release);
                count(&self.counters.wal_syncs, 1);
                count(&self.counters.seals, 1);
                count(&self.counters.wal_bytes, written.bytes);
                CommitOutcome::Committed {
                    completions: 0,
                    bytes: written.bytes,
                    more: false,
                }
            }
            Err(error) => {
                self.latch("seal the write-ahead log", &error);
                CommitOutcome::Failed(self.failure().unwrap_or_default())
            }
        }
    }

    /// Answers everything that is queued with the failure.
    fn fail_queued(&self, text: &str) {
        while let Some((mut unit, _)) = self.queue.take() {
            fail_unit(&mut unit, text, self);
        }
        self.large.signal();
        self.wake(Work::Large);
    }

    /// Writes one piece of a large frame, or does one switch.
    pub(crate) fn write_large_pending(&self) -> LargeOutcome {
        let _fail = FailAtPanic(self);
        let driver = self.large.driver.lock();
        let _latch = LatchAtPanic(self, "write of a large frame or a snapshot");
        if let Some(text) = self.failure() {
            self.fail_large(&text);
            return LargeOutcome::Failed(text);
        }
        for _ in 0..self.large.len() {
            let Some(item) = self.large.pop() else { break };
            let (group, after) = match &item {
                LargeItem::Frame(job) => (job.group.clone(), job.after),
                LargeItem::Install(job) => (job.group().clone(), job.after),
            };
            if group.durable_record() < after {
                self.large.put_back(item);
                continue;
            }
            let _blocked = FailBlockedAtPanic(&group, self);
            let works = match self.large_step(item) {
                Ok(works) => works,
                Err(error) => {
                    self.latch("write a large frame or a snapshot", &error);
                    let text = self.failure().unwrap_or_default();
                    self.fail_large(&text);
                    drop(driver);
                    self.wake(Work::Commit);
                    return LargeOutcome::Failed(text);
                }
            };
            drop(driver);
            self.wake_all(works);
            return LargeOutcome::Progress;
        }
        LargeOutcome::Idle
    }

    fn large_step(&self, item: LargeItem) -> io::Result<Vec<Work>> {
        match item {
            LargeItem::Frame(mut job) => {
                let group = job.group.clone();
                match group.write_large_piece(&mut job) {
                    // Other groups' frames get their turn.
                    Ok(false) => self.large.put_back(LargeItem::Frame(job)),
                    Ok(true) => return Ok(group.large_written(*job)),
                    Err(error) => {
                        self.large.put_back(LargeItem::Frame(job));
                        return Err(error);
                    }
                }
            }
            LargeItem::Install(job) => {
                let InstallJob { install, done, .. } = *job;
                let switched = install.switch();
                // Its turn is over before anybody hears of it.
                drop(install);
                match switched {
                    Ok(()) => done.give(Ok(())),
                    Err(SwitchError::OldState(error)) => done.give(Err(error)),
                    Err(SwitchError::Unknown(error)) => {
                        let copy = io::Error::new(error.kind(), error.to_string());
                        done.give(Err(copy));
                        return Err(error);
                    }
                }
            }
        }
        Ok(Vec::new())
    }

    fn fail_blocked(&self, group: &GroupLog, text: &str) {
        let blocked = std::mem::take(&mut group.state().blocked);
        for op in blocked {
            self.sub_queued(op.bytes);
            op.done.fail(text);
        }
    }

    fn fail_large(&self, text: &str) {
        while let Some(item) = self.large.pop() {
            match item {
                LargeItem::Frame(job) => {
                    self.sub_queued(job.bytes);
                    job.done.fail(text);
                    self.fail_blocked(&job.group, text);
                }
                LargeItem::Install(job) => job.done.fail(text),
            }
        }
    }
}

/// Latches the store when the driver panics: in the middle of its work nothing is known of the files.
pub(super) struct LatchAtPanic<'a>(pub(super) &'a Shared, pub(super) &'static str);

impl Drop for LatchAtPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.latch(self.1, &io::Error::other("the driver panicked"));
        }
    }
}

/// Then answers everything that waits. Outside of the driver's locks.
pub(super) struct FailAtPanic<'a>(pub(super) &'a Shared);

impl Drop for FailAtPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = self.0.failure().unwrap_or_default();
            let fail = || {
                self.0.fail_queued(&text);
                self.0.fail_large(&text);
            };
            // A second panic would end the process; what it leaves unanswered is answered when it is dropped.
            drop(catch_unwind(AssertUnwindSafe(fail)));
        }
    }
}

/// The operations behind a large frame are found through the frame only.
struct FailBlockedAtPanic<'a>(&'a GroupLog, &'a Shared);

impl Drop for FailBlockedAtPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.1
                .fail_blocked(self.0, "storage has failed: the large writer panicked");
        }
    }
}

fn fail_unit(unit: &mut Unit, text: &str, shared: &Shared) {
    for completion in unit.completions.drain(..) {
        shared.sub_queued(completion.bytes);
        completion.done.fail(text);
    }
}
