//! What drives the store: commits, large writes, rounds, and the watch over room and failure.
//!
//! In production the store's own threads commit; in a simulation tasks do the same. Rounds, which make dirty groups
//! durable in their own files and recycle the write-ahead log, are tasks in both.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use ptah_segment_log::{CommitOutcome, Drivers, LargeOutcome, RoundLimit, Store, Work};
use ptah_service::Tasks;
use tokio::sync::{Notify, watch};

use crate::cell::Shared;
use crate::host::DiskSpace;

/// How often room on the disk and the store's health are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const FAILURE_LOOK_EVERY: Duration = Duration::from_millis(100);
/// Quiet time after which a simulation seals, as the store's threads do.
const SEAL_AFTER: Duration = Duration::from_millis(50);
/// A round pauses between parts of this size, so that commits get their turn on the disk.
const ROUND_PART: RoundLimit = RoundLimit {
    groups: 64,
    bytes: 16 << 20,
};

/// What wakes the drivers.
#[derive(Default)]
pub(crate) struct Wakes {
    pub(crate) commit: Notify,
    pub(crate) large: Notify,
    pub(crate) round: Notify,
    pub(crate) room: Arc<Notify>,
}

/// The drivers of one store.
pub(crate) struct StoreDrivers {
    pub(crate) store: Store,
    pub(crate) wakes: Arc<Wakes>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) space: watch::Sender<DiskSpace>,
    pub(crate) failed: watch::Sender<Option<String>>,
}

/// Lets the store wake its drivers.
pub(crate) fn connect(store: &Store) -> Arc<Wakes> {
    let wakes = Arc::new(Wakes::default());
    let target = Arc::clone(&wakes);
    store.set_waker(Arc::new(move |work| match work {
        Work::Commit => target.commit.notify_one(),
        Work::Large => target.large.notify_one(),
        Work::Checkpoint => target.round.notify_one(),
        Work::Room => target.room.notify_waiters(),
    }));
    wakes
}

impl StoreDrivers {
    /// Starts the drivers; the threads live as long as the answer.
    pub(crate) fn start(self, tasks: &Tasks) -> std::io::Result<Option<Drivers>> {
        let threads = if self.shared.options.simulation {
            let committing = commits(self.store.clone(), Arc::clone(&self.wakes), tasks.clone());
            tasks.spawn_critical("store commits", committing.map(Ok));
            let writing = large(self.store.clone(), Arc::clone(&self.wakes), tasks.clone());
            tasks.spawn_critical("store large writes", writing.map(Ok));
            None
        } else {
            Some(self.store.spawn_drivers()?)
        };
        let this = Arc::new(self);
        // A node without one of these would go on half dead: the process ends instead.
        let rounds = Arc::clone(&this).rounds(tasks.clone());
        tasks.spawn_critical("store rounds", rounds.map(Ok));
        let watching = Arc::clone(&this).watch_space(tasks.clone());
        tasks.spawn_critical("store watch", watching.map(Ok));
        tasks.spawn_critical("store health", this.watch_failure(tasks.clone()).map(Ok));
        Ok(threads)
    }

    async fn rounds(self: Arc<Self>, tasks: Tasks) {
        let stopping = tasks.stopping();
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = self.wakes.round.notified() => {}
                () = tokio::time::sleep(self.shared.options.round_every) => {}
            }
            if self.store.failure().is_some() {
                return;
            }
            self.round(&tasks).await;
        }
    }

    /// One whole round, in parts.
    async fn round(&self, tasks: &Tasks) {
        let stopping = tasks.stopping();
        while !stopping.is_stopping() {
            let store = self.store.clone();
            let done = self
                .shared
                .blocking
                .run(move || store.checkpoint_round(ROUND_PART))
                .await;
            let metrics = &self.shared.metrics;
            metrics.rounds.inc();
            match done {
                Ok(Ok(report)) => {
                    for (group, why) in &report.failed {
                        tracing::error!(group = %group.to_hex(), %why, "group could not be made durable in its own files");
                    }
                    if report.remaining == 0 || report.groups == 0 {
                        return;
                    }
                }
                Ok(Err(error)) | Err(error) => {
                    metrics.rounds_failed.inc();
                    tracing::error!(%error, "checkpoint round failed");
                    return;
                }
            }
        }
    }

    async fn watch_space(self: Arc<Self>, tasks: Tasks) {
        let stopping = tasks.stopping();
        loop {
            let store = self.store.clone();
            if let Ok(Ok(space)) = self.shared.blocking.run(move || store.space()).await {
                self.shared.disk_full.store(space.refusing, Ordering::Relaxed);
                self.space.send_replace(DiskSpace {
                    total_bytes: space.total_bytes,
                    available_bytes: space.available_bytes,
                    used_percent: space.used_percent,
                    refusing: space.refusing,
                });
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    async fn watch_failure(self: Arc<Self>, tasks: Tasks) {
        let stopping = tasks.stopping();
        loop {
            if let Some(failure) = self.store.failure() {
                tracing::error!(%failure, "the store failed; nothing is acknowledged any more");
                self.failed.send_replace(Some(failure));
                return;
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(FAILURE_LOOK_EVERY) => {}
            }
        }
    }
}

async fn commits(store: Store, wakes: Arc<Wakes>, tasks: Tasks) {
    let stopping = tasks.stopping();
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = wakes.commit.notified() => {}
            () = tokio::time::sleep(SEAL_AFTER) => {
                store.seal();
                continue;
            }
        }
        while let CommitOutcome::Committed { more: true, .. } = store.commit_pending() {
            tokio::task::yield_now().await;
        }
    }
}

async fn large(store: Store, wakes: Arc<Wakes>, tasks: Tasks) {
    let stopping = tasks.stopping();
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = wakes.large.notified() => {}
        }
        while store.write_large_pending() == LargeOutcome::Progress {
            tokio::task::yield_now().await;
        }
    }
}
