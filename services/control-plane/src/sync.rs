//! Keeps the [`View`] up to date: lists everything once, then watches.
//!
//! After an interruption the watch resumes where the view is; when the store refuses that (history gone, another
//! incarnation) everything is listed again.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use ptah_rpc::clients::{ListQuery, StoreInfo, WatchStream};
use ptah_rpc::records::RecordKind;
use ptah_rpc::{MetadataClient, RpcError};
use ptah_service::{Component, Random, Stopping};
use ptah_types::ErrorKind;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::view::View;

/// The store tells progress every 2 s: without any for this long the connection is dead.
const SILENCE: Duration = Duration::from_secs(8);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How far the view is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Whether everything up to `revision` is there, since the newest list.
    pub complete: bool,
    /// Newest revision in the view.
    pub revision: u64,
    /// Grows with every change of a placement or node.
    pub layout: u64,
}

/// The view, for everybody who decides. Cheap to clone.
#[derive(Clone)]
pub struct Metadata {
    view: Arc<RwLock<Option<View>>>,
    progress: Arc<watch::Sender<Progress>>,
}

impl Metadata {
    /// A handle without a view yet.
    pub fn new() -> Self {
        Self {
            view: Arc::default(),
            progress: Arc::new(watch::channel(Progress::default()).0),
        }
    }

    /// Looks at the view; `None` until it is complete for the first time.
    pub fn read<R>(&self, look: impl FnOnce(&View) -> R) -> Option<R> {
        if !self.progress.borrow().complete {
            return None;
        }
        self.view.read().as_ref().map(look)
    }

    /// Changes what is derived from reports.
    pub fn update(&self, change: impl FnOnce(&mut View)) {
        if let Some(view) = self.view.write().as_mut() {
            change(view);
        }
    }

    /// Tells when the view moves.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Waits until everything up to `revision` is in the view.
    pub async fn wait_for(&self, revision: u64, deadline: Duration) -> bool {
        let mut progress = self.progress.subscribe();
        let reached = progress.wait_for(|progress| progress.complete && progress.revision >= revision);
        matches!(tokio::time::timeout(deadline, reached).await, Ok(Ok(_)))
    }

    fn replace(&self, view: View, complete: bool) {
        let revision = view.revision();
        *self.view.write() = Some(view);
        self.progress.send_modify(|progress| {
            progress.complete = complete;
            progress.revision = revision;
            progress.layout += 1;
        });
    }
}

impl Default for Metadata {
    fn default() -> Self {
        Self::new()
    }
}

/// The task that follows the store.
pub struct Follower {
    /// The store.
    pub client: MetadataClient,
    /// Whom to tell.
    pub metadata: Metadata,
    /// Where to tell readiness.
    pub component: Component,
    /// Jitter of pauses.
    pub random: Arc<dyn Random>,
}

impl Follower {
    /// Follows until the service stops.
    pub async fn run(self, stopping: Stopping) {
        tokio::select! {
            () = stopping.cancelled() => {}
            () = self.follow() => {}
        }
    }

    async fn follow(&self) {
        let mut pause = FIRST_PAUSE;
        // Revision up to which the view must get before it is whole again.
        let mut target = None;
        loop {
            let outcome = match target {
                None => self.list().await.map(|revision| target = Some(revision)),
                Some(revision) => self.watch(revision, &mut pause).await,
            };
            let Err(error) = outcome else { continue };
            if error.kind == ErrorKind::Conflict {
                info!(reason = %error, "metadata is listed again");
                target = None;
            } else {
                warn!(%error, "metadata cannot be followed; trying again");
                self.component
                    .not_ready(format!("metadata cannot be followed: {error}"));
            }
            let jitter = self
                .random
                .below(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX) / 2 + 1);
            tokio::time::sleep(pause / 2 + Duration::from_millis(jitter)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Lists everything into a new view; answers the revision at which it is whole.
    async fn list(&self) -> Result<u64, RpcError> {
        let info = self.client.info().await?;
        let mut view = View::new(info.cluster, info.incarnation, info.revision);
        // Deleted placements first: nothing that is listed later can then bring one back.
        let tombstones = ListQuery {
            tombstones: true,
            ..ListQuery::all(RecordKind::Placement)
        };
        let mut queries = vec![tombstones];
        queries.extend(RecordKind::ALL.map(ListQuery::all));
        for query in queries {
            let list = self.client.list(&query).await?;
            if list.incarnation != info.incarnation {
                let why = "the store changed its incarnation while it was listed";
                return Err(RpcError::new(ErrorKind::Conflict, why));
            }
            for record in list.records {
                view.apply(record);
            }
        }
        // Pages are of different moments: the view is whole once the watch has passed the last of them.
        let StoreInfo { revision, .. } = self.client.info().await?;
        let complete = revision == view.revision();
        self.metadata.replace(view, complete);
        Ok(revision)
    }

    async fn watch(&self, target: u64, pause: &mut Duration) -> Result<(), RpcError> {
        let position = self
            .metadata
            .view
            .read()
            .as_ref()
            .map(|view| (view.revision(), view.incarnation()));
        let Some((revision, incarnation)) = position else {
            return Err(RpcError::new(ErrorKind::Conflict, "there is no view yet"));
        };
        let mut stream = self.client.watch(revision, incarnation, &[]).await?;
        *pause = FIRST_PAUSE;
        loop {
            self.take(&mut stream, target).await?;
        }
    }

    async fn take(&self, stream: &mut WatchStream, target: u64) -> Result<(), RpcError> {
        let next = tokio::time::timeout(SILENCE, stream.next()).await;
        let changes = match next {
            Ok(Some(changes)) => changes?,
            Ok(None) => return Err(RpcError::new(ErrorKind::Unavailable, "the store ended the watch")),
            Err(_) => return Err(RpcError::new(ErrorKind::Unavailable, "the store is silent")),
        };
        let layout = changes
            .records
            .iter()
            .any(|record| matches!(record.key.kind, RecordKind::Placement | RecordKind::Node));
        self.metadata.update(|view| {
            for record in changes.records {
                view.apply(record);
            }
            view.advance(changes.revision);
        });
        self.metadata.progress.send_if_modified(|progress| {
            let before = *progress;
            progress.revision = progress.revision.max(changes.revision);
            progress.complete |= progress.revision >= target;
            progress.layout += u64::from(layout);
            *progress != before
        });
        if self.metadata.progress.borrow().complete {
            self.component.ready();
        }
        Ok(())
    }
}
