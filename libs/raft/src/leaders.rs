//! Leader changes of all groups, for any number of watchers, each seeing the newest of every group.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use ptah_service::Stopping;
use ptah_types::{PartitionKey, RaftGroupId};
use tokio::sync::watch;

use crate::cell::Leadership;

/// Who leads one group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupLeadership {
    /// The Raft group.
    pub group: RaftGroupId,
    /// The partition.
    pub key: PartitionKey,
    /// Who leads it.
    pub leadership: Leadership,
}

struct Row {
    version: u64,
    value: GroupLeadership,
}

/// The table that watchers read. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Leaders {
    rows: Arc<Mutex<BTreeMap<RaftGroupId, Row>>>,
    version: Arc<watch::Sender<u64>>,
}

impl Leaders {
    pub(crate) fn new() -> Self {
        Self {
            rows: Arc::new(Mutex::new(BTreeMap::new())),
            version: Arc::new(watch::Sender::new(0)),
        }
    }

    pub(crate) fn publish(&self, group: RaftGroupId, key: &PartitionKey, leadership: Leadership) {
        let mut rows = self.rows.lock();
        let version = *self.version.borrow() + 1;
        let value = GroupLeadership {
            group,
            key: key.clone(),
            leadership,
        };
        rows.insert(group, Row { version, value });
        self.version.send_replace(version);
    }

    /// Forgets a removed group; watchers are not told.
    pub(crate) fn forget(&self, group: RaftGroupId) {
        self.rows.lock().remove(&group);
    }

    pub(crate) fn watch(&self, stopping: Stopping) -> LeaderWatch {
        LeaderWatch {
            leaders: self.clone(),
            seen: None,
            versions: self.version.subscribe(),
            stopping,
        }
    }
}

/// A watcher of leader changes.
pub struct LeaderWatch {
    leaders: Leaders,
    seen: Option<u64>,
    versions: watch::Receiver<u64>,
    stopping: Stopping,
}

impl LeaderWatch {
    /// The first answer is all groups, maybe none; later ones are those that changed since, the newest of each.
    /// `None` when the host stops. May be dropped at any await.
    pub async fn next(&mut self) -> Option<Vec<GroupLeadership>> {
        if let Some(seen) = self.seen {
            tokio::select! {
                () = self.stopping.cancelled() => return None,
                changed = self.versions.wait_for(|version| *version > seen) => {
                    changed.ok()?;
                }
            }
        }
        let rows = self.leaders.rows.lock();
        let seen = self.seen.replace(*self.versions.borrow_and_update());
        let changed = rows
            .values()
            .filter(|row| seen.is_none_or(|seen| row.version > seen));
        Some(changed.map(|row| row.value.clone()).collect())
    }
}
