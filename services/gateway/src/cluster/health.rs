//! How the replicas of partitions are: what their nodes report, or else whom this gateway reaches.

use std::collections::{BTreeMap, BTreeSet};

use ptah_rpc::clients::{NodeDescription, ReplicaState};
use ptah_types::{NodeId, RaftGroupId};

/// What is known of all nodes at one moment.
pub struct ReplicaHealth(Known);

enum Known {
    /// The control plane told.
    Reports(BTreeMap<NodeId, Node>),
    /// Nobody told: nodes that this gateway has a connection to.
    Connections(BTreeSet<NodeId>),
}

struct Node {
    name: String,
    alive: bool,
    /// `None` before its first report.
    replicas: Option<BTreeMap<RaftGroupId, Replica>>,
}

struct Replica {
    state: ReplicaState,
    trouble: String,
}

/// How the replicas of one partition are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PartitionHealth {
    /// Replicas that are open on a node that is alive; `None` when nobody tells.
    pub healthy: Option<u32>,
    /// What is wrong with the others.
    pub trouble: Option<String>,
}

impl ReplicaHealth {
    /// As the nodes reported to the control plane.
    pub fn of_reports(nodes: &[NodeDescription]) -> Self {
        let known = nodes.iter().map(|node| {
            let replicas = node.report.as_ref().map(|report| {
                let replica = |replica: &ptah_rpc::clients::ReplicaReport| Replica {
                    state: replica.state,
                    trouble: replica.trouble.clone(),
                };
                report
                    .replicas
                    .iter()
                    .map(|told| (told.group, replica(told)))
                    .collect()
            });
            let known = Node {
                name: node.name.clone(),
                alive: node.alive,
                replicas,
            };
            (node.node, known)
        });
        Self(Known::Reports(known.collect()))
    }

    /// As this gateway sees the nodes without being told.
    pub fn of_connections(connected: BTreeSet<NodeId>) -> Self {
        Self(Known::Connections(connected))
    }

    /// How a partition is whose replicas are to be on these nodes.
    pub fn of_partition(&self, group: RaftGroupId, placed: &[NodeId]) -> PartitionHealth {
        match &self.0 {
            Known::Connections(connected) => {
                let away = placed.iter().filter(|node| !connected.contains(*node));
                let away: Vec<_> = away
                    .map(|node| format!("node {node} is not reached by this gateway"))
                    .collect();
                PartitionHealth {
                    healthy: None,
                    trouble: (!away.is_empty()).then(|| away.join(", ")),
                }
            }
            Known::Reports(nodes) => {
                let troubles: Vec<_> = placed
                    .iter()
                    .filter_map(|node| trouble(*node, nodes.get(node), group))
                    .collect();
                let healthy = placed.len() - troubles.len();
                PartitionHealth {
                    healthy: Some(u32::try_from(healthy).unwrap_or(u32::MAX)),
                    trouble: (!troubles.is_empty()).then(|| {
                        let wanted = placed.len();
                        format!(
                            "{healthy} of {wanted} replicas are healthy: {}",
                            troubles.join(", ")
                        )
                    }),
                }
            }
        }
    }
}

/// Why the replica on a node does not count as healthy; `None` when it does.
fn trouble(id: NodeId, node: Option<&Node>, group: RaftGroupId) -> Option<String> {
    let Some(node) = node else {
        return Some(format!("node {id} is not known to the control plane"));
    };
    let name = &node.name;
    if !node.alive {
        return Some(format!("node {id} ({name}) is not alive"));
    }
    let Some(replicas) = &node.replicas else {
        return Some(format!("node {id} ({name}) has not reported yet"));
    };
    let Some(replica) = replicas.get(&group) else {
        return Some(format!("not opened yet on node {id} ({name})"));
    };
    let state = match replica.state {
        ReplicaState::Open => return None,
        ReplicaState::Starting => "starting",
        ReplicaState::Damaged => "damaged",
        ReplicaState::Lost => "lost",
        ReplicaState::UnknownGroup => "kept aside",
        ReplicaState::Failed => "failed",
    };
    let why = match replica.trouble.as_str() {
        "" => String::new(),
        why => format!(": {why}"),
    };
    Some(format!("{state} on node {id} ({name}){why}"))
}
