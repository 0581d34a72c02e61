//! Every record survives the wire, and nonsense is refused.

use ptah_types::{
    ConsumerGroupConfig, Counter, PartitionKey, PartitionNumber, StartAt, StationKind, Storage, TenantName,
};

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
            }],
            next_replica_id: 2,
            initialized: true,
        }),
        RecordValue::ConsumerGroup(ConsumerGroupRecord {
            id: ConsumerGroupId::new(6).unwrap(),
            station,
            name: "audit".parse().unwrap(),
            config: ConsumerGroupConfig {
                start_at: StartAt::End,
                ack_deadline_ms: 1,
                max_in_flight: 2,
            },
            created_at: Timestamp::from_millis(3),
        }),
        RecordValue::User(UserRecord {
            name: "root".parse().unwrap(),
            role: Role::Root,
            password_hash: "$argon2id$".to_owned(),
        }),
        RecordValue::Node(NodeRecord {
            node: NodeId::new(2).unwrap(),
            name: "two".to_owned(),
            address: "127.0.0.1:1".to_owned(),
            disk_id: "d".to_owned(),
            zone: "z".to_owned(),
        }),
        RecordValue::Counter(CounterRecord { next: 12 }),
    ]
}

#[test]
fn every_value_survives_the_wire() {
    for value in values() {
        assert_eq!(RecordValue::try_from(pb::RecordValue::from(&value)), Ok(value));
    }
}

#[test]
fn a_write_whose_value_does_not_fit_its_key_is_refused() {
    let write = pb::Write {
        key: Some((&RecordKey::counter(Counter::Station)).into()),
        value: Some((&values()[0]).into()),
    };
    let refused = RecordWrite::try_from(write).unwrap_err().to_string();
    assert!(refused.contains("counter `system/station`"), "{refused}");
}

#[test]
fn a_record_without_key_or_value_is_refused() {
    assert_eq!(
        Record::try_from(pb::Record::default()),
        Err(ConversionError::Missing("record.key"))
    );
    assert_eq!(
        RecordValue::try_from(pb::RecordValue { value: None }),
        Err(ConversionError::Missing("value"))
    );
}

#[test]
fn a_precondition_of_revision_zero_means_that_nothing_is_there() {
    let condition = Precondition {
        key: RecordKey::cluster(),
        revision: None,
    };
    assert_eq!(pb::Precondition::from(&condition).revision, 0);
    assert_eq!(
        Precondition::try_from(pb::Precondition::from(&condition)),
        Ok(condition)
    );
}
