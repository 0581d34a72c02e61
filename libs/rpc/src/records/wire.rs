//! Records on the wire.

use ptah_proto::metadata::v1 as pb;
use ptah_service::Secret;
use ptah_types::{ConsumerGroupId, NodeId, RaftGroupId, ReplicaCount, ReplicaId, Role, StationId, Timestamp};

use super::{
    ClusterRecord, Commit, ConsumerGroupConfig, ConsumerGroupRecord, CounterRecord, NodeDuty, NodeRecord,
    PlacementRecord, Precondition, Record, RecordKey, RecordKind, RecordValue, ReplicaPlacement,
    RetiredReplica, StationRecord, UserRecord, Write,
};
use crate::ConversionError;
use crate::convert::{
    known, partition_key, partition_key_to_proto, required, start_at, start_at_to_proto, station_kind,
    station_kind_to_proto, storage, storage_to_proto,
};
use ptah_proto::common::v1 as common;

impl From<RecordKind> for pb::RecordKind {
    fn from(kind: RecordKind) -> Self {
        match kind {
            RecordKind::Cluster => Self::Cluster,
            RecordKind::Station => Self::Station,
            RecordKind::Placement => Self::Placement,
            RecordKind::ConsumerGroup => Self::ConsumerGroup,
            RecordKind::User => Self::User,
            RecordKind::Node => Self::Node,
            RecordKind::Counter => Self::Counter,
        }
    }
}

impl TryFrom<pb::RecordKind> for RecordKind {
    type Error = ConversionError;
    fn try_from(kind: pb::RecordKind) -> Result<Self, ConversionError> {
        Ok(match kind {
            pb::RecordKind::Unspecified => return Err(ConversionError::missing("kind")),
            pb::RecordKind::Cluster => Self::Cluster,
            pb::RecordKind::Station => Self::Station,
            pb::RecordKind::Placement => Self::Placement,
            pb::RecordKind::ConsumerGroup => Self::ConsumerGroup,
            pb::RecordKind::User => Self::User,
            pb::RecordKind::Node => Self::Node,
            pb::RecordKind::Counter => Self::Counter,
        })
    }
}

impl RecordKind {
    /// Reads a kind's number from the wire.
    pub fn from_proto(number: i32) -> Result<Self, ConversionError> {
        known::<pb::RecordKind>("kind", number)?.try_into()
    }
}

impl From<&RecordKey> for pb::RecordKey {
    fn from(key: &RecordKey) -> Self {
        Self {
            kind: pb::RecordKind::from(key.kind).into(),
            tenant: key.tenant.as_str().to_owned(),
            key: key.key.clone(),
        }
    }
}

impl TryFrom<pb::RecordKey> for RecordKey {
    type Error = ConversionError;
    fn try_from(key: pb::RecordKey) -> Result<Self, ConversionError> {
        Ok(Self {
            kind: RecordKind::from_proto(key.kind)?,
            tenant: key.tenant.parse()?,
            key: key.key,
        })
    }
}

impl From<&Record> for pb::Record {
    fn from(record: &Record) -> Self {
        Self {
            key: Some((&record.key).into()),
            revision: record.revision,
            created_revision: record.created_revision,
            deleted: record.deleted,
            value: Some((&record.value).into()),
        }
    }
}

impl TryFrom<pb::Record> for Record {
    type Error = ConversionError;
    fn try_from(record: pb::Record) -> Result<Self, ConversionError> {
        Ok(Self {
            key: required("record.key", record.key)?.try_into()?,
            revision: record.revision,
            created_revision: record.created_revision,
            deleted: record.deleted,
            value: required("record.value", record.value)?.try_into()?,
        })
    }
}

impl From<&RecordValue> for pb::RecordValue {
    fn from(value: &RecordValue) -> Self {
        use pb::record_value::Value;
        let value = match value {
            RecordValue::Cluster(cluster) => Value::Cluster(pb::ClusterRecord {
                feature_level: cluster.feature_level,
                incarnation: cluster.incarnation,
            }),
            RecordValue::Station(station) => Value::Station(station.into()),
            RecordValue::Placement(placement) => Value::Placement(placement.into()),
            RecordValue::ConsumerGroup(group) => Value::ConsumerGroup(group.into()),
            RecordValue::User(user) => Value::User(user.into()),
            RecordValue::Node(node) => Value::Node(node.into()),
            RecordValue::Counter(counter) => Value::Counter(pb::CounterRecord { next: counter.next }),
        };
        Self { value: Some(value) }
    }
}

impl TryFrom<pb::RecordValue> for RecordValue {
    type Error = ConversionError;
    fn try_from(value: pb::RecordValue) -> Result<Self, ConversionError> {
        use pb::record_value::Value;
        Ok(match required("value", value.value)? {
            Value::Cluster(cluster) => Self::Cluster(ClusterRecord {
                feature_level: cluster.feature_level,
                incarnation: cluster.incarnation,
            }),
            Value::Station(station) => Self::Station(station.try_into()?),
            Value::Placement(placement) => Self::Placement(placement.try_into()?),
            Value::ConsumerGroup(group) => Self::ConsumerGroup(group.try_into()?),
            Value::User(user) => Self::User(user.try_into()?),
            Value::Node(node) => Self::Node(node.try_into()?),
            Value::Counter(counter) => Self::Counter(CounterRecord { next: counter.next }),
        })
    }
}

impl From<&StationRecord> for pb::StationRecord {
    fn from(station: &StationRecord) -> Self {
        Self {
            id: station.id.get(),
            display_name: station.name.display().to_owned(),
            kind: station_kind_to_proto(station.kind).into(),
            partitions: station.partitions,
            replicas: u32::try_from(station.replicas.get()).unwrap_or(u32::MAX),
            storage: storage_to_proto(station.storage).into(),
            max_message_bytes: station.max_message_bytes,
            created_at_ms: station.created_at.as_millis(),
            generation: station.generation,
        }
    }
}

impl TryFrom<pb::StationRecord> for StationRecord {
    type Error = ConversionError;
    fn try_from(station: pb::StationRecord) -> Result<Self, ConversionError> {
        Ok(Self {
            id: StationId::new(station.id)?,
            name: station.display_name.parse()?,
            kind: station_kind(station.kind)?,
            partitions: station.partitions,
            replicas: ReplicaCount::new(station.replicas)?,
            storage: storage(station.storage)?,
            max_message_bytes: station.max_message_bytes,
            created_at: Timestamp::from_millis(station.created_at_ms),
            generation: station.generation,
        })
    }
}

impl From<&PlacementRecord> for pb::PlacementRecord {
    fn from(placement: &PlacementRecord) -> Self {
        let replica = |replica: &ReplicaPlacement| pb::ReplicaPlacement {
            replica_id: replica.replica.get(),
            node_id: replica.node.get(),
            opened: replica.opened,
            leaving: replica.leaving,
            lost: replica.lost,
        };
        let retired = |retired: &RetiredReplica| pb::RetiredReplica {
            replica_id: retired.replica.get(),
            node_id: retired.node.get(),
        };
        Self {
            partition: Some(partition_key_to_proto(&placement.partition)),
            group_id: placement.group.get(),
            replicas: placement.replicas.iter().map(replica).collect(),
            next_replica_id: placement.next_replica.get(),
            initialized: placement.initialized,
            retired: placement.retired.iter().map(retired).collect(),
        }
    }
}

impl TryFrom<pb::PlacementRecord> for PlacementRecord {
    type Error = ConversionError;
    fn try_from(placement: pb::PlacementRecord) -> Result<Self, ConversionError> {
        let mut replicas = Vec::with_capacity(placement.replicas.len());
        for replica in placement.replicas {
            replicas.push(ReplicaPlacement {
                replica: ReplicaId::new(replica.replica_id)?,
                node: NodeId::new(replica.node_id)?,
                opened: replica.opened,
                leaving: replica.leaving,
                lost: replica.lost,
            });
        }
        let mut retired = Vec::with_capacity(placement.retired.len());
        for replica in placement.retired {
            retired.push(RetiredReplica {
                replica: ReplicaId::new(replica.replica_id)?,
                node: NodeId::new(replica.node_id)?,
            });
        }
        Ok(Self {
            partition: partition_key(required("partition", placement.partition)?)?,
            group: RaftGroupId::new(placement.group_id)?,
            replicas,
            next_replica: ReplicaId::new(placement.next_replica_id)?,
            initialized: placement.initialized,
            retired,
        })
    }
}

impl From<&ConsumerGroupConfig> for common::ConsumerGroupConfig {
    fn from(config: &ConsumerGroupConfig) -> Self {
        Self {
            start_at: start_at_to_proto(config.start).into(),
            ack_deadline_ms: config.ack_deadline_ms,
            max_in_flight: config.max_in_flight,
        }
    }
}

impl TryFrom<common::ConsumerGroupConfig> for ConsumerGroupConfig {
    type Error = ConversionError;
    fn try_from(config: common::ConsumerGroupConfig) -> Result<Self, ConversionError> {
        Ok(Self {
            start: start_at(config.start_at)?,
            ack_deadline_ms: config.ack_deadline_ms,
            max_in_flight: config.max_in_flight,
        })
    }
}

impl From<&ConsumerGroupRecord> for pb::ConsumerGroupRecord {
    fn from(group: &ConsumerGroupRecord) -> Self {
        Self {
            id: group.id.get(),
            station_id: group.station.get(),
            name: group.name.as_str().to_owned(),
            config: Some((&group.config).into()),
            created_at_ms: group.created_at.as_millis(),
        }
    }
}

impl TryFrom<pb::ConsumerGroupRecord> for ConsumerGroupRecord {
    type Error = ConversionError;
    fn try_from(group: pb::ConsumerGroupRecord) -> Result<Self, ConversionError> {
        Ok(Self {
            id: ConsumerGroupId::new(group.id)?,
            station: StationId::new(group.station_id)?,
            name: group.name.parse()?,
            config: required("config", group.config)?.try_into()?,
            created_at: Timestamp::from_millis(group.created_at_ms),
        })
    }
}

impl From<&UserRecord> for pb::UserRecord {
    fn from(user: &UserRecord) -> Self {
        let role = match user.role {
            Role::Root => pb::UserRole::Root,
            Role::Management => pb::UserRole::Management,
            Role::Client => pb::UserRole::Client,
        };
        Self {
            name: user.name.as_str().to_owned(),
            role: role.into(),
            password_hash: user.password_hash.expose().to_owned(),
        }
    }
}

impl TryFrom<pb::UserRecord> for UserRecord {
    type Error = ConversionError;
    fn try_from(user: pb::UserRecord) -> Result<Self, ConversionError> {
        let role = match known::<pb::UserRole>("role", user.role)? {
            pb::UserRole::Unspecified => return Err(ConversionError::missing("role")),
            pb::UserRole::Root => Role::Root,
            pb::UserRole::Management => Role::Management,
            pb::UserRole::Client => Role::Client,
        };
        Ok(Self {
            name: user.name.parse()?,
            role,
            password_hash: Secret::new(user.password_hash),
        })
    }
}

impl From<&NodeRecord> for pb::NodeRecord {
    fn from(node: &NodeRecord) -> Self {
        Self {
            node_id: node.node.get(),
            name: node.name.as_str().to_owned(),
            address: node.address.clone(),
            disk_id: node.disk_id.clone(),
            zone: node.zone.clone(),
            duty: match node.duty {
                // Nodes that serve are written as they always were.
                NodeDuty::Serving => common::NodeDuty::Unspecified.into(),
                other => common::NodeDuty::from(other).into(),
            },
        }
    }
}

impl TryFrom<pb::NodeRecord> for NodeRecord {
    type Error = ConversionError;
    fn try_from(node: pb::NodeRecord) -> Result<Self, ConversionError> {
        Ok(Self {
            node: NodeId::new(node.node_id)?,
            name: node.name.parse()?,
            address: node.address,
            disk_id: node.disk_id,
            zone: node.zone,
            duty: NodeDuty::from_proto(node.duty)?,
        })
    }
}

impl From<NodeDuty> for common::NodeDuty {
    fn from(duty: NodeDuty) -> Self {
        match duty {
            NodeDuty::Serving => Self::Serving,
            NodeDuty::Draining => Self::Draining,
            NodeDuty::Forgotten => Self::Forgotten,
        }
    }
}

impl NodeDuty {
    /// Reads a duty's number from the wire; what is not set serves.
    pub fn from_proto(number: i32) -> Result<Self, ConversionError> {
        Ok(match known::<common::NodeDuty>("duty", number)? {
            common::NodeDuty::Unspecified | common::NodeDuty::Serving => Self::Serving,
            common::NodeDuty::Draining => Self::Draining,
            common::NodeDuty::Forgotten => Self::Forgotten,
        })
    }
}

impl From<&Precondition> for pb::Precondition {
    fn from(precondition: &Precondition) -> Self {
        Self {
            key: Some((&precondition.key).into()),
            revision: precondition.revision,
        }
    }
}

impl TryFrom<pb::Precondition> for Precondition {
    type Error = ConversionError;
    fn try_from(precondition: pb::Precondition) -> Result<Self, ConversionError> {
        Ok(Self {
            key: required("precondition.key", precondition.key)?.try_into()?,
            revision: precondition.revision,
        })
    }
}

impl From<&Write> for pb::Write {
    fn from(write: &Write) -> Self {
        Self {
            key: Some((&write.key).into()),
            value: write.value.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<pb::Write> for Write {
    type Error = ConversionError;
    fn try_from(write: pb::Write) -> Result<Self, ConversionError> {
        let key = RecordKey::try_from(required("write.key", write.key)?)?;
        let value = write.value.map(RecordValue::try_from).transpose()?;
        if let Some(value) = &value
            && value.kind() != key.kind
        {
            let why = format!("{key} cannot hold the value of a {}", value.kind().what());
            return Err(ConversionError::invalid("write.value", why));
        }
        Ok(Self { key, value })
    }
}

impl From<&Commit> for pb::CommitRequest {
    fn from(commit: &Commit) -> Self {
        Self {
            preconditions: commit.preconditions.iter().map(Into::into).collect(),
            writes: commit.writes.iter().map(Into::into).collect(),
            lease_epoch: commit.lease_epoch,
        }
    }
}

impl TryFrom<pb::CommitRequest> for Commit {
    type Error = ConversionError;
    fn try_from(commit: pb::CommitRequest) -> Result<Self, ConversionError> {
        let preconditions = commit.preconditions.into_iter().map(TryInto::try_into);
        let writes = commit.writes.into_iter().map(TryInto::try_into);
        Ok(Self {
            preconditions: preconditions.collect::<Result<_, _>>()?,
            writes: writes.collect::<Result<_, _>>()?,
            lease_epoch: commit.lease_epoch,
        })
    }
}
