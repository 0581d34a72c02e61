//! `ptah.api.v1.StationService`.

use std::sync::Arc;

use ptah_proto::api::v1 as pb;
use ptah_proto::api::v1::station_service_server::StationService;
use tonic::{Request, Response, Status};

use super::Services;
use super::convert::{new_station, partition_to_proto, station_to_proto, status};
use super::door::caller;
use crate::error::GatewayError;

pub(super) struct StationApi(pub(super) Arc<Services>);

#[tonic::async_trait]
impl StationService for StationApi {
    async fn create_station(
        &self,
        request: Request<pb::CreateStationRequest>,
    ) -> Result<Response<pb::CreateStationResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let create = async {
            let tenant = caller.tenant(&request.tenant)?;
            let wanted = new_station(tenant, &request.name, request.config)?;
            self.0.stations.create(&caller.principal, wanted).await
        };
        let (station, created) = create.await.map_err(|error| status(&error))?;
        Ok(Response::new(pb::CreateStationResponse {
            station: Some(station_to_proto(&station)),
            created,
        }))
    }

    async fn get_station(
        &self,
        request: Request<pb::GetStationRequest>,
    ) -> Result<Response<pb::GetStationResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let get = async {
            let tenant = caller.tenant(&request.tenant)?;
            self.0
                .stations
                .get(&caller.principal, &tenant, &request.name.parse()?)
                .await
        };
        let (station, partitions) = get.await.map_err(|error: GatewayError| status(&error))?;
        Ok(Response::new(pb::GetStationResponse {
            station: Some(station_to_proto(&station)),
            partitions: partitions.into_iter().map(partition_to_proto).collect(),
        }))
    }

    async fn list_stations(
        &self,
        request: Request<pb::ListStationsRequest>,
    ) -> Result<Response<pb::ListStationsResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let page = caller.tenant(&request.tenant).and_then(|tenant| {
            self.0
                .stations
                .list(&caller.principal, &tenant, request.page_size, &request.page_token)
        });
        let page = page.map_err(|error| status(&error))?;
        Ok(Response::new(pb::ListStationsResponse {
            stations: page
                .stations
                .iter()
                .map(|station| station_to_proto(station))
                .collect(),
            next_page_token: page.next_page_token,
        }))
    }

    async fn update_station(
        &self,
        request: Request<pb::UpdateStationRequest>,
    ) -> Result<Response<pb::UpdateStationResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let update = async {
            let tenant = caller.tenant(&request.tenant)?;
            self.0
                .stations
                .update(
                    &caller.principal,
                    &tenant,
                    &request.name.parse()?,
                    request.replicas,
                )
                .await
        };
        let station = update.await.map_err(|error: GatewayError| status(&error))?;
        Ok(Response::new(pb::UpdateStationResponse {
            station: Some(station_to_proto(&station)),
        }))
    }

    async fn delete_station(
        &self,
        request: Request<pb::DeleteStationRequest>,
    ) -> Result<Response<pb::DeleteStationResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let delete = async {
            let tenant = caller.tenant(&request.tenant)?;
            self.0
                .stations
                .delete(&caller.principal, &tenant, &request.name.parse()?)
                .await
        };
        delete.await.map_err(|error: GatewayError| status(&error))?;
        Ok(Response::new(pb::DeleteStationResponse {}))
    }
}
