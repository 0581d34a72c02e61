//! Records of the metadata store: what is wanted of the cluster, as values.
//!
//! A record has a key of kind, tenant and text, and one value per kind. Keys are made by the constructors of
//! [`RecordKey`] alone, so that every process spells them alike.

use std::fmt;

use crate::{
    ConsumerGroupId, GroupName, NodeId, PartitionKey, RaftGroupId, ReplicaCount, ReplicaId, Role, StartAt,
    StationId, StationKind, StationName, Storage, TenantName, Timestamp, UserName,
};

/// Number of a metadata transaction; grows by one with each. Zero is before the first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision after this one; stays at the end of numbers.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Kind of a record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RecordKind {
    /// The cluster's own settings.
    Cluster,
    /// A station.
    Station,
    /// Placement of a partition.
    Placement,
    /// A consumer group.
    ConsumerGroup,
    /// A user.
    User,
    /// A storage node.
    Node,
    /// A counter that gives out ids.
    Counter,
}

impl RecordKind {
    /// All kinds, in order of their stored numbers.
    pub const ALL: [Self; 7] = [
        Self::Cluster,
        Self::Station,
        Self::Placement,
        Self::ConsumerGroup,
        Self::User,
        Self::Node,
        Self::Counter,
    ];

    /// Number of the kind: stored, never renumber.
    pub const fn number(self) -> u32 {
        match self {
            Self::Cluster => 1,
            Self::Station => 2,
            Self::Placement => 3,
            Self::ConsumerGroup => 4,
            Self::User => 5,
            Self::Node => 6,
            Self::Counter => 7,
        }
    }

    /// Reads [`RecordKind::number`] back.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// The kind as words of a sentence.
    pub const fn what(self) -> &'static str {
        match self {
            Self::Cluster => "cluster settings",
            Self::Station => "station",
            Self::Placement => "placement",
            Self::ConsumerGroup => "consumer group",
            Self::User => "user",
            Self::Node => "storage node",
            Self::Counter => "counter",
        }
    }
}

/// Which ids a counter gives out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Counter {
    /// [`StationId`]s.
    Station,
    /// [`RaftGroupId`]s.
    RaftGroup,
    /// [`ConsumerGroupId`]s.
    ConsumerGroup,
}

impl Counter {
    /// All counters.
    pub const ALL: [Self; 3] = [Self::Station, Self::RaftGroup, Self::ConsumerGroup];

    /// Key of the counter's record.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Station => "station",
            Self::RaftGroup => "raft_group",
            Self::ConsumerGroup => "consumer_group",
        }
    }
}

/// Full key of a record.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RecordKey {
    /// Kind.
    pub kind: RecordKind,
    /// Name space; `system` for what belongs to no tenant.
    pub tenant: TenantName,
    /// Key within kind and tenant.
    pub key: String,
}

impl RecordKey {
    /// The cluster's settings.
    pub fn cluster() -> Self {
        Self::system(RecordKind::Cluster, "cluster".to_owned())
    }

    /// A station, by its canonical name.
    pub fn station(tenant: &TenantName, name: &StationName) -> Self {
        Self::of(RecordKind::Station, tenant, name.key().to_owned())
    }

    /// The placement of a partition. Keys of a station sort in order of partitions.
    pub fn placement(partition: &PartitionKey) -> Self {
        let key = format!(
            "{:016x}/{:08x}",
            partition.station.get(),
            partition.partition.get()
        );
        Self::of(RecordKind::Placement, &partition.tenant, key)
    }

    /// A consumer group of a station.
    pub fn consumer_group(tenant: &TenantName, station: StationId, group: &GroupName) -> Self {
        let key = format!("{}{group}", Self::station_prefix(station));
        Self::of(RecordKind::ConsumerGroup, tenant, key)
    }

    /// What the keys of a station's placements and consumer groups start with.
    pub fn station_prefix(station: StationId) -> String {
        format!("{:016x}/", station.get())
    }

    /// A user.
    pub fn user(tenant: &TenantName, name: &UserName) -> Self {
        Self::of(RecordKind::User, tenant, name.as_str().to_owned())
    }

    /// A storage node. Keys sort in order of ids.
    pub fn node(node: NodeId) -> Self {
        Self::system(RecordKind::Node, format!("{:016x}", node.get()))
    }

    /// A counter.
    pub fn counter(counter: Counter) -> Self {
        Self::system(RecordKind::Counter, counter.key().to_owned())
    }

    fn of(kind: RecordKind, tenant: &TenantName, key: String) -> Self {
        Self {
            kind,
            tenant: tenant.clone(),
            key,
        }
    }

    fn system(kind: RecordKind, key: String) -> Self {
        Self::of(kind, &TenantName::system(), key)
    }
}

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}/{}`", self.kind.what(), self.tenant, self.key)
    }
}

/// A record at a revision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Key.
    pub key: RecordKey,
    /// Revision of the transaction that wrote it.
    pub revision: Revision,
    /// Revision of the transaction that made it.
    pub created_revision: Revision,
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
    /// When it was made.
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
    /// Wanted replicas.
    pub replicas: Vec<ReplicaPlacement>,
    /// Next replica id of the group; ids are never used again.
    pub next_replica_id: u64,
    /// True after the group was initialised with its first members: never initialise again.
    pub initialized: bool,
}

/// One wanted replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplicaPlacement {
    /// Replica id.
    pub replica: ReplicaId,
    /// Node that holds it.
    pub node: NodeId,
    /// True after the node reported it open: it must not be made anew on an empty disk.
    pub opened: bool,
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
    /// When it was made.
    pub created_at: Timestamp,
}

/// Settings of a consumer group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConsumerGroupConfig {
    /// Where it starts.
    pub start_at: StartAt,
    /// How long a delivered message may stay unacknowledged before it is delivered again, in milliseconds.
    pub ack_deadline_ms: u32,
    /// Most delivered and unacknowledged messages per partition.
    pub max_in_flight: u32,
}

/// A user. The hash is a secret: the type does not show it in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct UserRecord {
    /// Name.
    pub name: UserName,
    /// Role.
    pub role: Role,
    /// argon2id hash of the password in PHC form.
    pub password_hash: String,
}

impl fmt::Debug for UserRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserRecord")
            .field("name", &self.name)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// A storage node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeRecord {
    /// Id.
    pub node: NodeId,
    /// Name.
    pub name: String,
    /// host:port of its cluster listener.
    pub address: String,
    /// Random number written into its data directory at the first start; another one means another disk.
    pub disk_id: String,
    /// Failure domain; empty when not known.
    pub zone: String,
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
    /// Revision that it must have; `None` when it must not exist.
    pub revision: Option<Revision>,
}

/// One change of a commit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordWrite {
    /// Record.
    pub key: RecordKey,
    /// New value; `None` to delete, which leaves a tombstone.
    pub value: Option<RecordValue>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PartitionNumber;

    #[test]
    fn keys_are_spelled_as_stored() {
        let tenant = TenantName::default_tenant();
        let station = StationId::new(0x2a).unwrap();
        let partition = PartitionKey {
            tenant: tenant.clone(),
            station,
            partition: PartitionNumber::new(11).unwrap(),
        };
        assert_eq!(
            RecordKey::station(&tenant, &"Orders".parse().unwrap()).key,
            "orders"
        );
        assert_eq!(RecordKey::placement(&partition).key, "000000000000002a/0000000b");
        let group = RecordKey::consumer_group(&tenant, station, &"Audit".parse().unwrap());
        assert_eq!(group.key, "000000000000002a/Audit");
        assert_eq!(RecordKey::node(NodeId::new(3).unwrap()).key, "0000000000000003");
        assert_eq!(
            RecordKey::counter(Counter::RaftGroup).tenant,
            TenantName::system()
        );
    }

    #[test]
    fn every_kind_is_read_back_from_its_number() {
        for kind in RecordKind::ALL {
            assert_eq!(RecordKind::from_number(kind.number()), Some(kind));
        }
        assert_eq!(RecordKind::from_number(0), None);
    }

    #[test]
    fn a_users_hash_does_not_reach_logs() {
        let user = UserRecord {
            name: "root".parse().unwrap(),
            role: Role::Root,
            password_hash: "$argon2id$secret".to_owned(),
        };
        assert!(!format!("{user:?}").contains("secret"));
    }
}
