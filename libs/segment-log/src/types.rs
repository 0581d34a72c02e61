//! Values that the store and its callers exchange.

use std::path::PathBuf;

use bytes::Bytes;
use ptah_types::{
    ClusterId, LogId, LogIndex, NodeId, PartitionKey, RaftGroupId, ReplicaId, Sequence, Term, Timestamp,
};

use crate::Damage;

/// Whose data a directory holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The storage node.
    pub node: NodeId,
}

/// What a group is, for ever.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupSpec {
    /// The Raft group.
    pub group: RaftGroupId,
    /// The replica of it that lives here.
    pub replica: ReplicaId,
    /// The partition.
    pub key: PartitionKey,
    /// A segment is closed before it would exceed this size. Must be equal on all replicas.
    pub segment_bytes: u64,
}

/// Whether a group may be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GroupCondition {
    /// Everything that was acknowledged is there.
    Healthy,
    /// It cannot be proven that everything that was acknowledged is there: the replica may not vote. Its files are
    /// kept as they are.
    Damaged(Vec<Damage>),
}

/// One group of a store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupInfo {
    /// The Raft group.
    pub group: RaftGroupId,
    /// What it is; `None` when even that cannot be read.
    pub spec: Option<GroupSpec>,
    /// Whether it may be used.
    pub condition: GroupCondition,
    /// Where its files are.
    pub path: PathBuf,
}

/// A Raft vote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VoteRecord {
    /// The term.
    pub term: Term,
    /// The candidate or leader.
    pub voted_for: Option<ReplicaId>,
    /// Whether a majority granted it.
    pub committed: bool,
}

/// One message segment in a checkpoint's manifest: the first `length` bytes of its frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ManifestSegment {
    /// Log index of the first frame: the segment's name.
    pub first_index: LogIndex,
    /// Log id of the last frame within `length`.
    pub last: LogId,
    /// Sequence of the first message.
    pub first_sequence: Sequence,
    /// Sequence after the last message within `length`.
    pub next_sequence: Sequence,
    /// Bytes of frames that the checkpoint covers.
    pub length: u64,
    /// CRC-32C of those bytes.
    pub crc: u32,
    /// Time of the first frame.
    pub first_timestamp: Timestamp,
    /// Highest time of a frame within `length`.
    pub last_timestamp: Timestamp,
}

/// The message segments that a checkpoint covers, oldest first; the last one may be covered in part.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Manifest {
    /// The segments.
    pub segments: Vec<ManifestSegment>,
    /// Sequence of the message after the checkpoint; also right when no segment is left.
    pub next_sequence: Option<Sequence>,
}

/// A state checkpoint: opaque state at a log id, and the message segments below it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    /// Last log entry that the state contains.
    pub at: LogId,
    /// The state, opaque here.
    pub state: Bytes,
    /// The message segments.
    pub manifest: Manifest,
}

/// A message segment as retention sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentSummary {
    /// Log index of the first frame: the segment's name.
    pub first_index: LogIndex,
    /// Log index of the last frame.
    pub last_index: LogIndex,
    /// First message.
    pub first_sequence: Sequence,
    /// After the last message.
    pub next_sequence: Sequence,
    /// Bytes of frames.
    pub bytes: u64,
    /// Time of the first frame.
    pub first_timestamp: Timestamp,
    /// Highest time of a frame.
    pub last_timestamp: Timestamp,
    /// Whether no more frames are added to it.
    pub sealed: bool,
}

/// A piece of a segment that an install still needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MissingRange {
    /// Log index of the segment's first frame.
    pub segment: LogIndex,
    /// First byte of its frames that is needed.
    pub offset: u64,
    /// Bytes needed.
    pub len: u64,
}

/// What a driver should do next; given to the waker of [`crate::Store::set_waker`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Work {
    /// Call [`crate::Store::commit_pending`].
    Commit,
    /// Call [`crate::Store::write_large_pending`].
    Large,
    /// Call [`crate::Store::checkpoint_round`] (soon).
    Checkpoint,
    /// Appends that were refused with `WouldExceed` may be tried again.
    Room,
}

/// What one call of `commit_pending` or `seal` did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CommitOutcome {
    /// Nothing was queued.
    Idle,
    /// One unit is durable and its completions were called.
    Committed {
        /// Operations completed.
        completions: usize,
        /// Bytes written.
        bytes: u64,
        /// Whether more is queued.
        more: bool,
    },
    /// The store has failed; nothing is acknowledged any more. Stop the process.
    Failed(String),
}

/// What one call of `write_large_pending` did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LargeOutcome {
    /// Nothing was queued, or what is queued waits for a commit first.
    Idle,
    /// One piece was written or one job was finished.
    Progress,
    /// The store has failed; nothing is acknowledged any more. Stop the process.
    Failed(String),
}

/// How much one checkpoint round may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoundLimit {
    /// Most groups.
    pub groups: usize,
    /// No further group is started after this many bytes.
    pub bytes: u64,
}

impl Default for RoundLimit {
    fn default() -> Self {
        Self {
            groups: usize::MAX,
            bytes: u64::MAX,
        }
    }
}

/// What one checkpoint round did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RoundReport {
    /// Groups made durable in their own files.
    pub groups: usize,
    /// Bytes of frames written to segments.
    pub bytes: u64,
    /// Groups that still wait; call again.
    pub remaining: usize,
    /// Write-ahead log files recycled or deleted.
    pub recycled: usize,
    /// Segment files deleted.
    pub deleted: usize,
    /// Groups that could not be flushed, with the reason. The round goes on without them.
    pub failed: Vec<(RaftGroupId, String)>,
}

/// Room on the disk, seen with the reserve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// All bytes.
    pub total_bytes: u64,
    /// Bytes available.
    pub available_bytes: u64,
    /// Bytes that appends leave free.
    pub reserve_bytes: u64,
    /// Parts of a hundred in use.
    pub used_percent: u8,
    /// Whether appends are refused now.
    pub refusing: bool,
}

/// Queues now; compare with [`crate::Options`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pressure {
    /// Bytes that wait for the disk.
    pub queued_bytes: u64,
    /// Bytes of frames in memory that are not in their segment yet.
    pub unflushed_bytes: u64,
    /// Write-ahead log that is not recycled.
    pub wal_bytes: u64,
}

/// Counters since the store was opened, and sizes now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Syncs of the write-ahead log.
    pub wal_syncs: u64,
    /// Commit units written, seals not counted.
    pub units: u64,
    /// Seals written.
    pub seals: u64,
    /// Bytes written to the write-ahead log.
    pub wal_bytes: u64,
    /// Operations completed.
    pub completions: u64,
    /// Write-ahead log files in use.
    pub wal_files: u64,
    /// Empty write-ahead log files.
    pub spare_files: u64,
    /// Files recycled.
    pub recycled_files: u64,
    /// Files made anew.
    pub created_files: u64,
    /// Bytes of write-ahead log since the last full checkpoint round.
    pub wal_bytes_since_checkpoint: u64,
    /// Bytes written to segments.
    pub segment_bytes: u64,
    /// Syncs of segments, meta slots and checkpoints.
    pub file_syncs: u64,
    /// Large frames written past the write-ahead log.
    pub large_frames: u64,
    /// Bytes of frames in memory that are not in their segment yet.
    pub unflushed_bytes: u64,
    /// Bytes of recently written frames in memory.
    pub recent_bytes: u64,
    /// Reads that were answered from memory.
    pub reads_from_memory: u64,
    /// Reads that went to files.
    pub reads_from_disk: u64,
    /// Reads that met damage.
    pub damaged_reads: u64,
    /// Appends refused for lack of room.
    pub refused_appends: u64,
}
