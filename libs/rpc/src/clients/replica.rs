//! Client of a storage node's replicas, for the control plane.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ptah_proto::storage::v1 as pb;
use ptah_proto::storage::v1::replica_service_client::ReplicaServiceClient;
use ptah_types::{NodeId, PartitionKey, RaftGroupId, ReplicaId};

use super::DEFAULT_DEADLINE;
use crate::convert::{node_address, node_address_to_proto, partition_key, partition_key_to_proto, required};
use crate::{CallEffect, ConversionError, MAX_RPC_MESSAGE_BYTES, RpcChannel, RpcError, call};

/// Client of a node's replicas. Clones share the connection.
#[derive(Clone, Debug)]
pub struct ReplicaClient {
    inner: ReplicaServiceClient<RpcChannel>,
    deadline: Duration,
}

/// Instructions of the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PlacementOrder {
    /// Epoch of the control plane's lease.
    pub epoch: u64,
    /// Metadata revision that the instructions follow from.
    pub revision: u64,
    /// Storage nodes and their addresses.
    pub peers: BTreeMap<NodeId, String>,
    /// Replicas to open.
    pub ensure: Vec<ReplicaSpec>,
    /// Replicas to remove for ever.
    pub remove: Vec<ReplicaTombstone>,
    /// Groups whose members have to change.
    pub members: Vec<GroupMembers>,
    /// Nodes that shall not lead: all of them, with every instruction.
    pub yielding: BTreeSet<NodeId>,
}

/// Voters that a group is to have, for the node that leads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMembers {
    /// Raft group.
    pub group: RaftGroupId,
    /// All of its voters, and their nodes.
    pub voters: Vec<(ReplicaId, NodeId)>,
    /// How long the instruction holds.
    pub valid: Duration,
}

/// A replica to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaSpec {
    /// Partition.
    pub partition: PartitionKey,
    /// Its Raft group.
    pub group: RaftGroupId,
    /// The replica on this node.
    pub replica: ReplicaId,
    /// All replicas that the group starts with, and their nodes.
    pub members: Vec<(ReplicaId, NodeId)>,
    /// True when this node reported it open before: it must not be made anew on an empty disk.
    pub opened: bool,
    /// True when this replica shall initialise the group.
    pub initialize: bool,
    /// Largest payload of one message in bytes.
    pub max_message_bytes: u64,
    /// Generation of the station's partition count.
    pub generation: u64,
}

/// A replica to remove for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaTombstone {
    /// Raft group.
    pub group: RaftGroupId,
    /// Revision of the deletion in metadata.
    pub revision: u64,
    /// The replica that left the group, while the group stays; `None` when the group is deleted.
    pub replica: Option<ReplicaId>,
}

impl ReplicaClient {
    /// A client on `channel`.
    pub fn new(channel: RpcChannel) -> Self {
        let inner = ReplicaServiceClient::new(channel)
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

    /// Hands instructions over. Doing it twice is the same as once.
    pub async fn apply_placement(&self, order: &PlacementOrder) -> Result<(), RpcError> {
        let mut client = self.inner.clone();
        let request = pb::ApplyPlacementRequest::from(order);
        call(self.deadline, CallEffect::Write, request, |r| {
            client.apply_placement(r)
        })
        .await?;
        Ok(())
    }
}

impl From<&PlacementOrder> for pb::ApplyPlacementRequest {
    fn from(order: &PlacementOrder) -> Self {
        let peers = order.peers.iter();
        let remove = |tombstone: &ReplicaTombstone| pb::ReplicaTombstone {
            group_id: tombstone.group.get(),
            revision: tombstone.revision,
            replica_id: tombstone.replica.map_or(0, ReplicaId::get),
        };
        Self {
            epoch: order.epoch,
            revision: order.revision,
            peers: peers
                .map(|(node, address)| node_address_to_proto(*node, address))
                .collect(),
            ensure: order.ensure.iter().map(Into::into).collect(),
            remove: order.remove.iter().map(remove).collect(),
            members: order.members.iter().map(Into::into).collect(),
            yielding_node_ids: order.yielding.iter().map(|node| node.get()).collect(),
        }
    }
}

impl TryFrom<pb::ApplyPlacementRequest> for PlacementOrder {
    type Error = ConversionError;
    fn try_from(request: pb::ApplyPlacementRequest) -> Result<Self, ConversionError> {
        let peers = request.peers.into_iter().map(node_address);
        let ensure = request.ensure.into_iter().map(ReplicaSpec::try_from);
        let mut remove = Vec::with_capacity(request.remove.len());
        for tombstone in request.remove {
            remove.push(ReplicaTombstone {
                group: RaftGroupId::new(tombstone.group_id)?,
                revision: tombstone.revision,
                replica: ReplicaId::new(tombstone.replica_id).ok(),
            });
        }
        let members = request.members.into_iter().map(GroupMembers::try_from);
        let yielding = request.yielding_node_ids.into_iter().map(NodeId::new);
        Ok(Self {
            epoch: request.epoch,
            revision: request.revision,
            peers: peers.collect::<Result<_, _>>()?,
            ensure: ensure.collect::<Result<_, _>>()?,
            remove,
            members: members.collect::<Result<_, _>>()?,
            yielding: yielding.collect::<Result<_, _>>()?,
        })
    }
}

fn member_to_proto((replica, node): &(ReplicaId, NodeId)) -> pb::ReplicaMember {
    pb::ReplicaMember {
        replica_id: replica.get(),
        node_id: node.get(),
    }
}

fn members(members: Vec<pb::ReplicaMember>) -> Result<Vec<(ReplicaId, NodeId)>, ConversionError> {
    let member =
        |member: pb::ReplicaMember| Ok((ReplicaId::new(member.replica_id)?, NodeId::new(member.node_id)?));
    members.into_iter().map(member).collect()
}

impl From<&GroupMembers> for pb::GroupMembers {
    fn from(members: &GroupMembers) -> Self {
        Self {
            group_id: members.group.get(),
            voters: members.voters.iter().map(member_to_proto).collect(),
            valid_ms: u32::try_from(members.valid.as_millis()).unwrap_or(u32::MAX),
        }
    }
}

impl TryFrom<pb::GroupMembers> for GroupMembers {
    type Error = ConversionError;
    fn try_from(wanted: pb::GroupMembers) -> Result<Self, ConversionError> {
        if wanted.voters.is_empty() {
            return Err(ConversionError::missing("members.voters"));
        }
        Ok(Self {
            group: RaftGroupId::new(wanted.group_id)?,
            voters: members(wanted.voters)?,
            valid: Duration::from_millis(wanted.valid_ms.into()),
        })
    }
}

impl From<&ReplicaSpec> for pb::ReplicaSpec {
    fn from(spec: &ReplicaSpec) -> Self {
        Self {
            partition: Some(partition_key_to_proto(&spec.partition)),
            group_id: spec.group.get(),
            replica_id: spec.replica.get(),
            members: spec.members.iter().map(member_to_proto).collect(),
            opened: spec.opened,
            initialize: spec.initialize,
            max_message_bytes: spec.max_message_bytes,
            generation: spec.generation,
        }
    }
}

impl TryFrom<pb::ReplicaSpec> for ReplicaSpec {
    type Error = ConversionError;
    fn try_from(spec: pb::ReplicaSpec) -> Result<Self, ConversionError> {
        Ok(Self {
            partition: partition_key(required("partition", spec.partition)?)?,
            group: RaftGroupId::new(spec.group_id)?,
            replica: ReplicaId::new(spec.replica_id)?,
            members: members(spec.members)?,
            opened: spec.opened,
            initialize: spec.initialize,
            max_message_bytes: spec.max_message_bytes,
            generation: spec.generation,
        })
    }
}
