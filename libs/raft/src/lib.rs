//! Replication: the only crate that sees openraft.
//!
//! A [`RaftHost`] runs all replicas of a storage node over one store (`ptah-segment-log`) and one transport; a
//! [`Replica`] is the handle to one of them. A replica's leader proposes batches and commands; every replica applies
//! them to a `ptah_partition::Partition`, in the same order.
//!
//! Invariants: what is answered as committed is on disk on a majority; sequences are dense; a replica that cannot
//! prove that its log is complete does not vote, and one that lost its disk is never made anew under the same id.
//!
//! Elsewhere: which messages are accepted and who reads them (`ptah-partition`, the storage node), where replicas are
//! placed (control plane), files (`ptah-segment-log`).

mod admission;
mod applied;
mod blocking;
mod cell;
mod checkpoint_codec;
mod detector;
mod directory;
mod drivers;
mod error;
mod handover;
mod holds;
mod host;
mod install;
mod leaders;
mod log_store;
mod maintenance;
mod membership;
mod metrics;
mod offer;
mod options;
mod proposal;
mod pulse;
mod quiesce;
mod record;
mod replica;
mod runtime;
mod shield;
mod snapshot;
mod state_machine;
mod store_metrics;
mod supervisor;
mod takeover;
mod transport;
mod trouble;
mod types;
mod watchers;

pub use applied::AppliedTo;
pub use cell::{Leadership, ReplicaSpec, ReplicaState, ReplicaStatus};
pub use error::{
    EnsureError, MembershipError, OpenError, ReadMessagesError, RemoveError, StopError, TransferError,
};
pub use host::{DiskSpace, HostParts, RaftHost};
pub use leaders::{GroupLeadership, LeaderWatch};
pub use membership::{GroupMembers, MembersStep};
pub use options::HostOptions;
pub use proposal::{Committed, Done, Outcome, ProposeError};
pub use replica::{Replica, StoredBatch};
pub use transport::grpc::TransportService;
