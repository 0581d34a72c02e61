//! Client of the metadata service.

use std::time::Duration;

use ptah_proto::metadata::v1 as pb;
use ptah_proto::metadata::v1::metadata_service_client::MetadataServiceClient;
use ptah_types::{ClusterId, TenantName};
use tonic::Streaming;

use super::DEFAULT_DEADLINE;
use crate::records::{Commit, Record, RecordKey, RecordKind};
use crate::{CallEffect, ConversionError, MAX_RPC_MESSAGE_BYTES, RpcChannel, RpcError, begin, call};

/// Client of the metadata service. Clones share the connection.
#[derive(Clone, Debug)]
pub struct MetadataClient {
    inner: MetadataServiceClient<RpcChannel>,
    deadline: Duration,
}

/// Identity and revisions of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreInfo {
    /// The cluster.
    pub cluster: ClusterId,
    /// Changes when the database was restored from a backup.
    pub incarnation: u64,
    /// Newest revision.
    pub revision: u64,
    /// Revisions at or below are no longer watchable.
    pub compaction_floor: u64,
}

/// What to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListQuery {
    /// Kind of the records.
    pub kind: RecordKind,
    /// Their name space; `None` for all.
    pub tenant: Option<TenantName>,
    /// What their keys start with; empty for all.
    pub key_prefix: String,
    /// Records per page, up to 1,000; 0 lets the store decide.
    pub page_size: u32,
    /// Tombstones instead of live records.
    pub tombstones: bool,
}

impl ListQuery {
    /// All live records of a kind.
    pub fn all(kind: RecordKind) -> Self {
        Self {
            kind,
            tenant: None,
            key_prefix: String::new(),
            page_size: 0,
            tombstones: false,
        }
    }
}

/// A page of records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordPage {
    /// The records.
    pub records: Vec<Record>,
    /// Token of the next page; `None` at the end.
    pub next_page_token: Option<String>,
    /// Newest revision when the page was read.
    pub revision: u64,
    /// Incarnation of the store.
    pub incarnation: u64,
}

/// All pages of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordList {
    /// The records, in order of tenant and key.
    pub records: Vec<Record>,
    /// Revision of the first page: a watch from here sees what later pages missed.
    pub revision: u64,
    /// Incarnation of the store.
    pub incarnation: u64,
}

/// Changes of one transaction, or only progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// All changes of the revision; empty for progress.
    pub records: Vec<Record>,
    /// Everything up to here was told.
    pub revision: u64,
}

/// The control plane's lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Whether the caller has it.
    pub acquired: bool,
    /// Who has it; empty when nobody has.
    pub holder: String,
    /// Fences every write.
    pub epoch: u64,
    /// How long it holds unless it is renewed, by the clock of the database.
    pub remaining: Duration,
}

/// Changes as they happen.
#[derive(Debug)]
pub struct WatchStream(Streaming<pb::WatchResponse>);

impl MetadataClient {
    /// A client on `channel`.
    pub fn new(channel: RpcChannel) -> Self {
        let inner = MetadataServiceClient::new(channel)
            .max_decoding_message_size(MAX_RPC_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_RPC_MESSAGE_BYTES);
        Self {
            inner,
            deadline: DEFAULT_DEADLINE,
        }
    }

    /// With another deadline per call.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Identity and revisions of the store.
    pub async fn info(&self) -> Result<StoreInfo, RpcError> {
        let mut client = self.inner.clone();
        let request = pb::GetInfoRequest {};
        let response = call(self.deadline, CallEffect::Read, request, |r| client.get_info(r)).await?;
        Ok(StoreInfo::try_from(response)?)
    }

    /// The record of `key`, if it exists, and the newest revision when it was read.
    pub async fn get(&self, key: &RecordKey) -> Result<(Option<Record>, u64), RpcError> {
        let mut client = self.inner.clone();
        let request = pb::GetRecordRequest {
            key: Some(key.into()),
        };
        let response = call(self.deadline, CallEffect::Read, request, |r| client.get_record(r)).await?;
        let record = response.record.map(Record::try_from).transpose()?;
        Ok((record, response.revision))
    }

    /// One page; the first for an empty token.
    pub async fn list_page(&self, query: &ListQuery, page_token: &str) -> Result<RecordPage, RpcError> {
        let mut client = self.inner.clone();
        let request = pb::ListRecordsRequest {
            kind: pb::RecordKind::from(query.kind).into(),
            tenant: query
                .tenant
                .as_ref()
                .map_or_else(String::new, ToString::to_string),
            page_size: query.page_size,
            page_token: page_token.to_owned(),
            key_prefix: query.key_prefix.clone(),
            tombstones: query.tombstones,
        };
        let page = call(self.deadline, CallEffect::Read, request, |r| {
            client.list_records(r)
        })
        .await?;
        Ok(RecordPage {
            records: records(page.records)?,
            next_page_token: Some(page.next_page_token).filter(|token| !token.is_empty()),
            revision: page.revision,
            incarnation: page.incarnation,
        })
    }

    /// All pages. The deadline is that of each page.
    pub async fn list(&self, query: &ListQuery) -> Result<RecordList, RpcError> {
        let first = self.list_page(query, "").await?;
        let mut list = RecordList {
            records: first.records,
            revision: first.revision,
            incarnation: first.incarnation,
        };
        let mut next = first.next_page_token;
        while let Some(token) = next {
            let page = self.list_page(query, &token).await?;
            list.records.extend(page.records);
            next = page.next_page_token;
        }
        Ok(list)
    }

    /// Writes all or nothing; the answer is the transaction's revision.
    pub async fn commit(&self, commit: &Commit) -> Result<u64, RpcError> {
        let mut client = self.inner.clone();
        let request = pb::CommitRequest::from(commit);
        let response = call(self.deadline, CallEffect::Write, request, |r| client.commit(r)).await?;
        Ok(response.revision)
    }

    /// Every change after `after_revision`, without a gap. The deadline is that of the stream's beginning.
    pub async fn watch(
        &self,
        after_revision: u64,
        incarnation: u64,
        kinds: &[RecordKind],
    ) -> Result<WatchStream, RpcError> {
        let mut client = self.inner.clone();
        let request = pb::WatchRequest {
            after_revision,
            incarnation,
            kinds: kinds
                .iter()
                .map(|kind| pb::RecordKind::from(*kind).into())
                .collect(),
        };
        begin(self.deadline, client.watch(request)).await.map(WatchStream)
    }

    /// Takes, renews or (with `release`) gives up the control plane's lease.
    pub async fn acquire_lease(&self, holder: &str, ttl: Duration, release: bool) -> Result<Lease, RpcError> {
        let mut client = self.inner.clone();
        let request = pb::AcquireLeaseRequest {
            holder: holder.to_owned(),
            ttl_ms: u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX),
            release,
        };
        let lease = call(self.deadline, CallEffect::Write, request, |r| {
            client.acquire_lease(r)
        })
        .await?;
        Ok(lease.into())
    }

    /// Drops history and tombstones up to `revision`; the answer is the new floor.
    pub async fn compact(&self, revision: u64, lease_epoch: u64) -> Result<u64, RpcError> {
        let mut client = self.inner.clone();
        let request = pb::CompactRequest {
            revision,
            lease_epoch,
        };
        let response = call(self.deadline, CallEffect::Write, request, |r| client.compact(r)).await?;
        Ok(response.compaction_floor)
    }
}

impl WatchStream {
    /// The next changes; `None` when the store ended the stream.
    pub async fn next(&mut self) -> Option<Result<Changes, RpcError>> {
        match self.0.message().await {
            Ok(Some(response)) => Some(Changes::try_from(response).map_err(Into::into)),
            Ok(None) => None,
            Err(status) => Some(Err(RpcError::of_read(status))),
        }
    }
}

fn records(records: Vec<pb::Record>) -> Result<Vec<Record>, ConversionError> {
    records.into_iter().map(Record::try_from).collect()
}

impl TryFrom<pb::WatchResponse> for Changes {
    type Error = ConversionError;
    fn try_from(response: pb::WatchResponse) -> Result<Self, ConversionError> {
        Ok(Self {
            records: records(response.changes)?,
            revision: response.revision,
        })
    }
}

impl From<&Changes> for pb::WatchResponse {
    fn from(changes: &Changes) -> Self {
        Self {
            changes: changes.records.iter().map(Into::into).collect(),
            revision: changes.revision,
        }
    }
}

impl TryFrom<pb::GetInfoResponse> for StoreInfo {
    type Error = ConversionError;
    fn try_from(info: pb::GetInfoResponse) -> Result<Self, ConversionError> {
        Ok(Self {
            cluster: info.cluster_id.parse()?,
            incarnation: info.incarnation,
            revision: info.revision,
            compaction_floor: info.compaction_floor,
        })
    }
}

impl From<StoreInfo> for pb::GetInfoResponse {
    fn from(info: StoreInfo) -> Self {
        Self {
            cluster_id: info.cluster.to_string(),
            incarnation: info.incarnation,
            revision: info.revision,
            compaction_floor: info.compaction_floor,
        }
    }
}

impl From<pb::AcquireLeaseResponse> for Lease {
    fn from(lease: pb::AcquireLeaseResponse) -> Self {
        Self {
            acquired: lease.acquired,
            holder: lease.holder,
            epoch: lease.epoch,
            remaining: Duration::from_millis(lease.remaining_ms),
        }
    }
}

impl From<Lease> for pb::AcquireLeaseResponse {
    fn from(lease: Lease) -> Self {
        Self {
            acquired: lease.acquired,
            holder: lease.holder,
            epoch: lease.epoch,
            remaining_ms: u64::try_from(lease.remaining.as_millis()).unwrap_or(u64::MAX),
        }
    }
}
