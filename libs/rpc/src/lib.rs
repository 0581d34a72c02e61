//! gRPC plumbing: network port, servers, channels, deadlines, retry, cluster secret, typed internal clients.
//!
//! Everything between Ptah's processes goes through here, so that limits, deadlines, credentials and the form of
//! errors are decided once. Generated types stop here and at the services' `grpc` modules: clients take and give
//! domain types, except for the long streams that carry messages.
//!
//! Elsewhere: what a call does (services), the contracts themselves (`ptah-proto`).

mod budget;
mod call;
mod channels;
pub mod clients;
pub mod convert;
mod error;
mod network;
pub mod records;
mod retry;
mod secret;
mod server;
mod wire;

pub use budget::{BudgetPermit, CurrentMessage, IncomingMessages, MessageBudget, RequestBody, RequestLimits};
pub(crate) use call::begin;
pub use call::{CallEffect, call};
pub use channels::{ChannelOptions, Channels, Credentials, RpcChannel};
pub use clients::{ManagementClient, MetadataClient, NodeClient, PartitionClient, ReplicaClient};
pub use convert::{ConversionError, kind_from_proto, kind_to_proto};
pub use error::{RpcError, code_of, to_status};
pub use network::{BoxIo, InProcessNetwork, Io, Listener, Network, TcpNetwork, bind};
pub use retry::{Attempt, RetryPolicy, retry};
pub use secret::ClusterSecret;
pub use server::{ConnectionCut, Peer, Server, ServerHandle, ServerOptions};
pub use wire::{agree_wire, wire_range};

/// Largest gRPC message in bytes (66 MiB): the largest batch with room for its envelope.
///
/// Generated servers and clients know limits of their own: give them this one with `max_decoding_message_size`
/// and `max_encoding_message_size`.
pub const MAX_RPC_MESSAGE_BYTES: usize = 66 << 20;
