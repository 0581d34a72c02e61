//! Keys of records.

use std::fmt;

use ptah_types::{
    GroupName, NodeId, PartitionKey, StationId, StationKind, StationName, TenantName, UserName,
};

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

    /// Number of the kind, the same as on the wire: stored, never renumber.
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
    /// Ids of stations.
    Station,
    /// Ids of Raft groups.
    RaftGroup,
    /// Ids of consumer groups.
    ConsumerGroup,
}

impl Counter {
    /// All counters.
    pub const ALL: [Self; 3] = [Self::Station, Self::RaftGroup, Self::ConsumerGroup];

    /// Key of the counter's record: stored, never rename.
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

    /// A station of that kind and name.
    pub fn station(tenant: &TenantName, name: &StationName, kind: StationKind) -> Self {
        Self::of(RecordKind::Station, tenant, name.key(kind).to_owned())
    }

    /// The placement of a partition. Keys of a station sort in order of partitions.
    pub fn placement(partition: &PartitionKey) -> Self {
        let prefix = Self::station_prefix(partition.station);
        let key = format!("{prefix}{:08x}", partition.partition.get());
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
