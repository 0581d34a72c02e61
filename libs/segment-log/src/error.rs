//! What can go wrong, told apart by what the caller may do.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use ptah_types::{Boundary, ClusterId, ErrorKind, LogId, LogIndex, NodeId, RaftGroupId, ReplicaId, Sequence};

use crate::Frame;

/// Why a data directory was not opened. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file system refused.
    #[error("{action} {}: {source}; check that the directory exists and that this user may read and write it", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The file system's answer.
        source: io::Error,
    },
    /// Another process uses the directory.
    #[error("data directory is in use: {} is locked by another process; stop it or configure another directory", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The directory belongs to another cluster.
    #[error("{} belongs to cluster {found}, this node is configured for cluster {expected}; configure the right directory or cluster", path.display())]
    OtherCluster {
        /// The identity file.
        path: PathBuf,
        /// What is on disk.
        found: ClusterId,
        /// What is configured.
        expected: ClusterId,
    },
    /// The directory belongs to another node.
    #[error("{} belongs to node {found}, this is node {expected}; configure the right directory or node id", path.display())]
    OtherNode {
        /// The identity file.
        path: PathBuf,
        /// What is on disk.
        found: NodeId,
        /// What is configured.
        expected: NodeId,
    },
    /// Written by a newer Ptah.
    #[error("{} has disk format {found}, this build reads {readable}; start the newer Ptah again", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Format on disk.
        found: u32,
        /// Formats that this build reads.
        readable: String,
    },
    /// There is data, but nothing that says whose.
    #[error("{} is missing but the directory holds data; restore the file, or move the directory away and let this node start as a new one", path.display())]
    IdentityMissing {
        /// The identity file.
        path: PathBuf,
    },
    /// A file of the whole store cannot be read.
    #[error("{} is damaged ({what}); restore the file from a copy, or move the directory away and let this node start as a new one", path.display())]
    StoreDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Options that cannot work.
    #[error("invalid storage option: {0}")]
    Options(String),
}

impl OpenError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

impl Boundary for OpenError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } | Self::Locked { .. } => ErrorKind::Unavailable,
            Self::OtherCluster { .. } | Self::OtherNode { .. } | Self::NewerFormat { .. } => {
                ErrorKind::Incompatible
            }
            Self::IdentityMissing { .. } | Self::StoreDamaged { .. } => ErrorKind::DataDamaged,
            Self::Options(_) => ErrorKind::InvalidArgument,
        }
    }
}

/// Durable bytes that are not what was written. They are kept as they are and never served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is damaged at byte {position}: {what}", file.display())]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Byte in the file where the damage was noticed.
    pub position: u64,
    /// What is wrong.
    pub what: String,
}

impl Damage {
    pub(crate) fn new(file: impl Into<PathBuf>, position: u64, what: impl fmt::Display) -> Self {
        Self {
            file: file.into(),
            position,
            what: what.to_string(),
        }
    }
}

/// Why a read gave nothing. None of these had an effect.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The bytes are damaged. Repair from another replica; a retry gives the same answer.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// The log index was purged.
    #[error("log index {asked} was purged; the log starts at {first}")]
    Purged {
        /// What was asked for.
        asked: LogIndex,
        /// First index that the log holds or will hold.
        first: LogIndex,
    },
    /// The messages were dropped by retention.
    #[error("sequence {asked} was dropped; the first message is {first}")]
    Dropped {
        /// What was asked for.
        asked: Sequence,
        /// First message that is kept.
        first: Sequence,
    },
    /// The named segment or range does not exist (any more).
    #[error("message segment {segment} has no bytes {from}..{to}; ask for the newest checkpoint")]
    NoSuchRange {
        /// The segment's first log index.
        segment: LogIndex,
        /// First position asked for.
        from: u64,
        /// Position after the last one asked for.
        to: u64,
    },
    /// The file system refused; may be retried.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The file system's answer.
        source: Arc<io::Error>,
    },
    /// The log changed under the reader again and again; may be retried.
    #[error("log of group {0} changed while it was read")]
    Busy(RaftGroupId),
}

impl ReadError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source: Arc::new(source),
        }
    }
}

impl Boundary for ReadError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Damaged(_) => ErrorKind::DataDamaged,
            Self::Purged { .. } | Self::Dropped { .. } | Self::NoSuchRange { .. } => ErrorKind::NotFound,
            Self::Io { .. } | Self::Busy(_) => ErrorKind::Unavailable,
        }
    }
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        let kind = match &error {
            ReadError::Damaged(_) => io::ErrorKind::InvalidData,
            ReadError::Io { source, .. } => source.kind(),
            ReadError::Busy(_) => io::ErrorKind::WouldBlock,
            _ => io::ErrorKind::NotFound,
        };
        io::Error::new(kind, error)
    }
}

/// Called once, after the bytes survive power loss, or with the reason why they may not.
pub type FlushDone = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Why an append was not taken. Nothing happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedReason {
    /// The queue to the disk, or the memory for unflushed frames, is full. Wait for [`crate::Work::Room`] and try again.
    #[error("storage queue holds {queued_bytes} of {limit_bytes} bytes; try again when there is room")]
    WouldExceed {
        /// Bytes queued now.
        queued_bytes: u64,
        /// The bound.
        limit_bytes: u64,
    },
    /// The disk is nearly full.
    #[error("disk has {available_bytes} bytes left, {reserve_bytes} are reserved; free space on the disk")]
    DiskFull {
        /// Bytes available.
        available_bytes: u64,
        /// Bytes that are kept for votes, write-ahead log and checkpoints.
        reserve_bytes: u64,
    },
    /// The group's own files cannot be written. Its log is kept; wait for [`crate::Work::Room`] and try again.
    #[error("files of the group cannot be written ({why}); try again when the disk takes them")]
    Unwritable {
        /// What the file system said last.
        why: String,
    },
    /// The frame is not the next one. Wait for a running install, or truncate first.
    #[error("log expects index {expected}, the frame has {found}")]
    Gap {
        /// Next index of the log.
        expected: LogIndex,
        /// Index of the frame.
        found: LogIndex,
    },
    /// The frame's messages are not the next ones, or the frame contradicts itself: a defect of the writer.
    #[error("frame {index} is invalid: {what}")]
    Invalid {
        /// Index of the frame.
        index: LogIndex,
        /// What is wrong.
        what: String,
    },
    /// The store has failed or the group was dropped; nothing is taken any more.
    #[error("{0}")]
    Failed(String),
}

/// An append that was not taken, given back whole so that it can be tried again.
pub struct AppendRefused {
    /// Why.
    pub reason: RefusedReason,
    /// The frames.
    pub frames: Vec<Frame>,
    /// The callback, not called.
    pub done: FlushDone,
}

impl fmt::Debug for AppendRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "AppendRefused({:?}, {} frames)",
            self.reason,
            self.frames.len()
        )
    }
}

impl From<AppendRefused> for io::Error {
    fn from(refused: AppendRefused) -> Self {
        let kind = match refused.reason {
            RefusedReason::WouldExceed { .. } | RefusedReason::Unwritable { .. } => io::ErrorKind::WouldBlock,
            RefusedReason::DiskFull { .. } => io::ErrorKind::StorageFull,
            RefusedReason::Gap { .. } | RefusedReason::Invalid { .. } => io::ErrorKind::InvalidInput,
            RefusedReason::Failed(_) => io::ErrorKind::BrokenPipe,
        };
        io::Error::new(kind, refused.reason)
    }
}

/// Why a group was not made, dropped or set aside.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The group is there already.
    #[error("group {} exists on this node", .0.to_hex())]
    Exists(RaftGroupId),
    /// This replica, or a later one, was on this node before: its state is lost or was dropped. Use a new replica id.
    #[error("replica {replica} of group {} was on this node before; an id is never used again, place a new replica", group.to_hex())]
    ReplicaUsed {
        /// The group.
        group: RaftGroupId,
        /// Newest replica that was here.
        replica: ReplicaId,
    },
    /// No such group.
    #[error("group {} is not on this node", .0.to_hex())]
    NotFound(RaftGroupId),
    /// The file system refused, or the store has failed before.
    #[error("{action} group {}: {source}", group.to_hex())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The group.
        group: RaftGroupId,
        /// The file system's answer.
        source: io::Error,
    },
}

/// Why a checkpoint was not written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The log up to it is not durable yet; try again after the next commit.
    #[error("checkpoint at {at} is ahead of the durable log, which ends at {flushed:?}")]
    AheadOfLog {
        /// The checkpoint.
        at: LogId,
        /// Durable end of the log.
        flushed: Option<LogId>,
    },
    /// The log does not hold this entry, or a newer checkpoint exists.
    #[error("checkpoint at {at} does not belong to the log: {what}")]
    NotInLog {
        /// The checkpoint.
        at: LogId,
        /// What is wrong.
        what: &'static str,
    },
    /// Reading what it covers failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Writing it failed; the older checkpoint stays.
    #[error("write checkpoint: {0}")]
    Io(#[from] io::Error),
}

/// Why a snapshot was not installed. The old state stays.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The snapshot is behind the local one or contradicts itself.
    #[error("snapshot is refused: {0}")]
    Invalid(String),
    /// Another snapshot is on its way into this group. May be retried when it is done or given up.
    #[error("another snapshot is being installed; try again when it is done")]
    Busy,
    /// A range does not fit the manifest.
    #[error("segment {segment} expects bytes at {expected}, got {found}")]
    OutOfOrder {
        /// First log index of the segment.
        segment: LogIndex,
        /// Next byte expected.
        expected: u64,
        /// Position given.
        found: u64,
    },
    /// What arrived is not what the manifest says; fetch the segment again.
    #[error("segment {segment} arrived damaged: {what}; fetch it again")]
    Damaged {
        /// First log index of the segment.
        segment: LogIndex,
        /// What is wrong.
        what: String,
    },
    /// The file system refused, or the store has failed before.
    #[error("install snapshot: {0}")]
    Io(#[from] io::Error),
    /// Reading local data failed.
    #[error(transparent)]
    Read(#[from] ReadError),
}
