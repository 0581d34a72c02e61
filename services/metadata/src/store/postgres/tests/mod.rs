//! The contract on a real server, and what only a database with several instances, restarts and backups can get wrong.

mod contract;
mod faults;
mod identity;
mod instances;
mod refused;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ptah_service::{Ports, Tasks};
use ptah_test_postgres::Server;
use tokio::sync::OnceCell;

use super::*;
use crate::store::Write;

/// Longest wait for anything that should happen soon.
const SOON: Duration = Duration::from_secs(60);

/// The server of all tests that leave it alone; it goes with the program.
async fn server() -> &'static Server {
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    SERVER
        .get_or_init(|| async { Server::start_with(&[("max_connections", "300")]).await.unwrap() })
        .await
}

/// A database of a test's own on the common server: its name.
async fn database() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    server().await.create_database(&name).await.unwrap();
    name
}

/// One instance of the service, as far as the store is concerned.
struct Instance {
    store: Arc<PostgresStore>,
    tasks: Tasks,
}

impl Instance {
    async fn try_open(url: &str) -> Result<Self, PostgresError> {
        let tasks = Tasks::root();
        let store = PostgresStore::open(&options(url), &Ports::system(), &tasks).await?;
        Ok(Self {
            store: Arc::new(store),
            tasks,
        })
    }

    async fn open(url: &str) -> Self {
        Self::try_open(url).await.unwrap()
    }

    async fn info(&self) -> StoreInfo {
        self.store.info().await.unwrap()
    }

    async fn lead(&self, holder: &str) -> u64 {
        let lease = lease(&self.store, holder).await.unwrap();
        assert!(lease.acquired, "{lease:?}");
        lease.epoch
    }

    /// Writes a record under an epoch.
    async fn put(&self, text: &str, epoch: u64) -> Result<u64, StoreError> {
        self.store.commit(put(text, epoch)).await
    }

    async fn close(self) {
        self.tasks.stop(Duration::from_secs(20)).await.unwrap();
    }
}

fn options(url: &str) -> PostgresOptions {
    PostgresOptions {
        database_url: url.to_owned(),
        max_connections: 6,
        history_changes: 100_000,
    }
}

async fn lease(store: &PostgresStore, holder: &str) -> Result<Lease, StoreError> {
    let request = LeaseRequest {
        holder: holder.to_owned(),
        ttl: Duration::from_secs(60),
        release: false,
    };
    store.lease(request).await
}

fn key(text: &str) -> Key {
    Key {
        kind: 2,
        tenant: "default".to_owned(),
        key: text.to_owned(),
    }
}

fn put(text: &str, lease_epoch: u64) -> Commit {
    Commit {
        writes: vec![Write {
            key: key(text),
            value: Some(Bytes::from_static(b"v")),
        }],
        lease_epoch,
        ..Commit::default()
    }
}

/// Asks until it answers something.
async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let asked = tokio::time::timeout(SOON, async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    asked
        .await
        .unwrap_or_else(|_| panic!("no {what} within {SOON:?}"))
}
