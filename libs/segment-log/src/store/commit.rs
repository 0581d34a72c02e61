//! The two drivers' work: commit units, and large frames beside them.

use std::io;
use std::sync::atomic::Ordering;

use super::shared::{LargeItem, Shared, count};
use crate::group::SwitchError;
use crate::types::{CommitOutcome, LargeOutcome, Work};
use crate::wal::{Unit, UnitKind};

impl Shared {
    /// Writes and syncs one unit of what is queued, then calls its completions.
    pub(crate) fn commit_pending(&self) -> CommitOutcome {
        let mut committer = self.committer.lock();
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
            if let Some(done) = completion.done {
                done(Ok(()));
            }
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
        let mut committer = self.committer.lock();
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
        let driver = self.large.driver.lock();
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
            LargeItem::Install(job) => match job.install.switch() {
                Ok(()) => (job.done)(Ok(())),
                Err(SwitchError::OldState(error)) => (job.done)(Err(error)),
                Err(SwitchError::Unknown(error)) => {
                    let copy = io::Error::new(error.kind(), error.to_string());
                    (job.done)(Err(copy));
                    return Err(error);
                }
            },
        }
        Ok(Vec::new())
    }

    fn fail_large(&self, text: &str) {
        while let Some(item) = self.large.pop() {
            match item {
                LargeItem::Frame(job) => {
                    self.sub_queued(job.bytes);
                    let blocked = std::mem::take(&mut job.group.state().blocked);
                    fail(job.done, text);
                    for op in blocked {
                        self.sub_queued(op.bytes);
                        fail(op.done, text);
                    }
                }
                LargeItem::Install(job) => fail(Some(job.done), text),
            }
        }
    }
}

fn fail(done: Option<crate::FlushDone>, text: &str) {
    if let Some(done) = done {
        done(Err(io::Error::new(io::ErrorKind::BrokenPipe, text.to_owned())));
    }
}

fn fail_unit(unit: &mut Unit, text: &str, shared: &Shared) {
    for completion in unit.completions.drain(..) {
        shared.sub_queued(completion.bytes);
        fail(completion.done, text);
    }
}
