//! Stations, placements, consumer groups, users and nodes, as the metadata store told last.
//!
//! Everything that moves messages asks here and never the store, so that it works while the store is down. The copy is
//! filled by [`sync`] and can start from a copy on disk.

pub mod file;
pub mod sync;
mod view;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use ptah_types::{StationName, TenantName};
use tokio::sync::watch;

use crate::error::GatewayError;

pub use view::{CatalogView, ConsumerGroup, Station};

/// What another gateway was told is known here after this time, unless metadata is down.
const NEWS_LIMIT: Duration = Duration::from_millis(300);

/// Cheap handle on the catalog.
#[derive(Clone)]
pub struct Catalog {
    inner: Arc<Inner>,
}

struct Inner {
    view: RwLock<CatalogView>,
    position: watch::Sender<Position>,
    outage: RwLock<Option<Arc<str>>>,
}

/// How far the catalog is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Position {
    /// Everything up to this revision is in.
    pub revision: u64,
    /// Incarnation of the store that the revision is of.
    pub incarnation: u64,
    /// False until the first whole copy is in.
    pub loaded: bool,
    /// Counts every change, also those that do not move the revision.
    pub changes: u64,
}

impl Default for Catalog {
    fn default() -> Self {
        Self::new()
    }
}

impl Catalog {
    /// An empty catalog.
    pub fn new() -> Self {
        let inner = Inner {
            view: RwLock::new(CatalogView::default()),
            position: watch::Sender::new(Position::default()),
            outage: RwLock::new(None),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Reads under a short lock. Do not call back into the catalog.
    pub fn with<R>(&self, read: impl FnOnce(&CatalogView) -> R) -> R {
        read(&self.inner.view.read())
    }

    /// The station of that name, or the error that says that there is none.
    pub fn station(&self, tenant: &TenantName, name: &StationName) -> Result<Arc<Station>, GatewayError> {
        let found = self.with(|view| view.station(tenant, name).cloned());
        found.ok_or_else(|| GatewayError::StationNotFound {
            tenant: tenant.to_string(),
            station: name.display().to_owned(),
        })
    }

    /// The same, but a station that was made through another gateway a moment ago is waited for.
    pub async fn station_soon(
        &self,
        tenant: &TenantName,
        name: &StationName,
    ) -> Result<Arc<Station>, GatewayError> {
        if let Ok(station) = self.station(tenant, name) {
            return Ok(station);
        }
        let _found = self
            .wait_for(NEWS_LIMIT, |view| view.station(tenant, name).map(|_| ()))
            .await;
        self.station(tenant, name)
    }

    /// How far the catalog is.
    pub fn position(&self) -> Position {
        *self.inner.position.borrow()
    }

    /// Tells every change.
    pub fn watch(&self) -> watch::Receiver<Position> {
        self.inner.position.subscribe()
    }

    /// Why the metadata store does not answer; `None` while it does, and before it was asked.
    pub fn outage(&self) -> Option<Arc<str>> {
        self.inner.outage.read().clone()
    }

    /// Notes whether the store answers, and returns what was known before.
    fn set_outage(&self, why: Option<&str>) -> Option<Arc<str>> {
        std::mem::replace(&mut *self.inner.outage.write(), why.map(Arc::from))
    }

    /// Puts a whole copy in place of what was there.
    pub fn replace(&self, view: CatalogView, revision: u64, incarnation: u64) {
        *self.inner.view.write() = view;
        self.inner.position.send_modify(|position| {
            *position = Position {
                revision,
                incarnation,
                loaded: true,
                changes: position.changes + 1,
            };
        });
    }

    /// Takes changes in, all of them up to `revision`.
    pub fn apply(&self, changes: Vec<ptah_rpc::records::Record>, revision: u64) {
        let changed = !changes.is_empty();
        if changed {
            let mut view = self.inner.view.write();
            for record in changes {
                view.apply(record);
            }
        }
        self.inner.position.send_if_modified(|position| {
            let moved = revision > position.revision;
            position.revision = position.revision.max(revision);
            position.changes += u64::from(changed);
            moved || changed
        });
    }

    /// Waits until everything up to `revision` is in. False when the time is over first.
    pub async fn wait_for_revision(&self, revision: u64, limit: Duration) -> bool {
        let mut watch = self.watch();
        let reached = watch.wait_for(|position| position.loaded && position.revision >= revision);
        matches!(tokio::time::timeout(limit, reached).await, Ok(Ok(_)))
    }

    /// Waits until `found` finds something, looking again at every change. `None` when the time is over first.
    pub async fn wait_for<R>(
        &self,
        limit: Duration,
        mut found: impl FnMut(&CatalogView) -> Option<R>,
    ) -> Option<R> {
        let mut watch = self.watch();
        let search = async {
            loop {
                watch.mark_unchanged();
                if let Some(result) = self.with(&mut found) {
                    return Some(result);
                }
                watch.changed().await.ok()?;
            }
        };
        tokio::time::timeout(limit, search).await.ok().flatten()
    }
}
