//! Records of the metadata store: what is wanted of the cluster, as values.
//!
//! A record has a key of kind, tenant and text, and one value per kind. Keys are made by the constructors of
//! [`RecordKey`] alone, so that every process spells them alike. Conversions to and from the generated types are
//! in `wire`.

mod key;
mod wire;

use prost::Message as _;
use ptah_proto::metadata::v1 as pb;
use ptah_service::Secret;
use ptah_types::{
    ConsumerGroupId, GroupName, NodeId, NodeName, PartitionKey, RaftGroupId, ReplicaCount, ReplicaId, Role,
    StartAt, StationId, StationKind, StationName, Storage, Timestamp, UserName,
};

pub use key::{Counter, RecordKey, RecordKind};

use crate::ConversionError;

/// A record at a revision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Key.
    pub key: RecordKey,
    /// Revision of the transaction that wrote it.
    pub revision: u64,
    /// Revision of the transaction that made it.
    pub created_revision: u64,
    /// True for a tombstone: deleted at `revision`; the value is the last one it had.
    pub deleted: bool,
    /// What it holds.
    pub value: RecordValue,
}

/// What a record holds, by kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecordValue {
    /// The cluster's own settings.
    Cluster(ClusterRecord),
    /// A station.
    Station(StationRecord),
    /// Placement of a partition.
    Placement(PlacementRecord),
    /// A consumer group.
    ConsumerGroup(ConsumerGroupRecord),
    /// A user.
    User(UserRecord),
    /// A storage node.
    Node(NodeRecord),
    /// A counter.
    Counter(CounterRecord),
}

impl RecordValue {
    /// The kind of record that holds such a value.
    pub const fn kind(&self) -> RecordKind {
        match self {
            Self::Cluster(_) => RecordKind::Cluster,
            Self::Station(_) => RecordKind::Station,
            Self::Placement(_) => RecordKind::Placement,
            Self::ConsumerGroup(_) => RecordKind::ConsumerGroup,
            Self::User(_) => RecordKind::User,
            Self::Node(_) => RecordKind::Node,
            Self::Counter(_) => RecordKind::Counter,
        }
    }

    /// The value as bytes, for stores that keep it opaque. Readable by every later version.
    pub fn encode(&self) -> Vec<u8> {
        pb::RecordValue::from(self).encode_to_vec()
    }

    /// Reads [`RecordValue::encode`] back.
    pub fn decode(bytes: &[u8]) -> Result<Self, ConversionError> {
        let value = pb::RecordValue::decode(bytes)
            .map_err(|error| ConversionError::invalid("value", error.to_string()))?;
        value.try_into()
    }
}

/// The cluster's own settings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClusterRecord {
    /// Feature level that all nodes must know before newer formats are written.
    pub feature_level: u32,
    /// Incarnation of the store in which the id counters were last checked.
    pub incarnation: u64,
}

/// A station.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StationRecord {
    /// Id, never used again.
    pub id: StationId,
    /// Name, with the display form.
    pub name: StationName,
    /// Rules.
    pub kind: StationKind,
    /// Number of partitions.
    pub partitions: u32,
    /// Replicas of every partition.
    pub replicas: ReplicaCount,
    /// Where messages live.
    pub storage: Storage,
    /// Largest payload in bytes.
    pub max_message_bytes: u64,
    /// When it was made, to the millisecond.
    pub created_at: Timestamp,
    /// Generation of the partition count; a routing decision of an older one is refused.
    pub generation: u64,
}

/// Where the replicas of a partition are. Who leads is told by the storage nodes themselves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlacementRecord {
    /// The partition.
    pub partition: PartitionKey,
    /// Its Raft group, never used again.
    pub group: RaftGroupId,
    /// Replicas that the group has or is to have; the wanted voters are the ones that are not leaving.
    pub replicas: Vec<ReplicaPlacement>,
    /// Next replica id of the group; ids are never used again.
    pub next_replica: ReplicaId,
    /// True after the group was initialised with its first members: never initialise again.
    pub initialized: bool,
    /// Replicas that left the group and whose data may still be on their nodes.
    pub retired: Vec<RetiredReplica>,
}

impl PlacementRecord {
    /// The voters that the group is to have.
    pub fn wanted(&self) -> impl Iterator<Item = &ReplicaPlacement> + Clone {
        self.replicas.iter().filter(|replica| !replica.leaving)
    }

    /// Whether replicas are on their way in or out.
    pub fn is_changing(&self) -> bool {
        self.replicas
            .iter()
            .any(|replica| replica.leaving || (self.initialized && !replica.opened))
    }
}

/// A replica that left its group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RetiredReplica {
    /// Replica id.
    pub replica: ReplicaId,
    /// Node that may still hold its data.
    pub node: NodeId,
}

/// One replica of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplicaPlacement {
    /// Replica id.
    pub replica: ReplicaId,
    /// Node that holds it.
    pub node: NodeId,
    /// True after the node reported it open: it must not be made anew on an empty disk.
    pub opened: bool,
    /// True when it has to leave the group; it stays a voter until the others have caught up.
    pub leaving: bool,
    /// True after its data was found to be gone: it never votes again.
    pub lost: bool,
}

/// Definition of a consumer group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConsumerGroupRecord {
    /// Id, never used again.
    pub id: ConsumerGroupId,
    /// Station.
    pub station: StationId,
    /// Name.
    pub name: GroupName,
    /// Settings.
    pub config: ConsumerGroupConfig,
    /// When it was made, to the millisecond.
    pub created_at: Timestamp,
}

/// Settings of a consumer group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConsumerGroupConfig {
    /// Where it starts.
    pub start: StartAt,
    /// How long a delivered message may stay unacknowledged before it is delivered again, in milliseconds.
    pub ack_deadline_ms: u32,
    /// Most delivered and unacknowledged messages per partition.
    pub max_in_flight: u32,
}

/// A user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserRecord {
    /// Name.
    pub name: UserName,
    /// Role.
    pub role: Role,
    /// argon2id hash of the password in PHC form.
    pub password_hash: Secret,
}

/// A storage node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeRecord {
    /// Id.
    pub node: NodeId,
    /// Name.
    pub name: NodeName,
    /// host:port of its cluster listener.
    pub address: String,
    /// Random number written into its data directory at the first start; another one means another disk.
    pub disk_id: String,
    /// Failure domain; empty when not known.
    pub zone: String,
    /// What it is there for.
    pub duty: NodeDuty,
}

/// What a storage node is there for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum NodeDuty {
    /// Holds replicas and gets new ones.
    #[default]
    Serving,
    /// Its leaders and replicas move away, and it gets no new ones.
    Draining,
    /// Gone for good: its replicas are lost and are replaced elsewhere.
    Forgotten,
}

/// A counter that gives out ids.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CounterRecord {
    /// Next id to give out.
    pub next: u64,
}

/// Condition of a commit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Precondition {
    /// Record.
    pub key: RecordKey,
    /// Revision that it must have; 0 when it must not exist.
    pub revision: u64,
}

/// One change of a commit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Write {
    /// Record.
    pub key: RecordKey,
    /// New value; `None` to delete, which leaves a tombstone.
    pub value: Option<RecordValue>,
}

/// A transaction: all or nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Commit {
    /// All must hold.
    pub preconditions: Vec<Precondition>,
    /// Changes, each key once.
    pub writes: Vec<Write>,
    /// Epoch of the lease under which the writer decides.
    pub lease_epoch: u64,
}

#[cfg(test)]
mod tests;
