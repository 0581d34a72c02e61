//! [`Store`](super::Store) on PostgreSQL, for any number of instances on one database.
//!
//! - One row orders all writes of all instances: whoever writes locks it first and holds it to the end. So revisions
//!   become visible in their order, the lease cannot change hands between its check and the commit, and a reader that sees
//!   revision 7 sees everything before it. A sequence would not do: its numbers become visible in any order.
//! - The lease is timed by the database's clock, the only one that all instances share.
//! - Every transaction asks whether the database still is the one that was here; see `identity`.
//! - An error is told as what it is: nothing happened, or nobody knows. What nobody knows is never tried again.

mod hints;
mod identity;
mod open;
mod read;
mod server;
mod session;
mod transact;
mod trim;
mod trouble;
pub(crate) mod url;
mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ptah_service::{Ports, Tasks};
use sqlx::postgres::PgConnectOptions;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use super::{Commit, History, Key, Lease, LeaseRequest, Page, Query, Store, StoreError, StoreInfo, Stored};
use transact::Database;

pub use open::PostgresError;

/// Connections that do not close by then are left to the end of the process.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);
/// How late a lost hint can make a change.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How to open the store.
#[derive(Clone)]
pub struct PostgresOptions {
    /// `postgres://user:password@host:port/database`, with `?sslmode=...` and the like.
    pub database_url: String,
    /// Most connections of this process, at least 2; one of them listens for hints.
    pub max_connections: u32,
    /// Changes to keep for watchers that were away; older ones make them list again.
    pub history_changes: u32,
}

/// The store on PostgreSQL.
pub struct PostgresStore {
    shared: Arc<Shared>,
}

struct Shared {
    database: Database,
    history_changes: u32,
    changes_since_trim: AtomicU64,
    trim: Notify,
    committed: Notify,
    look: Notify,
}

impl PostgresStore {
    /// Opens the database and brings its schema up to date.
    ///
    /// Nothing is changed when the server is not fit, or the database belongs to a newer version or to something else.
    pub async fn open(
        options: &PostgresOptions,
        ports: &Ports,
        tasks: &Tasks,
    ) -> Result<Self, PostgresError> {
        let opened = open::open(options, ports).await?;
        let shared = Arc::new(Shared {
            database: Database {
                pool: session::pool(
                    opened.connect.clone(),
                    options.max_connections.saturating_sub(1).max(1),
                ),
                known: opened.known,
                random: ports.random.clone(),
            },
            history_changes: options.history_changes,
            changes_since_trim: AtomicU64::new(0),
            trim: Notify::new(),
            committed: Notify::new(),
            look: Notify::new(),
        });
        // The first read also tells whether this is the database that was here before.
        let info = shared.database.read(&read::Info).await;
        let info = info.map_err(|error| open::database(&opened.target, error.to_string()))?;
        info!(
            target_database = %opened.target, encrypted = opened.encrypted, cluster = %info.cluster,
            revision = info.revision, "metadata database open"
        );
        start_tasks(&shared, opened.connect, tasks);
        Ok(Self { shared })
    }

    fn database(&self) -> &Database {
        &self.shared.database
    }
}

fn start_tasks(shared: &Arc<Shared>, connect: PgConnectOptions, tasks: &Tasks) {
    let (this, stopping) = (shared.clone(), tasks.stopping());
    tasks.spawn("store-listen", async move {
        hints::listen(connect, &this.look, stopping).await;
    });
    let (this, stopping) = (shared.clone(), tasks.stopping());
    tasks.spawn("store-notify", async move {
        hints::send(this.database.pool.clone(), &this.committed, stopping).await;
    });
    let (this, stopping) = (shared.clone(), tasks.stopping());
    tasks.spawn("store-look", async move {
        let mut trouble = hints::Trouble::default();
        while !stopping.is_stopping() {
            tokio::select! {
                biased;
                () = stopping.cancelled() => break,
                () = this.look.notified() => {}
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
            trouble.note(
                this.database
                    .read(&read::Info)
                    .await
                    .err()
                    .map(|error| error.to_string()),
            );
        }
    });
    let (this, stopping) = (shared.clone(), tasks.stopping());
    tasks.spawn("store-trim", async move {
        loop {
            tokio::select! {
                biased;
                () = stopping.cancelled() => break,
                () = this.trim.notified() => {}
            }
            if let Err(error) = this.trim().await {
                warn!(%error, "old metadata history could not be dropped; trying again later");
            }
        }
        // Waits for connections that are in use, but not for a server that does not answer.
        if tokio::time::timeout(CLOSE_DEADLINE, this.database.pool.close())
            .await
            .is_err()
        {
            warn!("connections to the metadata database did not close in time");
        }
    });
}

impl Shared {
    /// Tells the others of a commit, and drops old history when enough was added.
    fn after_commit(&self, changes: usize) {
        self.committed.notify_one();
        let changes = u64::try_from(changes).unwrap_or(u64::MAX);
        let since = self.changes_since_trim.fetch_add(changes, Ordering::Relaxed) + changes;
        if since > u64::from(self.history_changes / 10) {
            self.changes_since_trim.store(0, Ordering::Relaxed);
            self.trim.notify_one();
        }
    }

    async fn trim(&self) -> Result<(), StoreError> {
        let keep = self.history_changes;
        let floor = self.database.write(&trim::RaiseFloor { keep }).await?;
        let deleted = trim::delete(&self.database.pool, floor).await;
        deleted.map_err(|trouble| trouble.error)
    }
}

#[tonic::async_trait]
impl Store for PostgresStore {
    async fn info(&self) -> Result<StoreInfo, StoreError> {
        self.database().read(&read::Info).await
    }

    async fn get(&self, key: &Key) -> Result<(Option<Stored>, u64), StoreError> {
        self.database().read(&read::Get { key }).await
    }

    async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        self.database().read(&read::List { query }).await
    }

    async fn commit(&self, commit: Commit) -> Result<u64, StoreError> {
        commit.check()?;
        let revision = self
            .database()
            .write(&write::CommitAll { commit: &commit })
            .await?;
        self.shared.after_commit(commit.writes.len());
        Ok(revision)
    }

    async fn changes(&self, after: u64) -> Result<History, StoreError> {
        self.database().read(&read::Changes { after }).await
    }

    async fn lease(&self, request: LeaseRequest) -> Result<Lease, StoreError> {
        request.check()?;
        self.database()
            .write(&write::ChangeLease { request: &request })
            .await
    }

    async fn compact(&self, revision: u64, lease_epoch: u64) -> Result<u64, StoreError> {
        let compact = write::Compact {
            revision,
            lease_epoch,
        };
        let floor = self.database().write(&compact).await?;
        // Nobody sees what lies below the floor: it may go later.
        self.shared.trim.notify_one();
        Ok(floor)
    }

    fn newest(&self) -> watch::Receiver<u64> {
        self.database().known.newest()
    }
}

#[cfg(test)]
mod tests;
