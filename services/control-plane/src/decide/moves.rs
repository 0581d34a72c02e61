//! Replicas that have to move: which partitions get a replica, and which lose one.
//!
//! One mechanism for everything: a partition is to have as many replicas as its station says, none of them on a node that
//! is gone, is being drained or has lost the data. Where that is not so, the plan adds replicas under new ids and marks
//! others as leaving; the group's leader adds and removes them, and reports say when the leaving ones have left.
//! A partition without a live majority is left alone, and so is one for whose replica there is no node: that is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ptah_rpc::clients::{ReplicaReport, ReplicaState};
use ptah_rpc::records::{NodeDuty, PlacementRecord, RecordKey, RecordValue, ReplicaPlacement};
use ptah_types::{NodeId, ReplicaId};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Change, Decider, Step};
use crate::nodes::{NodeHealth, Nodes, Observed};
use crate::view::View;

/// Placements of one write.
const BATCH: usize = 100;
/// Troubles that are told one by one.
const TOLD: usize = 10;

/// When and how many replicas are moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MoveLimits {
    /// A node that is not heard of for this long has its replicas replaced; `None` for never.
    pub replace_after: Option<Duration>,
    /// Partitions whose replicas change at the same time.
    pub in_cluster: usize,
    /// New replicas that one node fills at the same time.
    pub per_node: usize,
}

/// A node as far as placing replicas is concerned.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) zone: String,
    pub(super) alive: bool,
    /// Replicas on it have to be replaced.
    pub(super) leaves: bool,
    /// It may get replicas.
    pub(super) takes: bool,
    /// Replicas that it has.
    pub(super) load: usize,
    /// Replicas that it is being filled with.
    pub(super) filling: usize,
    pub(super) observed: Option<Arc<Observed>>,
}

/// All nodes at a moment.
pub(super) type Places = BTreeMap<NodeId, Place>;

/// What to write, and what would be done and cannot.
#[derive(Default)]
pub(super) struct Plan {
    /// Placements with the revisions that they were planned from.
    pub(super) changes: Vec<(u64, PlacementRecord)>,
    pub(super) troubles: Vec<String>,
}

impl Decider {
    /// Looks once at all partitions.
    pub(super) async fn move_replicas(&mut self) {
        let Ok(epoch) = self.parts.lease.authority() else {
            self.moving_since = None;
            return;
        };
        let now = Instant::now();
        let since = match self.moving_since {
            Some((of, since)) if of == epoch => since,
            _ => now,
        };
        self.moving_since = Some((epoch, since));
        let (nodes, limits) = (&self.parts.nodes, self.parts.moves);
        let decided_for = now.duration_since(since);
        let mut troubles = Vec::new();
        let moved = self
            .decide("move replicas", |view| {
                let places = places(view, &nodes.all(), decided_for, &limits);
                let plan = plan(view, places, &limits);
                troubles = plan.troubles;
                Ok(written(plan.changes))
            })
            .await;
        match moved {
            Ok(0) => {}
            Ok(partitions) => info!(partitions, "replicas are being moved"),
            Err(error) => warn!(%error, "replicas cannot be moved now"),
        }
        let lines = troubles.len();
        if nodes.set_troubles(told(troubles)) && lines > 0 {
            warn!(
                partitions = lines,
                "replicas have to move and cannot; the cluster's status says why"
            );
        }
    }
}

fn written(changes: Vec<(u64, PlacementRecord)>) -> Step<usize> {
    if changes.is_empty() {
        return Step::Done(0);
    }
    let count = changes.len();
    let mut change = Change::new(move |_| count);
    for (revision, placement) in changes {
        let key = RecordKey::placement(&placement.partition);
        change.put(key, revision, RecordValue::Placement(placement));
    }
    Step::Commit(change)
}

/// Not more of them than somebody reads.
fn told(mut troubles: Vec<String>) -> Vec<String> {
    let more = troubles.len().saturating_sub(TOLD);
    troubles.truncate(TOLD);
    if more > 0 {
        troubles.push(format!(
            "{more} more partitions have replicas that have to move and cannot"
        ));
    }
    troubles
}

/// How the nodes are. `decided_for` is how long this control plane has decided: no node is silent for longer than it could
/// have been heard.
pub(super) fn places(
    view: &View,
    seen: &BTreeMap<NodeId, NodeHealth>,
    decided_for: Duration,
    limits: &MoveLimits,
) -> Places {
    let mut places = Places::new();
    for record in view.nodes() {
        let health = seen.get(&record.node);
        let alive = health.is_some_and(|health| health.alive);
        let silent = health
            .and_then(|health| health.seen_ago)
            .map_or(decided_for, |ago| ago.min(decided_for));
        let is_gone = !alive && limits.replace_after.is_some_and(|after| silent >= after);
        let observed = health.and_then(|health| health.observed.clone());
        let is_full = observed
            .as_ref()
            .is_none_or(|observed| observed.report.refuses_messages);
        let place = Place {
            zone: record.zone.clone(),
            alive,
            leaves: record.duty != NodeDuty::Serving || is_gone,
            takes: record.duty == NodeDuty::Serving && alive && !is_full,
            load: view.load_of(record.node).0,
            filling: 0,
            observed,
        };
        places.insert(record.node, place);
    }
    for placement in view.unfinished().filter(|placement| placement.value.initialized) {
        let coming = placement
            .value
            .wanted()
            .filter(|replica| is_new(placement.value, replica, &places));
        let filled: Vec<NodeId> = coming.map(|replica| replica.node).collect();
        for node in filled {
            if let Some(place) = places.get_mut(&node) {
                place.filling += 1;
            }
        }
    }
    places
}

/// Whether a replica is on its way in: not opened yet, or there are others that wait for it to leave.
fn is_new(placement: &PlacementRecord, replica: &ReplicaPlacement, places: &Places) -> bool {
    let voters = leader_of(placement, places).map(|leader| &leader.voters);
    !replica.opened || voters.is_some_and(|voters| !voters.contains(&replica.replica))
}

/// What the group's leader reports, if it is heard.
fn leader_of<'a>(placement: &PlacementRecord, places: &'a Places) -> Option<&'a ReplicaReport> {
    leader_and_node(placement, places).map(|(report, _)| report)
}

/// The same, with everything that its node reports.
pub(super) fn leader_and_node<'a>(
    placement: &PlacementRecord,
    places: &'a Places,
) -> Option<(&'a ReplicaReport, &'a Observed)> {
    let reports = placement.replicas.iter().filter_map(|replica| {
        let place = places.get(&replica.node).filter(|place| place.alive)?;
        let observed = place.observed.as_deref()?;
        let report = observed.replica(placement.group)?;
        let leads = report.leader == Some(replica.node) && report.replica == Some(replica.replica);
        leads.then_some((report, observed))
    });
    reports.max_by_key(|(report, _)| report.term)
}

/// What has to change now.
pub(super) fn plan(view: &View, mut places: Places, limits: &MoveLimits) -> Plan {
    let mut plan = Plan::default();
    let mut under_way = view
        .unfinished()
        .filter(|placement| placement.value.initialized && placement.value.is_changing())
        .count();
    for placement in view.placements() {
        let record = placement.value;
        let Some(station) = view.station_by_id(record.partition.station) else {
            continue;
        };
        let need = need_of(record, station.value.replicas.get(), &places);
        if !record.initialized || need.is_nothing() {
            continue;
        }
        let name = || {
            format!(
                "partition {} of station `{}`",
                record.partition.partition.get(),
                station.value.name
            )
        };
        if let Err(why) = check_majority(record, &places) {
            plan.troubles
                .push(format!("{}: {} and {why}", name(), need.why()));
            continue;
        }
        let continues = record.is_changing();
        if plan.changes.len() >= BATCH || (!continues && under_way >= limits.in_cluster) {
            continue;
        }
        match changed(record, &need, &mut places, limits) {
            Ok(Some(next)) => {
                under_way += usize::from(!continues);
                plan.changes.push((placement.revision, next));
            }
            // It has to wait for its turn.
            Ok(None) => {}
            Err(why) => plan
                .troubles
                .push(format!("{}: {} and {why}", name(), need.why())),
        }
    }
    plan
}

/// What a partition lacks or has too much.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Need {
    /// Replicas to add.
    add: usize,
    /// Replicas that go.
    leave: BTreeSet<ReplicaId>,
    /// Of them, ones that go only when others come.
    replaced: usize,
}

impl Need {
    pub(super) fn is_nothing(&self) -> bool {
        self.add == 0 && self.leave.is_empty()
    }

    fn why(&self) -> String {
        match (self.replaced, self.add) {
            (0, 0) => "it has too many replicas".to_owned(),
            (0, missing) => format!("it lacks replicas ({missing})"),
            (replaced, _) => format!("replicas have to be replaced ({replaced})"),
        }
    }
}

pub(super) fn need_of(record: &PlacementRecord, wanted: usize, places: &Places) -> Need {
    let staying: Vec<&ReplicaPlacement> = record.wanted().collect();
    let mut bad: Vec<&ReplicaPlacement> = staying
        .iter()
        .copied()
        .filter(|replica| has_to_go(record, replica, places))
        .collect();
    let mut good: Vec<&ReplicaPlacement> = staying
        .iter()
        .copied()
        .filter(|replica| !bad.iter().any(|gone| gone.replica == replica.replica))
        .collect();
    let mut need = Need::default();
    // Too many: the bad ones first, then the ones on the fullest nodes; the leader last.
    let leader = leader_of(record, places).and_then(|leader| leader.leader);
    good.sort_by_key(|replica| {
        let load = places.get(&replica.node).map_or(0, |place| place.load);
        (leader != Some(replica.node), load, replica.replica)
    });
    for _ in wanted..staying.len() {
        let gone = match bad.pop() {
            Some(gone) => Some(gone),
            None => good.pop(),
        };
        need.leave.extend(gone.map(|gone| gone.replica));
    }
    need.replaced = bad.len();
    need.leave.extend(bad.iter().map(|replica| replica.replica));
    need.add = wanted.saturating_sub(good.len());
    need
}

/// Whether a replica cannot stay where it is.
fn has_to_go(record: &PlacementRecord, replica: &ReplicaPlacement, places: &Places) -> bool {
    let Some(place) = places.get(&replica.node) else {
        return true;
    };
    let is_damaged = || {
        let seen = place
            .observed
            .as_ref()
            .and_then(|observed| observed.replica(record.group));
        seen.is_some_and(|seen| seen.state == ReplicaState::Damaged && seen.replica == Some(replica.replica))
    };
    replica.lost || place.leaves || is_damaged()
}

/// The group must be able to decide, and must still be when nothing else fails: its leader is heard, and more than half of
/// its voters are open on nodes that are alive.
fn check_majority(record: &PlacementRecord, places: &Places) -> Result<(), String> {
    let Some(leader) = leader_of(record, places) else {
        return Err("it has no leader that is heard; nothing is moved before it has".to_owned());
    };
    let is_live = |voter: &&ReplicaId| {
        let Some(replica) = record.replicas.iter().find(|replica| replica.replica == **voter) else {
            return false;
        };
        let place = places.get(&replica.node).filter(|place| place.alive);
        let seen = place.and_then(|place| place.observed.as_ref()?.replica(record.group));
        seen.is_some_and(|seen| seen.state == ReplicaState::Open && seen.replica == Some(**voter))
    };
    let live = leader.voters.iter().filter(is_live).count();
    if live * 2 > leader.voters.len() {
        return Ok(());
    }
    Err(format!(
        "only {live} of its {} voters are alive; nothing is moved before a majority is",
        leader.voters.len()
    ))
}

/// The placement with what it needs; `None` when every node that could take a replica is busy with others.
fn changed(
    record: &PlacementRecord,
    need: &Need,
    places: &mut Places,
    limits: &MoveLimits,
) -> Result<Option<PlacementRecord>, String> {
    let mut next = record.clone();
    for replica in &mut next.replicas {
        replica.leaving |= need.leave.contains(&replica.replica);
    }
    for _ in 0..need.add {
        let Some(node) = choose(&next, places, limits) else {
            if places.iter().any(|(node, place)| suits(&next, *node, place)) {
                return Ok(None);
            }
            let alive = places.values().filter(|place| place.takes).count();
            return Err(format!(
                "there is no node for a new one ({alive} nodes take replicas); start another storage node"
            ));
        };
        let replica = next.next_replica;
        next.next_replica = ReplicaId::new(replica.get() + 1).map_err(|error| error.to_string())?;
        next.replicas.push(ReplicaPlacement {
            replica,
            node,
            opened: false,
            leaving: false,
            lost: false,
        });
        if let Some(place) = places.get_mut(&node) {
            place.filling += 1;
            place.load += 1;
        }
    }
    Ok(Some(next))
}

/// Whether a node may take a replica of the partition at all. One whose replica lost its data may get a new one.
fn suits(record: &PlacementRecord, node: NodeId, place: &Place) -> bool {
    let holds = record
        .replicas
        .iter()
        .any(|replica| replica.node == node && !replica.lost);
    let cleans = record.retired.iter().any(|retired| retired.node == node);
    let waits = record
        .replicas
        .iter()
        .any(|replica| replica.node == node && replica.lost && is_there(record, replica, place));
    place.takes && !holds && !cleans && !waits
}

/// Whether a replica that counts as lost is there all the same.
fn is_there(record: &PlacementRecord, replica: &ReplicaPlacement, place: &Place) -> bool {
    let seen = place
        .observed
        .as_ref()
        .and_then(|observed| observed.replica(record.group));
    seen.is_some_and(|seen| seen.replica == Some(replica.replica) && seen.state != ReplicaState::Lost)
}

/// The node in the least used zone that is filled with the fewest replicas and has the fewest.
fn choose(record: &PlacementRecord, places: &Places, limits: &MoveLimits) -> Option<NodeId> {
    let mut in_zone: BTreeMap<&str, usize> = BTreeMap::new();
    for replica in record.wanted() {
        if let Some(place) = places.get(&replica.node).filter(|place| !place.zone.is_empty()) {
            *in_zone.entry(&place.zone).or_default() += 1;
        }
    }
    let free = places
        .iter()
        .filter(|(node, place)| suits(record, **node, place) && place.filling < limits.per_node);
    let crowd = |place: &Place| in_zone.get(place.zone.as_str()).copied().unwrap_or(0);
    free.min_by_key(|(node, place)| (crowd(place), place.filling, place.load, **node))
        .map(|(node, _)| *node)
}

/// What the decider asks of the nodes' reports.
pub(super) fn of_reports(view: &View, nodes: &Nodes) -> Places {
    let limits = MoveLimits {
        replace_after: None,
        in_cluster: 0,
        per_node: 0,
    };
    places(view, &nodes.all(), Duration::ZERO, &limits)
}

#[cfg(test)]
mod tests;
