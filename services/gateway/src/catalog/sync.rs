//! Keeps the catalog equal to the metadata store: list once, then watch, and resume where the watch broke.
//!
//! A store that is down costs nothing but news: the catalog stays as it is. A watch that cannot be resumed (compacted
//! away, or the database was restored) leads to a new list.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use ptah_rpc::RpcError;
use ptah_rpc::records::{Record, RecordKind};
use ptah_service::{Component, Random, Stopping};
use ptah_types::ErrorKind;
use tracing::{info, warn};

use super::{Catalog, CatalogView};
use crate::metrics::CatalogMetrics;

/// Kinds of records that the gateway wants.
pub const KINDS: [RecordKind; 5] = [
    RecordKind::Station,
    RecordKind::Placement,
    RecordKind::ConsumerGroup,
    RecordKind::User,
    RecordKind::Node,
];

/// A connection to the store is given up when nothing came for this long. The store tells its progress more often.
const WATCH_SILENCE: Duration = Duration::from_secs(15);
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// All live records of one kind.
pub struct Listing {
    /// Records.
    pub records: Vec<Record>,
    /// Revision at the first page: a watch from here sees what later pages missed.
    pub revision: u64,
    /// Incarnation of the store.
    pub incarnation: u64,
}

/// Changes, all up to a revision.
pub struct CatalogChanges {
    /// Changed records; empty when only progress is told.
    pub records: Vec<Record>,
    /// Everything up to here was told.
    pub revision: u64,
}

/// What the catalog needs of the metadata store.
///
/// - `list` gives every live record of the kind that existed at the returned revision, perhaps newer versions.
/// - `watch` gives every change above the revision in order and without a gap, or `Conflict` when it cannot.
pub trait MetadataSource: Send + Sync + 'static {
    /// Lists a kind.
    fn list(&self, kind: RecordKind) -> BoxFuture<'_, Result<Listing, RpcError>>;
    /// Watches all [`KINDS`].
    fn watch(&self, after: u64, incarnation: u64) -> BoxFuture<'_, Result<Box<dyn ChangeStream>, RpcError>>;
}

/// Changes as they come.
pub trait ChangeStream: Send {
    /// Next changes; `None` when the store ended the stream. May be dropped while waiting.
    fn next(&mut self) -> BoxFuture<'_, Option<Result<CatalogChanges, RpcError>>>;
}

/// Parts of the loop.
pub struct CatalogSync {
    /// Filled.
    pub catalog: Catalog,
    /// The store.
    pub source: Arc<dyn MetadataSource>,
    /// For jitter.
    pub random: Arc<dyn Random>,
    /// Ready while the catalog is loaded.
    pub component: Component,
    /// Counters.
    pub metrics: CatalogMetrics,
}

impl CatalogSync {
    /// Runs until told to stop.
    pub async fn run(self, stopping: Stopping) {
        let mut backoff = FIRST_BACKOFF;
        if self.catalog.position().loaded {
            self.component.ready();
        }
        while !stopping.is_stopping() {
            let before = self.catalog.position();
            let ended = tokio::select! {
                () = stopping.cancelled() => return,
                ended = self.follow() => ended,
            };
            self.metrics.connected.set(0);
            if let Err(error) = ended {
                self.metrics.failures.inc();
                self.note_failure(&error);
                if !self.catalog.position().loaded {
                    self.component
                        .not_ready(format!("metadata does not answer: {error}"));
                }
            }
            if self.catalog.position() != before {
                backoff = FIRST_BACKOFF;
            }
            let jitter = Duration::from_millis(self.random.below(backoff.as_millis() as u64 + 1));
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(backoff + jitter) => {}
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// Tells the log once per reason: a store that is down is asked again and again.
    fn note_failure(&self, error: &RpcError) {
        let why = error.to_string();
        let before = self.catalog.set_outage(Some(&why));
        if before.as_deref() != Some(&*why) {
            warn!(%error, "metadata does not answer; stations, users and nodes stay as this gateway knows them");
        }
    }

    fn note_success(&self) {
        if self.catalog.set_outage(None).is_some() {
            info!("metadata answers again");
        }
    }

    /// One connection: loads if needed, then takes changes in until the stream ends.
    async fn follow(&self) -> Result<(), RpcError> {
        if !self.catalog.position().loaded {
            self.load().await?;
        }
        let position = self.catalog.position();
        let mut changes = match self.source.watch(position.revision, position.incarnation).await {
            Err(error) if error.kind == ErrorKind::Conflict => return self.reload(&error).await,
            watched => watched?,
        };
        self.component.ready();
        self.metrics.connected.set(1);
        self.note_success();
        loop {
            let Ok(next) = tokio::time::timeout(WATCH_SILENCE, changes.next()).await else {
                return Err(RpcError::new(
                    ErrorKind::Unavailable,
                    "metadata was silent for 15 s",
                ));
            };
            match next {
                None => return Ok(()),
                Some(Err(error)) if error.kind == ErrorKind::Conflict => return self.reload(&error).await,
                Some(Err(error)) => return Err(error),
                Some(Ok(told)) => {
                    self.metrics.changes.inc_by(told.records.len() as u64);
                    self.catalog.apply(told.records, told.revision);
                    self.metrics.revision.set(told.revision as i64);
                }
            }
        }
    }

    async fn reload(&self, why: &RpcError) -> Result<(), RpcError> {
        warn!(%why, "metadata watch cannot be resumed, listing again");
        self.load().await
    }

    async fn load(&self) -> Result<(), RpcError> {
        let mut view = CatalogView::default();
        let mut oldest: Option<(u64, u64)> = None;
        for kind in KINDS {
            let listing = self.source.list(kind).await?;
            let (revision, incarnation) = *oldest.get_or_insert((listing.revision, listing.incarnation));
            if incarnation != listing.incarnation {
                let message = "metadata was restored while it was listed";
                return Err(RpcError::new(ErrorKind::Unavailable, message));
            }
            oldest = Some((revision.min(listing.revision), incarnation));
            for record in listing.records {
                view.apply(record);
            }
        }
        let (revision, incarnation) = oldest.unwrap_or_default();
        info!(revision, incarnation, records = view.len(), "catalog loaded");
        self.metrics.loads.inc();
        self.metrics.revision.set(revision as i64);
        self.catalog.replace(view, revision, incarnation);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
