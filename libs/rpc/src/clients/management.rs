//! Client of the control plane's management calls.

use std::time::Duration;

use ptah_proto::control::v1 as pb;
use ptah_proto::control::v1::management_service_client::ManagementServiceClient;
use ptah_types::{
    ConsumerGroupId, GroupName, NodeId, ReplicaCount, StationId, StationKind, StationName, Storage,
    TenantName, UserName,
};

use super::{DEFAULT_DEADLINE, NodeReport};
use crate::convert::{required, station_kind, station_kind_to_proto, storage, storage_to_proto};
use crate::records::{ConsumerGroupConfig, NodeDuty};
use crate::{CallEffect, ConversionError, MAX_RPC_MESSAGE_BYTES, RpcChannel, RpcError, call};

/// Client of management calls. Clones share the connection.
#[derive(Clone, Debug)]
pub struct ManagementClient {
    inner: ManagementServiceClient<RpcChannel>,
    deadline: Duration,
}

/// A station to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateStation {
    /// Caller.
    pub principal: UserName,
    /// Name space.
    pub tenant: TenantName,
    /// Name.
    pub name: StationName,
    /// Rules.
    pub kind: StationKind,
    /// Number of partitions.
    pub partitions: u32,
    /// Replicas of every partition.
    pub replicas: ReplicaCount,
    /// Where messages live.
    pub storage: Storage,
    /// Largest payload in bytes.
    pub max_message_bytes: u64,
}

/// The station that was made, or was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StationCreated {
    /// Id.
    pub id: StationId,
    /// Revision at which it and its placements are recorded.
    pub revision: u64,
    /// False when it existed with the same settings.
    pub created: bool,
}

/// A station to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateStation {
    /// Caller.
    pub principal: UserName,
    /// Name space.
    pub tenant: TenantName,
    /// Name.
    pub name: StationName,
    /// Replicas that every partition is to have; `None` to leave it.
    pub replicas: Option<ReplicaCount>,
}

/// The change of a station is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StationUpdated {
    /// Id.
    pub id: StationId,
    /// Revision at which the station has the settings.
    pub revision: u64,
}

/// A node whose duty changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetNodeDuty {
    /// Caller.
    pub principal: UserName,
    /// The node.
    pub node: NodeId,
    /// What it is to be there for.
    pub duty: NodeDuty,
    /// Whether a node that holds replicas may be forgotten.
    pub accept_loss: bool,
}

/// The nodes, and what the control plane would like to do and cannot.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NodesDescribed {
    /// In order of their ids.
    pub nodes: Vec<NodeDescription>,
    /// Sentences about replicas that have to move and cannot.
    pub troubles: Vec<String>,
}

/// A station to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteStation {
    /// Caller.
    pub principal: UserName,
    /// Name space.
    pub tenant: TenantName,
    /// Name.
    pub name: StationName,
    /// Which station of that name is meant. With it doing it twice is the same as once; `None` means whichever has the
    /// name at that moment.
    pub id: Option<StationId>,
}

/// A consumer group to make or find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnsureConsumerGroup {
    /// Caller.
    pub principal: UserName,
    /// Name space.
    pub tenant: TenantName,
    /// Station.
    pub station: StationName,
    /// Group.
    pub group: GroupName,
    /// Settings if it has to be made.
    pub config: ConsumerGroupConfig,
}

/// A consumer group that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsumerGroupEnsured {
    /// Id.
    pub id: ConsumerGroupId,
    /// Settings that it has.
    pub config: ConsumerGroupConfig,
    /// Whether this call made it.
    pub created: bool,
    /// Revision at which it is recorded.
    pub revision: u64,
}

/// What the control plane knows of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeDescription {
    /// Id.
    pub node: NodeId,
    /// Name.
    pub name: String,
    /// Address.
    pub address: String,
    /// Whether it reported in time.
    pub alive: bool,
    /// Time since its last report; zero when it never reported to this control plane.
    pub last_seen_ago: Duration,
    /// Newest report.
    pub report: Option<NodeReport>,
    /// What it is there for.
    pub duty: NodeDuty,
}

impl ManagementClient {
    /// A client on `channel`.
    pub fn new(channel: RpcChannel) -> Self {
        let inner = ManagementServiceClient::new(channel)
            .max_decoding_message_size(MAX_RPC_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_RPC_MESSAGE_BYTES);
        Self {
            inner,
            deadline: DEFAULT_DEADLINE,
        }
    }

    /// With another deadline per call.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Makes a station; answers when its placement is recorded.
    pub async fn create_station(&self, station: &CreateStation) -> Result<StationCreated, RpcError> {
        let mut client = self.inner.clone();
        let request = pb::CreateStationRequest::from(station);
        let made = call(self.deadline, CallEffect::Write, request, |r| {
            client.create_station(r)
        })
        .await?;
        Ok(StationCreated::try_from(made)?)
    }

    /// Changes settings of a station. Doing it twice is the same as once.
    pub async fn update_station(&self, update: &UpdateStation) -> Result<StationUpdated, RpcError> {
        let mut client = self.inner.clone();
        let request = pb::UpdateStationRequest::from(update);
        let updated = call(self.deadline, CallEffect::Write, request, |r| {
            client.update_station(r)
        })
        .await?;
        Ok(StationUpdated {
            id: StationId::new(updated.station_id).map_err(ConversionError::from)?,
            revision: updated.revision,
        })
    }

    /// Changes what a node is there for; the answer is a revision at which it is so. Doing it twice is the same as once.
    pub async fn set_node_duty(&self, change: &SetNodeDuty) -> Result<u64, RpcError> {
        let mut client = self.inner.clone();
        let request = pb::SetNodeDutyRequest {
            principal: change.principal.to_string(),
            node_id: change.node.get(),
            duty: ptah_proto::common::v1::NodeDuty::from(change.duty).into(),
            accept_loss: change.accept_loss,
        };
        let changed = call(self.deadline, CallEffect::Write, request, |r| {
            client.set_node_duty(r)
        })
        .await?;
        Ok(changed.revision)
    }

    /// Deletes a station; the answer is the revision at which that is recorded, or a later one.
    pub async fn delete_station(&self, station: &DeleteStation) -> Result<u64, RpcError> {
        let mut client = self.inner.clone();
        let request = pb::DeleteStationRequest::from(station);
        let deleted = call(self.deadline, CallEffect::Write, request, |r| {
            client.delete_station(r)
        })
        .await?;
        Ok(deleted.revision)
    }

    /// Makes a consumer group, or answers with the one that exists.
    pub async fn ensure_consumer_group(
        &self,
        group: &EnsureConsumerGroup,
    ) -> Result<ConsumerGroupEnsured, RpcError> {
        let mut client = self.inner.clone();
        let request = pb::EnsureConsumerGroupRequest::from(group);
        let ensured = call(self.deadline, CallEffect::Write, request, |r| {
            client.ensure_consumer_group(r)
        })
        .await?;
        Ok(ConsumerGroupEnsured::try_from(ensured)?)
    }

    /// Nodes in order of their ids, and what cannot be done about them.
    pub async fn describe_nodes(&self, principal: &UserName) -> Result<NodesDescribed, RpcError> {
        let mut client = self.inner.clone();
        let request = pb::DescribeNodesRequest {
            principal: principal.to_string(),
        };
        let response = call(self.deadline, CallEffect::Read, request, |r| {
            client.describe_nodes(r)
        })
        .await?;
        let nodes = response.nodes.into_iter().map(NodeDescription::try_from);
        Ok(NodesDescribed {
            nodes: nodes.collect::<Result<_, _>>()?,
            troubles: response.troubles,
        })
    }
}

impl From<&CreateStation> for pb::CreateStationRequest {
    fn from(station: &CreateStation) -> Self {
        Self {
            principal: station.principal.to_string(),
            tenant: station.tenant.to_string(),
            name: station.name.display().to_owned(),
            kind: station_kind_to_proto(station.kind).into(),
            partitions: station.partitions,
            replicas: u32::try_from(station.replicas.get()).unwrap_or(u32::MAX),
            storage: storage_to_proto(station.storage).into(),
            max_message_bytes: station.max_message_bytes,
        }
    }
}

impl TryFrom<pb::CreateStationRequest> for CreateStation {
    type Error = ConversionError;
    fn try_from(request: pb::CreateStationRequest) -> Result<Self, ConversionError> {
        Ok(Self {
            principal: request.principal.parse()?,
            tenant: request.tenant.parse()?,
            name: request.name.parse()?,
            kind: station_kind(request.kind)?,
            partitions: request.partitions,
            replicas: ReplicaCount::new(request.replicas)?,
            storage: storage(request.storage)?,
            max_message_bytes: request.max_message_bytes,
        })
    }
}

impl From<&UpdateStation> for pb::UpdateStationRequest {
    fn from(update: &UpdateStation) -> Self {
        let number = |count: ReplicaCount| u32::try_from(count.get()).unwrap_or(u32::MAX);
        Self {
            principal: update.principal.to_string(),
            tenant: update.tenant.to_string(),
            name: update.name.display().to_owned(),
            replicas: update.replicas.map(number),
        }
    }
}

impl TryFrom<pb::UpdateStationRequest> for UpdateStation {
    type Error = ConversionError;
    fn try_from(request: pb::UpdateStationRequest) -> Result<Self, ConversionError> {
        Ok(Self {
            principal: request.principal.parse()?,
            tenant: request.tenant.parse()?,
            name: request.name.parse()?,
            replicas: request.replicas.map(ReplicaCount::new).transpose()?,
        })
    }
}

impl TryFrom<pb::SetNodeDutyRequest> for SetNodeDuty {
    type Error = ConversionError;
    fn try_from(request: pb::SetNodeDutyRequest) -> Result<Self, ConversionError> {
        if request.duty == 0 {
            return Err(ConversionError::missing("duty"));
        }
        Ok(Self {
            principal: request.principal.parse()?,
            node: NodeId::new(request.node_id)?,
            duty: NodeDuty::from_proto(request.duty)?,
            accept_loss: request.accept_loss,
        })
    }
}

impl From<&DeleteStation> for pb::DeleteStationRequest {
    fn from(station: &DeleteStation) -> Self {
        Self {
            principal: station.principal.to_string(),
            tenant: station.tenant.to_string(),
            name: station.name.display().to_owned(),
            station_id: station.id.map_or(0, StationId::get),
        }
    }
}

impl TryFrom<pb::DeleteStationRequest> for DeleteStation {
    type Error = ConversionError;
    fn try_from(request: pb::DeleteStationRequest) -> Result<Self, ConversionError> {
        Ok(Self {
            principal: request.principal.parse()?,
            tenant: request.tenant.parse()?,
            name: request.name.parse()?,
            id: StationId::new(request.station_id).ok(),
        })
    }
}

impl From<StationCreated> for pb::CreateStationResponse {
    fn from(made: StationCreated) -> Self {
        Self {
            station_id: made.id.get(),
            revision: made.revision,
            created: made.created,
        }
    }
}

impl TryFrom<pb::CreateStationResponse> for StationCreated {
    type Error = ConversionError;
    fn try_from(response: pb::CreateStationResponse) -> Result<Self, ConversionError> {
        Ok(Self {
            id: StationId::new(response.station_id)?,
            revision: response.revision,
            created: response.created,
        })
    }
}

impl From<&EnsureConsumerGroup> for pb::EnsureConsumerGroupRequest {
    fn from(group: &EnsureConsumerGroup) -> Self {
        Self {
            principal: group.principal.to_string(),
            tenant: group.tenant.to_string(),
            station: group.station.display().to_owned(),
            group: group.group.to_string(),
            config: Some((&group.config).into()),
        }
    }
}

impl TryFrom<pb::EnsureConsumerGroupRequest> for EnsureConsumerGroup {
    type Error = ConversionError;
    fn try_from(request: pb::EnsureConsumerGroupRequest) -> Result<Self, ConversionError> {
        Ok(Self {
            principal: request.principal.parse()?,
            tenant: request.tenant.parse()?,
            station: request.station.parse()?,
            group: request.group.parse()?,
            config: required("config", request.config)?.try_into()?,
        })
    }
}

impl From<&ConsumerGroupEnsured> for pb::EnsureConsumerGroupResponse {
    fn from(group: &ConsumerGroupEnsured) -> Self {
        Self {
            group_id: group.id.get(),
            config: Some((&group.config).into()),
            created: group.created,
            revision: group.revision,
        }
    }
}

impl TryFrom<pb::EnsureConsumerGroupResponse> for ConsumerGroupEnsured {
    type Error = ConversionError;
    fn try_from(response: pb::EnsureConsumerGroupResponse) -> Result<Self, ConversionError> {
        Ok(Self {
            id: ConsumerGroupId::new(response.group_id)?,
            config: required("config", response.config)?.try_into()?,
            created: response.created,
            revision: response.revision,
        })
    }
}

impl From<&NodeDescription> for pb::NodeDescription {
    fn from(node: &NodeDescription) -> Self {
        Self {
            node_id: node.node.get(),
            name: node.name.clone(),
            address: node.address.clone(),
            alive: node.alive,
            last_seen_ms_ago: u64::try_from(node.last_seen_ago.as_millis()).unwrap_or(u64::MAX),
            report: node.report.as_ref().map(Into::into),
            duty: ptah_proto::common::v1::NodeDuty::from(node.duty).into(),
        }
    }
}

impl TryFrom<pb::NodeDescription> for NodeDescription {
    type Error = ConversionError;
    fn try_from(node: pb::NodeDescription) -> Result<Self, ConversionError> {
        Ok(Self {
            node: NodeId::new(node.node_id)?,
            name: node.name,
            address: node.address,
            alive: node.alive,
            last_seen_ago: Duration::from_millis(node.last_seen_ms_ago),
            report: node.report.map(TryInto::try_into).transpose()?,
            duty: NodeDuty::from_proto(node.duty)?,
        })
    }
}
