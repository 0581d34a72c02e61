//! Storage nodes: who may join, and what a node that comes back with another disk has lost.

use ptah_rpc::clients::{NodeRegistration, Registered};
use ptah_rpc::records::{NodeDuty, NodeRecord, PlacementRecord, RecordKey, RecordValue, ReplicaPlacement};
use ptah_types::{ClusterId, DISK_FORMAT, NodeId, VersionRange, WIRE_PROTOCOL};
use tracing::{info, warn};

use super::{Change, Decider, Step};
use crate::error::ControlError;
use crate::nodes::Nodes;
use crate::view::View;

/// Most storage nodes of a cluster.
const MAX_NODES: usize = 1_000;
/// Placements that one write marks as lost.
const LOSS_BATCH: usize = 2_000;
/// Longest address, disk id and zone in bytes.
const MAX_TEXT_BYTES: usize = 255;

impl Decider {
    pub(super) async fn register(&self, node: &NodeRegistration) -> Result<Registered, ControlError> {
        check_versions(node)?;
        check_texts(node)?;
        let nodes = &self.parts.nodes;
        let cluster = loop {
            // A node with very many replicas takes more than one write to mark them lost.
            let step = self
                .decide("register a node", |view| register(view, nodes, node))
                .await?;
            if let Some(cluster) = step {
                break cluster;
            }
        };
        nodes.registered(node.node);
        info!(node = %node.node, name = %node.name, address = %node.address, version = %node.version, "node registered");
        Ok(Registered {
            cluster,
            report_interval: self.parts.report_interval,
        })
    }
}

pub(super) fn check_versions(node: &NodeRegistration) -> Result<(), ControlError> {
    let check = |what: &str, ours: VersionRange, theirs: VersionRange| match ours.agree(theirs) {
        Some(_) => Ok(()),
        None => Err(ControlError::Incompatible {
            node: node.node,
            why: format!(
                "it speaks {what} {theirs} (ptah {}), the control plane speaks {ours}; update the older of them",
                node.version
            ),
        }),
    };
    check("wire protocol", WIRE_PROTOCOL, node.wire)?;
    check("disk format", DISK_FORMAT, node.disk)
}

pub(super) fn check_texts(node: &NodeRegistration) -> Result<(), ControlError> {
    let invalid = |what: &str| Err(ControlError::Invalid(format!("node {}: {what}", node.node)));
    let port = node
        .address
        .rsplit_once(':')
        .and_then(|(_, port)| port.parse::<u16>().ok());
    if node.address.len() > MAX_TEXT_BYTES || port.is_none_or(|port| port == 0) {
        return invalid("`advertise_address` is not host:port that others can dial");
    }
    if node.disk_id.is_empty() || node.disk_id.len() > MAX_TEXT_BYTES {
        return invalid("the id of its disk is empty or too long");
    }
    if node.zone.len() > MAX_TEXT_BYTES {
        return invalid("the name of its zone is too long");
    }
    Ok(())
}

pub(super) fn register(
    view: &View,
    nodes: &Nodes,
    node: &NodeRegistration,
) -> Result<Step<Option<ClusterId>>, ControlError> {
    let cluster = view.cluster();
    if let Some(other) = node.cluster.filter(|other| *other != cluster) {
        return Err(ControlError::Incompatible {
            node: node.node,
            why: format!(
                "its data directory belongs to cluster {other}, this is cluster {cluster}; give it an empty directory \
                 or the control plane of its own cluster"
            ),
        });
    }
    check_address(view, nodes, node)?;
    check_not_forgotten(view, node)?;
    let record = NodeRecord {
        node: node.node,
        name: node.name.clone(),
        address: node.address.clone(),
        disk_id: node.disk_id.clone(),
        zone: node.zone.clone(),
        duty: duty_of(view, node),
    };
    let key = RecordKey::node(node.node);
    let mut change = Change::new(move |_| Some(cluster));
    match view.node(node.node) {
        None if view.nodes().count() >= MAX_NODES => {
            let why = format!(
                "node {}: the cluster has {MAX_NODES} nodes, which is the limit",
                node.node
            );
            return Err(ControlError::TooLarge(why));
        }
        None => change.put(key, 0, RecordValue::Node(record)),
        Some(known) if *known.value == record => return Ok(Step::Done(Some(cluster))),
        Some(known) => {
            if known.value.disk_id != record.disk_id {
                check_disk(nodes, node, known.value)?;
                let mut losses = Change::new(|_| None);
                if lose_replicas(view, node.node, &mut losses) {
                    return Ok(Step::Commit(losses));
                }
                change.preconditions = losses.preconditions;
                change.writes = losses.writes;
            }
            change.put(key, known.revision, RecordValue::Node(record));
        }
    }
    Ok(Step::Commit(change))
}

/// A node keeps its duty, but for one that was forgotten and comes back with another disk: that is a new node.
fn duty_of(view: &View, node: &NodeRegistration) -> NodeDuty {
    match view.node(node.node).map(|known| known.value.duty) {
        Some(NodeDuty::Draining) => NodeDuty::Draining,
        _ => NodeDuty::Serving,
    }
}

/// What a forgotten node held was replaced: its old disk must not come back.
fn check_not_forgotten(view: &View, node: &NodeRegistration) -> Result<(), ControlError> {
    let known = view.node(node.node).map(|known| known.value);
    if known.is_none_or(|known| known.duty != NodeDuty::Forgotten || known.disk_id != node.disk_id) {
        return Ok(());
    }
    Err(ControlError::Incompatible {
        node: node.node,
        why: "it was forgotten, and its replicas are replaced; give it an empty data directory to join again"
            .to_owned(),
    })
}

/// Two nodes at one address would get each other's replicas.
fn check_address(view: &View, nodes: &Nodes, node: &NodeRegistration) -> Result<(), ControlError> {
    let mut others = view
        .nodes()
        .filter(|other| other.node != node.node && other.address == node.address);
    match others.find(|other| nodes.is_alive(other.node)) {
        Some(other) => Err(ControlError::NodeTaken {
            node: node.node,
            why: format!(
                "address {} is the one of live node {} `{}`; give each node its own `advertise_address`",
                node.address, other.node, other.name
            ),
        }),
        None => Ok(()),
    }
}

/// A second process under a live node's id is a mistake in its settings, not a new disk.
fn check_disk(nodes: &Nodes, node: &NodeRegistration, known: &NodeRecord) -> Result<(), ControlError> {
    if !nodes.is_alive(node.node) {
        return Ok(());
    }
    Err(ControlError::NodeTaken {
        node: node.node,
        why: format!(
            "id {} is the one of live node `{}` at {} with another disk; give this node another `node_id`, or, if it \
             is the same node with a new disk, wait until the old process is gone for some seconds",
            node.node, known.name, known.address
        ),
    })
}

/// All replicas of the node were on the disk that is gone. They are marked as lost, and as opened, whether they were or
/// not: under their ids votes may have been cast, so they must never be made anew. Answers whether there are more than
/// fit.
pub(super) fn lose_replicas<T>(view: &View, node: NodeId, change: &mut Change<T>) -> bool {
    let unmarked = view.placements_of(node).filter(|placement| {
        let ours = placement
            .value
            .replicas
            .iter()
            .filter(|replica| replica.node == node);
        ours.clone().any(|replica| !replica.opened || !replica.lost)
    });
    for placement in unmarked {
        if change.writes.len() == LOSS_BATCH {
            return true;
        }
        let mark = |replica: &ReplicaPlacement| ReplicaPlacement {
            opened: replica.opened || replica.node == node,
            lost: replica.lost || replica.node == node,
            ..*replica
        };
        let marked = PlacementRecord {
            replicas: placement.value.replicas.iter().map(mark).collect(),
            ..placement.value.clone()
        };
        let key = RecordKey::placement(&marked.partition);
        change.put(key, placement.revision, RecordValue::Placement(marked));
    }
    let (lost, _) = view.load_of(node);
    warn!(%node, lost, "the disk of a node is gone: its replicas are lost");
    false
}
