//! A fake metadata store: records in memory, list and watch.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use parking_lot::Mutex;
use ptah_proto::control::v1 as pb_control;
use ptah_proto::metadata::v1 as pb;
use ptah_proto::metadata::v1::metadata_service_server::MetadataService;
use ptah_rpc::clients::{SetNodeDuty, UpdateStation};
use ptah_rpc::records::{PlacementRecord, Record, RecordKey, RecordValue};
use ptah_types::{StationId, StationKind, StationName, TenantName};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

#[derive(Clone)]
pub(crate) struct FakeMetadata {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    /// Streams and calls fail while this is true.
    pub(crate) down: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    live: BTreeMap<RecordKey, Record>,
    history: Vec<Record>,
    revision: u64,
    floor: u64,
    incarnation: u64,
    lists: u64,
}

impl FakeMetadata {
    pub(crate) fn new() -> Self {
        let state = State {
            incarnation: 7,
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            changed: watch::Sender::new(0),
            down: watch::Sender::new(false),
        }
    }

    pub(crate) fn put(&self, key: RecordKey, value: RecordValue) -> u64 {
        self.change(key, Some(value))
    }

    pub(crate) fn delete(&self, key: RecordKey) -> u64 {
        self.change(key, None)
    }

    fn change(&self, key: RecordKey, value: Option<RecordValue>) -> u64 {
        let mut state = self.state.lock();
        state.revision += 1;
        let revision = state.revision;
        let before = state.live.get(&key).cloned();
        let deleted = value.is_none();
        let record = Record {
            revision,
            created_revision: before.as_ref().map_or(revision, |before| before.created_revision),
            deleted,
            value: value.unwrap_or_else(|| before.expect("deletes what is there").value),
            key: key.clone(),
        };
        if deleted {
            state.live.remove(&key);
        } else {
            state.live.insert(key, record.clone());
        }
        state.history.push(record);
        drop(state);
        self.changed.send_replace(revision);
        revision
    }

    /// Id of a station.
    pub(crate) fn station(&self, tenant: &TenantName, name: &StationName) -> StationId {
        let key = RecordKey::station(tenant, name, StationKind::Station);
        match &self.state.lock().live[&key].value {
            RecordValue::Station(station) => station.id,
            other => panic!("{other:?} under the key of a station"),
        }
    }

    /// All placements.
    /// Notes how many replicas a station is to have.
    pub(crate) fn update_station(&self, wanted: &UpdateStation) -> pb_control::UpdateStationResponse {
        let key = RecordKey::station(&wanted.tenant, &wanted.name, StationKind::Station);
        let record = self.state.lock().live.get(&key).cloned().unwrap();
        let RecordValue::Station(mut station) = record.value else {
            panic!("{record:?}");
        };
        station.replicas = wanted.replicas.unwrap_or(station.replicas);
        let station_id = station.id.get();
        pb_control::UpdateStationResponse {
            station_id,
            revision: self.put(key, RecordValue::Station(station)),
        }
    }

    /// Notes what a node is there for.
    pub(crate) fn set_node_duty(&self, wanted: &SetNodeDuty) -> u64 {
        let key = RecordKey::node(wanted.node);
        let record = self.state.lock().live.get(&key).cloned().unwrap();
        let RecordValue::Node(mut node) = record.value else {
            panic!("{record:?}");
        };
        node.duty = wanted.duty;
        self.put(key, RecordValue::Node(node))
    }

    pub(crate) fn placements(&self) -> Vec<PlacementRecord> {
        let state = self.state.lock();
        let placements = state.live.values().filter_map(|record| match &record.value {
            RecordValue::Placement(placement) => Some(placement.clone()),
            _ => None,
        });
        placements.collect()
    }

    /// Forgets history: watchers behind have to list again.
    pub(crate) fn compact(&self) {
        let mut state = self.state.lock();
        state.floor = state.revision;
        state.history.clear();
    }

    /// How often anything was listed.
    pub(crate) fn lists(&self) -> u64 {
        self.state.lock().lists
    }

    fn check_up(&self) -> Result<(), Status> {
        if *self.down.borrow() {
            Err(Status::unavailable("metadata is down"))
        } else {
            Ok(())
        }
    }
}

type Outgoing = Pin<Box<dyn Stream<Item = Result<pb::WatchResponse, Status>> + Send>>;

#[tonic::async_trait]
impl MetadataService for FakeMetadata {
    type WatchStream = Outgoing;

    async fn get_info(
        &self,
        _: Request<pb::GetInfoRequest>,
    ) -> Result<Response<pb::GetInfoResponse>, Status> {
        self.check_up()?;
        let state = self.state.lock();
        Ok(Response::new(pb::GetInfoResponse {
            cluster_id: "0f0e0d0c-0b0a-4908-8706-050403020100".to_owned(),
            incarnation: state.incarnation,
            revision: state.revision,
            compaction_floor: state.floor,
        }))
    }

    async fn get_record(
        &self,
        _: Request<pb::GetRecordRequest>,
    ) -> Result<Response<pb::GetRecordResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn list_records(
        &self,
        request: Request<pb::ListRecordsRequest>,
    ) -> Result<Response<pb::ListRecordsResponse>, Status> {
        self.check_up()?;
        let request = request.into_inner();
        let mut state = self.state.lock();
        state.lists += 1;
        let wanted = state
            .live
            .values()
            .filter(|record| pb::RecordKind::from(record.key.kind) as i32 == request.kind);
        let records = wanted.map(pb::Record::from).collect();
        Ok(Response::new(pb::ListRecordsResponse {
            records,
            next_page_token: String::new(),
            revision: state.revision,
            incarnation: state.incarnation,
        }))
    }

    async fn commit(&self, _: Request<pb::CommitRequest>) -> Result<Response<pb::CommitResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<Outgoing>, Status> {
        self.check_up()?;
        let request = request.into_inner();
        {
            let state = self.state.lock();
            if request.after_revision < state.floor || request.incarnation != state.incarnation {
                return Err(ptah_rpc::RpcError::new(ptah_types::ErrorKind::Conflict, "list again").into());
            }
        }
        let mut changed = self.changed.subscribe();
        changed.mark_changed();
        let (store, down) = (self.clone(), self.down.subscribe());
        let begin = (store, changed, down, request.after_revision);
        let stream =
            futures_util::stream::unfold(begin, |(store, mut changed, mut down, mut after)| async move {
                loop {
                    let next = {
                        let state = store.state.lock();
                        state
                            .history
                            .iter()
                            .find(|record| record.revision > after)
                            .cloned()
                    };
                    if let Some(record) = next {
                        after = record.revision;
                        let response = pb::WatchResponse {
                            changes: vec![pb::Record::from(&record)],
                            revision: after,
                        };
                        return Some((Ok(response), (store, changed, down, after)));
                    }
                    tokio::select! {
                        _ = changed.changed() => {}
                        _ = down.wait_for(|down| *down) => return None,
                    }
                }
            });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn acquire_lease(
        &self,
        _: Request<pb::AcquireLeaseRequest>,
    ) -> Result<Response<pb::AcquireLeaseResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn compact(&self, _: Request<pb::CompactRequest>) -> Result<Response<pb::CompactResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
}
