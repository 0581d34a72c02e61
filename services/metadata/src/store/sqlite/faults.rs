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

    /// Every commit of the record `cut` fails at its very end, when the mark is written already.
    async fn cut_commits(&self) {
        for statement in [
            "CREATE TABLE parent (id INTEGER PRIMARY KEY)",
            "CREATE TABLE child (id INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)",
            "CREATE TRIGGER cut AFTER INSERT ON record WHEN NEW.record_key = 'cut' \
             BEGIN INSERT INTO child VALUES (1); END",
        ] {
            sqlx::query(statement).execute(&self.writer).await.unwrap();
        }
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

#[tokio::test]
async fn a_commit_that_did_not_happen_is_not_taken_for_an_older_copy() {
    let place = Place::new();
    let open = place.open().await;
    open.cut_commits().await;
    let kept = open.commit("kept", 10).await.unwrap();
    let failed = open.commit("cut", 10).await.unwrap_err();
    assert!(matches!(failed, StoreError::OutcomeUnknown { .. }), "{failed}");
    let before = open.store.info().await.unwrap();
    assert_eq!(before.revision, kept);
    open.close().await;

    let open = place.open().await;
    assert_eq!(open.store.info().await.unwrap(), before);
    assert_eq!(open.commit("next", 10).await.unwrap(), kept + 1);
    open.close().await;
}

#[tokio::test]
async fn a_lease_change_after_a_commit_that_did_not_happen_leaves_the_mark_where_the_database_is() {
    let place = Place::new();
    let open = place.open().await;
    open.cut_commits().await;
    open.commit("kept", 10).await.unwrap();
    open.commit("cut", 10).await.unwrap_err();
    let release = LeaseRequest {
        holder: "test".to_owned(),
        ttl: Duration::ZERO,
        release: true,
    };
    open.store.lease(release).await.unwrap();
    let before = open.store.info().await.unwrap();
    open.close().await;
    let open = place.open().await;
    assert_eq!(open.store.info().await.unwrap(), before);
    open.close().await;
}

#[tokio::test]
async fn a_copy_from_just_before_the_last_commit_is_an_older_copy() {
    let place = Place::new();
    let open = place.open().await;
    open.commit("kept", 10).await.unwrap();
    open.close().await;
    let database = place.folder.path().join("metadata.db");
    let backup = place.folder.path().join("backup");
    std::fs::copy(&database, &backup).unwrap();
    let open = place.open().await;
    let told = open.commit("told", 10).await.unwrap();
    let before = open.store.info().await.unwrap();
    open.close().await;
    std::fs::copy(&backup, &database).unwrap();

    let open = place.open().await;
    let after = open.store.info().await.unwrap();
    assert_ne!(after.incarnation, before.incarnation);
    assert!(after.revision > told, "{after:?}");
    open.close().await;
}
