//! [`Store`](super::Store) on a SQLite file: one writer task, a few readers, write-ahead log, every commit synced.
//!
//! - One process per database: a lock file refuses a second one.
//! - Writes go through one task and one connection in `BEGIN IMMEDIATE` transactions, so a dropped caller never leaves
//!   half a transaction, and commits are ordered.
//! - The revision is updated in the same transaction as the records.
//!
//! The statements are also valid on PostgreSQL (`$1` placeholders, upserts, no SQLite functions).

mod keeper;
mod mark;
mod open;
mod read;
mod rows;
mod write;

use std::time::Duration;

use ptah_service::{Ports, Tasks};
use sqlx::SqlitePool;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Commit, History, Key, Lease, LeaseRequest, Page, Query, Store, StoreError, StoreInfo, Stored};
use write::{Job, Writer};

pub use open::OpenError;

/// Writes that may wait for the writer.
const QUEUE: usize = 64;
/// A caller waits this long for a place in the queue; then the store is busy.
const QUEUE_DEADLINE: Duration = Duration::from_secs(1);
/// A caller waits this long for the outcome of its write; then it is not known. With the wait before it below the
/// deadline of the RPC clients, 5 s, so that they hear the reason.
const WRITE_DEADLINE: Duration = Duration::from_millis(3_500);
/// A read that takes longer is given up, before its RPC client does.
const READ_DEADLINE: Duration = Duration::from_secs(4);

/// How to open the store.
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    /// `sqlite://path/to/file.db`, with `?mode=rwc` to make the file when it is not there.
    pub database_url: String,
    /// Changes to keep for watchers that were away; older ones make them list again.
    pub history_changes: u32,
}

/// The store on a SQLite file.
pub struct SqliteStore {
    readers: SqlitePool,
    jobs: mpsc::Sender<Job>,
    newest: watch::Receiver<u64>,
    // Keeps other processes away for as long as the store lives.
    _lock: std::fs::File,
}

impl SqliteStore {
    /// Opens the database, makes it if the URL says so, and brings its schema up to date.
    ///
    /// Nothing is changed when the database belongs to a newer version, to something else, or is in use.
    pub async fn open(options: &SqliteOptions, ports: &Ports, tasks: &Tasks) -> Result<Self, OpenError> {
        let opened = open::open(options, ports).await?;
        Ok(Self::start(opened, options, ports, tasks))
    }

    fn start(opened: open::Opened, options: &SqliteOptions, ports: &Ports, tasks: &Tasks) -> Self {
        let (newest_tx, newest) = watch::channel(opened.info.revision);
        let (jobs, queue) = mpsc::channel(QUEUE);
        let writer = Writer::new(
            opened.writer,
            opened.mark_file,
            opened.mark,
            newest_tx,
            ports,
            options,
        );
        let stopping = tasks.stopping();
        let readers = opened.readers.clone();
        tasks.spawn("store-writer", async move {
            writer.run(queue, stopping).await;
            readers.close().await;
        });
        Self {
            readers: opened.readers,
            jobs,
            newest,
            _lock: opened.lock,
        }
    }

    /// Hands a write to the writer and waits for its outcome.
    async fn submit<T>(
        &self,
        action: &'static str,
        job: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Job,
    ) -> Result<T, StoreError> {
        let (answer, outcome) = oneshot::channel();
        let stopped = || StoreError::Unavailable {
            action,
            why: "the metadata service is stopping".to_owned(),
        };
        match self.jobs.send_timeout(job(answer), QUEUE_DEADLINE).await {
            Ok(()) => {}
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => return Err(StoreError::Busy),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => return Err(stopped()),
        }
        let unknown = |why: &str| StoreError::OutcomeUnknown {
            action,
            why: why.to_owned(),
        };
        match tokio::time::timeout(WRITE_DEADLINE, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(unknown("the metadata service is stopping")),
            Err(_) => Err(unknown("the database did not answer in time")),
        }
    }
}

/// Bounds a read.
async fn bounded<T>(
    action: &'static str,
    read: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(READ_DEADLINE, read).await {
        Ok(outcome) => outcome,
        Err(_) => Err(StoreError::Unavailable {
            action,
            why: "the database did not answer in time".to_owned(),
        }),
    }
}

#[tonic::async_trait]
impl Store for SqliteStore {
    async fn info(&self) -> Result<StoreInfo, StoreError> {
        bounded("read the store's identity", read::info(&self.readers)).await
    }

    async fn get(&self, key: &Key) -> Result<(Option<Stored>, u64), StoreError> {
        bounded("read a record", read::get(&self.readers, key)).await
    }

    async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        bounded("list records", read::list(&self.readers, query)).await
    }

    async fn commit(&self, commit: Commit) -> Result<u64, StoreError> {
        commit.check()?;
        self.submit("commit", |answer| Job::Commit(commit, answer)).await
    }

    async fn changes(&self, after: u64) -> Result<History, StoreError> {
        bounded("read history", read::changes(&self.readers, after)).await
    }

    async fn lease(&self, request: LeaseRequest) -> Result<Lease, StoreError> {
        request.check()?;
        self.submit("change the lease", |answer| Job::Lease(request, answer))
            .await
    }

    async fn compact(&self, revision: u64, lease_epoch: u64) -> Result<u64, StoreError> {
        self.submit("compact", |answer| Job::Compact {
            revision,
            lease_epoch,
            answer,
        })
        .await
    }

    fn newest(&self) -> watch::Receiver<u64> {
        self.newest.clone()
    }
}

#[cfg(test)]
mod faults;
#[cfg(test)]
mod tests;
