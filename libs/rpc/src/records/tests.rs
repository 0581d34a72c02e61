//! Every record survives the wire, keys are spelled as stored, and nonsense is refused.

use ptah_types::{PartitionNumber, TenantName};

use super::*;

fn values() -> Vec<RecordValue> {
    let tenant = TenantName::default_tenant();
    let station = StationId::new(4).unwrap();
    vec![
        RecordValue::Cluster(ClusterRecord {
            feature_level: 1,
            incarnation: 77,
        }),
        RecordValue::Station(StationRecord {
            id: station,
            name: "Orders".parse().unwrap(),
            kind: StationKind::Stream,
            partitions: 3,
            replicas: ReplicaCount::THREE,
            storage: Storage::File,
            max_message_bytes: 9,
            created_at: Timestamp::from_millis(8),
            generation: 7,
        }),
        RecordValue::Placement(PlacementRecord {
            partition: PartitionKey {
                tenant,
                station,
                partition: PartitionNumber::FIRST,
            },
            group: RaftGroupId::new(5).unwrap(),
            replicas: vec![ReplicaPlacement {
                replica: ReplicaId::new(1).unwrap(),
                node: NodeId::new(2).unwrap(),
                opened: true,
                leaving: true,
                lost: true,
            }],
            next_replica: ReplicaId::new(2).unwrap(),
            initialized: true,
            retired: vec![RetiredReplica {
                replica: ReplicaId::new(7).unwrap(),
                node: NodeId::new(8).unwrap(),
            }],
        }),
        RecordValue::ConsumerGroup(ConsumerGroupRecord {
            id: ConsumerGroupId::new(6).unwrap(),
            station,
            name: "audit".parse().unwrap(),
            config: ConsumerGroupConfig {
                start: StartAt::End,
                ack_deadline_ms: 1,
                max_in_flight: 2,
            },
            created_at: Timestamp::from_millis(3),
        }),
        RecordValue::User(UserRecord {
            name: "root".parse().unwrap(),
            role: Role::Root,
            password_hash: Secret::new("$argon2id$hidden"),
        }),
        RecordValue::Node(NodeRecord {
            node: NodeId::new(2).unwrap(),
            name: "two".parse().unwrap(),
            address: "127.0.0.1:1".to_owned(),
            disk_id: "d".to_owned(),
            zone: "z".to_owned(),
            duty: NodeDuty::Draining,
        }),
        RecordValue::Counter(CounterRecord { next: 12 }),
    ]
}

#[test]
fn every_value_survives_its_bytes() {
    let kinds: Vec<_> = values().iter().map(RecordValue::kind).collect();
    assert_eq!(kinds, RecordKind::ALL, "a kind has no example");
    for value in values() {
        assert_eq!(RecordValue::decode(&value.encode()), Ok(value));
    }
}

#[test]
fn the_stored_form_of_a_value_does_not_move() {
    let counter = RecordValue::Counter(CounterRecord { next: 300 });
    assert_eq!(counter.encode(), [0x3a, 3, 0x08, 0xac, 0x02]);
    let node = RecordValue::Node(NodeRecord {
        node: NodeId::new(2).unwrap(),
        name: "n".parse().unwrap(),
        address: "a".to_owned(),
        disk_id: "d".to_owned(),
        zone: String::new(),
        duty: NodeDuty::Serving,
    });
    let expected = [0x32, 11, 0x08, 2, 0x12, 1, b'n', 0x1a, 1, b'a', 0x22, 1, b'd'];
    assert_eq!(node.encode(), expected);
}

#[test]
fn bytes_that_are_no_value_are_refused() {
    for bytes in [&b""[..], b"\xff\xff\xff", b"\x3a\x7f", &[0; 64]] {
        assert!(RecordValue::decode(bytes).is_err(), "{bytes:?}");
    }
}

#[test]
fn a_write_survives_the_wire_and_its_value_must_fit_its_key() {
    let write = Write {
        key: RecordKey::counter(Counter::Station),
        value: Some(RecordValue::Counter(CounterRecord { next: 1 })),
    };
    assert_eq!(Write::try_from(pb::Write::from(&write)), Ok(write.clone()));
    let wrong = Write {
        value: Some(values().remove(0)),
        ..write
    };
    let refused = Write::try_from(pb::Write::from(&wrong)).unwrap_err().to_string();
    assert!(
        refused.contains("counter `system/station` cannot hold the value of a cluster settings"),
        "{refused}"
    );
}

#[test]
fn a_commit_survives_the_wire() {
    let commit = Commit {
        preconditions: vec![Precondition {
            key: RecordKey::cluster(),
            revision: 3,
        }],
        writes: vec![Write {
            key: RecordKey::node(NodeId::new(9).unwrap()),
            value: None,
        }],
        lease_epoch: 5,
    };
    assert_eq!(Commit::try_from(pb::CommitRequest::from(&commit)), Ok(commit));
}

#[test]
fn a_record_without_key_or_value_is_refused() {
    assert_eq!(
        Record::try_from(pb::Record::default()),
        Err(ConversionError::Missing("record.key"))
    );
    let no_value = pb::RecordValue { value: None };
    assert_eq!(
        RecordValue::try_from(no_value),
        Err(ConversionError::Missing("value"))
    );
}

#[test]
fn settings_that_a_newer_peer_means_are_refused_not_guessed() {
    let config = ptah_proto::common::v1::ConsumerGroupConfig {
        start_at: 7,
        ..Default::default()
    };
    let refused = ConsumerGroupConfig::try_from(config).unwrap_err().to_string();
    assert_eq!(
        refused,
        "field `start_at` is invalid: 7 is not known to this version"
    );
}

#[test]
fn keys_are_spelled_as_stored() {
    let tenant = TenantName::default_tenant();
    let station = StationId::new(0x2a).unwrap();
    let partition = PartitionKey {
        tenant: tenant.clone(),
        station,
        partition: PartitionNumber::new(11).unwrap(),
    };
    let keys = [
        RecordKey::station(&tenant, &"Orders".parse().unwrap(), StationKind::Station),
        RecordKey::station(&tenant, &"Orders".parse().unwrap(), StationKind::Stream),
        RecordKey::placement(&partition),
        RecordKey::consumer_group(&tenant, station, &"Audit".parse().unwrap()),
        RecordKey::user(&tenant, &"root".parse().unwrap()),
        RecordKey::node(NodeId::new(3).unwrap()),
        RecordKey::counter(Counter::RaftGroup),
        RecordKey::cluster(),
    ];
    let spelled = keys.map(|key| key.to_string());
    let expected = [
        "station `default/orders`",
        "station `default/Orders`",
        "placement `default/000000000000002a/0000000b`",
        "consumer group `default/000000000000002a/Audit`",
        "user `default/root`",
        "storage node `system/0000000000000003`",
        "counter `system/raft_group`",
        "cluster settings `system/cluster`",
    ];
    assert_eq!(spelled, expected);
}

#[test]
fn every_kind_is_read_back_from_its_number() {
    for kind in RecordKind::ALL {
        assert_eq!(RecordKind::from_number(kind.number()), Some(kind));
        let wire = i32::try_from(kind.number()).unwrap();
        assert_eq!(RecordKind::from_proto(wire), Ok(kind));
    }
    assert_eq!(RecordKind::from_number(0), None);
    assert!(RecordKind::from_proto(0).is_err() && RecordKind::from_proto(99).is_err());
}

#[test]
fn a_users_hash_does_not_reach_logs() {
    assert!(!format!("{:?}", values()).contains("hidden"));
}
