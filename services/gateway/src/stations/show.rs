//! Showing a station: what its leaders and the nodes of its replicas say at this moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use ptah_rpc::records::{PlacementRecord, ReplicaPlacement};
use ptah_types::{Action, NodeId, Principal, RaftGroupId, StationName, TenantName, authorize};
use tokio::time::timeout;

use super::{PartitionStatus, Stations};
use crate::catalog::Station;
use crate::cluster::health::{PartitionHealth, ReplicaHealth};
use crate::error::GatewayError;
use crate::leaders::PartitionState;

/// A leader that does not answer in this time is shown without sequences.
const DESCRIBE_LIMIT: Duration = Duration::from_secs(2);

impl Stations {
    /// Shows a station and its partitions.
    pub async fn get(
        &self,
        principal: &Principal,
        tenant: &TenantName,
        name: &StationName,
    ) -> Result<(Arc<Station>, Vec<PartitionStatus>), GatewayError> {
        authorize(principal, Action::Describe, Some(name))?;
        let station = self.catalog.station_soon(tenant, name).await?;
        let mut partitions: Vec<_> = station
            .all_partitions()
            .map(|number| self.placed(&station, number))
            .collect();
        let (states, health) = tokio::join!(self.ask_leaders(&partitions), self.ask_health(principal));
        for (group, status) in &mut partitions {
            status.state = group.and_then(|group| states.get(&group).copied());
            let of_replicas = match group {
                Some(group) => health.of_partition(*group, &status.replicas),
                None => PartitionHealth::default(),
            };
            status.healthy = of_replicas.healthy;
            let troubles: Vec<_> = trouble(*group, status)
                .into_iter()
                .chain(of_replicas.trouble)
                .collect();
            status.trouble = troubles.join("; ");
        }
        Ok((
            station,
            partitions.into_iter().map(|(_, status)| status).collect(),
        ))
    }

    fn placed(
        &self,
        station: &Station,
        number: ptah_types::PartitionNumber,
    ) -> (Option<RaftGroupId>, PartitionStatus) {
        let placement = self
            .catalog
            .with(|view| view.placement(station.record.id, number).cloned());
        let group = placement.as_ref().map(|placement| placement.group);
        let change = placement
            .as_deref()
            .and_then(|placement| change_of(placement, station.record.replicas.get()));
        let status = PartitionStatus {
            partition: number.get(),
            leader: group.and_then(|group| self.leaders.routing.route(group).leader),
            replicas: placement
                .map(|p| p.wanted().map(|r| r.node).collect())
                .unwrap_or_default(),
            state: None,
            healthy: None,
            wanted: u32::try_from(station.record.replicas.get()).unwrap_or(u32::MAX),
            trouble: String::new(),
            change: change.unwrap_or_default(),
        };
        (group, status)
    }

    /// How the nodes are. Who may not ask for them, or while no control plane answers, gets what this gateway sees.
    async fn ask_health(&self, principal: &Principal) -> ReplicaHealth {
        let connected = self.leaders.routing.connected();
        if authorize(principal, Action::DescribeCluster, None).is_err() {
            return ReplicaHealth::of_connections(connected);
        }
        match self.control.describe_nodes(&principal.user).await {
            Ok(described) => ReplicaHealth::of_reports(&described.nodes),
            Err(_) => ReplicaHealth::of_connections(connected),
        }
    }

    /// Asks every node once for all partitions that it leads.
    async fn ask_leaders(
        &self,
        partitions: &[(Option<RaftGroupId>, PartitionStatus)],
    ) -> BTreeMap<RaftGroupId, PartitionState> {
        let mut by_node: BTreeMap<NodeId, Vec<RaftGroupId>> = BTreeMap::new();
        for (group, status) in partitions {
            if let (Some(group), Some(leader)) = (group, status.leader) {
                by_node.entry(leader).or_default().push(*group);
            }
        }
        let mut questions: FuturesUnordered<_> = by_node
            .into_iter()
            .filter_map(|(node, groups)| {
                let address = self
                    .catalog
                    .with(|view| view.node(node).map(|node| node.address.clone()))?;
                Some(timeout(
                    DESCRIBE_LIMIT,
                    self.leaders.calls.describe(address, groups),
                ))
            })
            .collect();
        let mut states = BTreeMap::new();
        while let Some(answer) = questions.next().await {
            if let Ok(Ok(described)) = answer {
                states.extend(described.into_iter().map(|state| (state.group, state)));
            }
        }
        states
    }
}

/// What is under way with the replicas of a partition; `None` when they are as they are to be.
fn change_of(placement: &PlacementRecord, wanted: usize) -> Option<String> {
    if !placement.initialized {
        return None;
    }
    let staying = placement.wanted().count();
    let nodes = |replicas: &mut dyn Iterator<Item = &ReplicaPlacement>| {
        let nodes: Vec<_> = replicas.map(|replica| replica.node.to_string()).collect();
        nodes.join(", ")
    };
    let coming = nodes(&mut placement.wanted().filter(|replica| !replica.opened));
    let leaving = nodes(&mut placement.replicas.iter().filter(|replica| replica.leaving));
    let mut parts = Vec::new();
    if staying != wanted {
        parts.push(format!("{staying} of {wanted} replicas are placed"));
    }
    if !coming.is_empty() {
        parts.push(format!("replicas are being opened on node {coming}"));
    }
    if !leaving.is_empty() {
        parts.push(format!(
            "replicas leave node {leaving} when the others have caught up"
        ));
    } else if coming.is_empty() && staying == wanted {
        return None;
    }
    Some(parts.join("; "))
}

fn trouble(group: Option<RaftGroupId>, status: &PartitionStatus) -> Option<String> {
    match (group, status.leader, status.state) {
        (None, _, _) => Some("the partition is not placed yet".to_owned()),
        (_, None, _) => Some("no leader is known".to_owned()),
        (_, Some(leader), None) => Some(format!("its leader, node {leader}, did not answer")),
        (_, _, Some(_)) => None,
    }
}
