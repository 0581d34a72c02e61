//! How the cluster is: what the control plane knows of nodes, joined with who leads what.

use std::collections::BTreeMap;

use ptah_rpc::clients::{NodeDescription, ReplicaState};
use ptah_types::{Action, NodeId, Principal, RaftGroupId, authorize};

use crate::catalog::Catalog;
use crate::control::Control;
use crate::error::GatewayError;
use crate::routing::Routing;

/// Tells how the cluster is. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    /// Stations, placements and nodes.
    pub catalog: Catalog,
    /// Leaders.
    pub routing: Routing,
    /// Knows nodes and replicas.
    pub control: Control,
    /// The cluster's id, when metadata has told it.
    pub cluster_id: tokio::sync::watch::Receiver<String>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// Id.
    pub node: NodeId,
    /// Name.
    pub name: String,
    /// Address.
    pub address: String,
    /// It reported in time, or its leader table is being received when the control plane is not there to ask.
    pub alive: bool,
    /// Software version.
    pub version: String,
    /// Replicas that it holds.
    pub replicas: u32,
    /// Partitions that it leads.
    pub leaders: u32,
    /// Free bytes on its disk.
    pub disk_free_bytes: u64,
    /// Size of its disk.
    pub disk_total_bytes: u64,
    /// Milliseconds since its last report.
    pub last_seen_ms_ago: u64,
    /// What is wrong with its replicas.
    pub troubles: Vec<String>,
}

/// How the cluster is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterStatus {
    /// The cluster's id.
    pub cluster_id: String,
    /// Nodes in order of their ids.
    pub nodes: Vec<NodeStatus>,
    /// Stations.
    pub stations: u64,
    /// Partitions.
    pub partitions: u64,
    /// Partitions without a known leader.
    pub without_leader: u64,
    /// Partitions with fewer healthy replicas than wanted.
    pub under_replicated: u64,
    /// What is wrong.
    pub troubles: Vec<String>,
}

impl Cluster {
    /// Tells how the cluster is. Without the control plane it tells what this gateway knows, and says so.
    pub async fn status(&self, principal: &Principal) -> Result<ClusterStatus, GatewayError> {
        authorize(principal, Action::DescribeCluster, None)?;
        let mut status = ClusterStatus {
            cluster_id: self.cluster_id.borrow().clone(),
            ..ClusterStatus::default()
        };
        let leaders = self.routing.leaders_per_node();
        let healthy = match self.control.describe_nodes(&principal.user).await {
            Ok(nodes) => {
                let healthy = healthy_replicas(&nodes);
                status.nodes = nodes.into_iter().map(|node| reported(node, &leaders)).collect();
                Some(healthy)
            }
            Err(error) => {
                status.troubles.push(format!(
                    "the control plane does not answer ({error}); nodes and replicas are shown as this gateway knows them"
                ));
                status.nodes = self.known_nodes(&leaders);
                None
            }
        };
        self.count_partitions(&mut status, healthy.as_ref());
        for node in status.nodes.iter().filter(|node| !node.alive) {
            status
                .troubles
                .push(format!("node {} ({}) is not alive", node.node, node.name));
        }
        Ok(status)
    }

    fn count_partitions(&self, status: &mut ClusterStatus, healthy: Option<&BTreeMap<RaftGroupId, usize>>) {
        let placements: Vec<_> = self.catalog.with(|view| {
            status.stations = view.station_count() as u64;
            view.placements().cloned().collect()
        });
        status.partitions = placements.len() as u64;
        for placement in placements {
            if self.routing.route(placement.group).leader.is_none() {
                status.without_leader += 1;
            }
            let well = healthy.map(|healthy| healthy.get(&placement.group).copied().unwrap_or(0));
            if well.is_some_and(|well| well < placement.replicas.len()) {
                status.under_replicated += 1;
            }
        }
        if status.without_leader > 0 {
            status
                .troubles
                .push(format!("partitions without a leader: {}", status.without_leader));
        }
        if status.under_replicated > 0 {
            status.troubles.push(format!(
                "partitions with too few healthy replicas: {}",
                status.under_replicated
            ));
        }
    }

    fn known_nodes(&self, leaders: &BTreeMap<NodeId, u32>) -> Vec<NodeStatus> {
        let connected = self.routing.connected();
        self.catalog.with(|view| {
            let mut replicas: BTreeMap<NodeId, u32> = BTreeMap::new();
            for replica in view.placements().flat_map(|placement| placement.replicas.iter()) {
                *replicas.entry(replica.node).or_default() += 1;
            }
            let status = |node: &std::sync::Arc<ptah_rpc::records::NodeRecord>| NodeStatus {
                node: node.node,
                name: node.name.to_string(),
                address: node.address.clone(),
                alive: connected.contains(&node.node),
                version: String::new(),
                replicas: replicas.get(&node.node).copied().unwrap_or(0),
                leaders: leaders.get(&node.node).copied().unwrap_or(0),
                disk_free_bytes: 0,
                disk_total_bytes: 0,
                last_seen_ms_ago: 0,
                troubles: Vec::new(),
            };
            view.nodes().map(status).collect()
        })
    }
}

/// Replicas per group that are open on a node that is alive.
fn healthy_replicas(nodes: &[NodeDescription]) -> BTreeMap<RaftGroupId, usize> {
    let mut healthy = BTreeMap::new();
    for report in nodes
        .iter()
        .filter(|node| node.alive)
        .filter_map(|node| node.report.as_ref())
    {
        for replica in report
            .replicas
            .iter()
            .filter(|replica| replica.state == ReplicaState::Open)
        {
            *healthy.entry(replica.group).or_default() += 1;
        }
    }
    healthy
}

fn reported(node: NodeDescription, leaders: &BTreeMap<NodeId, u32>) -> NodeStatus {
    let mut status = NodeStatus {
        leaders: leaders.get(&node.node).copied().unwrap_or(0),
        node: node.node,
        name: node.name,
        address: node.address,
        alive: node.alive,
        version: String::new(),
        replicas: 0,
        disk_free_bytes: 0,
        disk_total_bytes: 0,
        last_seen_ms_ago: u64::try_from(node.last_seen_ago.as_millis()).unwrap_or(u64::MAX),
        troubles: Vec::new(),
    };
    if let Some(report) = node.report {
        status.version = report.version;
        status.replicas = u32::try_from(report.replicas.len()).unwrap_or(u32::MAX);
        status.disk_free_bytes = report.disk_free_bytes;
        status.disk_total_bytes = report.disk_total_bytes;
        let in_trouble = report
            .replicas
            .iter()
            .filter(|replica| !replica.trouble.is_empty());
        status.troubles = in_trouble
            .map(|replica| format!("replica of group {}: {}", replica.group, replica.trouble))
            .collect();
    }
    status
}
