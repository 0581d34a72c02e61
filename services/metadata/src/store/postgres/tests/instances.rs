//! Several instances on one database: order, hints, fencing.

use std::collections::BTreeSet;

use super::*;
use crate::metrics::Metrics;
use crate::watch::{Pace, WatchEvent, WatchFrom, Watches};

/// Writers per instance, and commits per writer.
const WRITERS: usize = 4;
const COMMITS: usize = 250;

async fn write_many(instance: &Instance, name: &str, epoch: u64) -> Vec<u64> {
    let writer = |number: usize| async move {
        let mut revisions = Vec::new();
        for _ in 0..COMMITS {
            revisions.push(instance.put(&format!("{name}-{number}"), epoch).await.unwrap());
        }
        revisions
    };
    futures_util::future::join_all((0..WRITERS).map(writer))
        .await
        .concat()
}

/// Watches an instance from the start until a revision, and tells every revision it was shown.
async fn watch_all(instance: &Instance, last: u64) -> Vec<u64> {
    let tasks = Tasks::root();
    let metrics = Metrics::new(&ptah_service::Metrics::new());
    let watches = Watches::new(instance.store.clone(), tasks.clone(), 4, Pace::default(), metrics);
    let from = WatchFrom {
        after: 0,
        incarnation: instance.info().await.incarnation,
        kinds: BTreeSet::new(),
    };
    let mut stream = watches.open(from).await.unwrap();
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        let event = tokio::time::timeout(SOON, futures_util::StreamExt::next(&mut stream)).await;
        match event.unwrap().unwrap().unwrap() {
            WatchEvent::Changes(transaction) => seen.push(transaction.revision),
            WatchEvent::Progress(to) => {
                assert_eq!(
                    to,
                    seen.last().copied().unwrap_or(0),
                    "progress past what was shown"
                );
            }
        }
    }
    drop(stream);
    tasks.stop(Duration::from_secs(10)).await.unwrap();
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn watchers_of_every_instance_see_every_revision_once_under_concurrent_writers() {
    let url = server().await.url(&database().await);
    let (one, two) = tokio::join!(Instance::open(&url), Instance::open(&url));
    assert_eq!(one.info().await.cluster, two.info().await.cluster, "made once");
    let epoch = one.lead("test").await;
    let total = (2 * WRITERS * COMMITS) as u64;
    let (a, b, seen_by_one, seen_by_two, again) = tokio::join!(
        write_many(&one, "one", epoch),
        write_many(&two, "two", epoch),
        watch_all(&one, total),
        watch_all(&two, total),
        watch_all(&two, total),
    );
    let mut given = [a, b].concat();
    given.sort_unstable();
    let all: Vec<u64> = (1..=total).collect();
    assert_eq!(given, all, "each commit its own revision");
    assert_eq!(seen_by_one, all);
    assert_eq!(seen_by_two, all);
    assert_eq!(again, all);
    one.close().await;
    two.close().await;
}

#[tokio::test]
async fn an_instance_hears_of_the_others_commits_also_when_its_hints_are_cut() {
    let name = database().await;
    let url = server().await.url(&name);
    let (writer, listener) = (Instance::open(&url).await, Instance::open(&url).await);
    let epoch = writer.lead("test").await;
    let mut newest = listener.store.newest();
    let listeners =
        "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'";
    until("two listeners", async || {
        (server().await.query(&name, listeners).await.unwrap() == "2").then_some(())
    })
    .await;
    for round in 0..10 {
        let revision = writer.put(&format!("{round}"), epoch).await.unwrap();
        let told = newest.wait_for(|newest| *newest >= revision);
        tokio::time::timeout(SOON, told).await.unwrap().unwrap();
        let cut = "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity \
                   WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE 'LISTEN%'";
        server().await.query(&name, cut).await.unwrap();
    }
    until("two listeners again", async || {
        (server().await.query(&name, listeners).await.unwrap() == "2").then_some(())
    })
    .await;
    writer.close().await;
    listener.close().await;
}

#[tokio::test]
async fn a_holder_that_slept_writes_nothing_after_another_instance_took_over() {
    let name = database().await;
    let url = server().await.url(&name);
    let (one, two) = (Instance::open(&url).await, Instance::open(&url).await);
    let old = one.lead("one").await;
    one.put("before", old).await.unwrap();
    assert!(!lease(&two.store, "two").await.unwrap().acquired);
    // The holder sleeps until its lease is over.
    server()
        .await
        .query(&name, "UPDATE lease SET expires_at_ms = 1")
        .await
        .unwrap();
    let new = two.lead("two").await;
    assert!(new > old);
    for store in [&one, &two] {
        let refused = store.put("late", old).await.unwrap_err();
        assert!(matches!(refused, StoreError::StaleEpoch { .. }), "{refused}");
        let refused = store.store.compact(1, old).await.unwrap_err();
        assert!(matches!(refused, StoreError::StaleEpoch { .. }), "{refused}");
    }
    assert_eq!(one.store.get(&key("late")).await.unwrap(), (None, 1));
    assert_eq!(one.put("after", new).await.unwrap(), 2);
    one.close().await;
    two.close().await;
}

#[tokio::test]
async fn the_lease_cannot_change_hands_between_its_check_and_the_commit() {
    let name = database().await;
    let url = server().await.url(&name);
    let (one, two) = (Instance::open(&url).await, Instance::open(&url).await);
    let old = one.lead("one").await;
    // Somebody is in the middle of a write: everybody else waits, and looks at the lease only then.
    let mut outsider = sqlx::PgPool::connect(&url).await.unwrap().begin().await.unwrap();
    sqlx::query("SELECT id FROM store WHERE id = 1 FOR UPDATE")
        .execute(&mut *outsider)
        .await
        .unwrap();
    let write = one.put("late", old);
    let change = async {
        let waits = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        until("a writer that waits", async || {
            (server().await.query(&name, waits).await.unwrap() == "1").then_some(())
        })
        .await;
        sqlx::query("UPDATE lease SET holder = 'two', epoch = epoch + 1")
            .execute(&mut *outsider)
            .await
            .unwrap();
        outsider.commit().await.unwrap();
    };
    let (refused, ()) = tokio::join!(write, change);
    let refused = refused.unwrap_err();
    assert!(matches!(refused, StoreError::StaleEpoch { .. }), "{refused}");
    assert_eq!(two.info().await.revision, 0);
    one.close().await;
    two.close().await;
}

#[tokio::test]
async fn a_stopped_writer_that_holds_the_lock_is_thrown_out_and_the_others_go_on() {
    let name = database().await;
    let url = server().await.url(&name);
    let (stopped, other) = (Instance::open(&url).await, Instance::open(&url).await);
    let epoch = other.lead("test").await;
    let mut session = super::super::session::Session::begin_write(&stopped.store.database().pool)
        .await
        .unwrap();
    super::super::identity::lock(session.connection()).await.unwrap();
    // Not an error that lasts: the server ends the transaction that says nothing more.
    let mut refused = 0;
    let revision = until("a commit", async || match other.put("a", epoch).await {
        Ok(revision) => Some(revision),
        Err(error) => {
            assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
            refused += 1;
            None
        }
    })
    .await;
    assert!(refused > 0, "the lock was held");
    assert_eq!(revision, 1);
    let late = session.commit("commit").await.unwrap_err();
    assert!(
        matches!(late.error, StoreError::OutcomeUnknown { .. }),
        "{late:?}"
    );
    stopped.close().await;
    other.close().await;
}
