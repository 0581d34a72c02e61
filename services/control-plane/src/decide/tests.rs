//! What decisions make of a view, without a store: each is a function from view and request to a write.

use ptah_rpc::clients::ReplicaState;
use ptah_rpc::records::{ConsumerGroupConfig, Counter, Record, RecordKind, UserRecord};
use ptah_service::Secret;
use ptah_types::{Boundary, ReplicaCount, Role, StartAt, StationKind, Storage, VersionRange, WIRE_PROTOCOL};

use super::*;
use crate::nodes::tests::{replica, report};
use crate::view::tests::{deleted, id, node, placement, placement_with, record, tenant, view};

mod members;

fn user(name: &str, role: Role) -> Record {
    let name: UserName = name.parse().unwrap();
    let value = UserRecord {
        name: name.clone(),
        role,
        password_hash: Secret::new("$argon2id$"),
    };
    record(1, RecordKey::user(&tenant(), &name), RecordValue::User(value))
}

/// Three nodes, an operator and a program.
fn cluster() -> View {
    view(&[
        user("root", Role::Root),
        user("app", Role::Client),
        node(2, 1),
        node(2, 2),
        node(2, 3),
    ])
}

fn alive(count: u64) -> Vec<NodeLoad> {
    let load = |number| NodeLoad {
        node: id(number),
        zone: String::new(),
        replicas: 0,
        firsts: 0,
    };
    (1..=count).map(load).collect()
}

fn request(name: &str) -> CreateStation {
    CreateStation {
        principal: "root".parse().unwrap(),
        tenant: tenant(),
        name: name.parse().unwrap(),
        kind: StationKind::Station,
        partitions: 2,
        replicas: ReplicaCount::THREE,
        storage: Storage::File,
        max_message_bytes: 1_000,
    }
}

fn create(
    view: &View,
    request: &CreateStation,
    alive_nodes: u64,
) -> Result<Step<StationCreated>, ControlError> {
    station::create(
        view,
        request,
        &alive(alive_nodes),
        Timestamp::default(),
        &mut None,
    )
}

fn change<T>(step: Result<Step<T>, ControlError>) -> Change<T> {
    match step {
        Ok(Step::Commit(change)) => change,
        Ok(Step::Done(_)) => panic!("nothing to write"),
        Err(error) => panic!("{error}"),
    }
}

fn refused<T>(step: Result<Step<T>, ControlError>) -> ControlError {
    match step {
        Err(error) => error,
        Ok(_) => panic!("not refused"),
    }
}

/// What the view is after a write.
fn after<T>(mut view: View, change: &Change<T>) -> View {
    let revision = view.revision() + 1;
    for write in &change.writes {
        let condition = change
            .preconditions
            .iter()
            .find(|condition| condition.key == write.key);
        let known = view.revision_of(&write.key);
        assert_eq!(
            condition.map(|condition| condition.revision),
            Some(known),
            "every write has its precondition"
        );
        let value = write
            .value
            .clone()
            .unwrap_or(RecordValue::Counter(ptah_rpc::records::CounterRecord { next: 0 }));
        let mut written = record(revision, write.key.clone(), value);
        written.deleted = write.value.is_none();
        view.apply(written);
    }
    view.advance(revision);
    view
}

#[test]
fn a_station_comes_with_placements_and_ids_in_one_write() {
    let step = change(create(&cluster(), &request("Orders"), 3));
    let view = after(cluster(), &step);
    let station = view.station(&tenant(), &"orders".parse().unwrap()).unwrap();
    assert_eq!(
        (
            station.value.id.get(),
            station.value.name.display(),
            station.value.generation
        ),
        (1, "Orders", 1)
    );
    let keys = view.keys_of_station(RecordKind::Placement, &tenant(), station.value.id);
    let groups: Vec<u64> = keys
        .iter()
        .map(|key| view.placement(key).unwrap().value.group.get())
        .collect();
    assert_eq!(groups, [1, 2]);
    let first = view.placement(&keys[0]).unwrap().value;
    let ids: Vec<u64> = first
        .replicas
        .iter()
        .map(|replica| replica.replica.get())
        .collect();
    assert_eq!(
        (ids, first.next_replica.get(), first.initialized),
        (vec![1, 2, 3], 4, false)
    );
    assert_eq!(
        (
            view.counter(Counter::Station).value,
            view.counter(Counter::RaftGroup).value
        ),
        (2, 3)
    );
    let made = (step.done)(9);
    assert_eq!((made.id.get(), made.revision, made.created), (1, 9, true));
}

#[test]
fn the_same_station_again_is_found_and_another_one_is_refused_by_its_difference() {
    let view = after(cluster(), &change(create(&cluster(), &request("orders"), 3)));
    match create(&view, &request("ORDERS"), 3) {
        Ok(Step::Done(found)) => assert_eq!((found.id.get(), found.created), (1, false)),
        _ => panic!("not found"),
    }
    // Found even when no node is alive: clients ask at every start.
    assert!(matches!(create(&view, &request("orders"), 0), Ok(Step::Done(_))));
    let differences: [(&str, CreateStation); 4] = [
        (
            "2 partitions, not 3",
            CreateStation {
                partitions: 3,
                ..request("orders")
            },
        ),
        (
            "3 replicas, not 1",
            CreateStation {
                replicas: ReplicaCount::ONE,
                ..request("orders")
            },
        ),
        (
            "messages of at most 1000 bytes, not 5",
            CreateStation {
                max_message_bytes: 5,
                ..request("orders")
            },
        ),
        (
            "kind station, not kind stream",
            CreateStation {
                kind: StationKind::Stream,
                ..request("orders")
            },
        ),
    ];
    for (expected, request) in differences {
        let error = refused(create(&view, &request, 3));
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn streams_are_told_apart_by_case_and_never_stand_beside_a_station_of_a_like_name() {
    let stream = |name: &str| CreateStation {
        kind: StationKind::Stream,
        partitions: 1,
        ..request(name)
    };
    let view = after(cluster(), &change(create(&cluster(), &stream("Str"), 3)));
    let view = after(view.clone(), &change(create(&view, &stream("str"), 3)));
    let id = |name: &str| {
        let found = view.station(&tenant(), &name.parse().unwrap());
        found.map(|station| station.value.id.get())
    };
    assert_eq!((id("Str"), id("str"), id("STR")), (Some(1), Some(2), None));
    match create(&view, &stream("Str"), 3) {
        Ok(Step::Done(found)) => assert_eq!(found.id.get(), 1),
        _ => panic!("not found"),
    }
    for name in ["STR", "Str"] {
        let error = refused(create(&view, &request(name), 3));
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert!(error.to_string().contains("another name"), "{error}");
    }
    let view = after(cluster(), &change(create(&cluster(), &request("Orders"), 3)));
    let error = refused(create(&view, &stream("oRDERS"), 3));
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
}

#[test]
fn an_attempt_whose_outcome_was_unknown_is_recognised_as_ours() {
    let mut proposed = None;
    let now = Timestamp::default();
    let step = change(station::create(
        &cluster(),
        &request("orders"),
        &alive(3),
        now,
        &mut proposed,
    ));
    let view = after(cluster(), &step);
    match station::create(&view, &request("orders"), &alive(3), now, &mut proposed) {
        Ok(Step::Done(found)) => assert!(found.created),
        _ => panic!("not found"),
    }
}

#[test]
fn senseless_stations_are_refused_with_the_limit() {
    let cases: [(&str, ErrorKind, CreateStation); 4] = [
        (
            "use 1 to 1024",
            ErrorKind::InvalidArgument,
            CreateStation {
                partitions: 0,
                ..request("a")
            },
        ),
        (
            "use 1 to 1024",
            ErrorKind::InvalidArgument,
            CreateStation {
                partitions: 1_025,
                ..request("a")
            },
        ),
        (
            "exactly one partition",
            ErrorKind::InvalidArgument,
            CreateStation {
                kind: StationKind::Stream,
                ..request("a")
            },
        ),
        (
            "at most 67108864",
            ErrorKind::TooLarge,
            CreateStation {
                max_message_bytes: 1 << 40,
                ..request("a")
            },
        ),
    ];
    for (expected, kind, request) in cases {
        let error = station::checked(&request).unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(error.to_string().contains(expected), "{error}");
    }
    let unset = CreateStation {
        max_message_bytes: 0,
        ..request("a")
    };
    assert_eq!(station::checked(&unset).unwrap().max_message_bytes, 8 << 20);
}

#[test]
fn who_may_not_is_refused_before_anything_is_looked_at() {
    let stranger = CreateStation {
        principal: "nobody".parse().unwrap(),
        ..request("a")
    };
    assert_eq!(
        refused(create(&cluster(), &stranger, 3)).kind(),
        ErrorKind::Unauthenticated
    );
    let program = CreateStation {
        principal: "app".parse().unwrap(),
        ..request("a")
    };
    assert_eq!(
        refused(create(&cluster(), &program, 3)).kind(),
        ErrorKind::PermissionDenied
    );
    let elsewhere = CreateStation {
        tenant: "other".parse().unwrap(),
        ..request("a")
    };
    assert_eq!(
        refused(create(&cluster(), &elsewhere, 3)).kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn too_few_live_nodes_are_told_with_the_station() {
    let error = refused(create(&cluster(), &request("orders"), 1));
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(
        error.to_string(),
        "station `orders`: 3 replicas need 3 live storage nodes, 1 of 3 are alive; start the others or ask for fewer replicas"
    );
}

fn group_request(station: &str, group: &str) -> EnsureConsumerGroup {
    EnsureConsumerGroup {
        principal: "app".parse().unwrap(),
        tenant: tenant(),
        station: station.parse().unwrap(),
        group: group.parse().unwrap(),
        config: ConsumerGroupConfig {
            start: StartAt::First,
            ack_deadline_ms: 500,
            max_in_flight: 7,
        },
    }
}

fn ensure(view: &View, request: &EnsureConsumerGroup) -> Result<Step<ConsumerGroupEnsured>, ControlError> {
    consumer_group::ensure(view, request, Timestamp::default(), &mut None)
}

#[test]
fn a_consumer_group_is_made_once_and_keeps_its_settings() {
    let view = after(cluster(), &change(create(&cluster(), &request("orders"), 3)));
    let step = change(ensure(&view, &group_request("orders", "audit")));
    assert!(
        step.preconditions
            .iter()
            .any(|condition| condition.key.kind == RecordKind::Station),
        "a group never outlives the station it was made for"
    );
    let view = after(
        view,
        &Change {
            preconditions: step.preconditions[1..].to_vec(),
            ..step
        },
    );
    let other = EnsureConsumerGroup {
        config: ConsumerGroupConfig {
            start: StartAt::End,
            ack_deadline_ms: 900,
            max_in_flight: 1,
        },
        ..group_request("ORDERS", "audit")
    };
    match ensure(&view, &other) {
        Ok(Step::Done(found)) => {
            assert_eq!((found.id.get(), found.created), (1, false));
            assert_eq!(
                (found.config.start, found.config.ack_deadline_ms),
                (StartAt::First, 500)
            );
        }
        _ => panic!("not found"),
    }
    let error = refused(ensure(&view, &group_request("nothing", "audit")));
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::NotFound, "station `nothing` not found")
    );
}

#[test]
fn a_station_with_as_many_groups_as_it_may_have_says_what_can_be_done() {
    let view = after(cluster(), &change(create(&cluster(), &request("orders"), 3)));
    let found = view.station(&tenant(), &"orders".parse().unwrap()).unwrap();
    let station = found.value.id;
    let mut full = view.clone();
    for number in 1..=ptah_types::limits::MAX_GROUPS_PER_STATION as u64 {
        let wanted = group_request("orders", &format!("group-{number}"));
        let key = RecordKey::consumer_group(&tenant(), station, &wanted.group);
        let group = ptah_rpc::records::ConsumerGroupRecord {
            id: ptah_types::ConsumerGroupId::new(number).unwrap(),
            station,
            name: wanted.group,
            config: wanted.config,
            created_at: Timestamp::default(),
        };
        full.apply(record(10 + number, key, RecordValue::ConsumerGroup(group)));
    }
    let error = refused(ensure(&full, &group_request("orders", "one-more")));
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    for part in [
        "`one-more`",
        "`orders`",
        "read with one that exists",
        "another station",
    ] {
        assert!(error.to_string().contains(part), "{part} in {error}");
    }
    assert!(matches!(
        ensure(&full, &group_request("orders", "group-7")),
        Ok(Step::Done(_))
    ));
}

#[test]
fn settings_of_consumer_groups_have_defaults_and_limits() {
    let with = |ack_deadline_ms, max_in_flight| EnsureConsumerGroup {
        config: ConsumerGroupConfig {
            start: StartAt::First,
            ack_deadline_ms,
            max_in_flight,
        },
        ..group_request("a", "b")
    };
    let defaults = consumer_group::checked(&with(0, 0)).unwrap();
    assert_eq!(
        (defaults.ack_deadline_ms, defaults.max_in_flight),
        (30_000, 1_000)
    );
    for (deadline, in_flight) in [(99, 1), (604_800_001, 1), (100, 65_537)] {
        let error = consumer_group::checked(&with(deadline, in_flight)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
}

#[test]
fn deleting_a_station_takes_everything_of_it() {
    let view = after(cluster(), &change(create(&cluster(), &request("orders"), 3)));
    let view = after(view.clone(), &change(create(&view, &request("other"), 3)));
    let step = change(ensure(&view, &group_request("orders", "audit")));
    let view = after(
        view,
        &Change {
            preconditions: step.preconditions[1..].to_vec(),
            ..step
        },
    );
    let wanted = DeleteStation {
        principal: "root".parse().unwrap(),
        tenant: tenant(),
        name: "Orders".parse().unwrap(),
        id: None,
    };
    let step = change(station::delete(&view, &wanted));
    let kinds: Vec<RecordKind> = step.writes.iter().map(|write| write.key.kind).collect();
    use RecordKind::{ConsumerGroup, Placement, Station};
    assert_eq!(kinds, [Station, Placement, Placement, ConsumerGroup]);
    assert!(step.writes.iter().all(|write| write.value.is_none()));
    let program = DeleteStation {
        principal: "app".parse().unwrap(),
        ..wanted.clone()
    };
    assert_eq!(
        refused(station::delete(&view, &program)).kind(),
        ErrorKind::PermissionDenied
    );
    let nothing = DeleteStation {
        name: "nothing".parse().unwrap(),
        ..wanted
    };
    assert_eq!(
        refused(station::delete(&view, &nothing)).kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn deleting_one_certain_station_may_be_repeated_and_never_hits_its_successor() {
    let first = after(cluster(), &change(create(&cluster(), &request("orders"), 3)));
    let id = first
        .station(&tenant(), &"orders".parse().unwrap())
        .unwrap()
        .value
        .id;
    let wanted = DeleteStation {
        principal: "root".parse().unwrap(),
        tenant: tenant(),
        name: "orders".parse().unwrap(),
        id: Some(id),
    };
    let gone = after(first.clone(), &change(station::delete(&first, &wanted)));
    match station::delete(&gone, &wanted) {
        Ok(Step::Done(revision)) => assert_eq!(revision, gone.revision()),
        _ => panic!("what is gone counts as deleted"),
    }
    let successor = after(gone.clone(), &change(create(&gone, &request("orders"), 3)));
    let error = refused(station::delete(&successor, &wanted));
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("another one of that name"), "{error}");
}

fn registration(number: u64, disk: &str) -> NodeRegistration {
    NodeRegistration {
        node: id(number),
        name: format!("node-{number}").parse().unwrap(),
        address: format!("127.0.0.1:{}", 7_000 + number),
        cluster: None,
        disk_id: disk.to_owned(),
        wire: WIRE_PROTOCOL,
        disk: ptah_types::DISK_FORMAT,
        zone: String::new(),
        version: "test".to_owned(),
    }
}

fn nobody() -> Nodes {
    Nodes::new(Duration::from_secs(60))
}

#[test]
fn a_node_of_another_cluster_or_version_is_refused() {
    let other = NodeRegistration {
        cluster: Some(ptah_types::ClusterId::from_random_bytes([9; 16])),
        ..registration(4, "disk-4")
    };
    assert_eq!(
        refused(node::register(&cluster(), &nobody(), &other)).kind(),
        ErrorKind::Incompatible
    );
    let newer = NodeRegistration {
        wire: VersionRange { min: 90, max: 91 },
        ..registration(4, "disk-4")
    };
    let error = node::check_versions(&newer).unwrap_err();
    assert!(error.to_string().contains("wire protocol 90-91"), "{error}");
    let newer = NodeRegistration {
        disk: VersionRange { min: 90, max: 91 },
        ..registration(4, "disk-4")
    };
    assert_eq!(
        node::check_versions(&newer).unwrap_err().kind(),
        ErrorKind::Incompatible
    );
    for address in ["", "host", "host:", "host:0", "host:70000"] {
        let odd = NodeRegistration {
            address: address.to_owned(),
            ..registration(4, "disk-4")
        };
        assert!(node::check_texts(&odd).is_err(), "{address}");
    }
}

#[tokio::test]
async fn id_and_address_of_a_live_node_are_not_given_away() {
    let nodes = nobody();
    nodes.reported(report(1, 0, Vec::new()));
    let same_id = refused(node::register(
        &cluster(),
        &nodes,
        &registration(1, "another disk"),
    ));
    assert_eq!(same_id.kind(), ErrorKind::AlreadyExists);
    assert!(same_id.to_string().contains("`node_id`"), "{same_id}");
    let address = registration(1, "").address;
    let same_address = NodeRegistration {
        address,
        ..registration(4, "disk-4")
    };
    let error = refused(node::register(&cluster(), &nodes, &same_address));
    assert!(error.to_string().contains("`advertise_address`"), "{error}");
    let same = node::register(&cluster(), &nodes, &registration(1, "disk-1"));
    assert!(matches!(same, Ok(Step::Done(Some(_)))), "the same node again");
}

#[test]
fn a_node_with_a_new_disk_never_gets_its_old_replicas_made_anew() {
    let mut view = cluster();
    view.apply(placement_with(3, 1, 10, &[1, 2, 3], &[1, 2], false));
    view.apply(placement(3, 2, 11, &[2]));
    view.advance(3);
    let step = change(node::register(&view, &nobody(), &registration(3, "another disk")));
    let view = after(view, &step);
    let lost = view.placements_of(id(3)).next().unwrap().value;
    assert!(
        lost.replicas.iter().all(|replica| replica.opened),
        "also the one that was not reported yet"
    );
    let untouched = view
        .placements_of(id(2))
        .find(|placement| placement.value.group.get() == 11)
        .unwrap();
    assert!(
        !untouched.value.replicas[0].opened,
        "other nodes' replicas are as they were"
    );
    assert_eq!(view.node(id(3)).unwrap().value.disk_id, "another disk");
}

#[test]
fn a_node_with_very_many_replicas_loses_them_in_several_writes() {
    let mut view = cluster();
    for number in 1..=2_500 {
        view.apply(placement(3, number, number, &[1]));
    }
    view.advance(3);
    let mut writes = Vec::new();
    loop {
        let step = change(node::register(&view, &nobody(), &registration(1, "another disk")));
        writes.push(step.writes.len());
        view = after(view, &step);
        if (step.done)(0).is_some() {
            break;
        }
    }
    assert_eq!(writes, [2_000, 501]);
    assert_eq!(
        view.placements_of(id(1))
            .filter(|placement| !placement.value.replicas[0].opened)
            .count(),
        0
    );
}

#[tokio::test]
async fn reports_set_flags_and_never_take_them_back() {
    let mut view = cluster();
    view.apply(placement_with(3, 1, 10, &[1, 2, 3], &[3], false));
    view.advance(3);
    let nodes = nobody();
    nodes.reported(report(1, 3, vec![replica(10, 1, ReplicaState::Open, false)]));
    nodes.reported(report(2, 3, vec![replica(10, 2, ReplicaState::Starting, false)]));
    nodes.reported(report(3, 3, Vec::new()));
    let view = after(view.clone(), &change(Ok(progress::progress(&view, &nodes))));
    let flags = |view: &View| -> Vec<bool> {
        let placement = view.placements_of(id(1)).next().unwrap().value.clone();
        placement.replicas.iter().map(|replica| replica.opened).collect()
    };
    assert_eq!(flags(&view), [true, false, true]);
    assert!(
        matches!(progress::progress(&view, &nodes), Step::Done(0)),
        "nothing new"
    );
    nodes.reported(report(2, 3, vec![replica(10, 9, ReplicaState::Open, true)]));
    assert!(
        matches!(progress::progress(&view, &nodes), Step::Done(0)),
        "another replica's report"
    );
    nodes.reported(report(2, 3, vec![replica(10, 2, ReplicaState::Open, true)]));
    let view = after(view.clone(), &change(Ok(progress::progress(&view, &nodes))));
    assert_eq!(flags(&view), [true, true, true]);
    assert_eq!(view.unfinished().count(), 0);
}

#[test]
fn tombstones_that_a_node_still_needs_hold_the_floor() {
    let mut view = cluster();
    view.apply(placement(3, 1, 10, &[1]));
    view.advance(50_000);
    assert_eq!(progress::floor(&view), 40_000, "the newest stay");
    view.apply(deleted(500, &placement(3, 1, 10, &[1])));
    assert_eq!(progress::floor(&view), 499);
    view.settle(ptah_types::RaftGroupId::new(10).unwrap(), id(1));
    assert_eq!(progress::floor(&view), 40_000);
}

#[test]
fn an_older_copy_of_metadata_skips_ids_that_may_be_in_use() {
    let fresh = after(cluster(), &change(Ok(bootstrap::settings(&cluster()))));
    assert!(matches!(bootstrap::settings(&fresh), Step::Done(())));
    assert_eq!(
        fresh.counter(Counter::RaftGroup).value,
        1,
        "a new cluster begins at the beginning"
    );
    let mut restored = View::new(fresh.cluster(), fresh.incarnation() + 1, 100);
    restored.apply(record(
        5,
        RecordKey::cluster(),
        RecordValue::Cluster(fresh.settings().unwrap()),
    ));
    let restored = after(restored.clone(), &change(Ok(bootstrap::settings(&restored))));
    for counter in Counter::ALL {
        assert!(restored.counter(counter).value > 1_000_000);
    }
    assert!(matches!(bootstrap::settings(&restored), Step::Done(())), "once");

    // The same copy once more, when the history in between was lost as well.
    let mut again = View::new(fresh.cluster(), fresh.incarnation() + 2, 1 << 50);
    let settings = RecordValue::Cluster(fresh.settings().unwrap());
    again.apply(record(5, RecordKey::cluster(), settings));
    let again = after(again.clone(), &change(Ok(bootstrap::settings(&again))));
    for counter in Counter::ALL {
        assert!(again.counter(counter).value > restored.counter(counter).value);
    }
}
