//! Stations: made with their placements in one write, deleted with everything that belongs to them.

use ptah_rpc::clients::{CreateStation, DeleteStation, StationCreated, StationUpdated, UpdateStation};
use ptah_rpc::records::{
    Counter, CounterRecord, PlacementRecord, RecordKey, RecordKind, RecordValue, ReplicaPlacement,
    StationRecord,
};
use ptah_types::limits::{DEFAULT_MESSAGE_BYTES, MAX_MESSAGE_BYTES, MAX_PARTITIONS};
use ptah_types::{
    Action, NodeId, PartitionKey, PartitionNumber, RaftGroupId, ReplicaId, StationId, StationKind, Timestamp,
};

use super::{Change, Decider, Step, permit};
use crate::error::ControlError;
use crate::placement::{NodeLoad, place};
use crate::view::View;

impl Decider {
    pub(super) async fn create_station(
        &self,
        request: &CreateStation,
    ) -> Result<StationCreated, ControlError> {
        let request = checked(request)?;
        let now = self.now();
        let mut proposed = None;
        let nodes = &self.parts.nodes;
        let look = |view: &View| {
            let alive = Self::live_nodes(nodes, view);
            create(view, &request, &alive, now, &mut proposed)
        };
        self.decide("create a station", look).await
    }

    pub(super) async fn update_station(
        &self,
        request: &UpdateStation,
    ) -> Result<StationUpdated, ControlError> {
        let nodes = &self.parts.nodes;
        let look = |view: &View| update(view, request, &Self::live_nodes(nodes, view));
        self.decide("change a station", look).await
    }

    pub(super) async fn delete_station(&self, request: &DeleteStation) -> Result<u64, ControlError> {
        self.decide("delete a station", |view| delete(view, request))
            .await
    }
}

/// Refuses what no station may be, and fills in what was left to us.
pub(super) fn checked(request: &CreateStation) -> Result<CreateStation, ControlError> {
    let name = &request.name;
    if !(1..=MAX_PARTITIONS).contains(&request.partitions) {
        let why = format!(
            "station `{name}`: {} partitions; use 1 to {MAX_PARTITIONS}",
            request.partitions
        );
        return Err(ControlError::Invalid(why));
    }
    if request.kind == StationKind::Stream && request.partitions != 1 {
        let why = format!(
            "station `{name}`: a stream has exactly one partition, not {}",
            request.partitions
        );
        return Err(ControlError::Invalid(why));
    }
    if request.max_message_bytes > MAX_MESSAGE_BYTES {
        let why = format!(
            "station `{name}`: messages of {} bytes; at most {MAX_MESSAGE_BYTES} are possible",
            request.max_message_bytes
        );
        return Err(ControlError::TooLarge(why));
    }
    let max_message_bytes = match request.max_message_bytes {
        0 => DEFAULT_MESSAGE_BYTES,
        bytes => bytes,
    };
    Ok(CreateStation {
        max_message_bytes,
        ..request.clone()
    })
}

/// `proposed` remembers the id of an attempt whose outcome is not known.
pub(super) fn create(
    view: &View,
    request: &CreateStation,
    alive: &[NodeLoad],
    now: Timestamp,
    proposed: &mut Option<StationId>,
) -> Result<Step<StationCreated>, ControlError> {
    permit(
        view,
        &request.tenant,
        &request.principal,
        Action::CreateStation,
        Some(&request.name),
    )?;
    if let Some(station) = view.station(&request.tenant, &request.name) {
        check_same(station.value, request)?;
        return Ok(Step::Done(StationCreated {
            id: station.value.id,
            revision: station.revision,
            created: *proposed == Some(station.value.id),
        }));
    }
    check_unmistakable(view, request)?;
    let places = place(
        request.partitions,
        request.replicas.get(),
        alive,
        view.nodes().count(),
    );
    let places = places.map_err(|source| ControlError::Placement {
        station: request.name.display().to_owned(),
        source,
    })?;
    let (stations, groups) = (view.counter(Counter::Station), view.counter(Counter::RaftGroup));
    let id = StationId::new(stations.value).map_err(|error| ControlError::Invalid(error.to_string()))?;
    *proposed = Some(id);
    let mut change = Change::new(move |revision| StationCreated {
        id,
        revision,
        created: true,
    });
    let station_key = RecordKey::station(&request.tenant, &request.name, request.kind);
    change.put(
        station_key,
        0,
        RecordValue::Station(station_record(request, id, now)),
    );
    for (index, nodes) in places.iter().enumerate() {
        let placement = placement_record(request, id, index, groups.value, nodes)?;
        change.put(
            RecordKey::placement(&placement.partition),
            0,
            RecordValue::Placement(placement),
        );
    }
    let next_group = groups.value.saturating_add(u64::from(request.partitions));
    put_counter(
        &mut change,
        Counter::Station,
        stations.revision,
        stations.value.saturating_add(1),
    );
    put_counter(&mut change, Counter::RaftGroup, groups.revision, next_group);
    Ok(Step::Commit(change))
}

pub(super) fn put_counter<T>(change: &mut Change<T>, counter: Counter, revision: u64, next: u64) {
    let value = RecordValue::Counter(CounterRecord { next });
    change.put(RecordKey::counter(counter), revision, value);
}

fn station_record(request: &CreateStation, id: StationId, now: Timestamp) -> StationRecord {
    StationRecord {
        id,
        name: request.name.clone(),
        kind: request.kind,
        partitions: request.partitions,
        replicas: request.replicas,
        storage: request.storage,
        max_message_bytes: request.max_message_bytes,
        created_at: Timestamp::from_millis(now.as_millis()),
        generation: 1,
    }
}

fn placement_record(
    request: &CreateStation,
    station: StationId,
    index: usize,
    first_group: u64,
    nodes: &[NodeId],
) -> Result<PlacementRecord, ControlError> {
    let invalid = |error: ptah_types::InvalidId| ControlError::Invalid(error.to_string());
    let number = u32::try_from(index).unwrap_or(u32::MAX).saturating_add(1);
    let group = first_group.saturating_add(u64::from(number) - 1);
    let mut replicas = Vec::with_capacity(nodes.len());
    for (node, id) in nodes.iter().zip(1..) {
        replicas.push(ReplicaPlacement {
            replica: ReplicaId::new(id).map_err(invalid)?,
            node: *node,
            opened: false,
            leaving: false,
            lost: false,
        });
    }
    Ok(PlacementRecord {
        partition: PartitionKey {
            tenant: request.tenant.clone(),
            station,
            partition: PartitionNumber::new(number).map_err(invalid)?,
        },
        group: RaftGroupId::new(group).map_err(invalid)?,
        next_replica: ReplicaId::new(replicas.len() as u64 + 1).map_err(invalid)?,
        replicas,
        initialized: false,
        retired: Vec::new(),
    })
}

/// Refuses a station whose name differs in case only from that of a stream, and the other way round: the name of the
/// station would mean the stream in some spellings. Streams among themselves may differ in case.
fn check_unmistakable(view: &View, request: &CreateStation) -> Result<(), ControlError> {
    let like = view.stations_like(&request.tenant, &request.name);
    let both_streams =
        |other: StationKind| other == StationKind::Stream && request.kind == StationKind::Stream;
    match like
        .map(|station| station.value)
        .find(|other| !both_streams(other.kind))
    {
        Some(other) => Err(ControlError::NameTaken {
            station: request.name.display().to_owned(),
            kind: kind_name(request.kind),
            other: other.name.display().to_owned(),
            other_kind: kind_name(other.kind),
        }),
        None => Ok(()),
    }
}

const fn kind_name(kind: StationKind) -> &'static str {
    match kind {
        StationKind::Station => "station",
        StationKind::Stream => "stream",
    }
}

/// Refuses a station that exists with other settings, naming the first that differs.
fn check_same(station: &StationRecord, request: &CreateStation) -> Result<(), ControlError> {
    let kind = |kind: StationKind| format!("kind {}", kind_name(kind));
    let differs = |has: String, wanted: String| {
        Err(ControlError::StationDiffers {
            station: station.name.display().to_owned(),
            has,
            wanted,
        })
    };
    if station.kind != request.kind {
        return differs(kind(station.kind), kind(request.kind));
    }
    if station.partitions != request.partitions {
        return differs(
            format!("{} partitions", station.partitions),
            request.partitions.to_string(),
        );
    }
    if station.replicas != request.replicas {
        return differs(
            format!("{} replicas", station.replicas.get()),
            request.replicas.get().to_string(),
        );
    }
    if station.storage != request.storage {
        return differs(
            format!("storage {:?}", station.storage),
            format!("{:?}", request.storage),
        );
    }
    if station.max_message_bytes != request.max_message_bytes {
        let has = format!("messages of at most {} bytes", station.max_message_bytes);
        return differs(has, request.max_message_bytes.to_string());
    }
    Ok(())
}

/// Records the new settings; the replicas follow one partition after the other.
pub(super) fn update(
    view: &View,
    request: &UpdateStation,
    alive: &[NodeLoad],
) -> Result<Step<StationUpdated>, ControlError> {
    permit(
        view,
        &request.tenant,
        &request.principal,
        Action::UpdateStation,
        Some(&request.name),
    )?;
    let not_found = || ControlError::StationNotFound(request.name.display().to_owned());
    let station = view
        .station(&request.tenant, &request.name)
        .ok_or_else(not_found)?;
    let (id, name) = (station.value.id, &station.value.name);
    let Some(replicas) = request
        .replicas
        .filter(|wanted| *wanted != station.value.replicas)
    else {
        return Ok(Step::Done(StationUpdated {
            id,
            revision: station.revision,
        }));
    };
    if replicas > station.value.replicas {
        // Nobody shall wait for nodes that are not there.
        place(1, replicas.get(), alive, view.nodes().count()).map_err(|source| ControlError::Placement {
            station: name.display().to_owned(),
            source,
        })?;
    }
    let mut change = Change::new(move |revision| StationUpdated { id, revision });
    let record = StationRecord {
        replicas,
        ..station.value.clone()
    };
    let key = RecordKey::station(&request.tenant, name, record.kind);
    change.put(key, station.revision, RecordValue::Station(record));
    Ok(Step::Commit(change))
}

pub(super) fn delete(view: &View, request: &DeleteStation) -> Result<Step<u64>, ControlError> {
    permit(
        view,
        &request.tenant,
        &request.principal,
        Action::DeleteStation,
        Some(&request.name),
    )?;
    let station = view.station(&request.tenant, &request.name);
    if let Some(wanted) = request.id
        && station.is_none_or(|station| station.value.id != wanted)
    {
        return gone_already(view, request, wanted);
    }
    let station = station.ok_or_else(|| ControlError::StationNotFound(request.name.display().to_owned()))?;
    let mut change = Change::new(|revision| revision);
    change.delete(
        RecordKey::station(&request.tenant, &station.value.name, station.value.kind),
        station.revision,
    );
    for kind in [RecordKind::Placement, RecordKind::ConsumerGroup] {
        for key in view.keys_of_station(kind, &request.tenant, station.value.id) {
            let revision = view.revision_of(&key);
            change.delete(key, revision);
        }
    }
    Ok(Step::Commit(change))
}

/// The station that is meant does not have its name any more: somebody deleted it, perhaps an earlier try of this call.
/// What was made under its name since stays.
fn gone_already(view: &View, request: &DeleteStation, wanted: StationId) -> Result<Step<u64>, ControlError> {
    if view.station(&request.tenant, &request.name).is_some() {
        return Err(ControlError::MadeAnew {
            station: request.name.display().to_owned(),
            deleted: wanted,
        });
    }
    Ok(Step::Done(view.revision()))
}
