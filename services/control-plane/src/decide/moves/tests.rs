//! What moves when, as tables: one partition, its nodes, and what comes of them.

use ptah_rpc::records::{NodeRecord, Record};
use ptah_types::{ReplicaCount, Term};

use super::*;
use crate::nodes::tests::{replica, report};
use crate::view::tests::{id, node, placement_with, record, station, view};

const LIMITS: MoveLimits = MoveLimits {
    replace_after: Some(Duration::from_secs(300)),
    in_cluster: 8,
    per_node: 2,
};

/// How a node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Is {
    Well,
    /// Silent for this many seconds.
    Silent(u64),
    Draining,
    Forgotten,
    /// Alive, and its replica's data is gone.
    Lost,
    Damaged,
    /// Alive, and it refuses messages.
    Full,
}
use Is::{Damaged, Draining, Forgotten, Full, Lost, Silent, Well};

/// A cluster of such nodes, with partition 1 of `orders` (group 10) on the first `holds` of them; replica and node ids are
/// the same, and the first node that is well leads.
struct World {
    view: View,
    seen: BTreeMap<NodeId, NodeHealth>,
}

fn world(nodes: &[Is], holds: u64, wanted: usize) -> World {
    let held: Vec<u64> = (1..=holds).collect();
    let mut records = vec![station_with(wanted), placement_with(2, 1, 10, &held, &held, true)];
    if let RecordValue::Placement(placement) = &mut records[1].value {
        for replica in &mut placement.replicas {
            replica.lost = nodes[replica.node.get() as usize - 1] == Lost;
        }
    }
    let first = |wanted| (1..=holds).find(|number| nodes[*number as usize - 1] == wanted);
    let leader = first(Well).or_else(|| first(Draining));
    let mut seen = BTreeMap::new();
    for (number, is) in (1..).zip(nodes) {
        records.push(node_with(number, *is));
        let replicas = (number <= holds).then(|| report_of(number, *is, leader, holds));
        let mut told = report(number, 2, replicas.into_iter().collect());
        told.refuses_messages = *is == Full;
        let silent = match is {
            Silent(seconds) => Duration::from_secs(*seconds),
            _ => Duration::ZERO,
        };
        let health = NodeHealth {
            alive: silent.is_zero() && *is != Forgotten,
            seen_ago: Some(silent),
            observed: Some(Arc::new(Observed::new(told))),
        };
        seen.insert(id(number), health);
    }
    World {
        view: view(&records),
        seen,
    }
}

fn station_with(wanted: usize) -> Record {
    let mut record = station(2, 1, "orders");
    if let RecordValue::Station(station) = &mut record.value {
        station.replicas = ReplicaCount::new(u32::try_from(wanted).unwrap()).unwrap();
    }
    record
}

fn node_with(number: u64, is: Is) -> Record {
    let known = node(1, number);
    let RecordValue::Node(value) = known.value.clone() else {
        panic!("{known:?}");
    };
    let duty = match is {
        Draining => NodeDuty::Draining,
        Forgotten => NodeDuty::Forgotten,
        _ => NodeDuty::Serving,
    };
    record(1, known.key, RecordValue::Node(NodeRecord { duty, ..value }))
}

fn report_of(number: u64, is: Is, leader: Option<u64>, holds: u64) -> ReplicaReport {
    let state = match is {
        Lost => ReplicaState::Lost,
        Damaged => ReplicaState::Damaged,
        _ => ReplicaState::Open,
    };
    ReplicaReport {
        term: Term(3),
        leader: leader.map(id),
        voters: (1..=holds).map(|id| ReplicaId::new(id).unwrap()).collect(),
        members_settled: leader == Some(number),
        ..replica(10, number, state, true)
    }
}

impl World {
    fn plan(&self) -> Plan {
        self.plan_after(Duration::from_secs(3_600))
    }

    fn plan_after(&self, decided_for: Duration) -> Plan {
        let places = places(&self.view, &self.seen, decided_for, &LIMITS);
        plan(&self.view, places, &LIMITS)
    }
}

/// Nodes of the replicas that stay or come, and of the ones that leave.
fn outcome(plan: &Plan) -> (Vec<u64>, Vec<u64>) {
    let Some((_, next)) = plan.changes.first() else {
        return (Vec::new(), Vec::new());
    };
    let nodes = |leaving: bool| {
        let replicas = next.replicas.iter().filter(|replica| replica.leaving == leaving);
        replicas.map(|replica| replica.node.get()).collect()
    };
    (nodes(false), nodes(true))
}

#[test]
fn the_table_of_moves() {
    // Nodes, how many of them hold a replica, wanted replicas; nodes that stay or come, and that leave.
    type Row = (
        &'static str,
        &'static [Is],
        u64,
        usize,
        &'static [u64],
        &'static [u64],
    );
    let table: [Row; 17] = [
        ("all is well", &[Well, Well, Well, Well], 3, 3, &[], &[]),
        (
            "dead for long",
            &[Well, Silent(300), Well, Well],
            3,
            3,
            &[1, 3, 4],
            &[2],
        ),
        (
            "not for long enough",
            &[Well, Silent(299), Well, Well],
            3,
            3,
            &[],
            &[],
        ),
        ("drained", &[Draining, Well, Well, Well], 3, 3, &[2, 3, 4], &[1]),
        (
            "forgotten",
            &[Well, Well, Forgotten, Well],
            3,
            3,
            &[1, 2, 4],
            &[3],
        ),
        ("damaged", &[Well, Damaged, Well, Well], 3, 3, &[1, 3, 4], &[2]),
        (
            "lost, and an emptier node is free",
            &[Well, Lost, Well, Well],
            3,
            3,
            &[1, 3, 4],
            &[2],
        ),
        (
            "lost, and no other node is free",
            &[Well, Lost, Well],
            3,
            3,
            &[1, 3, 2],
            &[2],
        ),
        ("nowhere to go", &[Well, Draining, Well], 3, 3, &[], &[]),
        (
            "a full node takes nothing",
            &[Well, Draining, Well, Full],
            3,
            3,
            &[],
            &[],
        ),
        (
            "a dead node takes nothing",
            &[Well, Draining, Well, Silent(5)],
            3,
            3,
            &[],
            &[],
        ),
        (
            "two at once are too many",
            &[Well, Silent(300), Silent(300), Well, Well],
            3,
            3,
            &[],
            &[],
        ),
        (
            "two of five are not",
            &[Well, Silent(300), Silent(300), Well, Well, Well, Well],
            5,
            5,
            &[1, 4, 5, 6, 7],
            &[2, 3],
        ),
        ("more", &[Well, Well, Well], 1, 3, &[1, 2, 3], &[]),
        (
            "fewer, and the leader stays",
            &[Well, Well, Well, Well, Well],
            5,
            3,
            &[1, 2, 3],
            &[4, 5],
        ),
        (
            "the bad ones go first",
            &[Well, Silent(300), Well, Well, Draining],
            5,
            3,
            &[1, 3, 4],
            &[2, 5],
        ),
        ("the only one moves", &[Draining, Well], 1, 1, &[2], &[1]),
    ];
    for (what, nodes, holds, wanted, stay, leave) in table {
        let plan = world(nodes, holds, wanted).plan();
        let (stays, leaves) = outcome(&plan);
        assert_eq!(
            (stays.as_slice(), leaves.as_slice()),
            (stay, leave),
            "{what}: {:?}",
            plan.troubles
        );
        for (_, next) in &plan.changes {
            let mut ids: Vec<u64> = next
                .replicas
                .iter()
                .map(|replica| replica.replica.get())
                .collect();
            ids.dedup();
            assert_eq!(ids.len(), next.replicas.len(), "{what}: ids are never used again");
            assert!(ids.iter().all(|id| *id < next.next_replica.get()), "{what}");
        }
    }
}

#[test]
fn what_cannot_be_done_is_told() {
    let table: [(&[Is], &str); 4] = [
        (&[Well, Draining, Well], "there is no node for a new one"),
        (
            &[Well, Silent(300), Silent(300), Well],
            "only 1 of its 3 voters are alive",
        ),
        (
            &[Silent(300), Silent(300), Silent(300), Well],
            "it has no leader that is heard",
        ),
        (
            &[Forgotten, Forgotten, Forgotten, Well],
            "it has no leader that is heard",
        ),
    ];
    for (nodes, expected) in table {
        let plan = world(nodes, 3, 3).plan();
        assert!(plan.changes.is_empty(), "{nodes:?}");
        assert!(
            plan.troubles[0].contains(expected),
            "{nodes:?}: {:?}",
            plan.troubles
        );
        assert!(plan.troubles[0].contains("partition 1 of station `orders`"));
    }
}

#[test]
fn a_control_plane_that_has_just_begun_waits_for_reports() {
    let world = world(&[Well, Silent(3_000), Well, Well], 3, 3);
    assert!(world.plan_after(Duration::from_secs(299)).changes.is_empty());
    assert_eq!(world.plan_after(Duration::from_secs(300)).changes.len(), 1);
}

#[test]
fn dead_nodes_are_never_replaced_where_that_is_switched_off() {
    let world = world(&[Well, Silent(9_999), Well, Well], 3, 3);
    let never = MoveLimits {
        replace_after: None,
        ..LIMITS
    };
    let places = places(&world.view, &world.seen, Duration::from_secs(99_999), &never);
    assert!(plan(&world.view, places, &never).changes.is_empty());
}

#[test]
fn only_so_many_partitions_and_replicas_change_at_a_time() {
    let mut crowd = world(&[Well, Silent(300), Well, Well], 3, 3);
    for number in 2..=20_u64 {
        let mut other = placement_with(3, number, 10 + number, &[1, 2, 3], &[1, 2, 3], true);
        other.revision = 3;
        crowd.view.apply(station(3, number, &format!("s-{number}")));
        crowd.view.apply(other);
    }
    for health in crowd.seen.values_mut() {
        let mut told = health.observed.as_ref().unwrap().report.clone();
        let first = told.replicas.first().cloned();
        for number in 2..=20_u64 {
            told.replicas.extend(first.clone().map(|first| ReplicaReport {
                group: crate::view::tests::group(10 + number),
                ..first
            }));
        }
        health.observed = Some(Arc::new(Observed::new(told)));
    }
    // One node can take them, and takes two at a time.
    assert_eq!(crowd.plan().changes.len(), LIMITS.per_node);
    let places = || places(&crowd.view, &crowd.seen, Duration::from_secs(3_600), &LIMITS);
    let one = MoveLimits {
        in_cluster: 1,
        ..LIMITS
    };
    assert_eq!(plan(&crowd.view, places(), &one).changes.len(), 1);
}

#[test]
fn a_new_replica_whose_node_dies_before_it_opened_is_replaced_in_its_turn() {
    let mut world = world(&[Well, Silent(300), Well, Silent(300), Well], 3, 3);
    let key = world
        .view
        .placements()
        .next()
        .map(|placement| RecordKey::placement(&placement.value.partition));
    let mut record = placement_with(3, 1, 10, &[1, 2, 3, 4], &[1, 2, 3], true);
    if let RecordValue::Placement(placement) = &mut record.value {
        placement.replicas[1].leaving = true;
    }
    assert_eq!(key.as_ref(), Some(&record.key));
    world.view.apply(record);
    let plan = world.plan();
    assert_eq!(outcome(&plan), (vec![1, 3, 5], vec![2, 4]));
    assert_eq!(plan.changes[0].1.replicas[4].replica.get(), 5);
}
