//! The suite that every store passes.

use ptah_service::BoxFuture;
use ptah_types::Timestamp;
use sqlx::postgres::PgPoolOptions;

use super::super::super::conformance::{self, Subject};
use super::*;

/// The lease goes by the database's clock: here by a function that hides the real one.
const CLOCK: &str = "CREATE SCHEMA test_clock; \
    CREATE TABLE test_clock.clock AS SELECT now() AS now; \
    CREATE FUNCTION test_clock.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE \
    AS 'SELECT now FROM test_clock.clock';";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_store_keeps_the_contract() {
    conformance::run(|ports, history_changes| async move {
        let name = database().await;
        let server = server().await;
        server.query(&name, CLOCK).await.unwrap();
        let path = format!("ALTER DATABASE {name} SET search_path = public, test_clock, pg_catalog");
        server.query(&name, &path).await.unwrap();
        let tasks = Tasks::root();
        let options = PostgresOptions {
            history_changes,
            ..options(&server.url(&name))
        };
        let store = PostgresStore::open(&options, &ports, &tasks).await.unwrap();
        let clock = PgPoolOptions::new()
            .max_connections(1)
            .connect_lazy(&server.url(&name))
            .unwrap();
        Subject::with(Arc::new(store), tasks).timed_by(move |now| set_clock(clock.clone(), now))
    })
    .await;
}

fn set_clock(pool: sqlx::PgPool, now: Timestamp) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let now_ms = i64::try_from(now.as_millis()).unwrap();
        sqlx::query("UPDATE test_clock.clock SET now = to_timestamp($1::numeric / 1000)")
            .bind(now_ms)
            .execute(&pool)
            .await
            .unwrap();
    })
}

#[tokio::test]
async fn a_commit_of_the_largest_size_is_written_in_time_and_read_in_pieces() {
    let instance = Instance::open(&server().await.url(&database().await)).await;
    let epoch = instance.lead("test").await;
    let write = |number: usize| Write {
        key: key(&format!("{number:05}")),
        value: Some(Bytes::from(vec![7; 200])),
    };
    let commit = Commit {
        writes: (0..super::super::super::MAX_WRITES).map(write).collect(),
        lease_epoch: epoch,
        ..Commit::default()
    };
    for _ in 0..2 {
        instance.store.commit(commit.clone()).await.unwrap();
    }
    let first = instance.store.changes(0).await.unwrap();
    assert_eq!(first.complete_to, 1, "one revision is more than a piece");
    assert_eq!(first.transactions[0].changes.len(), commit.writes.len());
    let delete = |write: &Write| Write {
        key: write.key.clone(),
        value: None,
    };
    let deletions = Commit {
        writes: commit.writes.iter().map(delete).collect(),
        ..commit
    };
    assert_eq!(instance.store.commit(deletions).await.unwrap(), 3);
    instance.close().await;
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_no_half_commit_and_no_connection_in_the_middle_of_something() {
    let instance = Instance::open(&server().await.url(&database().await)).await;
    let epoch = instance.lead("test").await;
    let write = |number: u32, part: u32| Write {
        key: key(&format!("{number}-{part}")),
        value: Some(Bytes::from_static(b"v")),
    };
    for number in 0..200 {
        let commit = Commit {
            writes: (0..20).map(|part| write(number, part)).collect(),
            lease_epoch: epoch,
            ..Commit::default()
        };
        // Each one goes away a little later than the one before.
        let limit = Duration::from_micros(u64::from(number) * 20);
        let _ = tokio::time::timeout(limit, instance.store.commit(commit)).await;
    }
    let newest = instance.put("last", epoch).await.unwrap();
    let history = instance.store.changes(0).await.unwrap();
    assert_eq!(history.complete_to, newest);
    for transaction in &history.transactions[..history.transactions.len() - 1] {
        assert_eq!(transaction.changes.len(), 20, "each commit whole");
    }
    instance.close().await;
}
