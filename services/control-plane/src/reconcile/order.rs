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
mod tests {
    use super::*;
    use crate::nodes::tests::{replica, report};
    use crate::view::tests::{deleted, group, id, node, placement, placement_with, station, view};

    const NODES: [u64; 3] = [1, 2, 3];

    fn known_peers(view: &View) -> Memory {
        Memory {
            epoch: 5,
            peers: Some(
                view.nodes()
                    .map(|node| (node.node, node.address.clone()))
                    .collect(),
            ),
            ..Memory::default()
        }
    }

    fn alive(nodes: &[u64]) -> BTreeSet<NodeId> {
        nodes.iter().map(|node| id(*node)).collect()
    }

    fn cluster_with(record: ptah_rpc::records::Record) -> View {
        view(&[
            node(1, 1),
            node(1, 2),
            node(1, 3),
            station(2, 1, "orders"),
            record,
        ])
    }

    fn order(view: &View, on: u64, observed: Option<&Observed>) -> Option<PlacementOrder> {
        ask(view, on, observed, &mut known_peers(view), Instant::now())
    }

    fn ask(
        view: &View,
        on: u64,
        observed: Option<&Observed>,
        memory: &mut Memory,
        now: Instant,
    ) -> Option<PlacementOrder> {
        let circumstances = Circumstances {
            epoch: 5,
            alive: &alive(&NODES),
            now,
        };
        difference(view, id(on), observed, memory, &circumstances)
    }

    #[test]
    fn a_new_replica_is_opened_and_not_initialised() {
        let view = cluster_with(placement(2, 1, 10, &NODES));
        for observed in [None, Some(Observed::new(report(1, 0, Vec::new())))] {
            let order = order(&view, 1, observed.as_ref()).unwrap();
            assert_eq!((order.epoch, order.revision, order.ensure.len()), (5, 2, 1));
            let spec = &order.ensure[0];
            assert_eq!(
                (spec.group, spec.opened, spec.initialize),
                (group(10), false, false)
            );
            assert_eq!(spec.members.len(), 3);
            assert_eq!(spec.max_message_bytes, 1_000);
        }
    }

    #[test]
    fn only_the_first_replica_initialises_and_only_after_all_are_opened() {
        let open = |on| Observed::new(report(on, 2, vec![replica(10, on, ReplicaState::Open, false)]));
        let some = cluster_with(placement_with(3, 1, 10, &NODES, &[1, 2], false));
        assert_eq!(order(&some, 1, Some(&open(1))), None);
        let all = cluster_with(placement_with(3, 1, 10, &NODES, &NODES, false));
        let order_of_first = order(&all, 1, Some(&open(1))).unwrap();
        assert!(order_of_first.ensure[0].initialize && order_of_first.ensure[0].opened);
        assert_eq!(order(&all, 2, Some(&open(2))), None);
        let done = Observed::new(report(1, 3, vec![replica(10, 1, ReplicaState::Open, true)]));
        assert_eq!(order(&all, 1, Some(&done)), None, "it said that it did");
        let recorded = cluster_with(placement_with(4, 1, 10, &NODES, &NODES, true));
        assert_eq!(order(&recorded, 1, Some(&open(1))), None, "never again");
    }

    #[test]
    fn a_group_begins_with_a_majority_when_the_rest_is_dead_or_does_not_manage() {
        use Next::{Ask, InitializeLate, Nothing};
        let initialize = Ask(Asked::Initialize);
        // Opened, alive, and what replicas 1, 2 and 3 have to do if they are open.
        let table: [(&[u64], &[u64], [Next; 3]); 9] = [
            (&[1, 2, 3], &[1, 2, 3], [initialize, Nothing, Nothing]),
            (&[1, 2], &[1, 2], [initialize, Nothing, Nothing]),
            (&[2, 3], &[2, 3], [Nothing, initialize, Nothing]),
            (&[1, 2], &[1, 2, 3], [InitializeLate, Nothing, Nothing]),
            (&[2, 3], &[1, 2, 3], [Nothing, InitializeLate, Nothing]),
            // The first one died after it had opened.
            (&[1, 2, 3], &[2, 3], [Nothing, initialize, Nothing]),
            // No majority.
            (&[1], &[1], [Nothing; 3]),
            (&[3], &[1, 2, 3], [Nothing; 3]),
            (&[], &[1, 2, 3], [Nothing; 3]),
        ];
        for (opened, living, wanted) in table {
            let record = placement_with(3, 1, 10, &NODES, opened, false);
            let ptah_rpc::records::RecordValue::Placement(placement) = &record.value else {
                panic!("{record:?}");
            };
            for (place, wanted) in wanted.into_iter().enumerate() {
                let ours = &placement.replicas[place];
                let open = replica(10, ours.replica.get(), ReplicaState::Open, false);
                let next = next_step(placement, ours, Some(&open), &alive(living));
                assert_eq!(
                    next, wanted,
                    "replica {place} of {opened:?} opened, {living:?} alive"
                );
            }
        }
        let alone = placement_with(3, 1, 10, &[1], &[], false);
        let observed = Observed::new(report(1, 2, vec![replica(10, 1, ReplicaState::Open, false)]));
        assert_eq!(
            order(&cluster_with(alone), 1, Some(&observed)),
            None,
            "not recorded yet"
        );
    }

    #[test]
    fn a_living_node_gets_some_time_to_open_its_replica() {
        let view = cluster_with(placement_with(3, 1, 10, &NODES, &[1, 2], false));
        let observed = Observed::new(report(1, 2, vec![replica(10, 1, ReplicaState::Open, false)]));
        let mut memory = known_peers(&view);
        let start = Instant::now();
        let mut after = |wait| ask(&view, 1, Some(&observed), &mut memory, start + wait);
        assert_eq!(after(Duration::ZERO), None);
        assert_eq!(after(OPEN_PATIENCE - Duration::from_millis(1)), None);
        let order = after(OPEN_PATIENCE).unwrap();
        assert!(order.ensure[0].initialize && order.ensure[0].members.len() == 3);
    }

    #[test]
    fn a_lost_or_damaged_replica_is_neither_made_anew_nor_initialised() {
        let all = cluster_with(placement_with(3, 1, 10, &NODES, &NODES, false));
        for state in [
            ReplicaState::Lost,
            ReplicaState::Damaged,
            ReplicaState::Failed,
            ReplicaState::Starting,
        ] {
            let observed = Observed::new(report(1, 2, vec![replica(10, 1, state, false)]));
            assert_eq!(order(&all, 1, Some(&observed)), None, "{state:?}");
        }
        let empty = Observed::new(report(1, 2, Vec::new()));
        let order = order(&all, 1, Some(&empty)).unwrap();
        assert!(
            order.ensure[0].opened && !order.ensure[0].initialize,
            "told that it had it"
        );
    }

    #[test]
    fn a_deleted_group_is_removed_until_the_node_says_that_it_is_gone() {
        let mut view = cluster_with(placement(2, 1, 10, &NODES));
        view.apply(deleted(7, &placement(2, 1, 10, &NODES)));
        view.advance(7);
        let has_it = Observed::new(report(1, 7, vec![replica(10, 1, ReplicaState::Open, true)]));
        let remove = order(&view, 1, Some(&has_it)).unwrap().remove;
        assert_eq!(
            remove,
            [ReplicaTombstone {
                group: group(10),
                revision: 7,
                replica: None,
            }]
        );
        let not_yet = Observed::new(report(1, 6, Vec::new()));
        assert!(
            order(&view, 1, Some(&not_yet)).is_some(),
            "an older order may still arrive there"
        );
        let gone = Observed::new(report(1, 7, Vec::new()));
        assert_eq!(order(&view, 1, Some(&gone)), None);
    }

    #[test]
    fn a_group_that_nobody_knows_is_left_alone() {
        let view = cluster_with(placement_with(3, 1, 10, &NODES, &NODES, true));
        let replicas = vec![
            replica(10, 1, ReplicaState::Open, true),
            replica(99, 1, ReplicaState::UnknownGroup, true),
        ];
        let observed = Observed::new(report(1, 3, replicas));
        assert_eq!(order(&view, 1, Some(&observed)), None);
    }

    #[test]
    fn a_group_that_the_node_does_not_place_is_ordered_again() {
        let view = cluster_with(placement_with(3, 1, 10, &NODES, &NODES, true));
        let observed = Observed::new(report(
            1,
            3,
            vec![replica(10, 1, ReplicaState::UnknownGroup, true)],
        ));
        assert_eq!(order(&view, 1, Some(&observed)).unwrap().ensure.len(), 1);
    }

    #[test]
    fn new_addresses_go_out_without_other_orders() {
        let view = cluster_with(placement_with(3, 1, 10, &NODES, &NODES, true));
        let observed = Observed::new(report(1, 3, vec![replica(10, 1, ReplicaState::Open, true)]));
        let first = ask(&view, 1, Some(&observed), &mut Memory::default(), Instant::now()).unwrap();
        assert_eq!(
            (first.peers.len(), first.ensure.len(), first.remove.len()),
            (3, 0, 0)
        );
    }

    #[tokio::test]
    async fn an_order_is_repeated_after_a_while_only() {
        let view = cluster_with(placement(2, 1, 10, &NODES));
        let mut memory = Memory::default();
        let now = Instant::now();
        memory.begin(5, now);
        let order = ask(&view, 1, None, &mut memory, now).unwrap();
        memory.taken(&order, now);
        memory.begin(5, now + AGAIN_AFTER / 2);
        assert_eq!(ask(&view, 1, None, &mut memory, now), None);
        memory.begin(5, now + AGAIN_AFTER);
        assert_eq!(ask(&view, 1, None, &mut memory, now).unwrap().ensure.len(), 1);
        memory.taken(&order, now);
        memory.begin(6, now);
        assert!(
            ask(&view, 1, None, &mut memory, now).is_some(),
            "another epoch begins anew"
        );
    }

    #[test]
    fn a_large_difference_goes_in_pieces() {
        let mut records = vec![node(1, 1), station(1, 1, "orders")];
        for number in 1..=300 {
            records.push(station(2, number, &format!("s-{number}")));
            records.push(placement(2, number, number, &[1]));
        }
        let order = order(&view(&records), 1, None).unwrap();
        assert_eq!(order.ensure.len(), BATCH);
    }
}
