//! Calls about stations and the cluster.

use ptah_proto::api::v1 as pb;
use ptah_proto::api::v1::cluster_service_client::ClusterServiceClient;
use ptah_proto::api::v1::station_service_client::StationServiceClient;
use tonic::transport::Channel;

use super::connect::Client;
use super::error::{ClientError, Effect};
use super::types::{ClusterStatus, NewStation, PartitionStatus, Station};

/// Stations asked for at a time.
const PAGE_SIZE: u32 = 500;

impl Client {
    fn stations(&self) -> StationServiceClient<Channel> {
        StationServiceClient::new(self.channel.clone())
    }

    /// Makes a station; tells whether it was new.
    pub async fn create_station(&self, station: &NewStation) -> Result<(Station, bool), ClientError> {
        let request = self.request(pb::CreateStationRequest {
            tenant: String::new(),
            name: station.name.clone(),
            config: Some(pb::StationConfig {
                partitions: station.partitions,
                replicas: station.replicas,
                storage: ptah_proto::common::v1::Storage::File.into(),
                max_message_bytes: station.max_message_bytes,
                kind: ptah_proto::common::v1::StationKind::Station.into(),
            }),
        });
        let response = self
            .call(Effect::Write, self.stations().create_station(request))
            .await?;
        let made = response
            .station
            .ok_or_else(|| ClientError::protocol(&self.server, "no station in the answer"))?;
        Ok((made.into(), response.created))
    }

    /// One station and its partitions in order.
    pub async fn station(&self, name: &str) -> Result<(Station, Vec<PartitionStatus>), ClientError> {
        let request = self.request(pb::GetStationRequest {
            tenant: String::new(),
            name: name.to_owned(),
        });
        let response = self
            .call(Effect::Read, self.stations().get_station(request))
            .await?;
        let found = response
            .station
            .ok_or_else(|| ClientError::protocol(&self.server, "no station in the answer"))?;
        Ok((
            found.into(),
            response
                .partitions
                .into_iter()
                .map(PartitionStatus::from)
                .collect(),
        ))
    }

    /// All stations in order of their names.
    pub async fn list_stations(&self) -> Result<Vec<Station>, ClientError> {
        let mut stations = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = self.request(pb::ListStationsRequest {
                tenant: String::new(),
                page_size: PAGE_SIZE,
                page_token: page_token.clone(),
            });
            let page = self
                .call(Effect::Read, self.stations().list_stations(request))
                .await?;
            stations.extend(page.stations.into_iter().map(Station::from));
            if page.next_page_token.is_empty() {
                return Ok(stations);
            }
            if page.next_page_token == page_token {
                return Err(ClientError::protocol(&self.server, "the same page again"));
            }
            page_token = page.next_page_token;
        }
    }

    /// Changes how many replicas every partition of a station is to have.
    pub async fn update_station(&self, name: &str, replicas: u32) -> Result<Station, ClientError> {
        let request = self.request(pb::UpdateStationRequest {
            tenant: String::new(),
            name: name.to_owned(),
            replicas: Some(replicas),
        });
        let response = self
            .call(Effect::Write, self.stations().update_station(request))
            .await?;
        let updated = response
            .station
            .ok_or_else(|| ClientError::protocol(&self.server, "no station in the answer"))?;
        Ok(updated.into())
    }

    /// Deletes a station and its messages.
    pub async fn delete_station(&self, name: &str) -> Result<(), ClientError> {
        let request = self.request(pb::DeleteStationRequest {
            tenant: String::new(),
            name: name.to_owned(),
        });
        self.call(Effect::Write, self.stations().delete_station(request))
            .await?;
        Ok(())
    }

    /// Lets leaders and replicas of a node move away.
    pub async fn drain_node(&self, node_id: u64) -> Result<(), ClientError> {
        let mut cluster = ClusterServiceClient::new(self.channel.clone());
        let request = self.request(pb::DrainNodeRequest { node_id });
        self.call(Effect::Write, cluster.drain_node(request)).await?;
        Ok(())
    }

    /// Takes a draining node into service again.
    pub async fn undrain_node(&self, node_id: u64) -> Result<(), ClientError> {
        let mut cluster = ClusterServiceClient::new(self.channel.clone());
        let request = self.request(pb::UndrainNodeRequest { node_id });
        self.call(Effect::Write, cluster.undrain_node(request)).await?;
        Ok(())
    }

    /// Gives a node up for good.
    pub async fn forget_node(&self, node_id: u64, accept_loss: bool) -> Result<(), ClientError> {
        let mut cluster = ClusterServiceClient::new(self.channel.clone());
        let request = self.request(pb::ForgetNodeRequest { node_id, accept_loss });
        self.call(Effect::Write, cluster.forget_node(request)).await?;
        Ok(())
    }

    /// How the cluster is.
    pub async fn cluster_status(&self) -> Result<ClusterStatus, ClientError> {
        let mut cluster = ClusterServiceClient::new(self.channel.clone());
        let request = self.request(pb::GetClusterStatusRequest {});
        Ok(self
            .call(Effect::Read, cluster.get_cluster_status(request))
            .await?
            .into())
    }
}
