//! The transport's gRPC: the only place of this crate that sees generated types.

mod beats;
pub(crate) mod calls;
mod convert;
mod pings;
mod receive;
mod server;
mod streams;

use ptah_proto::raft::v1 as pb;
use ptah_rpc::{MAX_RPC_MESSAGE_BYTES, RpcChannel, wire_range};
use ptah_types::NodeId;

pub(crate) use pings::keep_pinging;
pub use server::TransportService;
pub(crate) use streams::start_streams;

use super::Transport;

type TransportClient = pb::raft_transport_service_client::RaftTransportServiceClient<RpcChannel>;

fn client(channel: RpcChannel) -> TransportClient {
    TransportClient::new(channel)
        .max_decoding_message_size(MAX_RPC_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_RPC_MESSAGE_BYTES)
}

impl Transport {
    fn hello(&self, to: NodeId) -> pb::Hello {
        pb::Hello {
            cluster_id: self.inner.identity.cluster.to_string(),
            from_node_id: self.inner.identity.node.get(),
            to_node_id: to.get(),
            wire: Some(wire_range()),
        }
    }
}
