//! What can go wrong with a host and its replicas; proposals have [`crate::ProposeError`].

use std::time::Duration;

use ptah_types::{Boundary, ErrorKind, RaftGroupId, ReplicaId, Sequence};

/// Why a host was not opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] ptah_segment_log::OpenError),
    /// Options that cannot work together.
    #[error("invalid raft option: {0}")]
    Options(String),
    /// The operating system refused threads, or the runtime goes down.
    #[error("start storage drivers: {0}")]
    Drivers(std::io::Error),
}

impl Boundary for OpenError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::Options(_) => ErrorKind::InvalidArgument,
            Self::Drivers(_) => ErrorKind::Unavailable,
        }
    }
}

/// Why a replica was not taken in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnsureError {
    /// The group has another replica on this node: remove that one first, with its tombstone.
    #[error("group {} has replica {found} on this node, not {wanted}; remove that one first", group.to_hex())]
    OtherReplica {
        /// The group.
        group: RaftGroupId,
        /// What is here.
        found: ReplicaId,
        /// What was asked for.
        wanted: ReplicaId,
    },
    /// The specification contradicts itself.
    #[error("replica of group {} is not valid: {what}", group.to_hex())]
    Invalid {
        /// The group.
        group: RaftGroupId,
        /// What is wrong.
        what: &'static str,
    },
    /// The host stops.
    #[error("this node is stopping")]
    Stopping,
}

impl Boundary for EnsureError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::OtherReplica { .. } => ErrorKind::Conflict,
            Self::Invalid { .. } => ErrorKind::InvalidArgument,
            Self::Stopping => ErrorKind::Unavailable,
        }
    }
}

/// Why a replica was not removed. It is stopped and stays on disk; try again.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] ptah_segment_log::GroupError),
    /// The runtime goes down.
    #[error("remove group {}: {source}", group.to_hex())]
    Interrupted {
        /// The group.
        group: RaftGroupId,
        /// What happened.
        source: std::io::Error,
    },
    /// It cannot be told whether the replica is the one that is to go.
    #[error(
        "remove replica {replica} of group {}: the disk does not tell which replica it has of the group; move its \
         directory away if it is that one",
        group.to_hex()
    )]
    Unidentified {
        /// The group.
        group: RaftGroupId,
        /// The replica that is to go.
        replica: ReplicaId,
    },
}

impl Boundary for RemoveError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Unavailable
    }
}

/// Why messages were not read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadMessagesError {
    /// Retention dropped them.
    #[error("the messages were dropped; the first one that is kept is {first}")]
    Dropped {
        /// First message that is kept.
        first: Sequence,
    },
    /// They are damaged on this node; they are never served.
    #[error("messages are damaged on this node: {0}")]
    Damaged(String),
    /// The replica is not running, or the disk did not answer; may be retried.
    #[error("messages cannot be read now: {0}")]
    Unavailable(String),
}

impl Boundary for ReadMessagesError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Dropped { .. } => ErrorKind::NotFound,
            Self::Damaged(_) => ErrorKind::DataDamaged,
            Self::Unavailable(_) => ErrorKind::Unavailable,
        }
    }
}

/// Why leadership was not handed over. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// This replica does not lead.
    #[error("this replica does not lead the partition")]
    NotLeader,
    /// The other one is not a voter.
    #[error("replica {0} is not a voter of the group")]
    NotAVoter(ReplicaId),
    /// The replica is not running.
    #[error("replica is not running: {0}")]
    Unavailable(String),
}

impl Boundary for TransferError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotLeader => ErrorKind::NotLeader,
            Self::NotAVoter(_) => ErrorKind::InvalidArgument,
            Self::Unavailable(_) => ErrorKind::Unavailable,
        }
    }
}

/// Why the members of a group were not changed, or not completely: look at the membership and ask again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// This replica does not lead.
    #[error("this replica does not lead the partition")]
    NotLeader,
    /// The membership is not the one that the caller saw.
    #[error("the group's members changed since the caller looked: {0}")]
    Conflict(String),
    /// The change cannot be made.
    #[error("members cannot be changed so: {0}")]
    Invalid(String),
    /// New members do not catch up in time, or the replica is not running.
    #[error("members were not changed: {0}")]
    Unavailable(String),
    /// It may have happened.
    #[error("the change of members may have happened: {0}")]
    OutcomeUnknown(String),
}

impl Boundary for MembershipError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotLeader => ErrorKind::NotLeader,
            Self::Conflict(_) => ErrorKind::Conflict,
            Self::Invalid(_) => ErrorKind::InvalidArgument,
            Self::Unavailable(_) => ErrorKind::Unavailable,
            Self::OutcomeUnknown(_) => ErrorKind::OutcomeUnknown,
        }
    }
}

/// What a graceful stop left unfinished. What was acknowledged is safe in any case.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// Tasks did not end in time and were cut.
    #[error("raft tasks did not end within {deadline:?}: {}", names.join(", "))]
    Tasks {
        /// Their names.
        names: Vec<String>,
        /// The time they had.
        deadline: Duration,
    },
    /// The store was not closed cleanly; the next start recovers.
    #[error("close the store: {0}")]
    Store(std::io::Error),
}
