//! What clients and services exchange survives the wire, and nonsense is refused.

use std::collections::{BTreeMap, BTreeSet};

use ptah_proto::{control::v1 as control, storage::v1 as storage_pb};
use ptah_types::{
    ClusterId, ConsumerGroupId, LogIndex, NodeId, PartitionKey, PartitionNumber, RaftGroupId, ReplicaCount,
    ReplicaId, Sequence, StartAt, StationId, StationKind, Storage, TenantName, Term, VersionRange,
};

use super::*;
use crate::records::{ConsumerGroupConfig, NodeDuty};

fn partition() -> PartitionKey {
    PartitionKey {
        tenant: TenantName::default_tenant(),
        station: StationId::new(3).unwrap(),
        partition: PartitionNumber::new(2).unwrap(),
    }
}

fn group() -> RaftGroupId {
    RaftGroupId::new(5).unwrap()
}

fn node(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

fn replica(id: u64) -> ReplicaId {
    ReplicaId::new(id).unwrap()
}

fn config() -> ConsumerGroupConfig {
    ConsumerGroupConfig {
        start: StartAt::End,
        ack_deadline_ms: 30_000,
        max_in_flight: 100,
    }
}

fn report() -> NodeReport {
    let damaged = ReplicaReport {
        group: group(),
        replica: None,
        state: ReplicaState::Damaged,
        trouble: "segment 9 is damaged".to_owned(),
        term: Term(4),
        leader: None,
        applied: LogIndex(8),
        initialized: true,
        voters: vec![replica(1), replica(2)],
        learners: vec![replica(3)],
        members_settled: true,
        learner_lag: 11,
    };
    let open = ReplicaReport {
        replica: Some(replica(7)),
        state: ReplicaState::Open,
        trouble: String::new(),
        leader: Some(node(2)),
        ..damaged.clone()
    };
    NodeReport {
        node: node(1),
        address: "a:1".to_owned(),
        version: "0.1.0".to_owned(),
        disk_free_bytes: 5,
        disk_total_bytes: 6,
        replicas: vec![open, damaged],
        placement_epoch: 7,
        placement_revision: 8,
        refuses_messages: true,
        disk_needed_bytes: 9,
        yielding: BTreeSet::from([node(3)]),
    }
}

#[test]
fn management_calls_survive_the_wire() {
    let create = CreateStation {
        principal: "root".parse().unwrap(),
        tenant: TenantName::default_tenant(),
        name: "Orders".parse().unwrap(),
        kind: StationKind::Station,
        partitions: 3,
        replicas: ReplicaCount::FIVE,
        storage: Storage::File,
        max_message_bytes: 8,
    };
    let read = CreateStation::try_from(control::CreateStationRequest::from(&create)).unwrap();
    assert_eq!((read.name.display(), &read), ("Orders", &create));
    let ensure = EnsureConsumerGroup {
        principal: "root".parse().unwrap(),
        tenant: TenantName::default_tenant(),
        station: "Orders".parse().unwrap(),
        group: "audit".parse().unwrap(),
        config: config(),
    };
    let wire = control::EnsureConsumerGroupRequest::from(&ensure);
    assert_eq!(EnsureConsumerGroup::try_from(wire), Ok(ensure));
    let ensured = ConsumerGroupEnsured {
        id: ConsumerGroupId::new(4).unwrap(),
        config: config(),
        created: true,
        revision: 6,
    };
    let wire = control::EnsureConsumerGroupResponse::from(&ensured);
    assert_eq!(ConsumerGroupEnsured::try_from(wire), Ok(ensured));
}

#[test]
fn registrations_and_reports_survive_the_wire() {
    let versions = VersionRange { min: 1, max: 2 };
    let registration = NodeRegistration {
        node: node(1),
        name: "one".parse().unwrap(),
        address: "a:1".to_owned(),
        cluster: Some(ClusterId::from_random_bytes([7; 16])),
        disk_id: "d".to_owned(),
        wire: versions,
        disk: versions,
        zone: "z".to_owned(),
        version: "0.1.0".to_owned(),
    };
    let empty_disk = NodeRegistration {
        cluster: None,
        ..registration.clone()
    };
    for registration in [registration, empty_disk] {
        let wire = control::RegisterNodeRequest::from(&registration);
        assert_eq!(NodeRegistration::try_from(wire), Ok(registration));
    }
    assert_eq!(
        NodeReport::try_from(control::NodeReport::from(&report())),
        Ok(report())
    );
    let description = NodeDescription {
        node: node(1),
        name: "one".to_owned(),
        address: "a:1".to_owned(),
        alive: true,
        last_seen_ago: Duration::from_millis(20),
        report: Some(report()),
        duty: NodeDuty::Forgotten,
    };
    let wire = control::NodeDescription::from(&description);
    assert_eq!(NodeDescription::try_from(wire), Ok(description));
}

#[test]
fn placement_orders_survive_the_wire() {
    let order = PlacementOrder {
        epoch: 1,
        revision: 2,
        peers: BTreeMap::from([(node(1), "a:1".to_owned()), (node(2), "b:2".to_owned())]),
        ensure: vec![ReplicaSpec {
            partition: partition(),
            group: group(),
            replica: replica(1),
            members: vec![(replica(1), node(1)), (replica(2), node(2))],
            opened: true,
            initialize: true,
            max_message_bytes: 9,
            generation: 4,
        }],
        remove: vec![ReplicaTombstone {
            group: RaftGroupId::new(6).unwrap(),
            revision: 3,
            replica: Some(replica(4)),
        }],
        members: vec![GroupMembers {
            group: group(),
            voters: vec![(replica(1), node(1)), (replica(5), node(4))],
            valid: Duration::from_millis(700),
        }],
        yielding: BTreeSet::from([node(9)]),
    };
    let wire = storage_pb::ApplyPlacementRequest::from(&order);
    assert_eq!(PlacementOrder::try_from(wire), Ok(order));
}

#[test]
fn partitions_and_leaders_survive_the_wire() {
    let reference = ConsumerGroupRef {
        partition: partition(),
        group: group(),
        consumer_group: ConsumerGroupId::new(4).unwrap(),
    };
    let wire = storage_pb::ConsumerGroupRef::from(&reference);
    assert_eq!(ConsumerGroupRef::try_from(wire), Ok(reference));
    let sequence = |value| Sequence::new(value).unwrap();
    let description = PartitionDescription {
        group: group(),
        first_sequence: sequence(1),
        next_sequence: sequence(9),
        consumer_groups: vec![ConsumerGroupProgress {
            consumer_group: ConsumerGroupId::new(4).unwrap(),
            ack_floor: sequence(2),
            delivered: sequence(3),
            pending: 4,
        }],
    };
    let wire = storage_pb::PartitionDescription::from(&description);
    assert_eq!(PartitionDescription::try_from(wire), Ok(description));
    let leader = |leader| LeaderInfo {
        group: group(),
        term: Term(3),
        leader,
        ready: leader.is_some(),
    };
    let update = LeaderUpdate {
        full: true,
        leaders: vec![leader(Some(node(2))), leader(None)],
    };
    let wire = storage_pb::WatchLeadersResponse::from(&update);
    assert_eq!(LeaderUpdate::try_from(wire), Ok(update));
}

#[test]
fn impossible_values_are_refused() {
    let backwards = storage_pb::SequenceRange { first: 3, last: 2 };
    let from_zero = storage_pb::SequenceRange { first: 0, last: 2 };
    assert!(SequenceRange::try_from(backwards).is_err());
    assert!(SequenceRange::try_from(from_zero).is_err());
    assert!(ConsumerGroupRef::try_from(storage_pb::ConsumerGroupRef::default()).is_err());
    assert!(control::ReplicaReport::default().state == 0);
    assert!(
        ReplicaReport::try_from(control::ReplicaReport {
            group_id: 1,
            ..Default::default()
        })
        .is_err()
    );
    let no_versions = control::RegisterNodeRequest {
        node_id: 1,
        name: "one".to_owned(),
        ..Default::default()
    };
    let refused = NodeRegistration::try_from(no_versions).unwrap_err().to_string();
    assert_eq!(refused, "field `wire` is missing");
}
