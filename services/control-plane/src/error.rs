//! Why the control plane refuses.

use ptah_rpc::RpcError;
use ptah_types::{Boundary, Denied, ErrorKind, NodeId, StationId};

use crate::placement::PlacementError;

/// A call was refused, or is not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Another control plane decides.
    #[error("control plane `{holder}` decides now, not this one; call that one")]
    NotHolder {
        /// Which.
        holder: String,
    },
    /// Nobody is known to decide here.
    #[error("this control plane cannot decide: {why}; retry later")]
    NoLease {
        /// Why.
        why: String,
    },
    /// The lease is held, but not everything is known yet.
    #[error("this control plane is taking over: {why}; retry later")]
    TakingOver {
        /// What is missing.
        why: String,
    },
    /// The store refuses or does not answer.
    #[error("{action}: {source}")]
    Metadata {
        /// What was tried.
        action: &'static str,
        /// What it says.
        source: RpcError,
    },
    /// The records changed under every attempt.
    #[error("{action}: metadata changed under every attempt; retry")]
    Contended {
        /// What was tried.
        action: &'static str,
    },
    /// More waits than is taken.
    #[error("too many management calls wait; retry later")]
    Busy,
    /// The caller is nobody.
    #[error("user `{0}` is not known")]
    UnknownUser(String),
    /// The caller may not.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// More than a limit.
    #[error("{0}")]
    TooLarge(String),
    /// The tenant does not exist.
    #[error("tenant `{0}` does not exist")]
    TenantNotFound(String),
    /// The station does not exist.
    #[error("station `{0}` not found")]
    StationNotFound(String),
    /// The station exists with other settings.
    #[error("station `{station}` exists with {has}, not {wanted}; use another name or the same settings")]
    StationDiffers {
        /// Name.
        station: String,
        /// Setting that it has.
        has: String,
        /// Setting that was asked for.
        wanted: String,
    },
    /// The name can be mistaken for another one.
    #[error(
        "{kind} `{station}` cannot be made beside {other_kind} `{other}`: names of stations ignore upper and lower case, so that one could be mistaken for the other; use another name"
    )]
    NameTaken {
        /// Name.
        station: String,
        /// What it was to be.
        kind: &'static str,
        /// Name that is like it.
        other: String,
        /// What that one is.
        other_kind: &'static str,
    },
    /// Another station has the name of the one that was to be deleted.
    #[error(
        "station `{station}` with id {deleted} is deleted, and another one of that name was made since, which stays; delete again if that one is to go"
    )]
    MadeAnew {
        /// Name.
        station: String,
        /// The one that is gone.
        deleted: StationId,
    },
    /// Replicas cannot be placed.
    #[error("station `{station}`: {source}")]
    Placement {
        /// Name.
        station: String,
        /// Why.
        source: PlacementError,
    },
    /// The node does not exist.
    #[error("node {0} is not known; `ptah node ls` shows the nodes of the cluster")]
    NodeNotFound(NodeId),
    /// The node is not in a state for that.
    #[error("node {node}: {why}")]
    NodeConflict {
        /// The node.
        node: NodeId,
        /// What hinders, and what to do.
        why: String,
    },
    /// Versions or cluster do not fit.
    #[error("node {node} cannot join: {why}")]
    Incompatible {
        /// The node.
        node: NodeId,
        /// What does not fit, and what to do.
        why: String,
    },
    /// Id or address are taken.
    #[error("node {node} cannot join: {why}")]
    NodeTaken {
        /// The node.
        node: NodeId,
        /// By whom, and what to do.
        why: String,
    },
}

impl ControlError {
    /// An error of the store in an action.
    pub fn metadata(action: &'static str) -> impl Fn(RpcError) -> Self {
        move |source| Self::Metadata { action, source }
    }
}

impl Boundary for ControlError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotHolder { .. } => ErrorKind::NotLeader,
            Self::NoLease { .. } | Self::TakingOver { .. } | Self::Contended { .. } => ErrorKind::Unavailable,
            Self::Metadata { source, .. } => match source.kind {
                // Whether this service's caller did something wrong is decided here, not by the store.
                ErrorKind::Unavailable | ErrorKind::DeadlineExceeded | ErrorKind::Exhausted => {
                    ErrorKind::Unavailable
                }
                ErrorKind::OutcomeUnknown => ErrorKind::OutcomeUnknown,
                ErrorKind::DataDamaged => ErrorKind::DataDamaged,
                ErrorKind::TooLarge => ErrorKind::TooLarge,
                _ => ErrorKind::Internal,
            },
            Self::Busy => ErrorKind::Exhausted,
            Self::UnknownUser(_) => ErrorKind::Unauthenticated,
            Self::Denied(_) => ErrorKind::PermissionDenied,
            Self::Invalid(_) => ErrorKind::InvalidArgument,
            Self::TooLarge(_) => ErrorKind::TooLarge,
            Self::TenantNotFound(_) | Self::StationNotFound(_) | Self::NodeNotFound(_) => ErrorKind::NotFound,
            Self::NodeConflict { .. } => ErrorKind::Conflict,
            Self::StationDiffers { .. } | Self::NameTaken { .. } | Self::NodeTaken { .. } => {
                ErrorKind::AlreadyExists
            }
            Self::MadeAnew { .. } => ErrorKind::Conflict,
            Self::Placement { source, .. } => source.kind(),
            Self::Incompatible { .. } => ErrorKind::Incompatible,
        }
    }
}
