//! openraft's log storage over a group of the segment log.
//!
//! Invariants: entries are readable when `append` returns and reported as flushed only by the committer after the
//! sync; a vote is durable when `save_vote` returns; the committed hint enters the log's stream behind the entries
//! that it names. What the leader appends and the disk has no room for stays in the log as an entry without content, so
//! that a full disk ends no replica. Damage is noted in [`Trouble`] before the error goes to openraft, so that the replica is reported
//! as damaged and not started again.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use ptah_segment_log::{FlushDone, Frame, FrameKind, GroupLog, ReadError, RefusedReason};
use ptah_types::LogIndex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::admission::Admission;
use crate::applied::AppliedState;
use crate::blocking::Blocking;
use crate::metrics::Metrics;
use crate::record::{entry_of, frame_of, is_fresh, without_content};
use crate::trouble::Trouble;
use crate::types::{Entry, RaftLogId, TypeConfig, Vote, log_id, raft_log_id, raft_vote, vote_record};

/// Bytes of entries that replication reads at once; one entry may be larger.
const REPLICATION_READ_BYTES: u64 = 1 << 20;
/// Bytes of entries that are in memory at once while they are applied.
const APPLY_READ_BYTES: u64 = 4 << 20;
/// How long an append waits for room in the queue to the disk before the core ends and is started again.
const QUEUE_PATIENCE: Duration = Duration::from_secs(30);
/// How long an append of a leader's entries waits for room on the disk. Such entries are refused before they come here
/// ([`crate::transport`]); only what was on its way when the room went away gets here.
const DISK_PATIENCE: Duration = Duration::from_secs(2);
/// Pause between two tries when nobody tells that there is room.
const ROOM_PAUSE: Duration = Duration::from_millis(50);

/// The log of one replica. Cheap to clone; all clones see the same log.
#[derive(Clone)]
pub(crate) struct LogStore {
    log: Arc<GroupLog>,
    room: Arc<Notify>,
    trouble: Arc<Trouble>,
    blocking: Blocking,
    metrics: Arc<Metrics>,
    admission: Arc<Mutex<Admission>>,
}

impl LogStore {
    pub(crate) fn new(
        log: Arc<GroupLog>,
        room: Arc<Notify>,
        trouble: Arc<Trouble>,
        blocking: Blocking,
        metrics: Arc<Metrics>,
        state: Arc<AppliedState>,
    ) -> Self {
        Self {
            log,
            room,
            trouble,
            blocking,
            metrics,
            admission: Arc::new(Mutex::new(Admission::new(state))),
        }
    }

    async fn read(&self, from: u64, to: u64, max_bytes: u64) -> io::Result<Vec<Entry>> {
        let (from, to) = (LogIndex(from), LogIndex(to));
        let frames = match self.log.read_cached(from, to, max_bytes) {
            Some(frames) => frames,
            None => {
                let log = Arc::clone(&self.log);
                let read = self.blocking.run(move || log.read(from, to, max_bytes)).await?;
                read.map_err(|error| self.read_failed(error))?
            }
        };
        frames
            .into_iter()
            .map(|frame| entry_of(frame).map_err(io::Error::other))
            .collect()
    }

    fn read_failed(&self, error: ReadError) -> io::Error {
        if let ReadError::Damaged(damage) = &error {
            self.trouble.damaged(damage.to_string());
        }
        io::Error::other(error)
    }

    /// All entries of `range` that the log holds.
    async fn read_all(&self, range: std::ops::Range<u64>) -> io::Result<Vec<Entry>> {
        let mut from = range.start.max(self.log.first_index().0);
        let mut entries = Vec::new();
        while from < range.end {
            let part = match self.read(from, range.end, u64::MAX).await {
                Ok(part) => part,
                // Purged between the look at the first index and the read: what is left is what the log holds.
                Err(_) if self.log.first_index().0 > from => {
                    from = self.log.first_index().0;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let Some(last) = part.last() else { break };
            from = last.log_id.index() + 1;
            entries.extend(part);
        }
        Ok(entries)
    }

    /// The frames of entries, and whether any of them was proposed here.
    fn frames(&self, entries: impl IntoIterator<Item = Entry>) -> (Vec<Frame>, bool) {
        let group = self.log.spec().group;
        let mut next = self.log.next_sequence();
        let mut fresh = false;
        let mut admission = self.admission.lock();
        let frame = |entry: Entry| {
            let is_fresh = is_fresh(&entry);
            fresh |= is_fresh;
            let frame = frame_of(entry, group, |record| admission.takes(record, next));
            if let Some(end) = frame.end_sequence() {
                next = end;
                if !is_fresh {
                    // Another leader's batch.
                    admission.forget();
                }
            }
            frame
        };
        let frames = entries.into_iter().map(frame).collect();
        (frames, fresh)
    }

    /// Appends, waiting for room within a deadline. Fresh entries that find none on the disk lose their content.
    async fn append_frames(
        &self,
        mut frames: Vec<Frame>,
        fresh: bool,
        mut done: FlushDone,
    ) -> io::Result<()> {
        let started = Instant::now();
        loop {
            let room = self.room.notified();
            let refused = match self.log.append(frames, done) {
                Ok(()) => return Ok(()),
                Err(refused) => refused,
            };
            let reason = refused.reason;
            (frames, done) = (refused.frames, refused.done);
            if fresh && matches!(reason, RefusedReason::DiskFull { .. }) {
                let emptied = give_up_content(&mut frames);
                if emptied > 0 {
                    self.admission.lock().forget();
                    self.metrics.entries_without_room.inc_by(emptied);
                    continue;
                }
            }
            if started.elapsed() >= patience(&reason) {
                return Err(io::Error::other(format!("append to the log: {reason}")));
            }
            // Either answer leads to another try.
            let _ = tokio::time::timeout(ROOM_PAUSE, room).await;
        }
    }

    /// Runs an operation that reports through a callback.
    async fn durable(&self, start: impl FnOnce(&Arc<GroupLog>, FlushDone)) -> io::Result<()> {
        let (tell, told) = oneshot::channel();
        start(
            &self.log,
            Box::new(move |result| {
                // The other end only goes when the core is stopped.
                let _ = tell.send(result);
            }),
        );
        told.await
            .unwrap_or_else(|_| Err(io::Error::other("the store was closed")))
    }
}

/// How long to wait for what was refused.
fn patience(reason: &RefusedReason) -> Duration {
    match reason {
        RefusedReason::WouldExceed { .. } => QUEUE_PATIENCE,
        RefusedReason::Gap { .. } | RefusedReason::Invalid { .. } | RefusedReason::Failed(_) => {
            Duration::ZERO
        }
        // The disk is full, or does not take the group's files now.
        _ => DISK_PATIENCE,
    }
}

/// Empties the batches, or the commands when there is no batch; answers how many. Commands find room where batches do not.
fn give_up_content(frames: &mut [Frame]) -> u64 {
    let batches = frames.iter().any(|frame| frame.kind == FrameKind::Batch);
    let kind = if batches {
        FrameKind::Batch
    } else {
        FrameKind::Command
    };
    let filled = frames
        .iter_mut()
        .filter(|frame| frame.kind == kind && !frame.payload.is_empty());
    filled.fold(0, |emptied, frame| {
        *frame = without_content(frame);
        emptied + 1
    })
}

fn bounds<RB: RangeBounds<u64>>(range: &RB) -> std::ops::Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let range = bounds(&range);
        let pieces = Pieces {
            store: self.clone(),
            ready: Vec::new().into_iter(),
            from: range.start,
            to: range.end,
        };
        Box::pin(futures_util::stream::unfold(pieces, Pieces::next))
    }

    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        self.read_all(bounds(&range)).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.log.vote().map(raft_vote))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        match self.read(start, end, REPLICATION_READ_BYTES).await {
            Ok(entries) => Ok(entries),
            // Purged meanwhile: openraft goes on with a snapshot.
            Err(_) if self.log.first_index().0 > start => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// The last entry of every term within the range, from the term table.
    async fn get_key_log_ids(&mut self, range: RangeInclusive<RaftLogId>) -> io::Result<Vec<RaftLogId>> {
        let (first, last) = (log_id(range.start()), log_id(range.end()));
        let starts = self.log.term_starts();
        let mut ends = Vec::new();
        for pair in starts.windows(2) {
            let [this, next] = pair else { continue };
            let end = LogIndex(next.index.0.saturating_sub(1));
            if end >= first.index && end < last.index {
                ends.push(raft_log_id(ptah_types::LogId {
                    term: this.term,
                    index: end,
                }));
            }
        }
        ends.push(*range.end());
        Ok(ends)
    }
}

/// Entries that are read piece by piece while they are applied.
struct Pieces {
    store: LogStore,
    ready: std::vec::IntoIter<Entry>,
    from: u64,
    to: u64,
}

impl Pieces {
    async fn next(mut self) -> Option<(io::Result<Entry>, Self)> {
        if let Some(entry) = self.ready.next() {
            return Some((Ok(entry), self));
        }
        if self.from >= self.to {
            return None;
        }
        match self.store.read(self.from, self.to, APPLY_READ_BYTES).await {
            Ok(entries) => {
                self.from += entries.len() as u64;
                self.ready = entries.into_iter();
                let entry = self.ready.next()?;
                Some((Ok(entry), self))
            }
            Err(error) => {
                self.from = self.to;
                Some((Err(error), self))
            }
        }
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        Ok(LogState {
            last_purged_log_id: self.log.last_purged().map(raft_log_id),
            last_log_id: self.log.last_log_id().map(raft_log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let record = vote_record(vote);
        self.durable(|log, done| log.save_vote(record, done)).await
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> io::Result<()> {
        if let Some(committed) = committed {
            self.log.save_committed(log_id(&committed));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<RaftLogId>> {
        Ok(self.log.committed().map(raft_log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let (frames, fresh) = self.frames(entries);
        let done: FlushDone = Box::new(move |result| callback.io_completed(result));
        self.append_frames(frames, fresh, done).await
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> io::Result<()> {
        self.admission.lock().forget();
        let after = last.map(|id| log_id(&id));
        self.durable(|log, done| log.truncate_after(after, done)).await
    }

    async fn purge(&mut self, upto: RaftLogId) -> io::Result<()> {
        let upto = log_id(&upto);
        self.durable(|log, done| log.purge(upto, done)).await
    }
}

#[cfg(test)]
mod suite;
