//! The writer when the database fails: a disk that is full and has room again, commits that fail at their end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ptah_service::Tasks;

use super::super::{Commit, Key, Lease, LeaseRequest, Write};
use super::*;

struct Place {
    folder: tempfile::TempDir,
}

struct Open {
    store: Arc<SqliteStore>,
    writer: SqlitePool,
    tasks: Tasks,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    async fn open(&self) -> Open {
        let options = SqliteOptions {
            database_url: format!(
                "sqlite://{}?mode=rwc",
                self.folder.path().join("metadata.db").display()
            ),
            history_changes: 10_000,
        };
        let tasks = Tasks::root();
        let opened = open::open(&options, &Ports::system()).await.unwrap();
        let writer = opened.writer.clone();
        let store = Arc::new(SqliteStore::start(opened, &options, &Ports::system(), &tasks));
        Open { store, writer, tasks }
    }
}

impl Open {
    /// The database may have so many pages from now on, also on connections that are made later: the database answers
    /// more than that with `SQLITE_FULL`, like a full disk.
    async fn limit_pages(&self, pages: &'static str) {
        let options = (*self.writer.connect_options()).clone();
        self.writer
            .set_connect_options(options.pragma("max_page_count", pages));
        let connection = self.writer.acquire().await.unwrap();
        connection.close().await.unwrap();
    }

    async fn lease(&self) -> Result<Lease, StoreError> {
        let request = LeaseRequest {
            holder: "test".to_owned(),
            ttl: Duration::from_secs(60),
            release: false,
        };
        self.store.lease(request).await
    }

    async fn commit(&self, text: &str, bytes: usize) -> Result<u64, StoreError> {
        let write = Write {
            key: key(text),
            value: Some(Bytes::from(vec![7; bytes])),
        };
        let commit = Commit {
            writes: vec![write],
            lease_epoch: self.lease().await?.epoch,
            ..Commit::default()
        };
        self.store.commit(commit).await
    }

    async fn close(self) {
        self.tasks.stop(Duration::from_secs(10)).await.unwrap();
    }
}

fn key(text: &str) -> Key {
    Key {
        kind: 2,
        tenant: "default".to_owned(),
        key: text.to_owned(),
    }
}

#[tokio::test]
async fn writes_work_again_as_soon_as_a_full_disk_has_room() {
    let place = Place::new();
    let open = place.open().await;
    let before = open.commit("before", 10).await.unwrap();
    open.limit_pages("1").await;
    for attempt in 0..3 {
        let refused = open.commit("large", 60_000).await.unwrap_err();
        assert!(refused.to_string().contains("full"), "{attempt}: {refused}");
        open.lease()
            .await
            .expect("the lease is renewed in place: a full disk does not end it");
    }
    open.limit_pages("1000000").await;
    assert_eq!(open.commit("large", 60_000).await.unwrap(), before + 1);
    let (found, _) = open.store.get(&key("large")).await.unwrap();
    assert_eq!(found.unwrap().value.len(), 60_000);
    open.close().await;
}
