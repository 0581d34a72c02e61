//! How the cluster is: what the control plane knows of nodes, joined with who leads what.

pub mod health;

use std::collections::BTreeMap;
use std::time::Duration;

use ptah_rpc::clients::{NodeDescription, NodeReport, ReplicaReport, SetNodeDuty};
use ptah_rpc::records::NodeDuty;
use ptah_types::{Action, NodeId, Principal, RaftGroupId, authorize};

use self::health::ReplicaHealth;

use crate::catalog::Catalog;
use crate::control::Control;
use crate::error::GatewayError;
use crate::routing::Routing;

/// A recorded change is in this gateway's catalog after this time, unless metadata is down.
const CATALOG_LIMIT: Duration = Duration::from_secs(5);

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
    /// Software version; empty when not known.
    pub version: String,
    /// Replicas that it holds.
    pub replicas: u32,
    /// Partitions that it leads.
    pub leaders: u32,
    /// Its disk, when it is known.
    pub disk: Option<DiskStatus>,
    /// Milliseconds since its last report; 0 when it is not known to have reported.
    pub last_seen_ms_ago: u64,
    /// What is wrong with its disk and its replicas.
    pub troubles: Vec<String>,
    /// What it is there for.
    pub duty: NodeDuty,
    /// Replicas that are placed on it, those on their way in or out included.
    pub placed: u32,
}

/// The data disk of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskStatus {
    /// Free bytes.
    pub free_bytes: u64,
    /// Size in bytes.
    pub total_bytes: u64,
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
        let described = self.control.describe_nodes(&principal.user).await;
        if let Some(outage) = self.control.metadata_outage() {
            status.troubles.push(format!(
                "{outage}; stations, consumer groups and users cannot be changed until it does, messages go on"
            ));
        }
        let health = match described {
            Ok(described) => {
                let health = ReplicaHealth::of_reports(&described.nodes);
                let names = self.partition_names();
                status.troubles.extend(described.troubles);
                status.nodes = described
                    .nodes
                    .into_iter()
                    .map(|node| reported(node, &leaders, &names))
                    .collect();
                health
            }
            Err(error) => {
                status.troubles.push(format!(
                    "the control plane does not answer: {}; nodes and replicas are shown as this gateway knows them",
                    self.control.who_should_decide(&error)
                ));
                status.nodes = self.known_nodes(&leaders);
                ReplicaHealth::of_connections(self.routing.connected())
            }
        };
        self.count_partitions(&mut status, &health);
        let placed = self.placed_per_node();
        for node in &mut status.nodes {
            node.placed = placed.get(&node.node).copied().unwrap_or(0);
        }
        let missing = |node: &&NodeStatus| !node.alive && node.duty != NodeDuty::Forgotten;
        for node in status.nodes.iter().filter(missing) {
            status
                .troubles
                .push(format!("node {} ({}) is not alive", node.node, node.name));
        }
        Ok(status)
    }

    /// Changes what a node is there for.
    pub async fn set_duty(
        &self,
        principal: &Principal,
        node: NodeId,
        duty: NodeDuty,
        accept_loss: bool,
    ) -> Result<(), GatewayError> {
        authorize(principal, Action::ManageNodes, None)?;
        let change = SetNodeDuty {
            principal: principal.user.clone(),
            node,
            duty,
            accept_loss,
        };
        let changed = self.control.set_node_duty(&change).await;
        let revision = changed.map_err(|error| {
            self.control
                .explain(&format!("the duty of node {node} is not changed"), error)
        })?;
        // It is recorded; that this gateway's copy is late does not matter to the caller.
        let _in_time = self.catalog.wait_for_revision(revision, CATALOG_LIMIT).await;
        Ok(())
    }

    fn placed_per_node(&self) -> BTreeMap<NodeId, u32> {
        self.catalog.with(|view| {
            let mut placed: BTreeMap<NodeId, u32> = BTreeMap::new();
            for replica in view.placements().flat_map(|placement| placement.replicas.iter()) {
                *placed.entry(replica.node).or_default() += 1;
            }
            placed
        })
    }

    /// What people call the partition of each group.
    fn partition_names(&self) -> BTreeMap<RaftGroupId, String> {
        self.catalog.with(|view| {
            let named = view.placements().filter_map(|placement| {
                let station = view.station_by_id(placement.partition.station)?;
                let name = format!(
                    "partition {} of station `{}`",
                    placement.partition.partition.get(),
                    station.record.name
                );
                Some((placement.group, name))
            });
            named.collect()
        })
    }

    fn count_partitions(&self, status: &mut ClusterStatus, health: &ReplicaHealth) {
        let placements: Vec<_> = self.catalog.with(|view| {
            status.stations = view.station_count() as u64;
            view.placements().cloned().collect()
        });
        status.partitions = placements.len() as u64;
        for placement in placements {
            if self.routing.route(placement.group).leader.is_none() {
                status.without_leader += 1;
            }
            let nodes: Vec<_> = placement.wanted().map(|replica| replica.node).collect();
            let well = health.of_partition(placement.group, &nodes).healthy;
            if well.is_some_and(|well| (well as usize) < nodes.len()) {
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
        let replicas = self.placed_per_node();
        self.catalog.with(|view| {
            let status = |node: &std::sync::Arc<ptah_rpc::records::NodeRecord>| NodeStatus {
                node: node.node,
                name: node.name.to_string(),
                address: node.address.clone(),
                alive: connected.contains(&node.node),
                version: String::new(),
                replicas: replicas.get(&node.node).copied().unwrap_or(0),
                leaders: leaders.get(&node.node).copied().unwrap_or(0),
                disk: None,
                last_seen_ms_ago: 0,
                troubles: Vec::new(),
                duty: node.duty,
                placed: 0,
            };
            view.nodes().map(status).collect()
        })
    }
}

fn reported(
    node: NodeDescription,
    leaders: &BTreeMap<NodeId, u32>,
    names: &BTreeMap<RaftGroupId, String>,
) -> NodeStatus {
    let mut status = NodeStatus {
        leaders: leaders.get(&node.node).copied().unwrap_or(0),
        node: node.node,
        name: node.name,
        address: node.address,
        alive: node.alive,
        version: String::new(),
        replicas: 0,
        disk: None,
        last_seen_ms_ago: u64::try_from(node.last_seen_ago.as_millis()).unwrap_or(u64::MAX),
        troubles: Vec::new(),
        duty: node.duty,
        placed: 0,
    };
    if let Some(report) = node.report {
        status.replicas = u32::try_from(report.replicas.len()).unwrap_or(u32::MAX);
        // A node that has just started has not looked at its disk yet.
        status.disk = (report.disk_total_bytes > 0).then_some(DiskStatus {
            free_bytes: report.disk_free_bytes,
            total_bytes: report.disk_total_bytes,
        });
        let of_replicas = report
            .replicas
            .iter()
            .filter_map(|replica| trouble_of(replica, names));
        status.troubles = full_disk(&report).into_iter().chain(of_replicas).collect();
        status.version = report.version;
    }
    status
}

fn full_disk(report: &NodeReport) -> Option<String> {
    report.refuses_messages.then(|| {
        format!(
            "refuses messages: {} free of {} on its data disk, needs {} (`disk.*`); add room or delete stations",
            mebibytes(report.disk_free_bytes),
            mebibytes(report.disk_total_bytes),
            mebibytes(report.disk_needed_bytes)
        )
    })
}

fn trouble_of(replica: &ReplicaReport, names: &BTreeMap<RaftGroupId, String>) -> Option<String> {
    if replica.trouble.is_empty() {
        return None;
    }
    let name = names
        .get(&replica.group)
        .map_or("a partition that no station has", String::as_str);
    let group = replica.group.to_hex();
    Some(format!("replica of {name}: {} (group {group})", replica.trouble))
}

/// Bytes for people: in MiB, of which even small disks have hundreds.
fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
