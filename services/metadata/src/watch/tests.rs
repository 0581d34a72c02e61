//! Watches on the store in memory.

use bytes::Bytes;
use ptah_service::Ports;

use super::*;
use crate::store::{Commit, Key, LeaseRequest, MemoryStore, StoreError, Write};

/// Short, so that tests need not wait; long against the time that a step takes.
const PACE: Pace = Pace {
    send_deadline: Duration::from_millis(300),
    progress_interval: Duration::from_millis(100),
};

struct Bench {
    store: Arc<MemoryStore>,
    watches: Watches,
    tasks: Tasks,
    epoch: u64,
}

impl Bench {
    async fn new(limit: u32) -> Self {
        let store = Arc::new(MemoryStore::new(&Ports::seeded(1), 1_000));
        let tasks = Tasks::root();
        let metrics = Metrics::new(&ptah_service::Metrics::new());
        let lease = LeaseRequest {
            holder: "test".to_owned(),
            ttl: Duration::from_secs(10),
            release: false,
        };
        let epoch = store.lease(lease).await.unwrap().epoch;
        Self {
            watches: Watches::new(store.clone(), tasks.clone(), limit, PACE, metrics),
            store,
            tasks,
            epoch,
        }
    }

    async fn put(&self, kind: u32, text: &str) -> u64 {
        self.put_bytes(kind, text, Bytes::copy_from_slice(text.as_bytes()))
            .await
    }

    async fn put_bytes(&self, kind: u32, text: &str, value: Bytes) -> u64 {
        let key = Key {
            kind,
            tenant: "default".to_owned(),
            key: text.to_owned(),
        };
        let commit = Commit {
            writes: vec![Write {
                key,
                value: Some(value),
            }],
            lease_epoch: self.epoch,
            ..Commit::default()
        };
        self.store.commit(commit).await.unwrap()
    }

    async fn from(&self, after: u64, kinds: &[u32]) -> WatchFrom {
        WatchFrom {
            after,
            incarnation: self.store.info().await.unwrap().incarnation,
            kinds: kinds.iter().copied().collect(),
        }
    }
}

async fn next(stream: &mut WatchStream) -> WatchEvent {
    stream.next().await.unwrap().unwrap()
}

fn revision(event: &WatchEvent) -> u64 {
    match event {
        WatchEvent::Changes(transaction) => transaction.revision,
        WatchEvent::Progress(revision) => *revision,
    }
}

#[tokio::test]
async fn a_watch_tells_past_and_future_in_order_and_that_it_is_up_to_date() {
    let bench = Bench::new(8).await;
    bench.put(2, "a").await;
    bench.put(2, "b").await;
    let mut stream = bench.watches.open(bench.from(0, &[]).await).await.unwrap();
    for expected in [1, 2] {
        let event = next(&mut stream).await;
        assert!(
            matches!(&event, WatchEvent::Changes(t) if t.revision == expected),
            "{event:?}"
        );
    }
    assert_eq!(next(&mut stream).await, WatchEvent::Progress(2));
    bench.put(2, "c").await;
    assert_eq!(revision(&next(&mut stream).await), 3);
    assert_eq!(next(&mut stream).await, WatchEvent::Progress(3));
}

#[tokio::test]
async fn unwanted_kinds_are_left_out_but_their_revisions_are_told() {
    let bench = Bench::new(8).await;
    bench.put(2, "a").await;
    bench.put(3, "b").await;
    let mut stream = bench.watches.open(bench.from(0, &[2]).await).await.unwrap();
    assert!(matches!(next(&mut stream).await, WatchEvent::Changes(t) if t.revision == 1));
    assert_eq!(
        next(&mut stream).await,
        WatchEvent::Progress(2),
        "who waits for revision 2 is not left waiting"
    );
}

#[tokio::test]
async fn a_quiet_store_still_tells_progress() {
    let bench = Bench::new(8).await;
    let mut stream = bench.watches.open(bench.from(0, &[]).await).await.unwrap();
    for _ in 0..3 {
        assert_eq!(next(&mut stream).await, WatchEvent::Progress(0));
    }
}

#[tokio::test]
async fn a_watcher_that_takes_nothing_is_ended_and_can_resume_without_loss() {
    let bench = Bench::new(8).await;
    for number in 0..100 {
        bench.put(2, &number.to_string()).await;
    }
    let mut stream = bench.watches.open(bench.from(0, &[]).await).await.unwrap();
    let first = revision(&next(&mut stream).await);
    // Nothing is taken until the watch has given up.
    let gave_up = bench.watches.places.acquire_many(8);
    drop(
        tokio::time::timeout(Duration::from_secs(10), gave_up)
            .await
            .unwrap(),
    );
    let (mut seen, mut end) = (vec![first], None);
    while let Some(item) = stream.next().await {
        match item {
            Ok(event) => seen.push(revision(&event)),
            Err(error) => end = Some(error),
        }
    }
    assert!(
        seen.len() < 20,
        "what waits for a slow watcher is bounded: {}",
        seen.len()
    );
    let Some(WatchError::TooSlow { resume_from }) = end else {
        panic!("{end:?}")
    };
    assert_eq!(Some(&resume_from), seen.last());
    let mut stream = bench
        .watches
        .open(bench.from(resume_from, &[]).await)
        .await
        .unwrap();
    while seen.last() != Some(&100) {
        seen.push(revision(&next(&mut stream).await));
    }
    assert_eq!(seen, (1..=100).collect::<Vec<_>>());
}

#[tokio::test]
async fn impossible_watches_are_refused_at_once() {
    let bench = Bench::new(8).await;
    bench.put(2, "a").await;
    bench.put(2, "b").await;
    bench.store.compact(1, bench.epoch).await.unwrap();
    let other = WatchFrom {
        incarnation: 1,
        ..bench.from(1, &[]).await
    };
    let refused = bench.watches.open(other).await.err().unwrap();
    assert!(
        matches!(refused, WatchError::OtherIncarnation { .. }),
        "{refused}"
    );
    let refused = bench.watches.open(bench.from(0, &[]).await).await.err().unwrap();
    assert!(
        matches!(refused, WatchError::Store(StoreError::Compacted { .. })),
        "{refused}"
    );
    let refused = bench.watches.open(bench.from(9, &[]).await).await.err().unwrap();
    assert!(
        matches!(refused, WatchError::Store(StoreError::Ahead { .. })),
        "{refused}"
    );
}

#[tokio::test]
async fn a_place_is_free_again_when_a_watcher_leaves() {
    let bench = Bench::new(1).await;
    let stream = bench.watches.open(bench.from(0, &[]).await).await.unwrap();
    let refused = bench.watches.open(bench.from(0, &[]).await).await.err().unwrap();
    assert!(matches!(refused, WatchError::TooMany(1)), "{refused}");
    drop(stream);
    let freed = tokio::time::timeout(Duration::from_secs(10), bench.watches.places.acquire()).await;
    assert!(freed.is_ok());
}

#[tokio::test]
async fn watches_end_when_the_service_stops() {
    let bench = Bench::new(8).await;
    let stream = bench.watches.open(bench.from(0, &[]).await).await.unwrap();
    bench.tasks.stop(Duration::from_secs(10)).await.unwrap();
    let items: Vec<_> = stream.collect().await;
    assert!(
        matches!(items.last(), Some(Err(WatchError::Stopping))),
        "{items:?}"
    );
}
