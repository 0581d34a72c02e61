//! Where each partition is led, as the storage nodes tell it.
//!
//! Works with metadata and control plane down: node addresses come from the catalog's copy, leaders from the nodes.

mod table;
pub mod watch_nodes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ptah_types::{NodeId, RaftGroupId};
use tokio::sync::watch;

pub use table::{Claim, Route, RoutingTable};

/// Cheap handle on the routing table.
#[derive(Clone, Default)]
pub struct Routing {
    inner: Arc<Mutex<State>>,
    /// Counts changes of any route.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    table: RoutingTable,
    watchers: BTreeMap<RaftGroupId, watch::Sender<Route>>,
    /// Nodes whose leader table is being received now.
    connected: BTreeSet<NodeId>,
}

impl State {
    fn publish(&mut self, touched: &BTreeSet<RaftGroupId>) {
        for group in touched {
            if let Some(watcher) = self.watchers.get(group) {
                if watcher.is_closed() {
                    self.watchers.remove(group);
                } else {
                    let route = self.table.route(*group);
                    watcher.send_if_modified(|known| std::mem::replace(known, route) != route);
                }
            }
        }
    }
}

impl Routing {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where a group is led.
    pub fn route(&self, group: RaftGroupId) -> Route {
        self.inner.lock().table.route(group)
    }

    /// Follows where a group is led.
    pub fn watch(&self, group: RaftGroupId) -> watch::Receiver<Route> {
        let mut state = self.inner.lock();
        let route = state.table.route(group);
        let watcher = state
            .watchers
            .entry(group)
            .or_insert_with(|| watch::Sender::new(route));
        watcher.subscribe()
    }

    /// Ticks when any route may have changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Waits for a leader. `None` when the time is over first.
    pub async fn wait_for_leader(&self, group: RaftGroupId, ready: bool, limit: Duration) -> Option<NodeId> {
        let mut watch = self.watch(group);
        let found = watch.wait_for(|route| route.leader.is_some() && (route.ready || !ready));
        let route = *tokio::time::timeout(limit, found).await.ok()?.ok()?;
        route.leader
    }

    /// Takes in what a node says of its groups.
    pub fn told(&self, node: NodeId, full: bool, claims: &[(RaftGroupId, Claim)]) {
        let mut state = self.inner.lock();
        let touched = state.table.told(node, full, claims);
        state.publish(&touched);
        drop(state);
        self.tick(!touched.is_empty());
    }

    /// A refusal named another leader.
    pub fn hinted(&self, group: RaftGroupId, refuser: NodeId, leader: NodeId) {
        let mut state = self.inner.lock();
        state.table.hinted(group, refuser, leader);
        state.publish(&BTreeSet::from([group]));
        drop(state);
        self.tick(true);
    }

    fn tick(&self, changed: bool) {
        if changed {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// A node is no more.
    pub fn forget_node(&self, node: NodeId) {
        let mut state = self.inner.lock();
        let touched = state.table.forget_node(node);
        state.connected.remove(&node);
        state.publish(&touched);
        drop(state);
        self.tick(!touched.is_empty());
    }

    /// Notes whether a node's leader table is being received.
    pub fn set_connected(&self, node: NodeId, connected: bool) {
        let mut state = self.inner.lock();
        if connected {
            state.connected.insert(node);
        } else {
            state.connected.remove(&node);
        }
    }

    /// Nodes whose leader table is being received now.
    pub fn connected(&self) -> BTreeSet<NodeId> {
        self.inner.lock().connected.clone()
    }

    /// How many groups each node leads.
    pub fn leaders_per_node(&self) -> BTreeMap<NodeId, u32> {
        self.inner.lock().table.leaders_per_node()
    }
}
