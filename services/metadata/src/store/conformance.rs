//! The behaviour suite of [`Store`]: every implementation runs it.
//!
//! Each case gets a new, empty store and a clock that it moves itself. Cases panic when the contract is broken.
#![allow(clippy::unwrap_used, reason = "a suite of tests that other crates run")]

mod history;
mod lease;
mod records;

use std::any::Any;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ptah_service::{BoxFuture, Clock as _, ManualClock, Ports, SeededRandom};
use ptah_types::Timestamp;

use super::{
    Commit, Key, LeaseRequest, MAX_CHANGES_BYTES, MAX_VALUE_BYTES, MAX_WRITES, Precondition, Query, Store,
    StoreError, Write,
};

/// A store under test, and what must live as long as it.
pub struct Subject {
    store: Arc<dyn Store>,
    set_clock: Option<SetClock>,
    _keep: Box<dyn Any + Send>,
}

/// Sets a clock that is not the one of the ports.
type SetClock = Box<dyn Fn(Timestamp) -> BoxFuture<'static, ()> + Send + Sync>;

impl Subject {
    /// A store that needs nothing else.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self::with(store, ())
    }

    /// A store that needs, for example, its directory.
    pub fn with(store: Arc<dyn Store>, keep: impl Any + Send) -> Self {
        Self {
            store,
            set_clock: None,
            _keep: Box::new(keep),
        }
    }

    /// The same for a store whose lease goes by a clock of its own.
    pub fn timed_by(
        mut self,
        set_clock: impl Fn(Timestamp) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Self {
        self.set_clock = Some(Box::new(set_clock));
        self
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
        let bench = Bench { subject, clock };
        bench.advance(Duration::ZERO).await;
        bench
    };
    records::a_commit_is_readable_and_counts_revisions(&begin(10_000).await).await;
    records::a_failed_condition_changes_nothing(&begin(10_000).await).await;
    records::a_deleted_record_leaves_a_tombstone(&begin(10_000).await).await;
    records::deleting_nothing_is_refused(&begin(10_000).await).await;
    records::senseless_commits_are_refused(&begin(10_000).await).await;
    records::pages_are_in_order_and_complete(&begin(10_000).await).await;
    records::keys_of_any_characters_are_kept_verbatim(&begin(10_000).await).await;
    history::history_is_complete_and_in_order(&begin(10_000).await).await;
    history::large_history_comes_in_whole_transactions(&begin(10_000).await).await;
    history::old_history_goes_and_is_refused(&begin(HISTORY_CHANGES).await).await;
    history::compaction_drops_tombstones_up_to_the_floor_only(&begin(10_000).await).await;
    history::concurrent_writers_of_one_record_do_not_lose_updates(&begin(10_000).await).await;
    lease::the_lease_fences_every_write(&begin(10_000).await).await;
    lease::the_lease_ends_by_the_clock(&begin(10_000).await).await;
    lease::a_clock_that_jumps_back_does_not_keep_a_lease_for_ever(&begin(10_000).await).await;
    history::readers_are_told_of_new_revisions(&begin(10_000).await).await;
}

struct Bench {
    subject: Subject,
    clock: Arc<ManualClock>,
}

impl Bench {
    fn store(&self) -> &dyn Store {
        self.subject.store.as_ref()
    }

    async fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.tell_clock().await;
    }

    async fn set_clock(&self, now: Timestamp) {
        self.clock.set(now);
        self.tell_clock().await;
    }

    async fn tell_clock(&self) {
        if let Some(set_clock) = &self.subject.set_clock {
            set_clock(self.clock.now()).await;
        }
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
