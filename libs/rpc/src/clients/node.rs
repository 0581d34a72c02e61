//! Client of the control plane's node registry, and what storage nodes report.

use std::collections::BTreeSet;
use std::time::Duration;

use ptah_proto::common::v1 as common;
use ptah_proto::control::v1 as pb;
use ptah_proto::control::v1::node_service_client::NodeServiceClient;
use ptah_types::{ClusterId, LogIndex, NodeId, NodeName, RaftGroupId, ReplicaId, Term, VersionRange};

use super::DEFAULT_DEADLINE;
use crate::convert::{known, required};
use crate::{CallEffect, ConversionError, MAX_RPC_MESSAGE_BYTES, RpcChannel, RpcError, call};

/// Client of the node registry. Clones share the connection.
#[derive(Clone, Debug)]
pub struct NodeClient {
    inner: NodeServiceClient<RpcChannel>,
    deadline: Duration,
}

/// How a storage node introduces itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRegistration {
    /// Id, as configured.
    pub node: NodeId,
    /// Name, as configured.
    pub name: NodeName,
    /// host:port of its cluster listener.
    pub address: String,
    /// Cluster that its data directory belongs to; `None` for an empty directory.
    pub cluster: Option<ClusterId>,
    /// Random number of its data directory.
    pub disk_id: String,
    /// Wire protocol versions.
    pub wire: VersionRange,
    /// Disk format versions.
    pub disk: VersionRange,
    /// Failure domain; empty when not known.
    pub zone: String,
    /// Software version.
    pub version: String,
}

/// The node is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The cluster; an empty directory is marked with it.
    pub cluster: ClusterId,
    /// How often to report.
    pub report_interval: Duration,
}

/// State of a replica as its node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReplicaState {
    /// Open and taking part.
    Open,
    /// Being opened, recovered or filled.
    Starting,
    /// Damaged: kept aside and not voting.
    Damaged,
    /// It was open here, but the disk does not have it: not made anew.
    Lost,
    /// On disk, but nobody asked for it: kept.
    UnknownGroup,
    /// Stopped by an error; being restarted.
    Failed,
}

/// One replica as its node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaReport {
    /// Raft group.
    pub group: RaftGroupId,
    /// Replica; `None` when the damage hides it.
    pub replica: Option<ReplicaId>,
    /// State.
    pub state: ReplicaState,
    /// What is wrong; empty when nothing is.
    pub trouble: String,
    /// Term that it knows.
    pub term: Term,
    /// Leader that it knows.
    pub leader: Option<NodeId>,
    /// Newest applied log index.
    pub applied: LogIndex,
    /// Whether the group has its first members.
    pub initialized: bool,
    /// Voters that it knows.
    pub voters: Vec<ReplicaId>,
    /// Learners that it knows.
    pub learners: Vec<ReplicaId>,
    /// Whether this replica leads its group, the members that it knows are committed, and no change is under way.
    pub members_settled: bool,
    /// Log entries that the slowest learner is behind; 0 when there is none or this replica does not lead.
    pub learner_lag: u64,
}

/// How a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReport {
    /// Node.
    pub node: NodeId,
    /// Address.
    pub address: String,
    /// Software version.
    pub version: String,
    /// Free bytes on the data disk.
    pub disk_free_bytes: u64,
    /// Size of the data disk in bytes.
    pub disk_total_bytes: u64,
    /// Its replicas.
    pub replicas: Vec<ReplicaReport>,
    /// Newest placement instruction that it carried out: epoch of the control plane.
    pub placement_epoch: u64,
    /// Newest placement instruction that it carried out: revision.
    pub placement_revision: u64,
    /// Whether it takes no new messages because its data disk is nearly full.
    pub refuses_messages: bool,
    /// Bytes that must be free on the data disk for new messages to be taken; 0 before the first look.
    pub disk_needed_bytes: u64,
    /// Nodes that shall not lead, as it was told.
    pub yielding: BTreeSet<NodeId>,
}

impl NodeClient {
    /// A client on `channel`.
    pub fn new(channel: RpcChannel) -> Self {
        let inner = NodeServiceClient::new(channel)
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

    /// Introduces a node. Doing it twice is the same as once.
    pub async fn register(&self, node: &NodeRegistration) -> Result<Registered, RpcError> {
        let mut client = self.inner.clone();
        let request = pb::RegisterNodeRequest::from(node);
        let response = call(self.deadline, CallEffect::Write, request, |r| {
            client.register_node(r)
        })
        .await?;
        Ok(Registered::try_from(response)?)
    }

    /// Reports how a node is. `false` says that this control plane does not know it: register again.
    pub async fn report(&self, report: &NodeReport, disk_id: &str) -> Result<bool, RpcError> {
        let mut client = self.inner.clone();
        let request = pb::ReportNodeRequest {
            report: Some(report.into()),
            disk_id: disk_id.to_owned(),
        };
        let response = call(self.deadline, CallEffect::Write, request, |r| {
            client.report_node(r)
        })
        .await?;
        Ok(response.known)
    }
}

fn version_range(
    field: &'static str,
    range: Option<common::VersionRange>,
) -> Result<VersionRange, ConversionError> {
    let range = required(field, range)?;
    if range.min == 0 || range.min > range.max {
        let why = format!("{}-{} is not a range of versions", range.min, range.max);
        return Err(ConversionError::invalid(field, why));
    }
    Ok(VersionRange {
        min: range.min,
        max: range.max,
    })
}

fn version_range_to_proto(range: VersionRange) -> common::VersionRange {
    common::VersionRange {
        min: range.min,
        max: range.max,
    }
}

impl From<&NodeRegistration> for pb::RegisterNodeRequest {
    fn from(node: &NodeRegistration) -> Self {
        Self {
            node_id: node.node.get(),
            name: node.name.to_string(),
            address: node.address.clone(),
            cluster_id: node
                .cluster
                .map_or_else(String::new, |cluster| cluster.to_string()),
            disk_id: node.disk_id.clone(),
            wire: Some(version_range_to_proto(node.wire)),
            disk: Some(version_range_to_proto(node.disk)),
            zone: node.zone.clone(),
            version: node.version.clone(),
        }
    }
}

impl TryFrom<pb::RegisterNodeRequest> for NodeRegistration {
    type Error = ConversionError;
    fn try_from(request: pb::RegisterNodeRequest) -> Result<Self, ConversionError> {
        let cluster = match request.cluster_id.as_str() {
            "" => None,
            text => Some(text.parse()?),
        };
        Ok(Self {
            node: NodeId::new(request.node_id)?,
            name: request.name.parse()?,
            address: request.address,
            cluster,
            disk_id: request.disk_id,
            wire: version_range("wire", request.wire)?,
            disk: version_range("disk", request.disk)?,
            zone: request.zone,
            version: request.version,
        })
    }
}

impl From<Registered> for pb::RegisterNodeResponse {
    fn from(registered: Registered) -> Self {
        Self {
            cluster_id: registered.cluster.to_string(),
            report_interval_ms: u32::try_from(registered.report_interval.as_millis()).unwrap_or(u32::MAX),
        }
    }
}

impl TryFrom<pb::RegisterNodeResponse> for Registered {
    type Error = ConversionError;
    fn try_from(response: pb::RegisterNodeResponse) -> Result<Self, ConversionError> {
        Ok(Self {
            cluster: response.cluster_id.parse()?,
            report_interval: Duration::from_millis(response.report_interval_ms.into()),
        })
    }
}

impl From<ReplicaState> for pb::ReplicaState {
    fn from(state: ReplicaState) -> Self {
        match state {
            ReplicaState::Open => Self::Open,
            ReplicaState::Starting => Self::Starting,
            ReplicaState::Damaged => Self::Damaged,
            ReplicaState::Lost => Self::Lost,
            ReplicaState::UnknownGroup => Self::UnknownGroup,
            ReplicaState::Failed => Self::Failed,
        }
    }
}

impl TryFrom<pb::ReplicaState> for ReplicaState {
    type Error = ConversionError;
    fn try_from(state: pb::ReplicaState) -> Result<Self, ConversionError> {
        Ok(match state {
            pb::ReplicaState::Unspecified => return Err(ConversionError::missing("state")),
            pb::ReplicaState::Open => Self::Open,
            pb::ReplicaState::Starting => Self::Starting,
            pb::ReplicaState::Damaged => Self::Damaged,
            pb::ReplicaState::Lost => Self::Lost,
            pb::ReplicaState::UnknownGroup => Self::UnknownGroup,
            pb::ReplicaState::Failed => Self::Failed,
        })
    }
}

impl From<&ReplicaReport> for pb::ReplicaReport {
    fn from(report: &ReplicaReport) -> Self {
        Self {
            group_id: report.group.get(),
            replica_id: report.replica.map_or(0, ReplicaId::get),
            state: pb::ReplicaState::from(report.state).into(),
            trouble: report.trouble.clone(),
            term: report.term.0,
            leader_node_id: report.leader.map_or(0, NodeId::get),
            applied_index: report.applied.0,
            initialized: report.initialized,
            voter_replica_ids: report.voters.iter().map(|voter| voter.get()).collect(),
            learner_replica_ids: report.learners.iter().map(|learner| learner.get()).collect(),
            members_settled: report.members_settled,
            learner_lag: report.learner_lag,
        }
    }
}

impl TryFrom<pb::ReplicaReport> for ReplicaReport {
    type Error = ConversionError;
    fn try_from(report: pb::ReplicaReport) -> Result<Self, ConversionError> {
        let voters = report.voter_replica_ids.into_iter().map(ReplicaId::new);
        let learners = report.learner_replica_ids.into_iter().map(ReplicaId::new);
        Ok(Self {
            group: RaftGroupId::new(report.group_id)?,
            replica: ReplicaId::new(report.replica_id).ok(),
            state: known::<pb::ReplicaState>("state", report.state)?.try_into()?,
            trouble: report.trouble,
            term: Term(report.term),
            leader: NodeId::new(report.leader_node_id).ok(),
            applied: LogIndex(report.applied_index),
            initialized: report.initialized,
            voters: voters.collect::<Result<_, _>>()?,
            learners: learners.collect::<Result<_, _>>()?,
            members_settled: report.members_settled,
            learner_lag: report.learner_lag,
        })
    }
}

impl From<&NodeReport> for pb::NodeReport {
    fn from(report: &NodeReport) -> Self {
        Self {
            node_id: report.node.get(),
            address: report.address.clone(),
            version: report.version.clone(),
            disk_free_bytes: report.disk_free_bytes,
            disk_total_bytes: report.disk_total_bytes,
            replicas: report.replicas.iter().map(Into::into).collect(),
            placement_epoch: report.placement_epoch,
            placement_revision: report.placement_revision,
            refuses_messages: report.refuses_messages,
            disk_needed_bytes: report.disk_needed_bytes,
            yielding_node_ids: report.yielding.iter().map(|node| node.get()).collect(),
        }
    }
}

impl TryFrom<pb::NodeReport> for NodeReport {
    type Error = ConversionError;
    fn try_from(report: pb::NodeReport) -> Result<Self, ConversionError> {
        let replicas = report.replicas.into_iter().map(ReplicaReport::try_from);
        let yielding = report.yielding_node_ids.into_iter().map(NodeId::new);
        Ok(Self {
            node: NodeId::new(report.node_id)?,
            address: report.address,
            version: report.version,
            disk_free_bytes: report.disk_free_bytes,
            disk_total_bytes: report.disk_total_bytes,
            replicas: replicas.collect::<Result<_, _>>()?,
            placement_epoch: report.placement_epoch,
            placement_revision: report.placement_revision,
            refuses_messages: report.refuses_messages,
            disk_needed_bytes: report.disk_needed_bytes,
            yielding: yielding.collect::<Result<_, _>>()?,
        })
    }
}
