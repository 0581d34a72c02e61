//! Records in and out, in any order that list and watch can bring them.

use ptah_rpc::records::ReplicaPlacement;
use ptah_types::{PartitionKey, PartitionNumber, ReplicaCount, ReplicaId, StationKind, Storage, Timestamp};

use super::*;

pub(crate) fn tenant() -> TenantName {
    TenantName::default_tenant()
}

pub(crate) fn id(number: u64) -> NodeId {
    NodeId::new(number).unwrap()
}

pub(crate) fn group(number: u64) -> RaftGroupId {
    RaftGroupId::new(number).unwrap()
}

pub(crate) fn record(revision: u64, key: RecordKey, value: RecordValue) -> Record {
    Record {
        key,
        revision,
        created_revision: revision,
        deleted: false,
        value,
    }
}

pub(crate) fn deleted(revision: u64, record: &Record) -> Record {
    Record {
        revision,
        deleted: true,
        ..record.clone()
    }
}

pub(crate) fn station(revision: u64, station: u64, name: &str) -> Record {
    let name: StationName = name.parse().unwrap();
    let key = RecordKey::station(&tenant(), &name, StationKind::Station);
    let value = StationRecord {
        id: StationId::new(station).unwrap(),
        name,
        kind: StationKind::Station,
        partitions: 1,
        replicas: ReplicaCount::THREE,
        storage: Storage::File,
        max_message_bytes: 1_000,
        created_at: Timestamp::default(),
        generation: 1,
    };
    record(revision, key, RecordValue::Station(value))
}

/// A placement of partition 1 on nodes; replica ids are counted from 1.
pub(crate) fn placement(revision: u64, station: u64, group_id: u64, nodes: &[u64]) -> Record {
    placement_with(revision, station, group_id, nodes, &[], false)
}

/// The same, with the nodes that have opened theirs.
pub(crate) fn placement_with(
    revision: u64,
    station: u64,
    group_id: u64,
    nodes: &[u64],
    opened: &[u64],
    initialized: bool,
) -> Record {
    let partition = PartitionKey {
        tenant: tenant(),
        station: StationId::new(station).unwrap(),
        partition: PartitionNumber::FIRST,
    };
    let replica = |(index, node): (usize, &u64)| ReplicaPlacement {
        replica: ReplicaId::new(index as u64 + 1).unwrap(),
        node: id(*node),
        opened: opened.contains(node),
        leaving: false,
        lost: false,
    };
    let value = PlacementRecord {
        group: group(group_id),
        replicas: nodes.iter().enumerate().map(replica).collect(),
        next_replica: ReplicaId::new(nodes.len() as u64 + 1).unwrap(),
        initialized,
        retired: Vec::new(),
        partition: partition.clone(),
    };
    record(
        revision,
        RecordKey::placement(&partition),
        RecordValue::Placement(value),
    )
}

pub(crate) fn node(revision: u64, number: u64) -> Record {
    let value = NodeRecord {
        node: id(number),
        name: format!("node-{number}").parse().unwrap(),
        address: format!("127.0.0.1:{}", 7_000 + number),
        disk_id: format!("disk-{number}"),
        zone: String::new(),
        duty: NodeDuty::Serving,
    };
    record(revision, RecordKey::node(id(number)), RecordValue::Node(value))
}

pub(crate) fn view(records: &[Record]) -> View {
    let mut view = View::new(ClusterId::from_random_bytes([1; 16]), 1, 0);
    for record in records {
        view.apply(record.clone());
        view.advance(record.revision);
    }
    view
}

#[test]
fn indices_follow_the_records() {
    let mut view = view(&[station(1, 1, "Orders"), placement(1, 1, 10, &[1, 2]), node(2, 1)]);
    assert_eq!(view.load_of(id(1)), (1, 1));
    assert_eq!(view.load_of(id(2)), (1, 0));
    assert_eq!(view.unfinished().count(), 1);
    assert_eq!(
        view.station_by_id(StationId::new(1).unwrap()).unwrap().revision,
        1
    );
    view.apply(placement_with(3, 1, 10, &[1, 2], &[1, 2], true));
    assert_eq!(view.unfinished().count(), 0);
    assert_eq!(view.load_of(id(1)), (1, 1), "counted once");
    view.apply(deleted(4, &placement(1, 1, 10, &[1, 2])));
    view.apply(deleted(4, &station(1, 1, "Orders")));
    assert_eq!((view.load_of(id(1)), view.load_of(id(2))), ((0, 0), (0, 0)));
    assert!(view.station_by_id(StationId::new(1).unwrap()).is_none());
    assert_eq!(view.tombstones_of(id(2)).count(), 1);
}

#[test]
fn what_is_older_than_known_changes_nothing() {
    let mut view = view(&[placement_with(5, 1, 10, &[1], &[1], true)]);
    view.apply(placement(3, 1, 10, &[1]));
    assert_eq!(view.unfinished().count(), 0);
    view.apply(deleted(7, &placement(5, 1, 10, &[1])));
    view.apply(placement(6, 1, 10, &[1]));
    assert_eq!(
        view.placements_of(id(1)).count(),
        0,
        "a deleted placement does not come back"
    );
}

#[test]
fn a_station_made_again_under_its_name_is_another_one() {
    let mut view = view(&[station(1, 1, "orders")]);
    view.apply(deleted(2, &station(1, 1, "orders")));
    view.apply(station(3, 2, "ORDERS"));
    let found = view.station(&tenant(), &"Orders".parse().unwrap()).unwrap();
    assert_eq!((found.revision, found.value.id.get()), (3, 2));
}

#[test]
fn tombstones_are_needed_until_every_node_has_settled() {
    let mut view = view(&[placement(1, 1, 10, &[1, 2]), placement(2, 2, 11, &[1])]);
    view.apply(deleted(8, &placement(1, 1, 10, &[1, 2])));
    view.advance(20);
    assert_eq!(view.settled_revision(), 7);
    view.settle(group(10), id(1));
    assert_eq!(view.settled_revision(), 7);
    view.settle(group(10), id(2));
    assert_eq!(view.settled_revision(), 20);
    view.forget_tombstones(8);
    assert!(view.tombstones.is_empty());
}

#[test]
fn keys_of_a_station_are_its_own() {
    let view = view(&[
        placement(1, 1, 10, &[1]),
        placement(1, 2, 11, &[1]),
        placement(1, 16, 12, &[1]),
    ]);
    let keys = view.keys_of_station(RecordKind::Placement, &tenant(), StationId::new(1).unwrap());
    assert_eq!(keys.len(), 1);
}

#[test]
fn counters_begin_at_one() {
    assert_eq!(
        view(&[]).counter(Counter::Station),
        Versioned {
            revision: 0,
            value: 1
        }
    );
}
