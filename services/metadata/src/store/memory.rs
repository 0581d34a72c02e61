//! [`Store`] in memory: ordered maps, no IO, no task. For tests and for the simulation, where the same seed gives the
//! same run; it forgets everything when it is dropped.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use ptah_service::{Clock, Ports};
use ptah_types::ClusterId;
use tokio::sync::watch;

use super::{
    Commit, History, KEY_END, Key, Lease, LeaseRequest, LeaseRow, MAX_CHANGES_BYTES, MAX_PAGE_BYTES, Page,
    Precondition, Query, Store, StoreError, StoreInfo, Stored, Transaction, Write,
};

/// The store in memory.
pub struct MemoryStore {
    state: Mutex<State>,
    newest: watch::Sender<u64>,
    clock: Arc<dyn Clock>,
    history_changes: usize,
}

struct State {
    info: StoreInfo,
    lease: LeaseRow,
    records: BTreeMap<Key, Stored>,
    history: VecDeque<Transaction>,
}

impl MemoryStore {
    /// An empty store of a new cluster.
    pub fn new(ports: &Ports, history_changes: u32) -> Self {
        let mut bytes = [0; 16];
        ports.random.fill(&mut bytes);
        let info = StoreInfo {
            cluster: ClusterId::from_random_bytes(bytes),
            incarnation: (ports.random.next_u64() >> 1).max(1),
            revision: 0,
            compaction_floor: 0,
        };
        Self {
            state: Mutex::new(State {
                info,
                lease: LeaseRow::default(),
                records: BTreeMap::new(),
                history: VecDeque::new(),
            }),
            newest: watch::channel(0).0,
            clock: ports.clock.clone(),
            history_changes: history_changes as usize,
        }
    }
}

impl State {
    fn live(&self, key: &Key) -> Option<&Stored> {
        self.records.get(key).filter(|record| !record.deleted)
    }

    fn check(&self, precondition: &Precondition) -> Result<(), StoreError> {
        let found = self.live(&precondition.key).map_or(0, |record| record.revision);
        if found == precondition.revision {
            return Ok(());
        }
        Err(StoreError::Changed {
            key: precondition.key.clone(),
            expected: precondition.revision,
            found,
        })
    }

    /// The record after a write, or why the write makes no sense.
    fn changed(&self, write: &Write, revision: u64) -> Result<Stored, StoreError> {
        let live = self.live(&write.key);
        let Some(value) = &write.value else {
            let live = live.ok_or_else(|| StoreError::NothingToDelete {
                key: write.key.clone(),
            })?;
            return Ok(Stored {
                revision,
                deleted: true,
                ..live.clone()
            });
        };
        Ok(Stored {
            key: write.key.clone(),
            revision,
            created_revision: live.map_or(revision, |record| record.created_revision),
            deleted: false,
            value: value.clone(),
        })
    }

    fn commit(&mut self, commit: &Commit) -> Result<u64, StoreError> {
        self.lease.fence(commit.lease_epoch)?;
        for precondition in &commit.preconditions {
            self.check(precondition)?;
        }
        let revision = self.info.revision + 1;
        let mut changes = Vec::with_capacity(commit.writes.len());
        for write in &commit.writes {
            changes.push(self.changed(write, revision)?);
        }
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        for change in &changes {
            self.records.insert(change.key.clone(), change.clone());
        }
        self.history.push_back(Transaction { revision, changes });
        self.info.revision = revision;
        Ok(revision)
    }

    fn trim(&mut self, keep: usize) {
        let mut kept: usize = self
            .history
            .iter()
            .map(|transaction| transaction.changes.len())
            .sum();
        while kept > keep
            && let Some(oldest) = self.history.pop_front()
        {
            kept -= oldest.changes.len();
            self.info.compaction_floor = oldest.revision;
        }
    }

    fn list(&self, query: &Query) -> Page {
        let end = format!("{}{KEY_END}", query.key_prefix);
        let wanted = |record: &&Stored| {
            let key = &record.key;
            let after = query
                .after
                .as_ref()
                .is_none_or(|(tenant, text)| (&key.tenant, &key.key) > (tenant, text));
            key.kind == query.kind
                && record.deleted == query.tombstones
                && after
                && query
                    .tenant
                    .as_ref()
                    .is_none_or(|tenant| tenant.is_empty() || *tenant == key.tenant)
                && key.key >= query.key_prefix
                && key.key < end
        };
        let mut records: Vec<Stored> = Vec::new();
        let mut size_bytes = 0;
        let mut more = false;
        for record in self.records.values().filter(wanted) {
            size_bytes += record.size_bytes();
            if records.len() == query.limit || (size_bytes > MAX_PAGE_BYTES && !records.is_empty()) {
                more = true;
                break;
            }
            records.push(record.clone());
        }
        Page {
            records,
            more,
            revision: self.info.revision,
            incarnation: self.info.incarnation,
        }
    }

    fn changes(&self, after: u64) -> Result<History, StoreError> {
        let StoreInfo {
            revision,
            compaction_floor: floor,
            incarnation,
            ..
        } = self.info;
        if after < floor {
            return Err(StoreError::Compacted { after, floor });
        }
        if after > revision {
            return Err(StoreError::Ahead {
                after,
                newest: revision,
            });
        }
        let mut transactions: Vec<Transaction> = Vec::new();
        let mut size_bytes = 0;
        for transaction in self
            .history
            .iter()
            .filter(|transaction| transaction.revision > after)
        {
            if let Some(last) = transactions.last()
                && size_bytes > MAX_CHANGES_BYTES
            {
                let complete_to = last.revision;
                return Ok(History {
                    transactions,
                    complete_to,
                    incarnation,
                });
            }
            size_bytes += transaction.changes.iter().map(Stored::size_bytes).sum::<usize>();
            transactions.push(transaction.clone());
        }
        Ok(History {
            transactions,
            complete_to: revision,
            incarnation,
        })
    }

    fn compact(&mut self, revision: u64, lease_epoch: u64) -> Result<u64, StoreError> {
        self.lease.fence(lease_epoch)?;
        let floor = revision.min(self.info.revision).max(self.info.compaction_floor);
        self.info.compaction_floor = floor;
        self.history.retain(|transaction| transaction.revision > floor);
        self.records
            .retain(|_, record| !record.deleted || record.revision > floor);
        Ok(floor)
    }
}

#[tonic::async_trait]
impl Store for MemoryStore {
    async fn info(&self) -> Result<StoreInfo, StoreError> {
        Ok(self.state.lock().info)
    }

    async fn get(&self, key: &Key) -> Result<(Option<Stored>, u64), StoreError> {
        let state = self.state.lock();
        Ok((state.live(key).cloned(), state.info.revision))
    }

    async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        Ok(self.state.lock().list(query))
    }

    async fn commit(&self, commit: Commit) -> Result<u64, StoreError> {
        commit.check()?;
        let revision = {
            let mut state = self.state.lock();
            let revision = state.commit(&commit)?;
            state.trim(self.history_changes);
            revision
        };
        self.newest.send_if_modified(|newest| {
            let higher = revision > *newest;
            *newest = revision.max(*newest);
            higher
        });
        Ok(revision)
    }

    async fn changes(&self, after: u64) -> Result<History, StoreError> {
        self.state.lock().changes(after)
    }

    async fn lease(&self, request: LeaseRequest) -> Result<Lease, StoreError> {
        request.check()?;
        let now_ms = self.clock.now().as_millis();
        Ok(self.state.lock().lease.apply(&request, now_ms))
    }

    async fn compact(&self, revision: u64, lease_epoch: u64) -> Result<u64, StoreError> {
        self.state.lock().compact(revision, lease_epoch)
    }

    fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{self, Subject};
    use super::*;

    #[tokio::test]
    async fn memory_store_keeps_the_contract() {
        conformance::run(|ports, history_changes| async move {
            Subject::new(Arc::new(MemoryStore::new(&ports, history_changes)))
        })
        .await;
    }
}
