//! What is ordered of a node, from what is wanted of it and what it reports.

use ptah_rpc::records::{Record, RecordValue, RetiredReplica};

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

/// Group 10 with replicas 1, 2 and 3 on nodes 1, 2 and 3, of which 2 leaves for replica 4 on node 4.
fn replacing(opened: &[u64]) -> Record {
    let mut record = placement_with(3, 1, 10, &[1, 2, 3, 4], opened, true);
    edit(&mut record, |placement| placement.replicas[1].leaving = true);
    record
}

fn edit(record: &mut Record, change: impl FnOnce(&mut PlacementRecord)) {
    match &mut record.value {
        RecordValue::Placement(placement) => change(placement),
        other => panic!("{other:?}"),
    }
}

fn leads(on: u64, voters: &[u64], learners: &[u64]) -> Observed {
    let ids = |ids: &[u64]| ids.iter().map(|id| ReplicaId::new(*id).unwrap()).collect();
    let led = ReplicaReport {
        leader: Some(id(on)),
        voters: ids(voters),
        learners: ids(learners),
        members_settled: true,
        ..replica(10, on, ReplicaState::Open, true)
    };
    Observed::new(report(on, 3, vec![led]))
}

fn with_fourth(record: Record) -> View {
    let mut view = cluster_with(record);
    view.apply(node(1, 4));
    view
}

#[test]
fn the_leader_is_told_the_members_once_all_new_replicas_are_open() {
    let waiting = with_fourth(replacing(&[1, 2, 3]));
    assert_eq!(order(&waiting, 1, Some(&leads(1, &[1, 2, 3], &[]))), None);
    let all = with_fourth(replacing(&[1, 2, 3, 4]));
    let told = order(&all, 1, Some(&leads(1, &[1, 2, 3], &[]))).unwrap();
    let voters: Vec<u64> = told.members[0]
        .voters
        .iter()
        .map(|(replica, _)| replica.get())
        .collect();
    assert_eq!(voters, [1, 3, 4]);
    assert!(
        told.members[0].valid > AGAIN_AFTER,
        "it is repeated before it ends"
    );
    let follows = Observed::new(report(3, 3, vec![replica(10, 3, ReplicaState::Open, true)]));
    assert_eq!(order(&all, 3, Some(&follows)), None, "only the leader");
    let done = leads(1, &[1, 3, 4], &[]);
    assert!(
        order(&all, 1, Some(&done)).is_some(),
        "its answer says that it knows nothing older"
    );
}

#[test]
fn members_that_nobody_wants_are_taken_out() {
    let view = cluster_with(placement_with(3, 1, 10, &NODES, &NODES, true));
    assert_eq!(order(&view, 1, Some(&leads(1, &[1, 2, 3], &[]))), None);
    for (voters, learners) in [(&[1, 2, 3][..], &[4][..]), (&[1, 2, 3, 4], &[])] {
        let told = order(&view, 1, Some(&leads(1, voters, learners))).unwrap();
        assert_eq!(told.members[0].voters.len(), 3, "{voters:?} {learners:?}");
    }
}

#[test]
fn members_are_told_again_at_once_when_the_placement_changed() {
    let mut view = with_fourth(replacing(&[1, 2, 3, 4]));
    view.advance(3);
    let (mut memory, now) = (known_peers(&view), Instant::now());
    let leader = leads(1, &[1, 2, 3], &[]);
    let first = ask(&view, 1, Some(&leader), &mut memory, now).unwrap();
    memory.taken(&first, now);
    assert_eq!(ask(&view, 1, Some(&leader), &mut memory, now), None);
    let mut next = replacing(&[1, 2, 3, 4]);
    next.revision = 4;
    view.apply(next);
    view.advance(4);
    assert_eq!(
        ask(&view, 1, Some(&leader), &mut memory, now)
            .unwrap()
            .members
            .len(),
        1
    );
}

#[test]
fn a_replica_that_left_is_removed_until_its_node_says_that_it_is_gone() {
    let mut record = placement_with(5, 1, 10, &[1, 3], &[1, 3], true);
    edit(&mut record, |placement| {
        placement.retired.push(RetiredReplica {
            replica: ReplicaId::new(2).unwrap(),
            node: id(2),
        });
    });
    let view = cluster_with(record);
    let here = |number, revision| {
        Observed::new(report(
            2,
            revision,
            vec![replica(10, number, ReplicaState::Open, true)],
        ))
    };
    let told = order(&view, 2, Some(&here(2, 5))).unwrap();
    let tombstone = ReplicaTombstone {
        group: group(10),
        revision: 5,
        replica: ReplicaId::new(2).ok(),
    };
    assert_eq!((told.remove, told.ensure.len()), (vec![tombstone], 0));
    let before = Observed::new(report(2, 4, Vec::new()));
    assert!(
        order(&view, 2, Some(&before)).is_some(),
        "an older order may still arrive there"
    );
    for gone in [Observed::new(report(2, 5, Vec::new())), here(7, 5)] {
        assert_eq!(order(&view, 2, Some(&gone)), None);
    }
}

#[test]
fn a_replica_without_data_makes_room_for_its_successor_and_others_do_not() {
    let mut record = placement_with(5, 1, 10, &[1, 2, 3, 2], &NODES, true);
    edit(&mut record, |placement| {
        placement.replicas[1].leaving = true;
        placement.replicas[1].lost = true;
        placement.replicas[3].opened = false;
    });
    let view = cluster_with(record);
    let seen = |state| Observed::new(report(2, 5, vec![replica(10, 2, state, true)]));
    let told = order(&view, 2, Some(&seen(ReplicaState::Lost))).unwrap();
    assert_eq!(told.remove[0].replica, ReplicaId::new(2).ok());
    assert_eq!((told.ensure[0].replica.get(), told.ensure[0].opened), (4, false));
    for state in [ReplicaState::Open, ReplicaState::Damaged, ReplicaState::Starting] {
        assert_eq!(order(&view, 2, Some(&seen(state))), None, "{state:?}");
    }
}

#[test]
fn every_node_is_told_which_nodes_shall_not_lead() {
    let mut view = cluster_with(placement_with(3, 1, 10, &NODES, &NODES, true));
    let mut draining = node(4, 2);
    if let RecordValue::Node(node) = &mut draining.value {
        node.duty = NodeDuty::Draining;
    }
    view.apply(draining);
    let seen = Observed::new(report(1, 3, vec![replica(10, 1, ReplicaState::Open, true)]));
    let (mut memory, now) = (known_peers(&view), Instant::now());
    let told = ask(&view, 1, Some(&seen), &mut memory, now).unwrap();
    assert_eq!(told.yielding, BTreeSet::from([id(2)]));
    memory.taken(&told, now);
    assert_eq!(ask(&view, 1, Some(&seen), &mut memory, now), None);
    memory.begin(5, now + AGAIN_AFTER);
    assert!(
        ask(&view, 1, Some(&seen), &mut memory, now).is_some(),
        "again when the node does not say that it knows"
    );
    let mut knows = seen.report.clone();
    knows.yielding = BTreeSet::from([id(2)]);
    assert_eq!(ask(&view, 1, Some(&Observed::new(knows)), &mut memory, now), None);
}
