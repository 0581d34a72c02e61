//! The port to the database: records with revisions, all-or-nothing commits, history for watches, one lease.
//!
//! The store does not interpret values: it keeps the bytes that it is given. Implementations: [`SqliteStore`],
//! [`PostgresStore`], and `MemoryStore` for tests and simulation. All of them pass the suite in `conformance`.

mod error;
mod postgres;
mod sql;
mod sqlite;

#[cfg(any(test, feature = "testkit"))]
pub mod conformance;
#[cfg(any(test, feature = "testkit"))]
mod memory;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use ptah_types::ClusterId;
use tokio::sync::watch;

pub use error::StoreError;
#[cfg(any(test, feature = "testkit"))]
pub use memory::MemoryStore;
pub(crate) use postgres::url::{is_postgres, parse as parse_postgres_url};
pub use postgres::{PostgresError, PostgresOptions, PostgresStore};
pub use sqlite::{OpenError, SqliteOptions, SqliteStore};

/// Most changes of one commit.
pub const MAX_WRITES: usize = 10_000;
/// Most preconditions of one commit.
pub const MAX_PRECONDITIONS: usize = 10_000;
/// Largest value of a record, in bytes.
pub const MAX_VALUE_BYTES: usize = 64 << 10;
/// Largest commit, in bytes of keys and values: its changes travel to watchers as one message, which must stay below
/// the 4 MiB that gRPC peers take by default.
pub const MAX_COMMIT_BYTES: usize = 3 << 20;
/// Largest page of a list, in bytes; a page ends early when it is reached.
pub const MAX_PAGE_BYTES: usize = 2 << 20;
/// Most records of a page.
pub const MAX_PAGE_RECORDS: usize = 1_000;
/// Longest key, in bytes: two names and ids fit.
pub const MAX_KEY_BYTES: usize = 320;
/// Longest name of a lease holder, in bytes.
pub const MAX_HOLDER_BYTES: usize = 128;
/// Shortest and longest time of a lease.
pub const LEASE_TTL: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);
/// What one read of the history returns at most, in bytes, apart from the revision that passes the mark.
pub(crate) const MAX_CHANGES_BYTES: usize = 1 << 20;

/// Full key of a record.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Key {
    /// Number of the kind.
    pub kind: u32,
    /// Name space.
    pub tenant: String,
    /// Key within kind and tenant.
    pub key: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}/{}` of kind {}", self.tenant, self.key, self.kind)
    }
}

/// A record as it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    /// Key.
    pub key: Key,
    /// Revision of the commit that wrote it.
    pub revision: u64,
    /// Revision of the commit that made it.
    pub created_revision: u64,
    /// Whether it is a tombstone; the value is then the last one it had.
    pub deleted: bool,
    /// What it holds.
    pub value: Bytes,
}

impl Stored {
    fn size_bytes(&self) -> usize {
        self.key.tenant.len() + self.key.key.len() + self.value.len()
    }
}

/// Who a store is, and how far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoreInfo {
    /// The cluster, made once.
    pub cluster: ClusterId,
    /// Identity of this history; another one means that an older database was put back.
    pub incarnation: u64,
    /// Newest revision.
    pub revision: u64,
    /// Changes at or below are no longer kept.
    pub compaction_floor: u64,
}

/// What to list.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Query {
    /// Number of the kind.
    pub kind: u32,
    /// Name space; `None` for all.
    pub tenant: Option<String>,
    /// Only keys that start with this.
    pub key_prefix: String,
    /// Continue behind this tenant and key.
    pub after: Option<(String, String)>,
    /// Most records.
    pub limit: usize,
    /// List tombstones instead of live records.
    pub tombstones: bool,
}

/// Some records in order of tenant and key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// The records.
    pub records: Vec<Stored>,
    /// Whether there may be more behind the last one.
    pub more: bool,
    /// Newest revision when they were read.
    pub revision: u64,
    /// The store's incarnation.
    pub incarnation: u64,
}

/// A condition of a commit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Precondition {
    /// Record.
    pub key: Key,
    /// Revision that it must have; 0 when it must not exist.
    pub revision: u64,
}

/// One change of a commit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Write {
    /// Record.
    pub key: Key,
    /// New value; `None` to delete.
    pub value: Option<Bytes>,
}

/// A transaction.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Commit {
    /// All must hold.
    pub preconditions: Vec<Precondition>,
    /// Changes, each key once.
    pub writes: Vec<Write>,
    /// Epoch of the lease under which the writer decides.
    pub lease_epoch: u64,
}

/// All changes of one revision, in order of keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transaction {
    /// The revision.
    pub revision: u64,
    /// What it changed.
    pub changes: Vec<Stored>,
}

/// A piece of history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct History {
    /// In order, without a gap.
    pub transactions: Vec<Transaction>,
    /// Everything up to this revision is in `transactions`.
    pub complete_to: u64,
    /// The store's incarnation; positions of another one mean nothing here.
    pub incarnation: u64,
}

/// A wish for the lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseRequest {
    /// Who asks; unique per process start.
    pub holder: String,
    /// How long it shall hold.
    pub ttl: Duration,
    /// Give it up instead.
    pub release: bool,
}

/// Who has the lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// Whether the caller has it.
    pub acquired: bool,
    /// Holder; empty when nobody has it.
    pub holder: String,
    /// Grows whenever the holder changes.
    pub epoch: u64,
    /// Time until it ends unless renewed.
    pub remaining: Duration,
}

/// Durable records under one total order of transactions.
///
/// - A commit that answers a revision is durable and readable by every call that begins afterwards. Revisions grow by
///   one with each commit, and are never given twice, also not after a restart.
/// - A commit happens in full or not at all, and only if every precondition holds and its epoch is the lease's. An error
///   other than [`StoreError::OutcomeUnknown`] means that nothing happened.
/// - A deleted record leaves a tombstone, which counts as not existing for preconditions, until [`Store::compact`].
/// - `changes(after)` returns every commit after `after`, each whole, in order, none twice, none left out, or
///   [`StoreError::Compacted`]. History is kept for the newest commits; how many is the implementation's setting.
/// - The lease is held by at most one holder; its epoch grows whenever the holder changes and never goes back.
/// - `cluster` never changes; `incarnation` changes if and only if the history may not be the one seen before.
/// - A dropped future may or may not have had its effect, but never half of it.
#[tonic::async_trait]
pub trait Store: Send + Sync + 'static {
    /// Tells identity and revisions.
    async fn info(&self) -> Result<StoreInfo, StoreError>;
    /// Reads a live record, and the newest revision at that moment.
    async fn get(&self, key: &Key) -> Result<(Option<Stored>, u64), StoreError>;
    /// Lists records. The page is of one moment; pages of one listing are not.
    async fn list(&self, query: &Query) -> Result<Page, StoreError>;
    /// Writes, and answers the new revision.
    async fn commit(&self, commit: Commit) -> Result<u64, StoreError>;
    /// Reads history after a revision; possibly not all at once, then `complete_to` is below the newest revision.
    async fn changes(&self, after: u64) -> Result<History, StoreError>;
    /// Takes, renews, looks at or releases the lease.
    async fn lease(&self, request: LeaseRequest) -> Result<Lease, StoreError>;
    /// Drops history and tombstones up to a revision, and answers the compaction floor. Never lowers it.
    async fn compact(&self, revision: u64, lease_epoch: u64) -> Result<u64, StoreError>;
    /// Tells when there may be new history: the newest revision that this process knows. A hint: look with `changes`.
    fn newest(&self) -> watch::Receiver<u64>;
}

impl Key {
    fn check(&self) -> Result<(), StoreError> {
        if self.key.is_empty() || self.tenant.is_empty() {
            return Err(StoreError::invalid(format!("{self} has an empty key or tenant")));
        }
        if self.key.len() > MAX_KEY_BYTES || self.tenant.len() > MAX_KEY_BYTES {
            let what = format!(
                "key of {} bytes exceeds {MAX_KEY_BYTES}",
                self.key.len().max(self.tenant.len())
            );
            return Err(StoreError::TooLarge(what));
        }
        let odd = |c: char| c.is_control() || c == KEY_END;
        if self.key.chars().any(odd) || self.tenant.chars().any(odd) {
            return Err(StoreError::invalid(
                "a key or tenant has a control character".to_owned(),
            ));
        }
        Ok(())
    }
}

/// Sorts behind every character of a key.
pub(crate) const KEY_END: char = char::MAX;

impl Commit {
    /// Refuses what no store takes: sizes, counts, keys twice.
    pub fn check(&self) -> Result<(), StoreError> {
        if self.writes.is_empty() {
            return Err(StoreError::invalid("a commit without changes".to_owned()));
        }
        if self.writes.len() > MAX_WRITES || self.preconditions.len() > MAX_PRECONDITIONS {
            return Err(StoreError::TooLarge(format!(
                "commit of {} changes and {} preconditions exceeds {MAX_WRITES} and {MAX_PRECONDITIONS}",
                self.writes.len(),
                self.preconditions.len()
            )));
        }
        let mut keys = BTreeSet::new();
        let mut size_bytes = 0;
        for write in &self.writes {
            write.key.check()?;
            if !keys.insert(&write.key) {
                return Err(StoreError::invalid(format!(
                    "{} is changed twice in one commit",
                    write.key
                )));
            }
            let value_bytes = write.value.as_ref().map_or(0, Bytes::len);
            if value_bytes > MAX_VALUE_BYTES {
                let what = format!(
                    "value of {} with {value_bytes} bytes exceeds {MAX_VALUE_BYTES}",
                    write.key
                );
                return Err(StoreError::TooLarge(what));
            }
            size_bytes += write.key.tenant.len() + write.key.key.len() + value_bytes;
        }
        if size_bytes > MAX_COMMIT_BYTES {
            let what = format!("commit of {size_bytes} bytes exceeds {MAX_COMMIT_BYTES}; split it");
            return Err(StoreError::TooLarge(what));
        }
        Ok(())
    }
}

impl LeaseRequest {
    /// Refuses what no store takes.
    pub fn check(&self) -> Result<(), StoreError> {
        if self.holder.is_empty() || self.holder.len() > MAX_HOLDER_BYTES {
            let what = format!("name of a lease holder has 1 to {MAX_HOLDER_BYTES} bytes");
            return Err(StoreError::invalid(what));
        }
        if !self.release && !LEASE_TTL.contains(&self.ttl) {
            let what = format!(
                "lease of {:?} is not between {:?} and {:?}",
                self.ttl,
                LEASE_TTL.start(),
                LEASE_TTL.end()
            );
            return Err(StoreError::invalid(what));
        }
        Ok(())
    }
}

/// The lease row as stored, and what a request makes of it. Pure, so that every store decides alike.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct LeaseRow {
    pub(crate) holder: String,
    pub(crate) epoch: u64,
    pub(crate) expires_at_ms: u64,
}

impl LeaseRow {
    /// Applies a request at a time, and tells what to answer.
    pub(crate) fn apply(&mut self, request: &LeaseRequest, now_ms: u64) -> Lease {
        let ours = self.holder == request.holder;
        if request.release {
            if ours {
                // The epoch moves, so that nothing decided under the old one can be written any more.
                *self = Self {
                    holder: String::new(),
                    epoch: self.epoch + 1,
                    expires_at_ms: 0,
                };
            }
            return self.answer(&request.holder, now_ms);
        }
        // A clock that was set back must not keep a dead holder's lease alive beyond the longest lease.
        let longest_ms = millis(*LEASE_TTL.end());
        self.expires_at_ms = self.expires_at_ms.min(now_ms.saturating_add(longest_ms));
        let free = self.holder.is_empty() || self.expires_at_ms <= now_ms;
        if ours || free {
            if !ours {
                self.epoch += 1;
                self.holder.clone_from(&request.holder);
            }
            self.expires_at_ms = now_ms.saturating_add(millis(request.ttl));
        }
        self.answer(&request.holder, now_ms)
    }

    fn answer(&self, asker: &str, now_ms: u64) -> Lease {
        Lease {
            acquired: self.holder == asker,
            holder: self.holder.clone(),
            epoch: self.epoch,
            remaining: Duration::from_millis(self.expires_at_ms.saturating_sub(now_ms)),
        }
    }

    /// Refuses a commit under another epoch than the current one.
    pub(crate) fn fence(&self, epoch: u64) -> Result<(), StoreError> {
        if epoch == 0 || epoch != self.epoch || self.holder.is_empty() {
            return Err(StoreError::StaleEpoch {
                epoch,
                current: self.epoch,
            });
        }
        Ok(())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
