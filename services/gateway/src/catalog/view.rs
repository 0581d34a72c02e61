//! What the gateway knows of the metadata store, as plain maps.
//!
//! Records may come in any order and more than once: of two versions of one record the one with the higher revision counts.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use ptah_rpc::records::{
    ConsumerGroupConfig, NodeRecord, PlacementRecord, Record, RecordKey, RecordValue, StationRecord,
    UserRecord,
};
use ptah_types::{
    ConsumerGroupId, GroupName, NodeId, PartitionKey, PartitionNumber, RaftGroupId, StationId, StationKind,
    StationName, TenantName, UserName,
};

/// A station as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Station {
    /// Name space.
    pub tenant: TenantName,
    /// Its record.
    pub record: StationRecord,
    /// Revision of the record.
    pub revision: u64,
    /// Number of partitions.
    pub partitions: NonZeroU32,
}

impl Station {
    /// Full key of one of its partitions.
    pub fn partition_key(&self, partition: PartitionNumber) -> PartitionKey {
        PartitionKey {
            tenant: self.tenant.clone(),
            station: self.record.id,
            partition,
        }
    }

    /// The partition of that number, if the station has it.
    pub fn partition(&self, number: u32) -> Option<PartitionNumber> {
        PartitionNumber::new(number)
            .ok()
            .filter(|_| number <= self.partitions.get())
    }

    /// All partitions in order.
    pub fn all_partitions(&self) -> impl Iterator<Item = PartitionNumber> + use<> {
        (1..=self.partitions.get()).filter_map(|number| PartitionNumber::new(number).ok())
    }
}

/// Key of a station's name. Sorts without regard to case, so that lists are in the order that people expect.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct SortedName {
    folded: String,
    key: String,
}

impl SortedName {
    fn of(key: &str) -> Self {
        Self {
            folded: key.to_ascii_lowercase(),
            key: key.to_owned(),
        }
    }
}

/// A consumer group as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerGroup {
    /// Id.
    pub id: ConsumerGroupId,
    /// Station.
    pub station: StationId,
    /// Name.
    pub name: GroupName,
    /// Settings.
    pub config: ConsumerGroupConfig,
}

/// Everything known, at a revision.
#[derive(Debug, Default, Clone)]
pub struct CatalogView {
    records: BTreeMap<RecordKey, Record>,
    stations: BTreeMap<(TenantName, SortedName), Arc<Station>>,
    station_names: BTreeMap<StationId, (TenantName, SortedName)>,
    placements: BTreeMap<StationId, BTreeMap<u32, Arc<PlacementRecord>>>,
    groups: BTreeMap<StationId, BTreeMap<GroupName, Arc<ConsumerGroup>>>,
    users: BTreeMap<(TenantName, UserName), Arc<UserRecord>>,
    nodes: BTreeMap<NodeId, Arc<NodeRecord>>,
}

impl CatalogView {
    /// Takes one record in, or its deletion. Older versions than the known one are passed over.
    pub fn apply(&mut self, record: Record) {
        let known = self.records.get(&record.key).map(|known| known.revision);
        if known.is_some_and(|known| known > record.revision) {
            return;
        }
        if record.deleted {
            self.remove(&record);
            self.records.remove(&record.key);
        } else {
            self.insert(&record);
            self.records.insert(record.key.clone(), record);
        }
    }

    fn insert(&mut self, record: &Record) {
        let tenant = &record.key.tenant;
        match &record.value {
            RecordValue::Station(station) => self.insert_station(tenant, station, record.revision),
            RecordValue::Placement(placement) => {
                let partitions = self.placements.entry(placement.partition.station).or_default();
                partitions.insert(placement.partition.partition.get(), Arc::new(placement.clone()));
            }
            RecordValue::ConsumerGroup(group) => {
                let known = ConsumerGroup {
                    id: group.id,
                    station: group.station,
                    name: group.name.clone(),
                    config: group.config,
                };
                self.groups
                    .entry(group.station)
                    .or_default()
                    .insert(group.name.clone(), Arc::new(known));
            }
            RecordValue::User(user) => {
                self.users
                    .insert((tenant.clone(), user.name.clone()), Arc::new(user.clone()));
            }
            RecordValue::Node(node) => {
                self.nodes.insert(node.node, Arc::new(node.clone()));
            }
            RecordValue::Cluster(_) | RecordValue::Counter(_) => {}
        }
    }

    fn insert_station(&mut self, tenant: &TenantName, record: &StationRecord, revision: u64) {
        let name = (tenant.clone(), SortedName::of(record.name.key(record.kind)));
        let station = Station {
            tenant: tenant.clone(),
            partitions: NonZeroU32::new(record.partitions).unwrap_or(NonZeroU32::MIN),
            record: record.clone(),
            revision,
        };
        self.station_names.insert(record.id, name.clone());
        let before = self.stations.insert(name, Arc::new(station));
        if let Some(before) = before
            && before.record.id != record.id
        {
            self.station_names.remove(&before.record.id);
        }
    }

    fn remove(&mut self, record: &Record) {
        let tenant = &record.key.tenant;
        match &record.value {
            RecordValue::Station(station) => {
                self.station_names.remove(&station.id);
                let name = (tenant.clone(), SortedName::of(station.name.key(station.kind)));
                if self
                    .stations
                    .get(&name)
                    .is_some_and(|known| known.record.id == station.id)
                {
                    self.stations.remove(&name);
                }
            }
            RecordValue::Placement(placement) => {
                let station = placement.partition.station;
                if let Some(partitions) = self.placements.get_mut(&station) {
                    partitions.remove(&placement.partition.partition.get());
                    if partitions.is_empty() {
                        self.placements.remove(&station);
                    }
                }
            }
            RecordValue::ConsumerGroup(group) => {
                if let Some(groups) = self.groups.get_mut(&group.station) {
                    groups.remove(&group.name);
                    if groups.is_empty() {
                        self.groups.remove(&group.station);
                    }
                }
            }
            RecordValue::User(user) => {
                self.users.remove(&(tenant.clone(), user.name.clone()));
            }
            RecordValue::Node(node) => {
                self.nodes.remove(&node.node);
            }
            RecordValue::Cluster(_) | RecordValue::Counter(_) => {}
        }
    }

    /// All records, for the copy on disk.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The station of that name: the stream of exactly that name, or else the station.
    pub fn station(&self, tenant: &TenantName, name: &StationName) -> Option<&Arc<Station>> {
        let of_kind = |kind| {
            let key = (tenant.clone(), SortedName::of(name.key(kind)));
            let found = self.stations.get(&key);
            found.filter(|station| station.record.kind == kind)
        };
        of_kind(StationKind::Stream).or_else(|| of_kind(StationKind::Station))
    }

    /// Whether the station is still there.
    pub fn has_station(&self, id: StationId) -> bool {
        self.station_names.contains_key(&id)
    }

    /// A station by its id.
    pub fn station_by_id(&self, id: StationId) -> Option<&Arc<Station>> {
        self.stations.get(self.station_names.get(&id)?)
    }

    /// Number of stations.
    pub fn station_count(&self) -> usize {
        self.stations.len()
    }

    /// Stations of a tenant in order of their names, beginning after `after`.
    pub fn stations_after(&self, tenant: &TenantName, after: &str) -> impl Iterator<Item = &Arc<Station>> {
        let begin = (tenant.clone(), SortedName::of(after));
        let tenant = tenant.clone();
        let skip = begin.clone();
        self.stations
            .range(begin..)
            .take_while(move |((of, _), _)| *of == tenant)
            .filter(move |(name, _)| skip.1.key.is_empty() || **name != skip)
            .map(|(_, station)| station)
    }

    /// Where a partition's replicas are.
    pub fn placement(&self, station: StationId, partition: PartitionNumber) -> Option<&Arc<PlacementRecord>> {
        self.placements.get(&station)?.get(&partition.get())
    }

    /// All placements.
    pub fn placements(&self) -> impl Iterator<Item = &Arc<PlacementRecord>> {
        self.placements.values().flat_map(BTreeMap::values)
    }

    /// Raft group of a partition.
    pub fn raft_group(&self, station: StationId, partition: PartitionNumber) -> Option<RaftGroupId> {
        self.placement(station, partition)
            .map(|placement| placement.group)
    }

    /// A consumer group of a station.
    pub fn group(&self, station: StationId, name: &GroupName) -> Option<&Arc<ConsumerGroup>> {
        self.groups.get(&station)?.get(name)
    }

    /// A user.
    pub fn user(&self, tenant: &TenantName, name: &UserName) -> Option<&Arc<UserRecord>> {
        self.users.get(&(tenant.clone(), name.clone()))
    }

    /// Storage nodes in order of their ids.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<NodeRecord>> {
        self.nodes.values()
    }

    /// A storage node.
    pub fn node(&self, id: NodeId) -> Option<&Arc<NodeRecord>> {
        self.nodes.get(&id)
    }
}

#[cfg(test)]
mod tests {
    use ptah_types::{ReplicaCount, Storage, Timestamp};

    use super::*;

    fn station(id: u64, name: &str, kind: StationKind) -> Record {
        let name: StationName = name.parse().unwrap();
        let tenant = TenantName::default_tenant();
        Record {
            key: RecordKey::station(&tenant, &name, kind),
            revision: id,
            created_revision: id,
            deleted: false,
            value: RecordValue::Station(StationRecord {
                id: StationId::new(id).unwrap(),
                name,
                kind,
                partitions: 1,
                replicas: ReplicaCount::ONE,
                storage: Storage::File,
                max_message_bytes: 1_000,
                created_at: Timestamp::default(),
                generation: 1,
            }),
        }
    }

    #[test]
    fn streams_are_found_by_their_exact_name_and_stations_by_any_case() {
        let tenant = TenantName::default_tenant();
        let mut view = CatalogView::default();
        for (id, name, kind) in [
            (1, "Zoo", StationKind::Station),
            (2, "str", StationKind::Stream),
            (3, "Str", StationKind::Stream),
            (4, "apple", StationKind::Station),
        ] {
            view.apply(station(id, name, kind));
        }
        let id = |view: &CatalogView, name: &str| {
            let found = view.station(&tenant, &name.parse().unwrap());
            found.map(|station| station.record.id.get())
        };
        for (name, expected) in [
            ("Str", Some(3)),
            ("str", Some(2)),
            ("STR", None),
            ("zOO", Some(1)),
            ("zoo", Some(1)),
        ] {
            assert_eq!(id(&view, name), expected, "{name}");
        }
        let names = |after: &str| -> Vec<String> {
            let stations = view.stations_after(&tenant, after);
            stations.map(|station| station.record.name.to_string()).collect()
        };
        assert_eq!(names(""), ["apple", "Str", "str", "Zoo"]);
        assert_eq!(names("Str"), ["str", "Zoo"]);

        let mut gone = station(5, "str", StationKind::Stream);
        gone.deleted = true;
        gone.value = station(2, "str", StationKind::Stream).value;
        view.apply(gone);
        assert_eq!((id(&view, "str"), id(&view, "Str")), (None, Some(3)));
    }
}
