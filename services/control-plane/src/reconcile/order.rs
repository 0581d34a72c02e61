//! The difference between what is wanted of a node and what it reports, as an order. Pure but for the time that it is
//! given.
//!
//! Steps of a new group, each recorded before the next: all nodes open their replicas; one replica initialises the
//! group. A node that is dead, or does not manage, is not waited for when a majority has opened: its replica is a voter
//! from the start, has voted for nothing, and follows once it is open. Whichever replica initialises, the members are
//! those of the record, so that two of them would write the same entry.
//! Steps of a change of replicas: a new replica opens empty; the group's leader is told the voters that the group is to
//! have, again and again, because the instruction holds for a short time only; a replica that left is removed by its
//! tombstone.
//! Steps of a deletion: every node is told until it reports that the group is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ptah_rpc::clients::{
    GroupMembers, PlacementOrder, ReplicaReport, ReplicaSpec, ReplicaState, ReplicaTombstone,
};
use ptah_rpc::records::{NodeDuty, PlacementRecord, ReplicaPlacement};
use ptah_types::{NodeId, RaftGroupId, ReplicaId};
use tokio::time::Instant;

use super::Peers;
use crate::nodes::Observed;
use crate::view::{Versioned, View};

/// Replicas of one order.
const BATCH: usize = 256;
/// What a node took and does not report is ordered again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// How long a living node may take to open its replica before the group begins without it.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);
/// How long a leader may follow an instruction about members without hearing it again.
const MEMBERS_VALID: Duration = Duration::from_secs(5);

/// What is ordered of a group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Asked {
    Open,
    Initialize,
    Remove,
}

/// What was ordered lately under the current epoch.
#[derive(Debug, Default)]
pub(super) struct Memory {
    epoch: u64,
    peers: Option<Peers>,
    asked: BTreeMap<(RaftGroupId, Asked), Instant>,
    /// Revisions of the placements by which members were asked for, and when.
    members: BTreeMap<RaftGroupId, (u64, Instant)>,
    /// When the nodes that shall not lead were told.
    yielding: Option<Instant>,
    /// Since when groups have a majority opened and wait for the rest.
    waiting: BTreeMap<RaftGroupId, Instant>,
}

/// What an order follows from besides the view and the report.
pub(super) struct Circumstances<'a> {
    /// Epoch of the lease.
    pub(super) epoch: u64,
    /// Nodes that were seen lately.
    pub(super) alive: &'a BTreeSet<NodeId>,
    pub(super) now: Instant,
}

impl Memory {
    /// Begins a round: forgets what was ordered under another epoch, and what may be ordered again.
    pub(super) fn begin(&mut self, epoch: u64, now: Instant) {
        if self.epoch != epoch {
            *self = Self {
                epoch,
                ..Self::default()
            };
        }
        self.asked.retain(|_, at| now.duration_since(*at) < AGAIN_AFTER);
        self.members
            .retain(|_, (_, at)| now.duration_since(*at) < AGAIN_AFTER);
        self.yielding = self.yielding.filter(|at| now.duration_since(*at) < AGAIN_AFTER);
    }

    /// Remembers an order that the node took.
    pub(super) fn taken(&mut self, order: &PlacementOrder, now: Instant) {
        self.peers = Some(order.peers.clone());
        self.yielding = Some(now);
        for members in &order.members {
            self.members.insert(members.group, (order.revision, now));
        }
        for spec in &order.ensure {
            let asked = if spec.initialize {
                Asked::Initialize
            } else {
                Asked::Open
            };
            self.asked.insert((spec.group, asked), now);
        }
        for tombstone in &order.remove {
            self.asked.insert((tombstone.group, Asked::Remove), now);
        }
    }

    /// Whether a group with a majority opened has waited long enough for the rest; the first question starts the time.
    fn is_out_of_patience(&mut self, group: RaftGroupId, now: Instant) -> bool {
        let since = *self.waiting.entry(group).or_insert(now);
        now.duration_since(since) >= OPEN_PATIENCE
    }

    /// Whether the members of a group as of a revision were not asked for lately.
    fn has_not_heard(&self, group: RaftGroupId, revision: u64) -> bool {
        self.members
            .get(&group)
            .is_none_or(|(asked, _)| *asked < revision)
    }

    fn is_new(&self, group: RaftGroupId, asked: Asked) -> bool {
        !self.asked.contains_key(&(group, asked))
    }
}

/// What to order of a node now; nothing when it has and knows everything.
pub(super) fn difference(
    view: &View,
    node: NodeId,
    observed: Option<&Observed>,
    memory: &mut Memory,
    circumstances: &Circumstances<'_>,
) -> Option<PlacementOrder> {
    let peers: Peers = view
        .nodes()
        .map(|node| (node.node, node.address.clone()))
        .collect();
    let remove = removals(view, node, observed, memory);
    let ensure = openings(view, node, observed, memory, circumstances);
    let members = memberships(view, node, observed, memory);
    let yielding: BTreeSet<NodeId> = view
        .nodes()
        .filter(|node| node.duty != NodeDuty::Serving)
        .map(|node| node.node)
        .collect();
    let knows_yielding =
        memory.yielding.is_some() || observed.is_some_and(|observed| observed.report.yielding == yielding);
    let nothing = remove.is_empty() && ensure.is_empty() && members.is_empty();
    if nothing && knows_yielding && memory.peers.as_ref() == Some(&peers) {
        return None;
    }
    Some(PlacementOrder {
        epoch: circumstances.epoch,
        revision: view.revision(),
        peers,
        ensure,
        remove,
        members,
        yielding,
    })
}

/// Groups that this node leads and whose members are not the wanted ones.
fn memberships(view: &View, node: NodeId, observed: Option<&Observed>, memory: &Memory) -> Vec<GroupMembers> {
    let Some(observed) = observed else {
        return Vec::new();
    };
    let led = view.placements_of(node).filter_map(|placement| {
        let (revision, placement) = (placement.revision, placement.value);
        let seen = observed.replica(placement.group)?;
        let asks = seen.leader == Some(node) && differs(placement, seen);
        (asks && memory.has_not_heard(placement.group, revision)).then(|| GroupMembers {
            group: placement.group,
            voters: placement
                .wanted()
                .map(|replica| (replica.replica, replica.node))
                .collect(),
            valid: MEMBERS_VALID,
        })
    });
    led.take(BATCH).collect()
}

/// Whether a leader has to change the members of its group: only once all new replicas are open to be filled.
fn differs(placement: &PlacementRecord, leader: &ReplicaReport) -> bool {
    let wanted: BTreeSet<ReplicaId> = placement.wanted().map(|replica| replica.replica).collect();
    let voters: BTreeSet<ReplicaId> = leader.voters.iter().copied().collect();
    let is_ready =
        placement.initialized && !wanted.is_empty() && placement.wanted().all(|replica| replica.opened);
    // While replicas leave, the leader is told even when they have left: its answer says that it goes by nothing older.
    is_ready && (voters != wanted || !leader.learners.is_empty() || placement.is_changing())
}

/// Deleted groups of which the node has not said that they are gone.
fn removals(
    view: &View,
    node: NodeId,
    observed: Option<&Observed>,
    memory: &Memory,
) -> Vec<ReplicaTombstone> {
    let mut remove = Vec::new();
    for (group, tombstone) in view.tombstones_of(node) {
        let gone = observed.is_some_and(|observed| is_gone(observed, group, tombstone.revision));
        if !gone && memory.is_new(group, Asked::Remove) {
            remove.push(ReplicaTombstone {
                group,
                revision: tombstone.revision,
                replica: None,
            });
        }
        if remove.len() == BATCH {
            return remove;
        }
    }
    let left = view
        .placements_of(node)
        .flat_map(|placement| replicas_to_remove(placement, node, observed));
    let asked = |tombstone: &ReplicaTombstone| !memory.is_new(tombstone.group, Asked::Remove);
    remove.extend(left.filter(|tombstone| !asked(tombstone)));
    remove.truncate(BATCH);
    remove
}

/// Replicas that left their group, and ones whose data is gone and in whose place the node gets another one.
fn replicas_to_remove(
    placement: Versioned<&PlacementRecord>,
    node: NodeId,
    observed: Option<&Observed>,
) -> Vec<ReplicaTombstone> {
    let (revision, placement) = (placement.revision, placement.value);
    let group = placement.group;
    let retired = placement.retired.iter().filter(|retired| {
        let is_gone = |seen: &Observed| is_gone_replica(seen, group, retired.replica, revision);
        retired.node == node && !observed.is_some_and(is_gone)
    });
    let seen = observed.and_then(|observed| observed.replica(group));
    let lost_here = |replica: &&ReplicaPlacement| {
        let lost = seen
            .is_some_and(|seen| seen.state == ReplicaState::Lost && seen.replica == Some(replica.replica));
        replica.node == node
            && lost
            && ours(placement, node).is_some_and(|ours| ours.replica > replica.replica)
    };
    let replaced = placement.replicas.iter().filter(lost_here);
    let all = retired
        .map(|retired| retired.replica)
        .chain(replaced.map(|replica| replica.replica));
    all.map(|replica| ReplicaTombstone {
        group,
        revision,
        replica: Some(replica),
    })
    .collect()
}

/// The newest replica of a group that is to be on a node.
fn ours(placement: &PlacementRecord, node: NodeId) -> Option<&ReplicaPlacement> {
    let here = placement.replicas.iter().filter(|replica| replica.node == node);
    here.max_by_key(|replica| replica.replica)
}

/// The same as [`is_gone`] for a replica that left its group at a revision, or before.
pub(crate) fn is_gone_replica(
    observed: &Observed,
    group: RaftGroupId,
    replica: ReplicaId,
    left_at: u64,
) -> bool {
    let seen = observed.replica(group);
    // What cannot be told apart counts as being there.
    let is_other = seen.is_none_or(|seen| seen.replica.is_some_and(|here| here != replica));
    observed.report.placement_revision >= left_at && is_other
}

/// Whether a report says that a deleted group is gone for good: it is not listed, and no order from before the deletion
/// can bring it back, because the node has taken one from behind it.
pub(crate) fn is_gone(observed: &Observed, group: RaftGroupId, deleted_at: u64) -> bool {
    observed.report.placement_revision >= deleted_at && observed.replica(group).is_none()
}

fn openings(
    view: &View,
    node: NodeId,
    observed: Option<&Observed>,
    memory: &mut Memory,
    circumstances: &Circumstances<'_>,
) -> Vec<ReplicaSpec> {
    let mut ensure = Vec::new();
    let mut waiting = BTreeSet::new();
    for placement in view.placements_of(node) {
        let placement = placement.value;
        let Some(ours) = ours(placement, node) else {
            continue;
        };
        let seen = observed.and_then(|observed| observed.replica(placement.group));
        let asked = match next_step(placement, ours, seen, circumstances.alive) {
            Next::Nothing => continue,
            Next::Ask(asked) => asked,
            Next::InitializeLate => {
                waiting.insert(placement.group);
                if !memory.is_out_of_patience(placement.group, circumstances.now) {
                    continue;
                }
                Asked::Initialize
            }
        };
        if !memory.is_new(placement.group, asked) {
            continue;
        }
        if let Some(spec) = spec(view, placement, ours, asked) {
            ensure.push(spec);
        }
        if ensure.len() == BATCH {
            return ensure;
        }
    }
    memory.waiting.retain(|group, _| waiting.contains(group));
    ensure
}

/// What a node has to do for a replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    Nothing,
    Ask(Asked),
    /// To initialise the group although a living node has not opened its replica: only after a while.
    InitializeLate,
}

fn next_step(
    placement: &PlacementRecord,
    ours: &ReplicaPlacement,
    seen: Option<&ReplicaReport>,
    alive: &BTreeSet<NodeId>,
) -> Next {
    let other = seen
        .and_then(|seen| seen.replica)
        .is_some_and(|seen| seen != ours.replica);
    match seen.map(|seen| (seen.state, seen.initialized)) {
        // Another replica of the group is still there: only one whose data is gone makes room at once.
        Some((ReplicaState::Lost, _)) if other => Next::Ask(Asked::Open),
        Some(_) if other => Next::Nothing,
        None | Some((ReplicaState::UnknownGroup, _)) => Next::Ask(Asked::Open),
        Some((ReplicaState::Open, false)) if !placement.initialized => beginning(placement, ours, alive),
        Some(_) => Next::Nothing,
    }
}

/// Whether this replica, which is open, has to initialise its group: the first one that is open on a living node, once
/// a majority is open.
fn beginning(placement: &PlacementRecord, ours: &ReplicaPlacement, alive: &BTreeSet<NodeId>) -> Next {
    let replicas = &placement.replicas;
    let opened = replicas.iter().filter(|replica| replica.opened);
    let first = opened
        .clone()
        .filter(|replica| alive.contains(&replica.node))
        .map(|replica| replica.replica)
        .min();
    if first != Some(ours.replica) || opened.count() <= replicas.len() / 2 {
        return Next::Nothing;
    }
    let mut missing = replicas.iter().filter(|replica| !replica.opened);
    if missing.any(|replica| alive.contains(&replica.node)) {
        return Next::InitializeLate;
    }
    Next::Ask(Asked::Initialize)
}

/// `None` for a placement whose station is not in the view: it is about to be deleted.
fn spec(
    view: &View,
    placement: &PlacementRecord,
    ours: &ReplicaPlacement,
    asked: Asked,
) -> Option<ReplicaSpec> {
    let station = view.station_by_id(placement.partition.station)?.value;
    let members = placement
        .replicas
        .iter()
        .map(|replica| (replica.replica, replica.node));
    Some(ReplicaSpec {
        partition: placement.partition.clone(),
        group: placement.group,
        replica: ours.replica,
        members: members.collect(),
        opened: ours.opened,
        initialize: asked == Asked::Initialize,
        max_message_bytes: station.max_message_bytes,
        generation: station.generation,
    })
}

#[cfg(test)]
mod tests;
