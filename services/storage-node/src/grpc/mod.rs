//! The node's gRPC services: decode, call, encode. Generated types do not leave this module.

mod append;
mod convert;
mod deliver;
mod fetch;
mod inbound;
mod leaders;
mod partitions;
mod replicas;

pub(crate) use partitions::PartitionGrpc;
pub(crate) use replicas::ReplicaGrpc;
