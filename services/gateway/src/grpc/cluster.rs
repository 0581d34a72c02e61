//! `ptah.api.v1.ClusterService`.

use std::sync::Arc;

use ptah_proto::api::v1 as pb;
use ptah_proto::api::v1::cluster_service_server::ClusterService;
use ptah_proto::common::v1 as common;
use ptah_rpc::records::NodeDuty;
use ptah_types::NodeId;
use tonic::{Request, Response, Status};

use super::Services;
use super::convert::status;
use super::door::caller;
use crate::cluster::{ClusterStatus, NodeStatus};
use crate::error::GatewayError;

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

    async fn drain_node(
        &self,
        request: Request<pb::DrainNodeRequest>,
    ) -> Result<Response<pb::DrainNodeResponse>, Status> {
        let node = request.get_ref().node_id;
        self.set_duty(&request, node, NodeDuty::Draining, false).await?;
        Ok(Response::new(pb::DrainNodeResponse {}))
    }

    async fn undrain_node(
        &self,
        request: Request<pb::UndrainNodeRequest>,
    ) -> Result<Response<pb::UndrainNodeResponse>, Status> {
        let node = request.get_ref().node_id;
        self.set_duty(&request, node, NodeDuty::Serving, false).await?;
        Ok(Response::new(pb::UndrainNodeResponse {}))
    }

    async fn forget_node(
        &self,
        request: Request<pb::ForgetNodeRequest>,
    ) -> Result<Response<pb::ForgetNodeResponse>, Status> {
        let (node, accept_loss) = (request.get_ref().node_id, request.get_ref().accept_loss);
        self.set_duty(&request, node, NodeDuty::Forgotten, accept_loss)
            .await?;
        Ok(Response::new(pb::ForgetNodeResponse {}))
    }
}

impl ClusterApi {
    async fn set_duty<T>(
        &self,
        request: &Request<T>,
        node: u64,
        duty: NodeDuty,
        accept_loss: bool,
    ) -> Result<(), Status> {
        let caller = caller(request)?;
        let change = async {
            let node = NodeId::new(node).map_err(|error| GatewayError::invalid(error.to_string()))?;
            let cluster = &self.0.cluster;
            cluster.set_duty(&caller.principal, node, duty, accept_loss).await
        };
        change.await.map_err(|error| status(&error))
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
        duty: common::NodeDuty::from(node.duty).into(),
        placed_replicas: node.placed,
    }
}
