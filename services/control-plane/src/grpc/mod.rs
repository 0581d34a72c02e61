//! The services on the wire: decode, call, encode.

use ptah_proto::control::v1 as pb;
use ptah_proto::control::v1::management_service_server::ManagementService;
use ptah_proto::control::v1::node_service_server::NodeService;
use ptah_rpc::clients::{
    CreateStation, DeleteStation, EnsureConsumerGroup, NodeRegistration, NodeReport, SetNodeDuty,
    UpdateStation,
};
use ptah_rpc::{ConversionError, to_status};
use tonic::{Request, Response, Status};

use crate::cluster::Cluster;
use crate::decide::Decisions;
use crate::error::ControlError;

pub(crate) use ptah_proto::control::v1::management_service_server::ManagementServiceServer;
pub(crate) use ptah_proto::control::v1::node_service_server::NodeServiceServer;

/// The handlers of both services.
#[derive(Clone)]
pub(crate) struct Handlers {
    pub(crate) decisions: Decisions,
    pub(crate) cluster: Cluster,
}

fn refused(error: ControlError) -> Status {
    to_status(&error)
}

#[tonic::async_trait]
impl ManagementService for Handlers {
    async fn create_station(
        &self,
        request: Request<pb::CreateStationRequest>,
    ) -> Result<Response<pb::CreateStationResponse>, Status> {
        let request = CreateStation::try_from(request.into_inner())?;
        let made = self.decisions.create_station(request).await.map_err(refused)?;
        Ok(Response::new(made.into()))
    }

    async fn update_station(
        &self,
        request: Request<pb::UpdateStationRequest>,
    ) -> Result<Response<pb::UpdateStationResponse>, Status> {
        let request = UpdateStation::try_from(request.into_inner())?;
        let updated = self.decisions.update_station(request).await.map_err(refused)?;
        Ok(Response::new(pb::UpdateStationResponse {
            station_id: updated.id.get(),
            revision: updated.revision,
        }))
    }

    async fn set_node_duty(
        &self,
        request: Request<pb::SetNodeDutyRequest>,
    ) -> Result<Response<pb::SetNodeDutyResponse>, Status> {
        let request = SetNodeDuty::try_from(request.into_inner())?;
        let revision = self.decisions.set_node_duty(request).await.map_err(refused)?;
        Ok(Response::new(pb::SetNodeDutyResponse { revision }))
    }

    async fn delete_station(
        &self,
        request: Request<pb::DeleteStationRequest>,
    ) -> Result<Response<pb::DeleteStationResponse>, Status> {
        let request = DeleteStation::try_from(request.into_inner())?;
        let revision = self.decisions.delete_station(request).await.map_err(refused)?;
        Ok(Response::new(pb::DeleteStationResponse { revision }))
    }

    async fn ensure_consumer_group(
        &self,
        request: Request<pb::EnsureConsumerGroupRequest>,
    ) -> Result<Response<pb::EnsureConsumerGroupResponse>, Status> {
        let request = EnsureConsumerGroup::try_from(request.into_inner())?;
        let group = self
            .decisions
            .ensure_consumer_group(request)
            .await
            .map_err(refused)?;
        Ok(Response::new((&group).into()))
    }

    async fn describe_nodes(
        &self,
        request: Request<pb::DescribeNodesRequest>,
    ) -> Result<Response<pb::DescribeNodesResponse>, Status> {
        let principal = request
            .into_inner()
            .principal
            .parse()
            .map_err(ConversionError::from)?;
        let described = self.cluster.describe_nodes(&principal).map_err(refused)?;
        Ok(Response::new(pb::DescribeNodesResponse {
            nodes: described.nodes.iter().map(Into::into).collect(),
            troubles: described.troubles,
        }))
    }
}

#[tonic::async_trait]
impl NodeService for Handlers {
    async fn register_node(
        &self,
        request: Request<pb::RegisterNodeRequest>,
    ) -> Result<Response<pb::RegisterNodeResponse>, Status> {
        let node = NodeRegistration::try_from(request.into_inner())?;
        let registered = self.decisions.register(node).await.map_err(refused)?;
        Ok(Response::new(registered.into()))
    }

    async fn report_node(
        &self,
        request: Request<pb::ReportNodeRequest>,
    ) -> Result<Response<pb::ReportNodeResponse>, Status> {
        let request = request.into_inner();
        let report = request.report.ok_or(ConversionError::missing("report"))?;
        let report = NodeReport::try_from(report)?;
        let known = self.cluster.report(report, &request.disk_id).map_err(refused)?;
        Ok(Response::new(pb::ReportNodeResponse { known }))
    }
}
