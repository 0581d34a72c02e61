//! The behaviour suite of [`Store`]: every implementation runs it.
//!
//! Each case gets a new, empty store and a clock that it moves itself. Cases panic when the contract is broken.
#![allow(clippy::unwrap_used, reason = "a suite of tests that other crates run")]

use std::any::Any;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ptah_service::{ManualClock, Ports, SeededRandom};
use ptah_types::Timestamp;

use super::{
    Commit, Key, LeaseRequest, MAX_CHANGES_BYTES, MAX_VALUE_BYTES, MAX_WRITES, Precondition, Query, Store,
    StoreError, Write,
};

/// A store under test, and what must live as long as it.
pub struct Subject {
    store: Arc<dyn Store>,
    _keep: Box<dyn Any + Send>,
}

impl Subject {
    /// A store that needs nothing else.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self::with(store, ())
    }

    /// A store that needs, for example, its directory.
    pub fn with(store: Arc<dyn Store>, keep: impl Any + Send) -> Self {
        Self {
            store,
            _keep: Box::new(keep),
        }
    }
}

/// Changes of history that the suite lets a store keep.
const HISTORY_CHANGES: u32 = 200;

/// Runs every case. `make` gets the ports and how many changes of history to keep.
pub async fn run<F, Fut>(make: F)
where
    F: Fn(Ports, u32) -> Fut,
    Fut: Future<Output = Subject>,
{
    let begin = async |history_changes: u32| {
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_000_000)));
        let ports = Ports {
            clock: clock.clone(),
            random: Arc::new(SeededRandom::new(1)),
            ..Ports::seeded(1)
        };
        let subject = make(ports, history_changes).await;
        Bench { subject, clock }
    };
    a_commit_is_readable_and_counts_revisions(&begin(10_000).await).await;
    a_failed_condition_changes_nothing(&begin(10_000).await).await;
    a_deleted_record_leaves_a_tombstone(&begin(10_000).await).await;
    deleting_nothing_is_refused(&begin(10_000).await).await;
    senseless_commits_are_refused(&begin(10_000).await).await;
    pages_are_in_order_and_complete(&begin(10_000).await).await;
    keys_of_any_characters_are_kept_verbatim(&begin(10_000).await).await;
    history_is_complete_and_in_order(&begin(10_000).await).await;
    large_history_comes_in_whole_transactions(&begin(10_000).await).await;
    old_history_goes_and_is_refused(&begin(HISTORY_CHANGES).await).await;
    compaction_drops_tombstones_up_to_the_floor_only(&begin(10_000).await).await;
    concurrent_writers_of_one_record_do_not_lose_updates(&begin(10_000).await).await;
    the_lease_fences_every_write(&begin(10_000).await).await;
    the_lease_ends_by_the_clock(&begin(10_000).await).await;
    a_clock_that_jumps_back_does_not_keep_a_lease_for_ever(&begin(10_000).await).await;
    readers_are_told_of_new_revisions(&begin(10_000).await).await;
}

struct Bench {
    subject: Subject,
    clock: Arc<ManualClock>,
}

impl Bench {
    fn store(&self) -> &dyn Store {
        self.subject.store.as_ref()
    }

    async fn acquire(&self, holder: &str) -> super::Lease {
        let request = LeaseRequest {
            holder: holder.to_owned(),
            ttl: Duration::from_secs(10),
            release: false,
        };
        self.store().lease(request).await.unwrap()
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<u64, StoreError> {
        self.commit_if(Vec::new(), writes).await
    }

    async fn commit_if(
        &self,
        preconditions: Vec<Precondition>,
        writes: Vec<Write>,
    ) -> Result<u64, StoreError> {
        let lease_epoch = self.acquire("suite").await.epoch;
        let commit = Commit {
            preconditions,
            writes,
            lease_epoch,
        };
        self.store().commit(commit).await
    }

    async fn value(&self, text: &str) -> Option<Bytes> {
        self.store()
            .get(&key(text))
            .await
            .unwrap()
            .0
            .map(|record| record.value)
    }
}

fn key(text: &str) -> Key {
    Key {
        kind: 2,
        tenant: "default".to_owned(),
        key: text.to_owned(),
    }
}

fn put(text: &str, value: &str) -> Write {
    Write {
        key: key(text),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
    }
}

fn delete(text: &str) -> Write {
    Write {
        key: key(text),
        value: None,
    }
}

fn at(text: &str, revision: u64) -> Precondition {
    Precondition {
        key: key(text),
        revision,
    }
}

fn all() -> Query {
    Query {
        kind: 2,
        limit: 1_000,
        ..Query::default()
    }
}

async fn a_commit_is_readable_and_counts_revisions(bench: &Bench) {
    let before = bench.store().info().await.unwrap();
    assert_eq!((before.revision, before.compaction_floor), (0, 0));
    assert_eq!(bench.commit(vec![put("a", "1"), put("b", "1")]).await.unwrap(), 1);
    assert_eq!(bench.commit(vec![put("a", "2")]).await.unwrap(), 2);
    let (record, revision) = bench.store().get(&key("a")).await.unwrap();
    let record = record.unwrap();
    assert_eq!((record.revision, record.created_revision, revision), (2, 1, 2));
    assert_eq!(&record.value[..], b"2");
    let after = bench.store().info().await.unwrap();
    assert_eq!(
        (after.cluster, after.incarnation, after.revision),
        (before.cluster, before.incarnation, 2)
    );
    assert_eq!(bench.store().get(&key("nothing")).await.unwrap(), (None, 2));
}

async fn a_failed_condition_changes_nothing(bench: &Bench) {
    bench.commit(vec![put("a", "1")]).await.unwrap();
    let conditions = vec![at("b", 0), at("a", 7)];
    let refused = bench
        .commit_if(conditions, vec![put("a", "2"), put("b", "2")])
        .await;
    assert!(
        matches!(
            refused,
            Err(StoreError::Changed {
                found: 1,
                expected: 7,
                ..
            })
        ),
        "{refused:?}"
    );
    assert_eq!(bench.value("a").await.as_deref(), Some(&b"1"[..]));
    assert_eq!(bench.value("b").await, None);
    let exists = bench.commit_if(vec![at("a", 0)], vec![put("a", "2")]).await;
    assert!(
        matches!(
            exists,
            Err(StoreError::Changed {
                found: 1,
                expected: 0,
                ..
            })
        ),
        "{exists:?}"
    );
    assert_eq!(
        bench.store().info().await.unwrap().revision,
        1,
        "a refused commit uses no revision"
    );
    assert_eq!(
        bench
            .commit_if(vec![at("a", 1), at("b", 0)], vec![put("a", "2")])
            .await
            .unwrap(),
        2
    );
}

async fn a_deleted_record_leaves_a_tombstone(bench: &Bench) {
    bench.commit(vec![put("a", "1"), put("b", "1")]).await.unwrap();
    bench
        .commit_if(vec![at("a", 1)], vec![delete("a")])
        .await
        .unwrap();
    assert_eq!(bench.value("a").await, None);
    assert_eq!(bench.store().list(&all()).await.unwrap().records.len(), 1);
    let tombstones = Query {
        tombstones: true,
        ..all()
    };
    let found = bench.store().list(&tombstones).await.unwrap().records;
    let [tombstone] = &found[..] else {
        panic!("one tombstone, not {found:?}")
    };
    assert_eq!(
        (tombstone.revision, tombstone.created_revision, tombstone.deleted),
        (2, 1, true)
    );
    assert_eq!(&tombstone.value[..], b"1", "a tombstone keeps the last value");
    bench
        .commit_if(vec![at("a", 0)], vec![put("a", "3")])
        .await
        .unwrap();
    let record = bench.store().get(&key("a")).await.unwrap().0.unwrap();
    assert_eq!((record.created_revision, record.deleted), (3, false), "made anew");
}

async fn deleting_nothing_is_refused(bench: &Bench) {
    bench.commit(vec![put("a", "1")]).await.unwrap();
    let refused = bench.commit(vec![put("b", "1"), delete("nothing")]).await;
    assert!(
        matches!(refused, Err(StoreError::NothingToDelete { .. })),
        "{refused:?}"
    );
    bench.commit(vec![delete("a")]).await.unwrap();
    let refused = bench.commit(vec![delete("a")]).await;
    assert!(
        matches!(refused, Err(StoreError::NothingToDelete { .. })),
        "{refused:?}"
    );
    assert_eq!(bench.value("b").await, None);
}

async fn senseless_commits_are_refused(bench: &Bench) {
    let refused = [
        vec![],
        vec![put("a", "1"), put("a", "2")],
        vec![put("", "1")],
        vec![put("a\nb", "1")],
        vec![put(&"k".repeat(2_000), "1")],
        vec![put("a", &"v".repeat(MAX_VALUE_BYTES + 1))],
        (0..=MAX_WRITES).map(|n| put(&n.to_string(), "1")).collect(),
        (0..60)
            .map(|n| put(&n.to_string(), &"v".repeat(MAX_VALUE_BYTES)))
            .collect(),
    ];
    for writes in refused {
        let outcome = bench.commit(writes).await;
        let expected = matches!(outcome, Err(StoreError::Invalid(_) | StoreError::TooLarge(_)));
        assert!(expected, "{outcome:?}");
    }
    assert_eq!(bench.store().info().await.unwrap().revision, 0);
}

async fn pages_are_in_order_and_complete(bench: &Bench) {
    let texts = ["01/a", "01/b", "02/a", "02/b", "02/c", "10/a"];
    bench
        .commit(texts.iter().rev().map(|text| put(text, "1")).collect())
        .await
        .unwrap();
    let other = Key {
        tenant: "other".to_owned(),
        ..key("02/a")
    };
    bench
        .commit(vec![Write {
            key: other,
            value: Some(Bytes::new()),
        }])
        .await
        .unwrap();
    bench
        .commit(vec![Write {
            key: Key {
                kind: 3,
                ..key("02/a")
            },
            value: Some(Bytes::new()),
        }])
        .await
        .unwrap();
    let mut found = Vec::new();
    let mut query = Query { limit: 4, ..all() };
    loop {
        let page = bench.store().list(&query).await.unwrap();
        assert!(page.records.len() <= 4);
        assert_eq!(page.revision, 3);
        query.after = page
            .records
            .last()
            .map(|record| (record.key.tenant.clone(), record.key.key.clone()));
        found.extend(
            page.records
                .into_iter()
                .map(|record| (record.key.tenant, record.key.key)),
        );
        if !page.more {
            break;
        }
    }
    let mut expected: Vec<_> = texts
        .iter()
        .map(|text| ("default".to_owned(), (*text).to_owned()))
        .collect();
    expected.push(("other".to_owned(), "02/a".to_owned()));
    assert_eq!(found, expected);
    let prefixed = Query {
        key_prefix: "02/".to_owned(),
        tenant: Some("default".to_owned()),
        ..all()
    };
    let found = bench.store().list(&prefixed).await.unwrap();
    let keys: Vec<_> = found
        .records
        .iter()
        .map(|record| record.key.key.as_str())
        .collect();
    assert_eq!((keys, found.more), (vec!["02/a", "02/b", "02/c"], false));
}

async fn keys_of_any_characters_are_kept_verbatim(bench: &Bench) {
    let texts = [
        "'; DROP TABLE record; --",
        "a%b_c",
        "A",
        "a",
        "ä",
        "\"q\"",
        "Z",
        "$1",
        "a\u{10FFFE}",
    ];
    bench
        .commit(texts.iter().map(|text| put(text, text)).collect())
        .await
        .unwrap();
    for text in texts {
        assert_eq!(bench.value(text).await.as_deref(), Some(text.as_bytes()));
    }
    let found = bench.store().list(&all()).await.unwrap().records;
    let found: Vec<_> = found.into_iter().map(|record| record.key.key).collect();
    let mut sorted = found.clone();
    sorted.sort();
    assert_eq!(found, sorted, "byte by byte");
    let prefixed = Query {
        key_prefix: "a".to_owned(),
        ..all()
    };
    assert_eq!(
        bench.store().list(&prefixed).await.unwrap().records.len(),
        3,
        "a%b_c, a and the last one"
    );
}

async fn history_is_complete_and_in_order(bench: &Bench) {
    bench.commit(vec![put("b", "1"), put("a", "1")]).await.unwrap();
    bench.commit(vec![put("a", "2")]).await.unwrap();
    bench.commit(vec![delete("b"), put("c", "3")]).await.unwrap();
    let history = bench.store().changes(0).await.unwrap();
    assert_eq!(history.complete_to, 3);
    let seen: Vec<_> = history
        .transactions
        .iter()
        .flat_map(|t| {
            t.changes
                .iter()
                .map(move |c| (t.revision, c.key.key.as_str(), &c.value[..], c.deleted))
        })
        .collect();
    let expected: Vec<(u64, &str, &[u8], bool)> = vec![
        (1, "a", b"1", false),
        (1, "b", b"1", false),
        (2, "a", b"2", false),
        (3, "b", b"1", true),
        (3, "c", b"3", false),
    ];
    assert_eq!(seen, expected, "every version, not only the newest");
    let tail = bench.store().changes(2).await.unwrap();
    assert_eq!(tail.transactions.len(), 1);
    assert_eq!(tail.transactions[0], history.transactions[2]);
    assert!(bench.store().changes(3).await.unwrap().transactions.is_empty());
    let ahead = bench.store().changes(4).await;
    assert!(
        matches!(ahead, Err(StoreError::Ahead { after: 4, newest: 3 })),
        "{ahead:?}"
    );
}

async fn large_history_comes_in_whole_transactions(bench: &Bench) {
    let large = "v".repeat(MAX_VALUE_BYTES);
    let count = 2 * MAX_CHANGES_BYTES / (3 * MAX_VALUE_BYTES) + 2;
    for _ in 0..count {
        bench
            .commit(vec![put("a", &large), put("b", &large), put("c", &large)])
            .await
            .unwrap();
    }
    let (mut after, mut reads, mut seen) = (0, 0, 0);
    let newest = bench.store().info().await.unwrap().revision;
    while after < newest {
        let history = bench.store().changes(after).await.unwrap();
        assert!(history.complete_to > after, "a read gets on");
        for transaction in &history.transactions {
            seen += 1;
            assert_eq!((transaction.revision, transaction.changes.len()), (seen, 3));
        }
        after = history.complete_to;
        reads += 1;
    }
    assert_eq!(seen, newest);
    assert!(reads > 1, "one read is bounded");
}

async fn old_history_goes_and_is_refused(bench: &Bench) {
    for number in 0..HISTORY_CHANGES * 2 {
        bench.commit(vec![put("a", &number.to_string())]).await.unwrap();
    }
    let newest = u64::from(HISTORY_CHANGES) * 2;
    // A store may trim after it answered: the next write waits for that.
    bench.commit(vec![put("a", "end")]).await.unwrap();
    let info = bench.store().info().await.unwrap();
    assert!(info.compaction_floor > 0, "bounded");
    assert!(
        info.compaction_floor <= newest + 1 - u64::from(HISTORY_CHANGES),
        "{info:?}"
    );
    let refused = bench.store().changes(info.compaction_floor - 1).await;
    assert!(
        matches!(refused, Err(StoreError::Compacted { .. })),
        "{refused:?}"
    );
    let kept = bench.store().changes(info.compaction_floor).await.unwrap();
    assert_eq!(kept.transactions[0].revision, info.compaction_floor + 1);
}

async fn compaction_drops_tombstones_up_to_the_floor_only(bench: &Bench) {
    bench
        .commit(vec![put("a", "1"), put("b", "1"), put("c", "1")])
        .await
        .unwrap();
    bench.commit(vec![delete("a")]).await.unwrap();
    bench.commit(vec![delete("b")]).await.unwrap();
    let epoch = bench.acquire("suite").await.epoch;
    assert_eq!(bench.store().compact(2, epoch).await.unwrap(), 2);
    let tombstones = Query {
        tombstones: true,
        ..all()
    };
    let left = bench.store().list(&tombstones).await.unwrap().records;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].key, key("b"));
    assert_eq!(
        bench.value("c").await.as_deref(),
        Some(&b"1"[..]),
        "live records stay"
    );
    assert!(matches!(
        bench.store().changes(1).await,
        Err(StoreError::Compacted { after: 1, floor: 2 })
    ));
    assert_eq!(bench.store().changes(2).await.unwrap().transactions.len(), 1);
    assert_eq!(
        bench.store().compact(1, epoch).await.unwrap(),
        2,
        "the floor never goes back"
    );
    assert_eq!(
        bench.store().compact(99, epoch).await.unwrap(),
        3,
        "nor ahead of the store"
    );
    let stale = bench.store().compact(3, epoch + 1).await;
    assert!(matches!(stale, Err(StoreError::StaleEpoch { .. })), "{stale:?}");
}

async fn concurrent_writers_of_one_record_do_not_lose_updates(bench: &Bench) {
    let lease_epoch = bench.acquire("suite").await.epoch;
    let store = bench.subject.store.clone();
    let add_ten = |store: Arc<dyn Store>| async move {
        for _ in 0..10 {
            loop {
                let found = store.get(&key("counter")).await.unwrap().0;
                let (revision, count) = found.map_or((0, 0), |r| {
                    (
                        r.revision,
                        std::str::from_utf8(&r.value).unwrap().parse::<u32>().unwrap(),
                    )
                });
                let commit = Commit {
                    preconditions: vec![at("counter", revision)],
                    writes: vec![put("counter", &(count + 1).to_string())],
                    lease_epoch,
                };
                match store.commit(commit).await {
                    Ok(_) => break,
                    Err(StoreError::Changed { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
    };
    futures_util::future::join_all((0..4).map(|_| add_ten(store.clone()))).await;
    assert_eq!(bench.value("counter").await.as_deref(), Some(&b"40"[..]));
    let history = bench.store().changes(0).await.unwrap();
    let revisions: Vec<_> = history
        .transactions
        .iter()
        .map(|transaction| transaction.revision)
        .collect();
    assert_eq!(revisions, (1..=40).collect::<Vec<_>>());
}

async fn the_lease_fences_every_write(bench: &Bench) {
    let write = |lease_epoch| Commit {
        preconditions: Vec::new(),
        writes: vec![put("a", "1")],
        lease_epoch,
    };
    let early = bench.store().commit(write(0)).await;
    assert!(
        matches!(early, Err(StoreError::StaleEpoch { .. })),
        "nobody has the lease: {early:?}"
    );
    let first = bench.acquire("one").await;
    assert!(first.acquired && first.epoch > 0);
    let other = bench.acquire("two").await;
    assert_eq!(
        (other.acquired, other.holder.as_str(), other.epoch),
        (false, "one", first.epoch)
    );
    bench.clock.advance(Duration::from_secs(11));
    bench.store().commit(write(first.epoch)).await.unwrap();
    let second = bench.acquire("two").await;
    assert!(second.acquired && second.epoch > first.epoch);
    let stale = bench.store().commit(write(first.epoch)).await;
    assert!(matches!(stale, Err(StoreError::StaleEpoch { .. })), "{stale:?}");
    bench.store().commit(write(second.epoch)).await.unwrap();
    let request = LeaseRequest {
        holder: "two".to_owned(),
        ttl: Duration::ZERO,
        release: true,
    };
    assert!(!bench.store().lease(request).await.unwrap().acquired);
    let released = bench.store().commit(write(second.epoch)).await;
    assert!(
        matches!(released, Err(StoreError::StaleEpoch { .. })),
        "{released:?}"
    );
    let third = bench.acquire("one").await;
    assert!(
        third.acquired && third.epoch > second.epoch,
        "free at once after a release"
    );
}

async fn the_lease_ends_by_the_clock(bench: &Bench) {
    let first = bench.acquire("one").await;
    assert_eq!(first.remaining, Duration::from_secs(10));
    bench.clock.advance(Duration::from_secs(6));
    assert_eq!(bench.acquire("two").await.remaining, Duration::from_secs(4));
    let renewed = bench.acquire("one").await;
    assert_eq!(
        (renewed.epoch, renewed.remaining),
        (first.epoch, Duration::from_secs(10))
    );
    bench.clock.advance(Duration::from_secs(9));
    assert!(!bench.acquire("two").await.acquired, "renewed");
    bench.clock.advance(Duration::from_secs(1));
    assert!(bench.acquire("two").await.acquired);
    for bad in [Duration::ZERO, Duration::from_secs(61)] {
        let request = LeaseRequest {
            holder: "x".to_owned(),
            ttl: bad,
            release: false,
        };
        assert!(matches!(
            bench.store().lease(request).await,
            Err(StoreError::Invalid(_))
        ));
    }
}

async fn a_clock_that_jumps_back_does_not_keep_a_lease_for_ever(bench: &Bench) {
    bench.acquire("dead").await;
    bench.clock.set(Timestamp::from_millis(1));
    assert!(bench.acquire("two").await.remaining <= Duration::from_secs(60));
    bench.clock.advance(Duration::from_secs(60));
    assert!(bench.acquire("two").await.acquired);
}

async fn readers_are_told_of_new_revisions(bench: &Bench) {
    let mut newest = bench.store().newest();
    let revision = bench.commit(vec![put("a", "1")]).await.unwrap();
    let told = tokio::time::timeout(
        Duration::from_secs(10),
        newest.wait_for(|newest| *newest >= revision),
    )
    .await;
    assert!(told.is_ok(), "the hint comes");
}
