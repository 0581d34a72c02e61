//! The log of one Raft group: frames in memory, in segments, and the records that make them durable.

mod checkpoint;
mod checkpoint_file;
mod damage;
mod drops;
mod flush;
mod image;
mod install;
mod large;
mod messages;
mod meta;
mod queued;
mod ranges;
mod read;
mod replay;
mod staging;
mod state;
mod switch;
mod tail;
mod truncate;
mod unwritable;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use ptah_types::{LogId, LogIndex, Sequence};

use crate::segment::{SegmentName, StreamKind};
use crate::store::Shared;
use crate::types::{GroupCondition, GroupSpec, SegmentSummary, VoteRecord};
use crate::wal::Effect;

#[cfg(test)]
pub(crate) use checkpoint_file::CheckpointFiles;
pub(crate) use flush::{DAMAGE_MARKER, Flushed};
pub use install::Install;
pub(crate) use meta::{MetaImage, data_dir, slot_name};
pub(crate) use queued::LargeJob;
pub(crate) use state::GroupState;
pub(crate) use switch::{InstallJob, SwitchError};
pub(crate) use unwritable::is_damage;

/// The log of one Raft group.
pub struct GroupLog {
    spec: GroupSpec,
    dir: PathBuf,
    shared: Arc<Shared>,
    state: Mutex<GroupState>,
    /// Held while the group's files are changed. Taken before `state`.
    io: Mutex<()>,
}

impl GroupLog {
    pub(crate) fn new(spec: GroupSpec, dir: PathBuf, shared: Arc<Shared>, state: GroupState) -> Self {
        Self {
            spec,
            dir,
            shared,
            state: Mutex::new(state),
            io: Mutex::new(()),
        }
    }

    /// What the group is.
    pub fn spec(&self) -> &GroupSpec {
        &self.spec
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn state(&self) -> parking_lot::MutexGuard<'_, GroupState> {
        self.state.lock()
    }

    fn segment_name(&self, dir_number: u64, kind: StreamKind, first: LogIndex) -> SegmentName {
        let dir = data_dir(&self.dir, dir_number);
        SegmentName::new(self.shared.identity, self.spec.group, kind, first, &dir)
    }

    /// The last saved vote.
    pub fn vote(&self) -> Option<VoteRecord> {
        self.state.lock().vote
    }

    /// The last saved committed hint that the log covers.
    pub fn committed(&self) -> Option<LogId> {
        self.state.lock().committed
    }

    /// Last purged entry.
    pub fn last_purged(&self) -> Option<LogId> {
        self.state.lock().purged
    }

    /// Last entry; the last purged one when the log is empty.
    pub fn last_log_id(&self) -> Option<LogId> {
        self.state.lock().last
    }

    /// Last entry that survives power loss.
    pub fn flushed_log_id(&self) -> Option<LogId> {
        self.state.lock().flushed
    }

    /// First index that the log holds (or will hold).
    pub fn first_index(&self) -> LogIndex {
        self.state.lock().first_index()
    }

    /// Log id of the first entry of every term that the log holds, ascending. The first one is clamped to the first entry.
    pub fn term_starts(&self) -> Vec<LogId> {
        self.state.lock().terms.iter().copied().collect()
    }

    /// Log id at `index`, if the log holds it or it was the last one purged. From the term table: no disk access.
    pub fn log_id_at(&self, index: LogIndex) -> Option<LogId> {
        self.state.lock().log_id_at(index)
    }

    /// First message that is kept; equal to `next_sequence` when there is none.
    pub fn first_sequence(&self) -> Sequence {
        Sequence::new(self.state.lock().first_sequence()).unwrap_or(Sequence::FIRST)
    }

    /// Sequence of the next message of the log (appended, not only committed).
    pub fn next_sequence(&self) -> Sequence {
        self.state.lock().next_sequence()
    }

    /// Log id of the newest checkpoint. No disk access.
    pub fn checkpoint_log_id(&self) -> Option<LogId> {
        self.state.lock().checkpoint
    }

    /// Damage met by reads since the store was opened.
    pub fn condition(&self) -> GroupCondition {
        let state = self.state.lock();
        if state.damage.is_empty() {
            GroupCondition::Healthy
        } else {
            GroupCondition::Damaged(state.damage.clone())
        }
    }

    /// Message segments, oldest first.
    pub fn message_segments(&self) -> Vec<SegmentSummary> {
        let state = self.state.lock();
        let count = state.messages.segments.len();
        let mut out = Vec::with_capacity(count);
        for (number, segment) in state.messages.segments.iter().enumerate() {
            let (Some(first_sequence), Some(next_sequence)) = (
                Sequence::new(segment.first_sequence),
                Sequence::new(segment.next_sequence),
            ) else {
                continue;
            };
            out.push(SegmentSummary {
                first_index: segment.first_index,
                last_index: segment.last.index,
                first_sequence,
                next_sequence,
                bytes: segment.length,
                first_timestamp: segment.first_timestamp,
                last_timestamp: segment.last_timestamp,
                sealed: number + 1 < count,
            });
        }
        out
    }

    /// A record of this group is durable.
    pub(crate) fn completed(&self, number: u64, effect: &Effect, wal_file: u64) {
        let mut state = self.state.lock();
        state.durable_record = state.durable_record.max(number);
        state.hold(wal_file, number);
        match effect {
            Effect::Append(id) if number > state.last_truncate => state.flushed = Some(*id),
            Effect::Append(_) => {}
            Effect::Vote(vote) => state.durable_vote = Some(*vote),
            Effect::Committed(id) if state.log_id_at(id.index) == Some(*id) => {
                state.durable_committed = Some(*id);
            }
            Effect::Committed(_) => {}
            Effect::Purge(id) => state.flushed = state.flushed.max(Some(*id)),
            Effect::Nothing => {
                // A truncation: frames before it that became durable meanwhile were not counted.
                let durable = state.durable_end(number);
                state.flushed = state.flushed.max(durable);
            }
        }
    }

    /// Waits until nobody changes the group's files.
    pub(crate) fn quiesce(&self) {
        drop(self.io.lock());
    }

    /// Bytes of sparse indexes.
    pub(crate) fn index_memory(&self) -> usize {
        let state = self.state.lock();
        let all = state.messages.segments.iter().chain(&state.commands.segments);
        all.map(|segment| segment.index.lock().memory()).sum()
    }

    /// Gives up the indexes of closed segments; readers make them again. Answers the bytes.
    pub(crate) fn forget_closed_indexes(&self) -> usize {
        let state = self.state.lock();
        let mut freed = 0;
        for stream in [&state.messages, &state.commands] {
            let closed = stream.segments.len().saturating_sub(1);
            for segment in stream.segments.iter().take(closed) {
                let mut index = segment.index.lock();
                freed += index.memory();
                index.forget(segment.length);
            }
        }
        freed
    }

    /// Brings the store's totals up to date with this group's memory, and gives up what is too much. Whether more could go.
    pub(crate) fn account(&self, state: &mut GroupState) -> bool {
        use std::sync::atomic::Ordering::Relaxed;
        let shared = &self.shared;
        let crowded = shared.recent.load(Relaxed) > shared.options.recent_bytes;
        let keep = if crowded {
            0
        } else {
            shared.options.recent_bytes_per_group
        };
        // A running flush must be able to leave out of its meta slot what became durable since it began.
        let durable = state.durable_record.min(state.flushing.unwrap_or(u64::MAX));
        let more = state.tail.trim(keep, durable);
        let now = (state.tail.unflushed, state.tail.recent);
        let before = std::mem::replace(&mut state.tail.published, now);
        shared.unflushed.fetch_add(now.0.wrapping_sub(before.0), Relaxed);
        shared.recent.fetch_add(now.1.wrapping_sub(before.1), Relaxed);
        more
    }
}

impl Drop for GroupLog {
    fn drop(&mut self) {
        let published = self.state.get_mut().tail.published;
        self.shared
            .unflushed
            .fetch_sub(published.0, std::sync::atomic::Ordering::Relaxed);
        self.shared
            .recent
            .fetch_sub(published.1, std::sync::atomic::Ordering::Relaxed);
    }
}

impl std::fmt::Debug for GroupLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GroupLog({})", self.spec.group.to_hex())
    }
}
