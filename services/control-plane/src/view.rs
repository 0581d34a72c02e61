//! What the control plane knows of metadata: all records at a revision, with the indices that decisions need.
//!
//! Built from a list and kept up by a watch. Applying a change twice, or one that is older than what is known, does
//! nothing, so that the overlap of list and watch is harmless.

use std::collections::{BTreeMap, BTreeSet};

use ptah_rpc::records::{
    ClusterRecord, ConsumerGroupRecord, Counter, NodeDuty, NodeRecord, PlacementRecord, Record, RecordKey,
    RecordKind, RecordValue, StationRecord, UserRecord,
};
use ptah_types::{
    ClusterId, GroupName, NodeId, RaftGroupId, StationId, StationKind, StationName, TenantName, UserName,
};

/// A value and the revision that wrote it, for preconditions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Versioned<T> {
    /// Revision of the record; 0 when there is none.
    pub revision: u64,
    /// What it holds.
    pub value: T,
}

/// A deleted placement whose replicas may still be somewhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tombstone {
    /// Revision of the deletion.
    pub revision: u64,
    /// Nodes that have not yet said that their replica is gone.
    pub waiting: BTreeSet<NodeId>,
}

/// All records at a revision.
#[derive(Clone, Debug)]
pub struct View {
    cluster: ClusterId,
    incarnation: u64,
    revision: u64,
    records: BTreeMap<RecordKey, Record>,
    station_keys: BTreeMap<StationId, RecordKey>,
    folded_names: BTreeMap<(TenantName, String), BTreeSet<RecordKey>>,
    placements_of: BTreeMap<NodeId, BTreeSet<RecordKey>>,
    /// Replicas of each node that stay.
    held: BTreeMap<NodeId, usize>,
    firsts: BTreeMap<NodeId, usize>,
    unfinished: BTreeSet<RecordKey>,
    tombstones: BTreeMap<RaftGroupId, Tombstone>,
}

impl View {
    /// An empty view.
    pub fn new(cluster: ClusterId, incarnation: u64, revision: u64) -> Self {
        Self {
            cluster,
            incarnation,
            revision,
            records: BTreeMap::new(),
            station_keys: BTreeMap::new(),
            folded_names: BTreeMap::new(),
            placements_of: BTreeMap::new(),
            held: BTreeMap::new(),
            firsts: BTreeMap::new(),
            unfinished: BTreeSet::new(),
            tombstones: BTreeMap::new(),
        }
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Incarnation of the store.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Everything up to this revision is in the view.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Notes that everything up to `revision` was applied.
    pub fn advance(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }

    /// Takes a record in, or out when it is a tombstone. Older ones than what is known change nothing.
    pub fn apply(&mut self, record: Record) {
        let known = self.records.get(&record.key).map_or(0, |known| known.revision);
        if known >= record.revision || self.is_buried(&record) {
            return;
        }
        if let Some(old) = self.records.remove(&record.key) {
            self.unindex(&old);
        }
        if record.deleted {
            self.bury(&record);
        } else {
            self.index(&record);
            self.records.insert(record.key.clone(), record);
        }
    }

    /// Whether the placement is known to be deleted later than this.
    fn is_buried(&self, record: &Record) -> bool {
        let RecordValue::Placement(placement) = &record.value else {
            return false;
        };
        let tombstone = self.tombstones.get(&placement.group);
        tombstone.is_some_and(|tombstone| tombstone.revision >= record.revision)
    }

    fn bury(&mut self, record: &Record) {
        if let RecordValue::Placement(placement) = &record.value {
            let tombstone = Tombstone {
                revision: record.revision,
                waiting: nodes_of(placement).collect(),
            };
            self.tombstones.insert(placement.group, tombstone);
        }
    }

    fn index(&mut self, record: &Record) {
        match &record.value {
            RecordValue::Station(station) => {
                self.station_keys.insert(station.id, record.key.clone());
                self.folded_names
                    .entry(folded_name(record, station))
                    .or_default()
                    .insert(record.key.clone());
            }
            RecordValue::Placement(placement) => {
                for node in nodes_of(placement) {
                    self.placements_of
                        .entry(node)
                        .or_default()
                        .insert(record.key.clone());
                }
                for replica in placement.wanted() {
                    *self.held.entry(replica.node).or_default() += 1;
                }
                if let Some(first) = placement.wanted().next() {
                    *self.firsts.entry(first.node).or_default() += 1;
                }
                if is_unfinished(placement) {
                    self.unfinished.insert(record.key.clone());
                }
            }
            _ => {}
        }
    }

    fn unindex(&mut self, record: &Record) {
        match &record.value {
            RecordValue::Station(station) => {
                self.station_keys.remove(&station.id);
                let name = folded_name(record, station);
                if let Some(keys) = self.folded_names.get_mut(&name) {
                    keys.remove(&record.key);
                    if keys.is_empty() {
                        self.folded_names.remove(&name);
                    }
                }
            }
            RecordValue::Placement(placement) => {
                for node in nodes_of(placement) {
                    if let Some(keys) = self.placements_of.get_mut(&node) {
                        keys.remove(&record.key);
                    }
                }
                for replica in placement.wanted() {
                    count_down(&mut self.held, replica.node);
                }
                if let Some(first) = placement.wanted().next() {
                    count_down(&mut self.firsts, first.node);
                }
                self.unfinished.remove(&record.key);
            }
            _ => {}
        }
    }

    /// The revision of a record, for preconditions; 0 when there is none.
    pub fn revision_of(&self, key: &RecordKey) -> u64 {
        self.records.get(key).map_or(0, |record| record.revision)
    }

    /// The cluster's settings.
    pub fn settings(&self) -> Option<ClusterRecord> {
        match &self.records.get(&RecordKey::cluster())?.value {
            RecordValue::Cluster(settings) => Some(*settings),
            _ => None,
        }
    }

    /// The station of that name: the stream of exactly that name, or else the station.
    pub fn station(&self, tenant: &TenantName, name: &StationName) -> Option<Versioned<&StationRecord>> {
        let of_kind = |kind| {
            let found = self.station_at(&RecordKey::station(tenant, name, kind));
            found.filter(|station| station.value.kind == kind)
        };
        of_kind(StationKind::Stream).or_else(|| of_kind(StationKind::Station))
    }

    /// Stations of any kind whose names are the same when upper and lower case are not told apart.
    pub fn stations_like(
        &self,
        tenant: &TenantName,
        name: &StationName,
    ) -> impl Iterator<Item = Versioned<&StationRecord>> {
        let keys = self.folded_names.get(&(tenant.clone(), name.folded().to_owned()));
        keys.into_iter().flatten().filter_map(|key| self.station_at(key))
    }

    /// A station by id.
    pub fn station_by_id(&self, id: StationId) -> Option<Versioned<&StationRecord>> {
        self.station_at(self.station_keys.get(&id)?)
    }

    fn station_at(&self, key: &RecordKey) -> Option<Versioned<&StationRecord>> {
        let record = self.records.get(key)?;
        match &record.value {
            RecordValue::Station(value) => Some(Versioned {
                revision: record.revision,
                value,
            }),
            _ => None,
        }
    }

    /// Keys of a station's records of one kind.
    pub fn keys_of_station(&self, kind: RecordKind, tenant: &TenantName, id: StationId) -> Vec<RecordKey> {
        let first = RecordKey {
            kind,
            tenant: tenant.clone(),
            key: RecordKey::station_prefix(id),
        };
        let mut keys = Vec::new();
        for key in self.records.range(first.clone()..).map(|(key, _)| key) {
            if key.kind != kind || key.tenant != *tenant || !key.key.starts_with(&first.key) {
                break;
            }
            keys.push(key.clone());
        }
        keys
    }

    /// A consumer group.
    pub fn consumer_group(
        &self,
        tenant: &TenantName,
        station: StationId,
        name: &GroupName,
    ) -> Option<Versioned<&ConsumerGroupRecord>> {
        let record = self
            .records
            .get(&RecordKey::consumer_group(tenant, station, name))?;
        match &record.value {
            RecordValue::ConsumerGroup(value) => Some(Versioned {
                revision: record.revision,
                value,
            }),
            _ => None,
        }
    }

    /// A user.
    pub fn user(&self, tenant: &TenantName, name: &UserName) -> Option<&UserRecord> {
        match &self.records.get(&RecordKey::user(tenant, name))?.value {
            RecordValue::User(user) => Some(user),
            _ => None,
        }
    }

    /// A node.
    pub fn node(&self, node: NodeId) -> Option<Versioned<&NodeRecord>> {
        let record = self.records.get(&RecordKey::node(node))?;
        match &record.value {
            RecordValue::Node(value) => Some(Versioned {
                revision: record.revision,
                value,
            }),
            _ => None,
        }
    }

    /// All nodes, in order of their ids.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        let first = RecordKey {
            kind: RecordKind::Node,
            tenant: TenantName::system(),
            key: String::new(),
        };
        let nodes = self
            .records
            .range(first..)
            .take_while(|(key, _)| key.kind == RecordKind::Node);
        nodes.filter_map(|(_, record)| match &record.value {
            RecordValue::Node(node) => Some(node),
            _ => None,
        })
    }

    /// Next id of a counter, and the revision of its record.
    pub fn counter(&self, counter: Counter) -> Versioned<u64> {
        let record = self.records.get(&RecordKey::counter(counter));
        match record.map(|record| (record.revision, &record.value)) {
            Some((revision, RecordValue::Counter(counter))) => Versioned {
                revision,
                value: counter.next.max(1),
            },
            _ => Versioned {
                revision: 0,
                value: 1,
            },
        }
    }

    /// A placement by its record's key.
    pub fn placement(&self, key: &RecordKey) -> Option<Versioned<&PlacementRecord>> {
        let record = self.records.get(key)?;
        match &record.value {
            RecordValue::Placement(value) => Some(Versioned {
                revision: record.revision,
                value,
            }),
            _ => None,
        }
    }

    /// All placements.
    pub fn placements(&self) -> impl Iterator<Item = Versioned<&PlacementRecord>> {
        self.records.values().filter_map(|record| match &record.value {
            RecordValue::Placement(value) => Some(Versioned {
                revision: record.revision,
                value,
            }),
            _ => None,
        })
    }

    /// Placements with a replica on a node, or with one that left and may still have data there.
    pub fn placements_of(&self, node: NodeId) -> impl Iterator<Item = Versioned<&PlacementRecord>> {
        let keys = self.placements_of.get(&node).into_iter().flatten();
        keys.filter_map(|key| self.placement(key))
    }

    /// How many replicas a node has that stay, and of how many partitions the first one.
    pub fn load_of(&self, node: NodeId) -> (usize, usize) {
        let replicas = self.held.get(&node).copied().unwrap_or(0);
        (replicas, self.firsts.get(&node).copied().unwrap_or(0))
    }

    /// Placements that are not opened everywhere or not initialised, and ones with replicas on their way out.
    pub fn unfinished(&self) -> impl Iterator<Item = Versioned<&PlacementRecord>> {
        self.unfinished.iter().filter_map(|key| self.placement(key))
    }

    /// Deleted groups of which a node may still have a replica.
    pub fn tombstones_of(&self, node: NodeId) -> impl Iterator<Item = (RaftGroupId, &Tombstone)> {
        let all = self
            .tombstones
            .iter()
            .map(|(group, tombstone)| (*group, tombstone));
        all.filter(move |(_, tombstone)| tombstone.waiting.contains(&node))
    }

    /// Notes that a node has no replica of a deleted group any more.
    pub fn settle(&mut self, group: RaftGroupId, node: NodeId) {
        if let Some(tombstone) = self.tombstones.get_mut(&group) {
            tombstone.waiting.remove(&node);
        }
    }

    /// Highest revision up to which no tombstone is needed any more.
    pub fn settled_revision(&self) -> u64 {
        let waiting = self
            .tombstones
            .values()
            .filter(|tombstone| tombstone.waiting.iter().any(|node| !self.is_forgotten(*node)));
        let oldest = waiting.map(|tombstone| tombstone.revision).min();
        oldest.map_or(self.revision, |oldest| oldest.saturating_sub(1))
    }

    /// Whether nothing is expected of a node any more: what comes back under its id has an empty disk.
    fn is_forgotten(&self, node: NodeId) -> bool {
        self.node(node)
            .is_some_and(|node| node.value.duty == NodeDuty::Forgotten)
    }

    /// Forgets tombstones that the store dropped.
    pub fn forget_tombstones(&mut self, floor: u64) {
        self.tombstones
            .retain(|_, tombstone| tombstone.revision > floor || !tombstone.waiting.is_empty());
    }
}

/// Nodes that have, get or may still have a replica.
fn nodes_of(placement: &PlacementRecord) -> impl Iterator<Item = NodeId> {
    let replicas = placement.replicas.iter().map(|replica| replica.node);
    replicas.chain(placement.retired.iter().map(|retired| retired.node))
}

fn is_unfinished(placement: &PlacementRecord) -> bool {
    let is_done = |replica: &ptah_rpc::records::ReplicaPlacement| replica.opened && !replica.leaving;
    !placement.initialized || !placement.replicas.iter().all(is_done) || !placement.retired.is_empty()
}

fn count_down(counts: &mut BTreeMap<NodeId, usize>, node: NodeId) {
    if let Some(count) = counts.get_mut(&node) {
        *count = count.saturating_sub(1);
    }
}

fn folded_name(record: &Record, station: &StationRecord) -> (TenantName, String) {
    (record.key.tenant.clone(), station.name.folded().to_owned())
}

#[cfg(test)]
pub(crate) mod tests;
