//! `ptah.api.v1.ClusterService`.

use std::sync::Arc;

use ptah_proto::api::v1 as pb;
use ptah_proto::api::v1::cluster_service_server::ClusterService;
use tonic::{Request, Response, Status};

use super::Services;
use super::convert::status;
use super::door::caller;
use crate::cluster::{ClusterStatus, NodeStatus};

pub(super) struct ClusterApi(pub(super) Arc<Services>);

#[tonic::async_trait]
impl ClusterService for ClusterApi {
    async fn get_cluster_status(
        &self,
        request: Request<pb::GetClusterStatusRequest>,
    ) -> Result<Response<pb::GetClusterStatusResponse>, Status> {
        let caller = caller(&request)?;
        let cluster = self.0.cluster.status(&caller.principal).await;
        Ok(Response::new(cluster_to_proto(
            cluster.map_err(|error| status(&error))?,
        )))
    }
}

fn cluster_to_proto(cluster: ClusterStatus) -> pb::GetClusterStatusResponse {
    pb::GetClusterStatusResponse {
        cluster_id: cluster.cluster_id,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        nodes: cluster.nodes.into_iter().map(node_to_proto).collect(),
        stations: cluster.stations,
        partitions: cluster.partitions,
        partitions_without_leader: cluster.without_leader,
        partitions_under_replicated: cluster.under_replicated,
        troubles: cluster.troubles,
    }
}

fn node_to_proto(node: NodeStatus) -> pb::NodeStatus {
    pb::NodeStatus {
        node_id: node.node.get(),
        name: node.name,
        address: node.address,
        alive: node.alive,
        version: node.version,
        replicas: node.replicas,
        leaders: node.leaders,
        disk_free_bytes: node.disk.map(|disk| disk.free_bytes),
        disk_total_bytes: node.disk.map(|disk| disk.total_bytes),
        last_seen_ms_ago: node.last_seen_ms_ago,
        troubles: node.troubles,
    }
}
