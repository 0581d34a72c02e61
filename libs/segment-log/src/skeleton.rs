//! Interim: signatures only.
#![allow(unused_variables, clippy::unimplemented, missing_docs)]
use crate::*;
use bytes::Bytes;
use ptah_types::{LogId, LogIndex, RaftGroupId, Sequence, Timestamp};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The operating system's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

/// One node's storage: a write-ahead log and all groups. Cheap to clone.
#[derive(Clone)]
pub struct Store;

impl Store {
    /// Opens a data directory, or makes it. Recovers every group; refuses other clusters, nodes and newer formats untouched.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: Identity,
        options: Options,
    ) -> Result<Self, OpenError> {
        unimplemented!()
    }
    /// Whose data `dir` holds; `None` when it is empty or missing. Changes nothing.
    pub fn read_identity(disk: &dyn Disk, dir: &Path) -> Result<Option<Identity>, OpenError> {
        unimplemented!()
    }
    /// All groups, sorted by id, damaged ones too.
    pub fn groups(&self) -> Vec<GroupInfo> {
        unimplemented!()
    }
    /// Makes a group; durable when it returns. Blocking: call off the runtime.
    pub fn create_group(&self, spec: GroupSpec) -> Result<Arc<GroupLog>, GroupError> {
        unimplemented!()
    }
    /// A healthy group. `None` for unknown and for damaged ones (see `groups`).
    pub fn group(&self, group: RaftGroupId) -> Option<Arc<GroupLog>> {
        unimplemented!()
    }
    /// Deletes a group with all its data; the caller holds a tombstone for it. Blocking. Works for damaged groups too.
    /// The replica's id is remembered and never accepted again.
    pub fn drop_group(&self, group: RaftGroupId) -> Result<(), GroupError> {
        unimplemented!()
    }
    /// Moves a group's directory to `aside/` (never deleted by the store) and forgets it. Blocking.
    pub fn set_aside(&self, group: RaftGroupId) -> Result<PathBuf, GroupError> {
        unimplemented!()
    }
    /// Writes and syncs everything queued, up to one unit, then calls the completions. One driver at a time (others wait).
    pub fn commit_pending(&self) -> CommitOutcome {
        unimplemented!()
    }
    /// Writes an empty unit behind an unsealed one, which proves that the last unit was synced. Idle when nothing is unsealed.
    pub fn seal(&self) -> CommitOutcome {
        unimplemented!()
    }
    /// Writes one piece (1 MiB) of the large frames that are queued, or finishes a snapshot switch.
    pub fn write_large_pending(&self) -> LargeOutcome {
        unimplemented!()
    }
    /// Calls `waker` when there is work; from any thread, never under a lock of the store. Set it before the first append.
    pub fn set_waker(&self, waker: Arc<dyn Fn(Work) + Send + Sync>) {
        unimplemented!()
    }
    /// Production: starts the committer and the large writer as OS threads (each blocks on a condition variable).
    /// `Work::Checkpoint` and `Work::Room` still go to the waker.
    pub fn spawn_drivers(&self) -> io::Result<Drivers> {
        unimplemented!()
    }
    /// Flushes and syncs dirty groups, writes their meta slots, recycles write-ahead log, deletes dropped files. Blocking.
    pub fn checkpoint_round(&self, limit: RoundLimit) -> io::Result<RoundReport> {
        unimplemented!()
    }
    /// Whether a checkpoint round is wanted because of write-ahead log or memory.
    pub fn needs_checkpoint(&self) -> bool {
        unimplemented!()
    }
    /// Clean shutdown: commits what is queued, seals, one full round, refuses later work, releases the directory. Blocking; idempotent.
    pub fn close(&self) -> io::Result<()> {
        unimplemented!()
    }
    /// Why the store failed, if it did. A failed store acknowledges nothing; stop the process.
    pub fn failure(&self) -> Option<String> {
        unimplemented!()
    }
    /// Room on the disk.
    pub fn space(&self) -> io::Result<Space> {
        unimplemented!()
    }
    /// Queues now.
    pub fn pressure(&self) -> Pressure {
        unimplemented!()
    }
    /// Counters.
    pub fn stats(&self) -> Stats {
        unimplemented!()
    }
    /// Whose data this is.
    pub fn identity(&self) -> Identity {
        unimplemented!()
    }
}

/// The driver threads of a store; stops and joins them when dropped.
pub struct Drivers;

/// The log of one Raft group.
pub struct GroupLog;

impl GroupLog {
    /// What the group is.
    pub fn spec(&self) -> &GroupSpec {
        unimplemented!()
    }
    /// Appends frames (consecutive indexes behind the last one; any first index in an empty, never purged log). They are
    /// readable when this returns; `done` is called once they survive power loss. Never blocks on the disk.
    pub fn append(&self, frames: Vec<Frame>, done: FlushDone) -> Result<(), AppendRefused> {
        unimplemented!()
    }
    /// Saves the vote, in order with all other operations of the group.
    pub fn save_vote(&self, vote: VoteRecord, done: FlushDone) {
        unimplemented!()
    }
    /// Saves the committed hint; durable some time after the frames before it.
    pub fn save_committed(&self, committed: LogId) {
        unimplemented!()
    }
    /// Removes all entries above `after` (`None`: all that are not purged). May read the disk when the entries are not in memory.
    pub fn truncate_after(&self, after: Option<LogId>, done: FlushDone) {
        unimplemented!()
    }
    /// Removes the entries up to `upto` from the Raft log; messages stay readable. May be above the last entry: the log is then empty.
    pub fn purge(&self, upto: LogId, done: FlushDone) {
        unimplemented!()
    }
    /// The last saved vote.
    pub fn vote(&self) -> Option<VoteRecord> {
        unimplemented!()
    }
    /// The last saved committed hint that the log covers.
    pub fn committed(&self) -> Option<LogId> {
        unimplemented!()
    }
    /// Last purged entry.
    pub fn last_purged(&self) -> Option<LogId> {
        unimplemented!()
    }
    /// Last entry; the last purged one when the log is empty.
    pub fn last_log_id(&self) -> Option<LogId> {
        unimplemented!()
    }
    /// Last entry that survives power loss.
    pub fn flushed_log_id(&self) -> Option<LogId> {
        unimplemented!()
    }
    /// First index that the log holds (or will hold).
    pub fn first_index(&self) -> LogIndex {
        unimplemented!()
    }
    /// Log id of the first entry of every term that the log holds, ascending (the first one clamped to the first entry).
    pub fn term_starts(&self) -> Vec<LogId> {
        unimplemented!()
    }
    /// Log id at `index`, if the log holds it (from the term table: no disk access).
    pub fn log_id_at(&self, index: LogIndex) -> Option<LogId> {
        unimplemented!()
    }
    /// Frames `from..to` (exclusive) that exist, in order, from `from` on, until `max_bytes` are exceeded; at least one
    /// when `from` exists; empty when `from` is above the last entry. Blocking when not in memory.
    pub fn read(&self, from: LogIndex, to: LogIndex, max_bytes: u64) -> Result<Vec<Frame>, ReadError> {
        unimplemented!()
    }
    /// Like `read`, but only from memory: `None` when the disk would be touched.
    pub fn read_cached(&self, from: LogIndex, to: LogIndex, max_bytes: u64) -> Option<Vec<Frame>> {
        unimplemented!()
    }
    /// Batch frames that hold the messages `from..upto` (exclusive), from the frame that contains `from` on, until
    /// `max_bytes` are exceeded; at least one when `from` exists. The caller bounds `upto` by what is applied. Blocking when not in memory.
    pub fn read_messages(
        &self,
        from: Sequence,
        upto: Sequence,
        max_bytes: u64,
    ) -> Result<Vec<Frame>, ReadError> {
        unimplemented!()
    }
    /// Like `read_messages`, but only from memory: `None` when the disk would be touched.
    pub fn read_messages_cached(&self, from: Sequence, upto: Sequence, max_bytes: u64) -> Option<Vec<Frame>> {
        unimplemented!()
    }
    /// First message that is kept; equal to `next_sequence` when there is none.
    pub fn first_sequence(&self) -> Sequence {
        unimplemented!()
    }
    /// Sequence of the next message of the log (appended, not only committed).
    pub fn next_sequence(&self) -> Sequence {
        unimplemented!()
    }
    /// First message whose frame's time is at or after `time`; `None` when all are earlier. Blocking.
    pub fn sequence_at(&self, time: Timestamp) -> Result<Option<Sequence>, ReadError> {
        unimplemented!()
    }
    /// Message segments, oldest first.
    pub fn message_segments(&self) -> Vec<SegmentSummary> {
        unimplemented!()
    }
    /// Drops whole message segments that lie before `first` and are purged from the Raft log; answers the first message
    /// that is kept. The last segment always stays. Files are deleted by the next checkpoint rounds.
    pub fn drop_messages_before(&self, first: Sequence) -> Sequence {
        unimplemented!()
    }
    /// Writes a state checkpoint. Durable when it returns; the two newest are kept. Blocking.
    pub fn write_checkpoint(&self, at: LogId, state: Bytes) -> Result<(), CheckpointError> {
        unimplemented!()
    }
    /// The newest checkpoint, its manifest without the segments that were dropped since. Blocking.
    pub fn latest_checkpoint(&self) -> Result<Option<Checkpoint>, ReadError> {
        unimplemented!()
    }
    /// Log id of the newest checkpoint (no disk access).
    pub fn checkpoint_log_id(&self) -> Option<LogId> {
        unimplemented!()
    }
    /// Bytes of a message segment's frames, every frame in them verified; may end earlier than asked, at a frame's end, but
    /// a frame larger than `len` comes whole. `offset` must be a frame's start. Blocking.
    pub fn read_segment_range(&self, segment: LogIndex, offset: u64, len: u64) -> Result<Bytes, ReadError> {
        unimplemented!()
    }
    /// Starts installing a snapshot. Blocking. Only one at a time; a new one replaces the staging area of the old one.
    pub fn begin_install(self: &Arc<Self>, checkpoint: Checkpoint) -> Result<Install, InstallError> {
        unimplemented!()
    }
    /// Damage met by reads since the store was opened.
    pub fn condition(&self) -> GroupCondition {
        unimplemented!()
    }
    /// Verifies message segments from the one that holds `from` on, up to about `max_bytes`: answers the log index to
    /// continue at, `None` when the end was reached. For scrubbing. Blocking.
    pub fn verify(&self, from: LogIndex, max_bytes: u64) -> Result<Option<LogIndex>, ReadError> {
        unimplemented!()
    }
}

/// A snapshot on its way in. Dropping it leaves the old state.
pub struct Install;

impl Install {
    /// What is still needed, in order. Fetch with `read_segment_range` of the sender.
    pub fn missing(&self) -> Vec<MissingRange> {
        unimplemented!()
    }
    /// Adds bytes of a segment at `offset`, in order within the segment. A damaged segment is forgotten and `missing` again. Blocking.
    pub fn write(&mut self, segment: LogIndex, offset: u64, bytes: &[u8]) -> Result<(), InstallError> {
        unimplemented!()
    }
    /// Switches over: afterwards `last_purged` is the checkpoint's log id, entries above it that belong to the same log stay,
    /// and the vote is unchanged. Runs on the large writer; `done` is called when the new state is durable. Operations that are
    /// queued meanwhile wait. A crash leaves the old or the new state.
    pub fn finish(self, done: FlushDone) -> Result<(), InstallError> {
        unimplemented!()
    }
}

#[cfg(any(test, feature = "sim"))]
#[derive(Clone)]
pub struct SimDisk;
#[cfg(any(test, feature = "sim"))]
impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64) -> Self {
        unimplemented!()
    }
    /// As an `Arc<dyn Disk>`.
    pub fn as_disk(&self) -> Arc<dyn Disk> {
        unimplemented!()
    }
}
