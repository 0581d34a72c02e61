//! A server that dies and comes back while instances write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;

use tokio::time::Instant;

use super::*;
use crate::store::Precondition;

/// What a writer knows of its commits: value by revision, and values nobody knows about.
#[derive(Default)]
struct Journal {
    answered: BTreeMap<u64, String>,
    unknown: BTreeSet<String>,
    refused: BTreeSet<String>,
}

/// What the writers and the one who kills know of each other.
#[derive(Default)]
struct Progress {
    answered: AtomicU64,
    kills: AtomicU64,
}

/// Writes records of its own, each once and never again, until enough were answered after the last kill.
async fn write(instance: &Instance, name: &str, progress: &Progress, last: u64) -> Journal {
    let mut journal = Journal::default();
    let (mut number, mut after_last, mut epoch) = (0, 0, 0);
    while after_last < 20 {
        let text = format!("{name}-{number}");
        number += 1;
        let mut commit = put(&text, epoch);
        commit.preconditions = vec![Precondition {
            key: key(&text),
            revision: 0,
        }];
        match instance.store.commit(commit).await {
            Ok(revision) => {
                assert_eq!(
                    journal.answered.insert(revision, text),
                    None,
                    "a revision given twice"
                );
                progress.answered.fetch_add(1, Ordering::Relaxed);
                after_last += u64::from(progress.kills.load(Ordering::Relaxed) == last);
            }
            Err(StoreError::OutcomeUnknown { .. }) => drop(journal.unknown.insert(text)),
            Err(StoreError::StaleEpoch { .. }) => {
                journal.refused.insert(text);
                if let Ok(lease) = lease(&instance.store, "shared").await {
                    epoch = lease.epoch;
                }
            }
            Err(StoreError::Unavailable { .. }) => drop(journal.refused.insert(text)),
            Err(error) => panic!("{text}: {error}"),
        }
    }
    journal
}

async fn check(instance: &Instance, journal: &Journal) {
    for (revision, text) in &journal.answered {
        let found = instance.store.get(&key(text)).await.unwrap().0;
        let found = found.unwrap_or_else(|| panic!("{text} was answered and is lost"));
        assert_eq!(found.revision, *revision, "{text} happened twice");
    }
    for text in &journal.refused {
        let found = instance.store.get(&key(text)).await.unwrap().0;
        assert_eq!(found, None, "{text} was refused and happened");
    }
    for text in &journal.unknown {
        // Either way is right; what it must not be is another commit's revision.
        if let Some(found) = instance.store.get(&key(text)).await.unwrap().0 {
            assert!(
                !journal.answered.contains_key(&found.revision),
                "{text} shares a revision"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_is_killed_during_commits_loses_none_and_doubles_none() {
    const KILLS: u64 = 4;
    let mut server = Server::start().await.unwrap();
    let url = server.create_database("ptah").await.unwrap();
    let (one, two) = (Instance::open(&url).await, Instance::open(&url).await);
    let first = one.info().await.incarnation;
    let progress = Progress::default();
    let killer = async {
        for number in 1..=KILLS {
            // In the middle of a stream of commits.
            let enough = progress.answered.load(Ordering::Relaxed) + 50;
            until("commits", async || {
                (progress.answered.load(Ordering::Relaxed) >= enough).then_some(())
            })
            .await;
            server.kill().await.unwrap();
            server.start_again().await.unwrap();
            progress.kills.store(number, Ordering::Relaxed);
        }
    };
    let (a, b, c, ()) = tokio::join!(
        write(&one, "a", &progress, KILLS),
        write(&one, "b", &progress, KILLS),
        write(&two, "c", &progress, KILLS),
        killer
    );
    let mut all = Journal::default();
    for journal in [a, b, c] {
        for (revision, text) in journal.answered {
            assert_eq!(
                all.answered.insert(revision, text),
                None,
                "a revision given twice"
            );
        }
        all.unknown.extend(journal.unknown);
        all.refused.extend(journal.refused);
    }
    assert_ne!(one.info().await.incarnation, first, "the kills were noticed");
    check(&one, &all).await;
    check(&two, &all).await;
    one.close().await;
    two.close().await;
}

#[tokio::test]
async fn a_server_that_stands_still_is_an_error_within_the_deadlines_and_well_afterwards() {
    let server = Server::start().await.unwrap();
    let url = server.create_database("ptah").await.unwrap();
    let instance = Instance::open(&url).await;
    let epoch = instance.lead("test").await;
    server.pause().await.unwrap();
    let limit = Duration::from_millis(4_900);
    let (read, written) = tokio::join!(
        tokio::time::timeout(limit, instance.store.info()),
        tokio::time::timeout(limit, instance.put("a", epoch)),
    );
    let read = read.expect("a read is bounded").unwrap_err();
    assert!(matches!(read, StoreError::Unavailable { .. }), "{read}");
    let written = written.expect("a write is bounded").unwrap_err();
    assert!(
        matches!(
            written,
            StoreError::Unavailable { .. } | StoreError::OutcomeUnknown { .. }
        ),
        "{written}"
    );
    server.resume().await.unwrap();
    until("a commit", async || instance.put("b", epoch).await.ok()).await;
    // Whoever stops meanwhile is not held up.
    server.pause().await.unwrap();
    let began = Instant::now();
    instance.close().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    server.resume().await.unwrap();
}

#[tokio::test]
async fn a_commit_whose_connection_dies_at_the_end_is_told_as_unknown() {
    let name = database().await;
    let server = server().await;
    let instance = Instance::open(&server.url(&name)).await;
    let epoch = instance.lead("test").await;
    // A check that waits for the end of the transaction, and there kills the connection that runs it.
    let cut = "CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS \
               'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(1); RETURN NULL; END'; \
               CREATE CONSTRAINT TRIGGER cut AFTER INSERT ON record DEFERRABLE INITIALLY DEFERRED \
               FOR EACH ROW WHEN (NEW.record_key = 'cut') EXECUTE FUNCTION cut();";
    server.query(&name, cut).await.unwrap();
    let refused = instance.put("cut", epoch).await.unwrap_err();
    assert!(matches!(refused, StoreError::OutcomeUnknown { .. }), "{refused}");
    assert_eq!(instance.info().await.revision, 0, "and it was not tried again");
    assert_eq!(instance.put("b", epoch).await.unwrap(), 1);
    // The same at the start is an error that is tried again, and works.
    let end = "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity \
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    for round in 0..5 {
        server.query(&name, end).await.unwrap();
        assert_eq!(instance.put("c", epoch).await.unwrap(), 2 + round);
    }
    instance.close().await;
}

#[tokio::test]
async fn a_stopped_store_says_so() {
    let instance = Instance::open(&server().await.url(&database().await)).await;
    let epoch = instance.lead("test").await;
    instance.tasks.stop(Duration::from_secs(20)).await.unwrap();
    let refused = instance.put("a", epoch).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable { .. }), "{refused}");
}
