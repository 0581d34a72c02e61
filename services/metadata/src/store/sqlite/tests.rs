//! The contract, and what only a database on disk can get wrong: restarts, old copies, foreign and newer files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ptah_service::Tasks;
use sqlx::Connection;

use super::super::conformance::{self, Subject};
use super::super::{Commit, Key, LeaseRequest, Query, Write};
use super::*;

struct Place {
    folder: tempfile::TempDir,
}

struct Open {
    store: SqliteStore,
    tasks: Tasks,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("metadata.db")
    }

    async fn try_open(&self) -> Result<Open, OpenError> {
        let tasks = Tasks::root();
        let store = SqliteStore::open(&options(&self.path(), 10_000), &Ports::system(), &tasks).await?;
        Ok(Open { store, tasks })
    }

    async fn open(&self) -> Open {
        self.try_open().await.unwrap()
    }

    fn copy_database(&self, to: &str) {
        std::fs::copy(self.path(), self.folder.path().join(to)).unwrap();
    }

    fn put_back(&self, from: &str) {
        std::fs::copy(self.folder.path().join(from), self.path()).unwrap();
    }

    fn mark(&self) -> PathBuf {
        mark::path_of(&self.path())
    }
}

impl Open {
    async fn commit(&self, text: &str) -> u64 {
        let lease = self.lease("test").await;
        let write = Write {
            key: key(text),
            value: Some(Bytes::from_static(b"v")),
        };
        let commit = Commit {
            writes: vec![write],
            lease_epoch: lease.epoch,
            ..Commit::default()
        };
        self.store.commit(commit).await.unwrap()
    }

    async fn lease(&self, holder: &str) -> Lease {
        let request = LeaseRequest {
            holder: holder.to_owned(),
            ttl: Duration::from_secs(5),
            release: false,
        };
        self.store.lease(request).await.unwrap()
    }

    async fn info(&self) -> StoreInfo {
        self.store.info().await.unwrap()
    }

    async fn close(self) {
        self.tasks.stop(Duration::from_secs(10)).await.unwrap();
    }
}

fn options(path: &Path, history_changes: u32) -> SqliteOptions {
    SqliteOptions {
        database_url: format!("sqlite://{}?mode=rwc", path.display()),
        history_changes,
    }
}

fn key(text: &str) -> Key {
    Key {
        kind: 2,
        tenant: "default".to_owned(),
        key: text.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_store_keeps_the_contract() {
    conformance::run(|ports, history_changes| async move {
        let folder = tempfile::tempdir().unwrap();
        let tasks = Tasks::root();
        let options = options(&folder.path().join("metadata.db"), history_changes);
        let store = SqliteStore::open(&options, &ports, &tasks).await.unwrap();
        Subject::with(Arc::new(store), (folder, tasks))
    })
    .await;
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let place = Place::new();
    let open = place.open().await;
    open.commit("a").await;
    let revision = open.commit("b").await;
    let (info, lease) = (open.info().await, open.lease("test").await);
    open.close().await;

    let open = place.open().await;
    assert_eq!(open.info().await, info);
    assert_eq!(open.store.get(&key("a")).await.unwrap().0.unwrap().revision, 1);
    assert_eq!(open.store.changes(0).await.unwrap().transactions.len(), 2);
    assert_eq!(open.lease("test").await.epoch, lease.epoch);
    assert_eq!(open.commit("c").await, revision + 1);
}

#[tokio::test]
async fn an_older_copy_begins_a_new_incarnation_and_uses_no_number_again() {
    let place = Place::new();
    let open = place.open().await;
    open.commit("kept").await;
    open.close().await;
    place.copy_database("backup");
    let open = place.open().await;
    for text in ["lost-1", "lost-2"] {
        open.commit(text).await;
    }
    let (before, lease) = (open.info().await, open.lease("test").await);
    open.close().await;
    place.put_back("backup");

    let open = place.open().await;
    let after = open.info().await;
    assert_eq!(after.cluster, before.cluster);
    assert_ne!(after.incarnation, before.incarnation);
    assert!(after.revision > before.revision, "{after:?}");
    assert_eq!(after.compaction_floor, after.revision);
    assert!(open.lease("test").await.epoch > lease.epoch);
    assert_eq!(open.store.get(&key("kept")).await.unwrap().0.unwrap().revision, 1);
    assert_eq!(open.store.get(&key("lost-1")).await.unwrap().0, None);
    open.close().await;
    let again = place.open().await.info().await;
    assert_eq!(again, after, "once, not at every start");
}

#[tokio::test]
async fn an_older_copy_is_noticed_when_only_the_lease_moved_on() {
    let place = Place::new();
    let open = place.open().await;
    open.commit("kept").await;
    open.close().await;
    place.copy_database("backup");
    let open = place.open().await;
    let request = LeaseRequest {
        holder: "test".to_owned(),
        ttl: Duration::ZERO,
        release: true,
    };
    let released = open.store.lease(request).await.unwrap();
    let before = open.info().await;
    open.close().await;
    place.put_back("backup");
    let open = place.open().await;
    assert_ne!(open.info().await.incarnation, before.incarnation);
    assert!(open.lease("other").await.epoch > released.epoch);
}

#[tokio::test]
async fn a_database_without_its_mark_is_taken_for_an_older_copy() {
    let place = Place::new();
    let open = place.open().await;
    open.commit("a").await;
    let before = open.info().await;
    open.close().await;
    for damage in ["missing", "damaged"] {
        match damage {
            "missing" => std::fs::remove_file(place.mark()).unwrap(),
            _ => std::fs::write(place.mark(), "nonsense").unwrap(),
        }
        let open = place.open().await;
        assert_ne!(open.info().await.incarnation, before.incarnation, "{damage}");
        assert!(
            open.info().await.revision > before.revision + 1_000_000,
            "{damage}"
        );
        open.close().await;
    }
}

#[tokio::test]
async fn a_copy_that_is_put_back_twice_without_its_mark_gives_no_number_twice() {
    let place = Place::new();
    let open = place.open().await;
    open.commit("a").await;
    open.close().await;
    place.copy_database("backup");
    let mut used = 0;
    for round in 0..3 {
        place.put_back("backup");
        std::fs::remove_file(place.mark()).unwrap();
        let open = place.open().await;
        let (revision, epoch) = (open.commit("b").await, open.lease("test").await.epoch);
        assert!(
            revision > used && epoch > used,
            "{round}: {revision}, {epoch}, {used}"
        );
        used = revision.max(epoch);
        open.close().await;
    }
}

#[tokio::test]
async fn a_lost_database_is_not_replaced_by_a_new_cluster() {
    let place = Place::new();
    let open = place.open().await;
    open.commit("a").await;
    open.close().await;
    std::fs::remove_file(place.path()).unwrap();
    let refused = place.try_open().await.err().unwrap();
    assert!(
        matches!(refused, OpenError::Lost { revision: 1, .. }),
        "{refused}"
    );
    std::fs::remove_file(place.mark()).unwrap();
    assert_eq!(place.open().await.info().await.revision, 0);
}

#[tokio::test]
async fn a_database_of_another_cluster_is_refused() {
    let (place, other) = (Place::new(), Place::new());
    for place in [&place, &other] {
        let open = place.open().await;
        open.commit("a").await;
        open.close().await;
    }
    std::fs::copy(other.path(), place.path()).unwrap();
    let refused = place.try_open().await.err().unwrap();
    assert!(matches!(refused, OpenError::OtherCluster { .. }), "{refused}");
}

#[tokio::test]
async fn a_second_process_is_refused() {
    let place = Place::new();
    let open = place.open().await;
    let refused = place.try_open().await.err().unwrap();
    assert!(matches!(refused, OpenError::InUse(_)), "{refused}");
    drop(open.store);
    open.tasks.stop(Duration::from_secs(10)).await.unwrap();
    place.open().await;
}

#[tokio::test]
async fn a_newer_schema_is_refused_untouched() {
    let place = Place::new();
    let open = place.open().await;
    open.commit("a").await;
    open.close().await;
    let file = sqlx::sqlite::SqliteConnectOptions::new().filename(place.path());
    let mut connection = sqlx::SqliteConnection::connect_with(&file).await.unwrap();
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9999, 'future', TRUE, x'00', 0)";
    sqlx::query(newer).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let before = std::fs::read(place.path()).unwrap();
    let refused = place.try_open().await.err().unwrap();
    assert!(
        matches!(
            refused,
            OpenError::Newer {
                found: 9999,
                known: 1,
                ..
            }
        ),
        "{refused}"
    );
    assert!(
        refused.to_string().contains("start the newer version"),
        "{refused}"
    );
    assert_eq!(std::fs::read(place.path()).unwrap(), before);
}

#[tokio::test]
async fn a_database_of_something_else_is_refused_untouched() {
    let place = Place::new();
    let file = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(place.path())
        .create_if_missing(true);
    let mut connection = sqlx::SqliteConnection::connect_with(&file).await.unwrap();
    sqlx::query("CREATE TABLE things (id BIGINT)")
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    let before = std::fs::read(place.path()).unwrap();
    let refused = place.try_open().await.err().unwrap();
    assert!(matches!(refused, OpenError::Foreign(_)), "{refused}");
    assert_eq!(std::fs::read(place.path()).unwrap(), before);
}

#[tokio::test]
async fn files_that_are_no_database_and_other_urls_are_refused() {
    let place = Place::new();
    std::fs::write(
        place.path(),
        "not a database, but long enough to look like a file with content",
    )
    .unwrap();
    assert!(place.try_open().await.is_err());
    for url in [
        "postgres://localhost/ptah",
        "sqlite::memory:",
        "",
        "sqlite://x?mode=memory",
        "sqlite://x?mode=what",
    ] {
        let options = SqliteOptions {
            database_url: url.to_owned(),
            history_changes: 10,
        };
        let refused = SqliteStore::open(&options, &Ports::system(), &Tasks::root())
            .await
            .err()
            .unwrap();
        assert!(matches!(refused, OpenError::Url { .. }), "{url}: {refused}");
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_no_half_commit() {
    let place = Place::new();
    let open = place.open().await;
    let lease_epoch = open.lease("test").await.epoch;
    let writes = |n: u32| {
        let write = |m| Write {
            key: key(&format!("{n}-{m}")),
            value: Some(Bytes::from_static(b"v")),
        };
        (0..20).map(write).collect()
    };
    for number in 0..30 {
        let commit = Commit {
            writes: writes(number),
            lease_epoch,
            ..Commit::default()
        };
        let mut call = Box::pin(open.store.commit(commit));
        // Polled once, so that it is queued, then dropped.
        let _ = futures_util::poll!(call.as_mut());
    }
    open.commit("last").await;
    let newest = open.info().await.revision;
    let query = Query {
        kind: 2,
        limit: 10_000,
        ..Query::default()
    };
    let found = open.store.list(&query).await.unwrap().records.len();
    assert_eq!(found as u64, (newest - 1) * 20 + 1, "each commit whole");
    open.close().await;
}

#[tokio::test]
async fn a_stopped_store_says_so() {
    let place = Place::new();
    let open = place.open().await;
    let lease_epoch = open.lease("test").await.epoch;
    open.tasks.stop(Duration::from_secs(10)).await.unwrap();
    let commit = Commit {
        writes: vec![Write {
            key: key("a"),
            value: Some(Bytes::new()),
        }],
        lease_epoch,
        ..Commit::default()
    };
    let refused = open.store.commit(commit).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable { .. }), "{refused}");
}

#[tokio::test]
async fn every_commit_is_on_disk_before_it_is_answered_and_readers_cannot_write() {
    let place = Place::new();
    let opened = open::open(&options(&place.path(), 10_000), &Ports::system()).await;
    let opened = opened.unwrap();
    for (pool, reads_only) in [(&opened.writer, 0), (&opened.readers, 1)] {
        // Every connection of the pool, also those that are made later.
        let mut held = Vec::new();
        for _ in 0..pool.options().get_max_connections() {
            held.push(pool.acquire().await.unwrap());
        }
        for connection in &mut held {
            let (journal,): (String,) = pragma("PRAGMA journal_mode", connection).await;
            assert_eq!(journal, "wal");
            let (synchronous,): (i64,) = pragma("PRAGMA synchronous", connection).await;
            assert_eq!(synchronous, 2, "FULL");
            let (query_only,): (i64,) = pragma("PRAGMA query_only", connection).await;
            assert_eq!(query_only, reads_only);
            let (busy_timeout_ms,): (i64,) = pragma("PRAGMA busy_timeout", connection).await;
            assert!(busy_timeout_ms > 0);
        }
    }
}

/// What a connection says to a pragma.
async fn pragma<T>(sql: &'static str, connection: &mut sqlx::SqliteConnection) -> T
where
    T: for<'row> sqlx::FromRow<'row, sqlx::sqlite::SqliteRow> + Send + Unpin,
{
    sqlx::query_as(sql).fetch_one(connection).await.unwrap()
}
