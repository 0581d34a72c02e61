//! Why a call on a partition is refused, or what is not known about it.
//!
//! One enum for everything a led partition answers, so that each refusal is worded once. The `grpc` modules turn it into the
//! wire's error; whether it may be retried and whether it can have had an effect follows from its [`ErrorKind`].

use std::borrow::Cow;
use std::time::Duration;

use ptah_partition::AppendRefusal;
use ptah_rpc::RpcError;
use ptah_types::{Boundary, ConsumerGroupId, ErrorKind, NodeId, PartitionKey, RaftGroupId, Sequence};

/// Where to go instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeaderHint {
    /// The node that leads.
    pub(crate) node: NodeId,
    /// Where it listens.
    pub(crate) address: String,
}

/// A refusal, or an outcome that is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PartitionError {
    /// Another node leads, or nobody does at the moment. Nothing happened.
    #[error("raft group {group} is not led here{}", leader.as_ref().map_or("; no leader is known yet, retry".to_owned(), |l| format!("; go to node {} at {}", l.node, l.address)))]
    NotLeader {
        /// The group.
        group: RaftGroupId,
        /// The leader, if it is known.
        leader: Option<LeaderHint>,
    },
    /// The entry may or may not be in the log.
    #[error(
        "the outcome is not known: raft group {group} lost its leader or stopped before it was decided; retry with the same number"
    )]
    OutcomeUnknown {
        /// The group.
        group: RaftGroupId,
    },
    /// This node has no replica of the group.
    #[error("this node has no replica of raft group {group}; look up the placement again")]
    UnknownReplica {
        /// The group.
        group: RaftGroupId,
    },
    /// The group belongs to another partition than the caller thinks.
    #[error("raft group {group} is partition {actual}, not {asked}; look up the placement again")]
    OtherPartition {
        /// The group.
        group: RaftGroupId,
        /// Partition of the group.
        actual: PartitionKey,
        /// Partition that the caller named.
        asked: PartitionKey,
    },
    /// The caller routes by an older number of partitions.
    #[error("generation {asked} of partition {key} is older than {current}; look up the station again")]
    StaleGeneration {
        /// The partition.
        key: PartitionKey,
        /// The caller's.
        asked: u64,
        /// The partition's.
        current: u64,
    },
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// More than the limit.
    #[error("{what} has {size_bytes} bytes, the limit is {limit_bytes}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// A limit is reached for now.
    #[error("{what}; retry later")]
    Exhausted {
        /// The limit and what to do about it.
        what: &'static str,
        /// Earliest useful retry.
        retry_after: Duration,
    },
    /// The data disk has no room for further messages.
    #[error(
        "the data disk of node {node} is nearly full, it takes no messages; add room or delete stations, then retry"
    )]
    DiskFull {
        /// The node.
        node: NodeId,
    },
    /// A part of this node is not able to answer now. Nothing happened.
    #[error("{0}; retry")]
    Unavailable(Cow<'static, str>),
    /// The sequencer's word.
    #[error(transparent)]
    Append(#[from] AppendRefusal),
    /// The consumer group is not on the partition.
    #[error("consumer group {0} is not on this partition; ensure it first")]
    UnknownGroup(ConsumerGroupId),
    /// Sequences that were never handed out were acknowledged.
    #[error("message {0} was never delivered to this group, so it cannot be acknowledged")]
    NotDelivered(Sequence),
    /// What is stored cannot be read.
    #[error("stored messages of raft group {group} cannot be read: {why}")]
    Damaged {
        /// The group.
        group: RaftGroupId,
        /// What was found.
        why: String,
    },
    /// The consumer group exists with another name or start.
    #[error("{0}")]
    Conflict(String),
    /// The partition has as many consumer groups as it may.
    #[error("{0}")]
    TooManyGroups(String),
}

/// A disk does not get room sooner.
const DISK_PATIENCE: Duration = Duration::from_secs(1);

impl PartitionError {
    /// Number that the partition expects next of the session, when that is the reason.
    pub(crate) fn expected_number(&self) -> Option<u64> {
        match self {
            Self::Append(AppendRefusal::Gap { expected }) => Some(*expected),
            Self::Append(AppendRefusal::SessionExpired) => Some(1),
            _ => None,
        }
    }
}

impl Boundary for PartitionError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotLeader { .. } => ErrorKind::NotLeader,
            Self::OutcomeUnknown { .. } => ErrorKind::OutcomeUnknown,
            Self::UnknownReplica { .. } | Self::UnknownGroup(_) => ErrorKind::NotFound,
            Self::OtherPartition { .. } | Self::Invalid(_) | Self::NotDelivered(_) => {
                ErrorKind::InvalidArgument
            }
            Self::StaleGeneration { .. } | Self::Conflict(_) => ErrorKind::Conflict,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
            Self::Exhausted { .. } | Self::DiskFull { .. } | Self::TooManyGroups(_) => ErrorKind::Exhausted,
            Self::Unavailable(_) => ErrorKind::Unavailable,
            Self::Append(refusal) => refusal.kind(),
            Self::Damaged { .. } => ErrorKind::DataDamaged,
        }
    }
}

impl From<PartitionError> for RpcError {
    fn from(error: PartitionError) -> Self {
        let rpc = Self::new(error.kind(), error.to_string());
        match error {
            PartitionError::NotLeader {
                leader: Some(hint), ..
            } => rpc.with_leader(hint.node, hint.address),
            PartitionError::Exhausted { retry_after, .. } => rpc.with_retry_after(retry_after),
            PartitionError::DiskFull { .. } => rpc.with_retry_after(DISK_PATIENCE),
            _ => rpc,
        }
    }
}
