//! The replicas of this node, as the host and the transport find them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use ptah_types::{NodeId, RaftGroupId};
use tokio::sync::Notify;

use crate::cell::{Cell, Running};
use crate::metrics::Metrics;
use crate::transport::Route;
use crate::types::Raft;

/// All replicas that were ensured.
pub(crate) struct Directory {
    cells: RwLock<BTreeMap<RaftGroupId, Arc<Cell>>>,
    lost: Mutex<BTreeSet<NodeId>>,
    lost_wake: Notify,
    metrics: Arc<Metrics>,
}

impl Directory {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            cells: RwLock::new(BTreeMap::new()),
            lost: Mutex::new(BTreeSet::new()),
            lost_wake: Notify::new(),
            metrics,
        }
    }

    pub(crate) fn get(&self, group: RaftGroupId) -> Option<Arc<Cell>> {
        self.cells.read().get(&group).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Cell>> {
        self.cells.read().values().cloned().collect()
    }

    /// Adds what `make` makes when the group is not known; answers the cell and whether it is new.
    pub(crate) fn get_or_insert(
        &self,
        group: RaftGroupId,
        make: impl FnOnce() -> Arc<Cell>,
    ) -> (Arc<Cell>, bool) {
        let mut cells = self.cells.write();
        if let Some(cell) = cells.get(&group) {
            return (Arc::clone(cell), false);
        }
        let cell = make();
        cells.insert(group, Arc::clone(&cell));
        (cell, true)
    }

    pub(crate) fn remove(&self, group: RaftGroupId) -> Option<Arc<Cell>> {
        self.cells.write().remove(&group)
    }

    /// The running replica that a caller means. Ids are never used again, so a mismatch is a stale caller.
    pub(crate) fn running(&self, route: Route, from: NodeId) -> Result<Running, String> {
        let found = self.find(route, from);
        if found.is_err() {
            self.metrics.routes_refused.inc();
        }
        found
    }

    pub(crate) fn raft(&self, route: Route, from: NodeId) -> Result<Raft, String> {
        self.running(route, from).map(|running| running.raft)
    }

    fn find(&self, route: Route, from: NodeId) -> Result<Running, String> {
        let cell = self
            .get(route.group)
            .ok_or_else(|| format!("group {} is not on this node", route.group.to_hex()))?;
        if cell.replica != route.to {
            return Err(format!(
                "group {} has replica {} on this node, not {}",
                route.group.to_hex(),
                cell.replica,
                route.to
            ));
        }
        if let Some(home) = cell.home_of(route.from)
            && home != from
        {
            return Err(format!("replica {} lives on node {home}, not {from}", route.from));
        }
        // Whatever is sent to a replica that rests ends its rest.
        cell.wake();
        cell.running()
            .ok_or_else(|| format!("replica {} is not running", route.to))
    }

    /// Notes that a node's heartbeat stream ended.
    pub(crate) fn stream_lost(&self, node: NodeId) {
        self.lost.lock().insert(node);
        self.lost_wake.notify_one();
    }

    /// The next node whose stream ended.
    pub(crate) async fn next_lost(&self) -> NodeId {
        loop {
            let woken = self.lost_wake.notified();
            if let Some(node) = self.lost.lock().pop_first() {
                return node;
            }
            woken.await;
        }
    }
}
