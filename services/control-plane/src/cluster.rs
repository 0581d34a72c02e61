//! What does not change metadata: reports of nodes, and describing them.

use std::time::Duration;

use ptah_rpc::clients::{NodeDescription, NodeReport, NodesDescribed};
use ptah_rpc::records::NodeRecord;
use ptah_types::{Action, RaftGroupId, TenantName, UserName};

use crate::decide::permit;
use crate::error::ControlError;
use crate::lease::Lease;
use crate::nodes::{Nodes, Observed};
use crate::reconcile::is_gone;
use crate::sync::Metadata;
use crate::view::View;

/// The cluster as it is seen now. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    /// What is wanted.
    pub metadata: Metadata,
    /// What is.
    pub nodes: Nodes,
    /// Whether this control plane is the one that nodes report to.
    pub lease: Lease,
}

impl Cluster {
    /// Takes a report. `false` when the node has to register: it is not known like this.
    pub fn report(&self, report: NodeReport, disk_id: &str) -> Result<bool, ControlError> {
        self.lease.authority()?;
        let known = self.read(|view| {
            view.node(report.node)
                .is_some_and(|node| is_same(node.value, &report, disk_id))
        })?;
        if !known {
            return Ok(false);
        }
        let node = report.node;
        let observed = self.nodes.reported(report);
        let gone: Vec<RaftGroupId> = self.read(|view| {
            let tombstones = view.tombstones_of(node);
            let gone = tombstones.filter(|(group, tombstone)| is_gone(&observed, *group, tombstone.revision));
            gone.map(|(group, _)| group).collect()
        })?;
        if !gone.is_empty() {
            self.metadata
                .update(|view| gone.iter().for_each(|group| view.settle(*group, node)));
        }
        Ok(true)
    }

    /// What is known of all nodes, in order of their ids, and what cannot be done about their replicas.
    pub fn describe_nodes(&self, caller: &UserName) -> Result<NodesDescribed, ControlError> {
        self.lease.authority()?;
        self.read(|view| {
            permit(
                view,
                &TenantName::default_tenant(),
                caller,
                Action::DescribeCluster,
                None,
            )?;
            Ok(NodesDescribed {
                nodes: view.nodes().map(|node| self.describe(node)).collect(),
                troubles: self.nodes.troubles(),
            })
        })?
    }

    fn describe(&self, node: &NodeRecord) -> NodeDescription {
        let health = self.nodes.health(node.node);
        let report = health
            .observed
            .as_deref()
            .map(|Observed { report, .. }| report.clone());
        NodeDescription {
            node: node.node,
            name: node.name.to_string(),
            address: node.address.clone(),
            alive: health.alive,
            // A report of this very millisecond is still a report.
            last_seen_ago: health
                .seen_ago
                .map_or(Duration::ZERO, |ago| ago.max(Duration::from_millis(1))),
            report,
            duty: node.duty,
        }
    }

    fn read<R>(&self, look: impl FnOnce(&View) -> R) -> Result<R, ControlError> {
        self.metadata.read(look).ok_or_else(|| ControlError::TakingOver {
            why: "metadata is being read".to_owned(),
        })
    }
}

fn is_same(known: &NodeRecord, report: &NodeReport, disk_id: &str) -> bool {
    known.disk_id == disk_id && known.address == report.address
}
