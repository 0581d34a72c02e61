//! The service on the wire: decodes, calls, encodes.

mod convert;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use ptah_proto::metadata::v1 as pb;
use ptah_proto::metadata::v1::metadata_service_server::MetadataService;
use ptah_rpc::{ConversionError, to_status};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::metrics::{Metrics, Outcome};
use crate::store::{LeaseRequest, Store, StoreError};
use crate::watch::Watches;

pub(crate) use ptah_proto::metadata::v1::metadata_service_server::MetadataServiceServer;

/// The handlers.
pub(crate) struct MetadataHandlers {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) watches: Watches,
    pub(crate) metrics: Metrics,
}

fn refused(error: StoreError) -> Status {
    to_status(&error)
}

fn bad_request(error: ConversionError) -> Status {
    to_status(&error)
}

#[tonic::async_trait]
impl MetadataService for MetadataHandlers {
    async fn get_info(
        &self,
        _request: Request<pb::GetInfoRequest>,
    ) -> Result<Response<pb::GetInfoResponse>, Status> {
        let info = self.store.info().await.map_err(refused)?;
        Ok(Response::new(pb::GetInfoResponse {
            cluster_id: info.cluster.to_string(),
            incarnation: info.incarnation,
            revision: info.revision,
            compaction_floor: info.compaction_floor,
        }))
    }

    async fn get_record(
        &self,
        request: Request<pb::GetRecordRequest>,
    ) -> Result<Response<pb::GetRecordResponse>, Status> {
        let key = convert::key(request.into_inner().key).map_err(bad_request)?;
        let (found, revision) = self.store.get(&key).await.map_err(refused)?;
        let record = found.map(convert::record_to_proto).transpose().map_err(refused)?;
        Ok(Response::new(pb::GetRecordResponse { record, revision }))
    }

    async fn list_records(
        &self,
        request: Request<pb::ListRecordsRequest>,
    ) -> Result<Response<pb::ListRecordsResponse>, Status> {
        let query = convert::query(request.into_inner()).map_err(bad_request)?;
        let page = self.store.list(&query).await.map_err(refused)?;
        Ok(Response::new(convert::page_to_proto(page).map_err(refused)?))
    }

    async fn commit(
        &self,
        request: Request<pb::CommitRequest>,
    ) -> Result<Response<pb::CommitResponse>, Status> {
        let began = Instant::now();
        let commit = convert::commit(request.into_inner()).map_err(bad_request)?;
        let outcome = self.store.commit(commit).await;
        self.metrics.committed(outcome_of(&outcome), began.elapsed());
        let revision = outcome.map_err(refused)?;
        Ok(Response::new(pb::CommitResponse { revision }))
    }

    type WatchStream = BoxStream<'static, Result<pb::WatchResponse, Status>>;

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let from = convert::watch_from(request.into_inner()).map_err(bad_request)?;
        let events = self.watches.open(from).await.map_err(|error| to_status(&error))?;
        let responses = events.map(|event| match event {
            Ok(event) => convert::event_to_proto(event).map_err(refused),
            Err(error) => Err(to_status(&error)),
        });
        Ok(Response::new(responses.boxed()))
    }

    async fn acquire_lease(
        &self,
        request: Request<pb::AcquireLeaseRequest>,
    ) -> Result<Response<pb::AcquireLeaseResponse>, Status> {
        let request = request.into_inner();
        let lease = LeaseRequest {
            holder: request.holder,
            ttl: Duration::from_millis(request.ttl_ms.into()),
            release: request.release,
        };
        let lease = self.store.lease(lease).await.map_err(refused)?;
        Ok(Response::new(pb::AcquireLeaseResponse {
            acquired: lease.acquired,
            holder: lease.holder,
            epoch: lease.epoch,
            remaining_ms: u64::try_from(lease.remaining.as_millis()).unwrap_or(u64::MAX),
        }))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactRequest>,
    ) -> Result<Response<pb::CompactResponse>, Status> {
        let request = request.into_inner();
        let floor = self.store.compact(request.revision, request.lease_epoch).await;
        Ok(Response::new(pb::CompactResponse {
            compaction_floor: floor.map_err(refused)?,
        }))
    }
}

fn outcome_of(outcome: &Result<u64, StoreError>) -> Outcome {
    match outcome {
        Ok(_) => Outcome::Committed,
        Err(
            StoreError::Changed { .. } | StoreError::NothingToDelete { .. } | StoreError::StaleEpoch { .. },
        ) => Outcome::Conflict,
        Err(StoreError::OutcomeUnknown { .. }) => Outcome::Unknown,
        Err(_) => Outcome::Failed,
    }
}
