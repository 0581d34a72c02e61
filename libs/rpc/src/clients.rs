//! Typed clients of the internal services.
//!
//! Domain types in and out, a deadline on every unary call, errors that say whether something can have happened.
//! The streams that carry messages stay in their generated form: one conversion less per batch.
//!
//! The domain types are also what the services' `grpc` modules decode into: each has conversions with its generated
//! twin in both directions.

mod management;
mod metadata;
mod node;
mod partition;
mod replica;

use std::time::Duration;

pub use management::{
    ConsumerGroupEnsured, CreateStation, DeleteStation, EnsureConsumerGroup, ManagementClient,
    NodeDescription, NodesDescribed, SetNodeDuty, StationCreated, StationUpdated, UpdateStation,
};
pub use metadata::{
    Changes, Lease, ListQuery, MetadataClient, RecordList, RecordPage, StoreInfo, WatchStream,
};
pub use node::{NodeClient, NodeRegistration, NodeReport, Registered, ReplicaReport, ReplicaState};
pub use partition::{
    ConsumerGroupProgress, ConsumerGroupRef, LeaderInfo, LeaderStream, LeaderUpdate, PartitionClient,
    PartitionDescription, SequenceRange,
};
pub use replica::{GroupMembers, PlacementOrder, ReplicaClient, ReplicaSpec, ReplicaTombstone};

/// Deadline of a unary call unless the client was given another one. A caller behind it gives up later.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
