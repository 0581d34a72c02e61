//! What can go wrong at the gateway, as one sentence with a kind.

use std::sync::Arc;
use std::time::Duration;

use ptah_rpc::RpcError;
use ptah_types::{Boundary, Denied, ErrorKind, InvalidName};

/// A failure that a client sees. Cheap to clone, because one failure can be the answer to thousands of messages.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GatewayError {
    /// No such station.
    #[error("station `{station}` not found in tenant `{tenant}`; create it first")]
    StationNotFound {
        /// Tenant of the request.
        tenant: String,
        /// Name as given.
        station: String,
    },
    /// The station exists, the partition does not.
    #[error("partition {partition} not found: station `{station}` has partitions 1 to {partitions}")]
    PartitionNotFound {
        /// Station.
        station: String,
        /// Partition as given.
        partition: u32,
        /// Partitions of the station.
        partitions: u32,
    },
    /// The record of the partition's placement has not come yet.
    #[error("partition {partition} of station `{station}` is not placed yet; retry")]
    NotPlaced {
        /// Station.
        station: String,
        /// Partition.
        partition: u32,
    },
    /// A payload above the station's limit.
    #[error("payload of {bytes} bytes is over the limit of {limit} bytes of station `{station}`")]
    PayloadTooLarge {
        /// Station.
        station: String,
        /// Payload as given.
        bytes: u64,
        /// Limit of the station.
        limit: u64,
    },
    /// Headers and names above the limit.
    #[error(
        "headers, subject, key and id of the message have {bytes} bytes together, over the limit of {limit}"
    )]
    MetaTooLarge {
        /// As given.
        bytes: usize,
        /// Limit.
        limit: usize,
    },
    /// A list that is too long, or bytes above a limit that is not the station's.
    #[error("{what} has {given}, over the limit of {limit}; send less at a time")]
    TooMany {
        /// What has a limit.
        what: &'static str,
        /// As given.
        given: u64,
        /// Limit.
        limit: u64,
    },
    /// Something else in the request is wrong.
    #[error("{0}")]
    Invalid(Arc<str>),
    /// A name that is no name.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    /// No or wrong credentials.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// Known, but not allowed.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The caller belongs to another tenant.
    #[error("user `{user}` belongs to tenant `{own}` and may not use tenant `{wanted}`")]
    OtherTenant {
        /// Caller.
        user: String,
        /// Tenant of the caller.
        own: String,
        /// Tenant of the request.
        wanted: String,
    },
    /// A bounded resource is in use up to its bound.
    #[error("{what}; retry later")]
    Exhausted {
        /// What is full.
        what: &'static str,
    },
    /// No leader took the messages in the time given. None of them is stored.
    #[error(
        "partition {partition} of station `{station}` took nothing for {waited_ms} ms ({why}); nothing is stored, retry"
    )]
    AppendUnavailable {
        /// Station.
        station: Arc<str>,
        /// Partition.
        partition: u32,
        /// How long it was tried.
        waited_ms: u64,
        /// Last reason known.
        why: Arc<str>,
    },
    /// The messages may be stored.
    #[error(
        "partition {partition} of station `{station}` did not say whether the messages are stored ({why}); read them back before sending again"
    )]
    AppendUnknown {
        /// Station.
        station: Arc<str>,
        /// Partition.
        partition: u32,
        /// Last reason known.
        why: Arc<str>,
    },
    /// Something needed does not answer; nothing happened.
    #[error("{0}")]
    Unavailable(Arc<str>),
    /// The time is over and it may have happened.
    #[error("{0}")]
    OutcomeUnknown(Arc<str>),
    /// The state of a thing forbids the call.
    #[error("{0}")]
    Conflict(Arc<str>),
    /// Bytes that do not match their checksum or format.
    #[error("{0}")]
    Damaged(Arc<str>),
    /// The gateway is about to end.
    #[error("this gateway is stopping; connect to another one")]
    Stopping,
    /// What another service said.
    #[error("{message}")]
    Remote {
        /// Kind.
        kind: ErrorKind,
        /// Sentence.
        message: Arc<str>,
        /// Earliest useful retry.
        retry_after: Option<Duration>,
    },
}

impl GatewayError {
    /// The request is wrong, in a sentence.
    pub fn invalid(why: impl Into<String>) -> Self {
        Self::Invalid(why.into().into())
    }

    /// Earliest useful retry, if known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Remote { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl Boundary for GatewayError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::StationNotFound { .. } | Self::PartitionNotFound { .. } => ErrorKind::NotFound,
            Self::PayloadTooLarge { .. } | Self::MetaTooLarge { .. } | Self::TooMany { .. } => {
                ErrorKind::TooLarge
            }
            Self::Invalid(_) | Self::InvalidName(_) => ErrorKind::InvalidArgument,
            Self::Unauthenticated(_) => ErrorKind::Unauthenticated,
            Self::Denied(_) | Self::OtherTenant { .. } => ErrorKind::PermissionDenied,
            Self::Exhausted { .. } => ErrorKind::Exhausted,
            Self::NotPlaced { .. }
            | Self::AppendUnavailable { .. }
            | Self::Unavailable(_)
            | Self::Stopping => ErrorKind::Unavailable,
            Self::AppendUnknown { .. } | Self::OutcomeUnknown(_) => ErrorKind::OutcomeUnknown,
            Self::Conflict(_) => ErrorKind::Conflict,
            Self::Damaged(_) => ErrorKind::DataDamaged,
            Self::Remote { kind, .. } => *kind,
        }
    }
}

impl From<RpcError> for GatewayError {
    fn from(error: RpcError) -> Self {
        // "Not leader" is a direction between services, not an answer to a client.
        let kind = match error.kind {
            ErrorKind::NotLeader => ErrorKind::Unavailable,
            kind => kind,
        };
        Self::Remote {
            kind,
            message: error.message.into(),
            retry_after: error.retry_after,
        }
    }
}
