//! What nodes are there for: serving, being drained, forgotten.

use ptah_rpc::clients::SetNodeDuty;
use ptah_rpc::records::{NodeDuty, NodeRecord, RecordKey, RecordValue};
use ptah_types::{Action, TenantName};
use tracing::info;

use super::node::lose_replicas;
use super::{Change, Decider, Step, permit};
use crate::error::ControlError;
use crate::nodes::Nodes;
use crate::view::{Versioned, View};

impl Decider {
    pub(super) async fn set_node_duty(&self, request: &SetNodeDuty) -> Result<u64, ControlError> {
        let nodes = &self.parts.nodes;
        let revision = loop {
            // A node with very many replicas takes more than one write to mark them lost.
            let step = self
                .decide("change the duty of a node", |view| set_duty(view, nodes, request))
                .await?;
            if let Some(revision) = step {
                break revision;
            }
        };
        info!(node = %request.node, duty = ?request.duty, by = %request.principal, "duty of a node is set");
        Ok(revision)
    }
}

/// `None` when there is more to write.
pub(super) fn set_duty(
    view: &View,
    nodes: &Nodes,
    request: &SetNodeDuty,
) -> Result<Step<Option<u64>>, ControlError> {
    let tenant = TenantName::default_tenant();
    permit(view, &tenant, &request.principal, Action::ManageNodes, None)?;
    let node = request.node;
    let known = view.node(node).ok_or(ControlError::NodeNotFound(node))?;
    if known.value.duty == request.duty {
        return Ok(Step::Done(Some(known.revision)));
    }
    if known.value.duty == NodeDuty::Forgotten {
        return conflict(
            known,
            "it was forgotten; start it with an empty data directory to have it join again",
        );
    }
    let mut change = Change::new(Some);
    if request.duty == NodeDuty::Forgotten {
        check_forgettable(view, nodes, known, request.accept_loss)?;
        let mut losses = Change::new(|_| None);
        if lose_replicas(view, node, &mut losses) {
            return Ok(Step::Commit(losses));
        }
        change.preconditions = losses.preconditions;
        change.writes = losses.writes;
    }
    let record = NodeRecord {
        duty: request.duty,
        ..known.value.clone()
    };
    change.put(RecordKey::node(node), known.revision, RecordValue::Node(record));
    Ok(Step::Commit(change))
}

/// Only what is not there, or has nothing, is given up.
fn check_forgettable(
    view: &View,
    nodes: &Nodes,
    known: Versioned<&NodeRecord>,
    accept_loss: bool,
) -> Result<(), ControlError> {
    let node = known.value.node;
    if nodes.is_alive(node) {
        return conflict(
            known,
            "it is alive; stop its process first, and drain it before if it holds replicas",
        );
    }
    let replicas = view
        .placements_of(node)
        .filter(|placement| {
            placement
                .value
                .replicas
                .iter()
                .any(|replica| replica.node == node)
        })
        .count();
    if replicas > 0 && !accept_loss {
        let why = format!(
            "{replicas} partitions have a replica on it; start it and drain it, or accept that what only it has is lost \
             (`ptah node forget {node} --accept-loss`)"
        );
        return conflict(known, &why);
    }
    Ok(())
}

fn conflict<T>(known: Versioned<&NodeRecord>, why: &str) -> Result<T, ControlError> {
    Err(ControlError::NodeConflict {
        node: known.value.node,
        why: why.to_owned(),
    })
}
