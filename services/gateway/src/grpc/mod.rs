//! Where generated types live: the public services, and the clients of the other services.
//!
//! Public side: [`door`] signs callers in, [`station`], [`message`] and [`cluster`] decode, call and encode,
//! [`limits`] bounds what is decoded, [`outgoing`] holds memory until an answer has left.
//! Inner side: [`append_link`], [`deliver_link`] and [`nodes`] speak to storage nodes, [`metadata`] to the store.

pub mod append_link;
pub mod catalog_file;
mod cluster;
mod consume_stream;
mod convert;
pub mod deliver_link;
mod door;
mod limits;
mod message;
pub mod metadata;
pub mod nodes;
mod outgoing;
mod produce_stream;
mod station;

use std::sync::Arc;

use ptah_proto::api::v1::cluster_service_server::ClusterServiceServer;
use ptah_proto::api::v1::message_service_server::MessageServiceServer;
use ptah_proto::api::v1::station_service_server::StationServiceServer;
use ptah_rpc::{MAX_RPC_MESSAGE_BYTES, Server};
use ptah_service::Tasks;

use crate::auth::Auth;
use crate::cluster::Cluster;
use crate::consume::Consumer;
use crate::metrics::{ConsumeMetrics, ProduceMetrics};
use crate::produce::Producer;
use crate::stations::Stations;

use door::Door;

/// What the public services call.
#[derive(Clone)]
pub struct Services {
    /// Sign-in.
    pub auth: Auth,
    /// Messages in.
    pub producer: Producer,
    /// Messages out.
    pub consumer: Consumer,
    /// Managing stations.
    pub stations: Stations,
    /// State of the cluster.
    pub cluster: Cluster,
    /// Owner of the streams' tasks.
    pub tasks: Tasks,
    /// Counters.
    pub produce_metrics: ProduceMetrics,
    /// Counters.
    pub consume_metrics: ConsumeMetrics,
}

/// Adds the public services to a server.
pub fn add_to(server: Server, services: Services) -> Server {
    let services = Arc::new(services);
    let auth = services.auth.clone();
    let stations = StationServiceServer::new(station::StationApi(Arc::clone(&services)))
        .max_decoding_message_size(MAX_RPC_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_RPC_MESSAGE_BYTES);
    let messages = MessageServiceServer::new(message::MessageApi(Arc::clone(&services)))
        .max_decoding_message_size(MAX_RPC_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_RPC_MESSAGE_BYTES);
    let cluster = ClusterServiceServer::new(cluster::ClusterApi(services))
        .max_decoding_message_size(MAX_RPC_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_RPC_MESSAGE_BYTES);
    server
        .request_limits(limits::request_limits())
        .add_service(Door::new(stations, auth.clone()))
        .add_service(Door::new(messages, auth.clone()))
        .add_service(Door::new(cluster, auth))
}
