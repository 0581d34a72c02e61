//! Watches: every change after a revision, in order, none left out, none twice.
//!
//! Each watch reads history from the store at its own pace; the store's hint only wakes it. What is on its way to a
//! watcher is bounded: a few messages in its channel. A watcher that takes nothing for a while is ended with an error
//! that may be retried, and resumes from the last revision that it has.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt};
use ptah_service::{Stopping, Tasks};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use crate::error::WatchError;
use crate::metrics::{Metrics, WatchEnd};
use crate::store::{Store, Transaction};

/// Messages on their way to one watcher.
const QUEUE: usize = 4;

/// Times of watches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// A watcher that takes nothing for this long is ended.
    pub send_deadline: Duration,
    /// How often a watcher hears something when nothing changes, so that it can tell silence from a dead connection;
    /// also how late a missed hint can make a change.
    pub progress_interval: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            send_deadline: Duration::from_secs(10),
            progress_interval: Duration::from_secs(2),
        }
    }
}

/// What a watcher wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WatchFrom {
    /// Changes with a higher revision.
    pub after: u64,
    /// Incarnation that the revision is of.
    pub incarnation: u64,
    /// Numbers of the kinds wanted; empty means all.
    pub kinds: BTreeSet<u32>,
}

/// What a watcher gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WatchEvent {
    /// All wanted changes of one revision.
    Changes(Transaction),
    /// Everything up to this revision was sent.
    Progress(u64),
}

/// Stream of a watch; ends with an error, or when the watcher drops it.
pub type WatchStream = BoxStream<'static, Result<WatchEvent, WatchError>>;

/// Opens watches, up to a limit.
#[derive(Clone)]
pub struct Watches {
    store: Arc<dyn Store>,
    tasks: Tasks,
    places: Arc<Semaphore>,
    limit: usize,
    pace: Pace,
    metrics: Metrics,
}

impl Watches {
    /// Watches of `store`, run as tasks of `tasks`.
    pub fn new(store: Arc<dyn Store>, tasks: Tasks, limit: u32, pace: Pace, metrics: Metrics) -> Self {
        let limit = limit as usize;
        Self {
            store,
            tasks,
            places: Arc::new(Semaphore::new(limit)),
            limit,
            pace,
            metrics,
        }
    }

    /// Begins a watch. What makes it impossible is told here, not in the stream.
    pub async fn open(&self, from: WatchFrom) -> Result<WatchStream, WatchError> {
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|_| WatchError::TooMany(self.limit))?;
        let info = self.store.info().await?;
        if info.incarnation != from.incarnation {
            return Err(WatchError::OtherIncarnation {
                known: from.incarnation,
                current: info.incarnation,
            });
        }
        check_reach(&from, info.revision, info.compaction_floor)?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (end, ended) = oneshot::channel();
        let feed = Feed {
            store: self.store.clone(),
            from,
            pace: self.pace,
            sender,
        };
        let (metrics, stopping) = (self.metrics.clone(), self.tasks.stopping());
        metrics.watch_began();
        self.tasks.spawn("watch", async move {
            let reason = feed.run(&stopping).await;
            metrics.watch_ended(match &reason {
                None => WatchEnd::Left,
                Some(WatchError::TooSlow { .. }) => WatchEnd::TooSlow,
                Some(_) => WatchEnd::Failed,
            });
            if let Some(error) = reason {
                // A watcher that is gone does not want to know why.
                drop(end.send(error));
            }
            drop(place);
        });
        // The reason comes behind everything that was sent before it.
        let last = stream::once(ended).filter_map(|error| async move { error.ok().map(Err) });
        Ok(ReceiverStream::new(receiver).map(Ok).chain(last).boxed())
    }
}

fn check_reach(from: &WatchFrom, newest: u64, floor: u64) -> Result<(), WatchError> {
    use crate::store::StoreError;
    let after = from.after;
    if after < floor {
        return Err(StoreError::Compacted { after, floor }.into());
    }
    if after > newest {
        return Err(StoreError::Ahead { after, newest }.into());
    }
    Ok(())
}

/// One watch.
struct Feed {
    store: Arc<dyn Store>,
    from: WatchFrom,
    pace: Pace,
    sender: mpsc::Sender<WatchEvent>,
}

impl Feed {
    /// Sends until something ends it; `None` when the watcher left.
    async fn run(self, stopping: &Stopping) -> Option<WatchError> {
        let mut newest = self.store.newest();
        let mut position = self.from.after;
        loop {
            newest.borrow_and_update();
            let history = match self.store.changes(position).await {
                Ok(history) => history,
                Err(error) => return Some(error.into()),
            };
            if history.incarnation != self.from.incarnation {
                return Some(WatchError::OtherIncarnation {
                    known: self.from.incarnation,
                    current: history.incarnation,
                });
            }
            for transaction in history.transactions {
                let revision = transaction.revision;
                if let Some(wanted) = self.wanted(transaction)
                    && let Err(end) = self.send(WatchEvent::Changes(wanted), position).await
                {
                    return end;
                }
                position = revision;
            }
            position = history.complete_to;
            // Also when nothing is new: the watcher learns that it is up to date, and that we live.
            if let Err(end) = self.send(WatchEvent::Progress(position), position).await {
                return end;
            }
            tokio::select! {
                biased;
                () = stopping.cancelled() => return Some(WatchError::Stopping),
                () = self.sender.closed() => return None,
                _ = newest.wait_for(|newest| *newest > position) => {}
                () = tokio::time::sleep(self.pace.progress_interval) => {}
            }
        }
    }

    /// The changes of wanted kinds, if any.
    fn wanted(&self, mut transaction: Transaction) -> Option<Transaction> {
        let kinds = &self.from.kinds;
        transaction
            .changes
            .retain(|change| kinds.is_empty() || kinds.contains(&change.key.kind));
        (!transaction.changes.is_empty()).then_some(transaction)
    }

    async fn send(&self, event: WatchEvent, resume_from: u64) -> Result<(), Option<WatchError>> {
        use mpsc::error::SendTimeoutError;
        match self.sender.send_timeout(event, self.pace.send_deadline).await {
            Ok(()) => Ok(()),
            Err(SendTimeoutError::Timeout(_)) => Err(Some(WatchError::TooSlow { resume_from })),
            Err(SendTimeoutError::Closed(_)) => Err(None),
        }
    }
}

#[cfg(test)]
mod tests;
