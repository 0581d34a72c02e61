//! What the control plane wants of this node, kept on disk so that a restart needs nobody.
//!
//! Invariants: an instruction is on disk before anything of it is carried out; an instruction older than one carried out
//! before is refused; `opened` never goes back to false and `initialize` never comes back to true.
//! Not here: how a replica is opened (`ptah-raft`), who decides (control plane).

mod file;
mod keeper;
mod order;

use std::collections::BTreeMap;

use ptah_types::{ClusterId, NodeId, PartitionKey, RaftGroupId, ReplicaId};

pub(crate) use file::{PlacementFile, PlacementFileError};
pub(crate) use keeper::PlacementKeeper;

/// Whose placement it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Owner {
    /// The cluster.
    pub(crate) cluster: ClusterId,
    /// This node.
    pub(crate) node: NodeId,
    /// Random name of the data directory, 32 hexadecimal digits: tells a replaced disk from the old one.
    pub(crate) disk_id: String,
}

/// Position in the control plane's stream of instructions. Older ones are refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Fence {
    /// Epoch of the control plane's lease.
    pub(crate) epoch: u64,
    /// Metadata revision that the instruction follows from.
    pub(crate) revision: u64,
}

/// What a tombstone names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Removal {
    /// The group.
    pub(crate) group: RaftGroupId,
    /// The replica that left the group; `None` when the group is deleted.
    pub(crate) replica: Option<ReplicaId>,
}

/// A replica that this node shall have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PlacedReplica {
    /// The partition.
    pub(crate) key: PartitionKey,
    /// This node's replica.
    pub(crate) replica: ReplicaId,
    /// Replicas that the group started with.
    pub(crate) members: Vec<(ReplicaId, NodeId)>,
    /// Whether it was open here before: then it is never made anew on an empty disk.
    pub(crate) opened: bool,
    /// Whether this replica has to initialise the group.
    pub(crate) initialize: bool,
    /// Whether the group was seen with members: then it is never initialised again.
    pub(crate) initialized: bool,
    /// Largest payload of one message.
    pub(crate) max_message_bytes: u64,
    /// Generation of the station's partition count.
    pub(crate) generation: u64,
}

/// Everything that is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Placement {
    /// Whose it is.
    pub(crate) owner: Owner,
    /// Newest instruction carried out.
    pub(crate) fence: Fence,
    /// Storage nodes and their addresses.
    pub(crate) peers: BTreeMap<NodeId, String>,
    /// Replicas by Raft group.
    pub(crate) replicas: BTreeMap<RaftGroupId, PlacedReplica>,
    /// What to remove, with the revision of its tombstone, until the removal is durable.
    pub(crate) removals: BTreeMap<Removal, u64>,
}

impl Placement {
    /// Nothing placed yet.
    pub(crate) fn empty(owner: Owner) -> Self {
        Self {
            owner,
            fence: Fence::default(),
            peers: BTreeMap::new(),
            replicas: BTreeMap::new(),
            removals: BTreeMap::new(),
        }
    }
}
