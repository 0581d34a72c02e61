//! Storage nodes as they report themselves: who is alive, and what each has.
//!
//! Volatile: a new holder of the lease knows nothing until the nodes report to it, within a second.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ptah_rpc::clients::{NodeReport, ReplicaReport};
use ptah_types::{NodeId, RaftGroupId};
use tokio::sync::Notify;
use tokio::time::Instant;

/// The newest report of a node, by Raft group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Observed {
    /// As it came.
    pub report: NodeReport,
    replicas: BTreeMap<RaftGroupId, usize>,
}

impl Observed {
    /// Sorts a report.
    pub fn new(report: NodeReport) -> Self {
        let replicas = report.replicas.iter().enumerate();
        Self {
            replicas: replicas.map(|(index, replica)| (replica.group, index)).collect(),
            report,
        }
    }

    /// The node's replica of a group.
    pub fn replica(&self, group: RaftGroupId) -> Option<&ReplicaReport> {
        self.report.replicas.get(*self.replicas.get(&group)?)
    }
}

#[derive(Clone, Debug)]
struct Seen {
    at: Instant,
    observed: Option<Arc<Observed>>,
}

/// What is known of a node now.
#[derive(Clone, Debug)]
pub struct NodeHealth {
    /// Whether it was seen within the window.
    pub alive: bool,
    /// Time since it was seen; `None` when it never was.
    pub seen_ago: Option<Duration>,
    /// Its newest report.
    pub observed: Option<Arc<Observed>>,
}

/// All nodes. Cheap to clone.
#[derive(Clone)]
pub struct Nodes {
    seen: Arc<Mutex<BTreeMap<NodeId, Seen>>>,
    window: Duration,
    news: Arc<Notify>,
    /// What would be done and cannot, for people.
    troubles: Arc<Mutex<Vec<String>>>,
    workers: Arc<Mutex<BTreeMap<NodeId, Arc<Notify>>>>,
}

impl Nodes {
    /// No node seen yet; a node is alive for `window` after it was seen.
    pub fn new(window: Duration) -> Self {
        Self {
            seen: Arc::default(),
            window,
            news: Arc::new(Notify::new()),
            troubles: Arc::default(),
            workers: Arc::default(),
        }
    }

    /// A node introduced itself: what it reported before does not count any more.
    pub fn registered(&self, node: NodeId) {
        let seen = Seen {
            at: Instant::now(),
            observed: None,
        };
        self.seen.lock().insert(node, seen);
        self.wake(node);
    }

    /// A node reported.
    pub fn reported(&self, report: NodeReport) -> Arc<Observed> {
        let node = report.node;
        let observed = Arc::new(Observed::new(report));
        let seen = Seen {
            at: Instant::now(),
            observed: Some(observed.clone()),
        };
        let before = self.seen.lock().insert(node, seen);
        let same = before.and_then(|before| before.observed).is_some_and(|before| {
            before.report.replicas == observed.report.replicas
                && before.report.placement_revision == observed.report.placement_revision
        });
        if !same {
            self.news.notify_one();
            self.wake(node);
        }
        observed
    }

    /// What is known of a node.
    pub fn health(&self, node: NodeId) -> NodeHealth {
        let seen = self.seen.lock().get(&node).cloned();
        let seen_ago = seen.as_ref().map(|seen| seen.at.elapsed());
        NodeHealth {
            alive: seen_ago.is_some_and(|ago| ago <= self.window),
            seen_ago,
            observed: seen.and_then(|seen| seen.observed),
        }
    }

    /// Whether a node was seen within the window.
    pub fn is_alive(&self, node: NodeId) -> bool {
        self.seen
            .lock()
            .get(&node)
            .is_some_and(|seen| seen.at.elapsed() <= self.window)
    }

    /// Nodes that were seen within the window.
    pub(crate) fn alive(&self) -> BTreeSet<NodeId> {
        let seen = self.seen.lock();
        let alive = seen.iter().filter(|(_, seen)| seen.at.elapsed() <= self.window);
        alive.map(|(node, _)| *node).collect()
    }

    /// How many nodes were seen within the window.
    pub fn count_alive(&self) -> usize {
        self.alive().len()
    }

    /// The newest report of every node, and how long ago it was seen.
    pub(crate) fn all(&self) -> BTreeMap<NodeId, NodeHealth> {
        let seen = self.seen.lock();
        let health = |seen: &Seen| NodeHealth {
            alive: seen.at.elapsed() <= self.window,
            seen_ago: Some(seen.at.elapsed()),
            observed: seen.observed.clone(),
        };
        seen.iter().map(|(node, seen)| (*node, health(seen))).collect()
    }

    /// Sentences about what would be done and cannot.
    pub(crate) fn troubles(&self) -> Vec<String> {
        self.troubles.lock().clone()
    }

    /// Tells what would be done and cannot; true when that is news.
    pub(crate) fn set_troubles(&self, troubles: Vec<String>) -> bool {
        let mut known = self.troubles.lock();
        let is_new = *known != troubles;
        *known = troubles;
        is_new
    }

    /// Resolves when a report said something new since the last time.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// What wakes a node's worker. Made on the first call.
    pub(crate) fn waker_of(&self, node: NodeId) -> Arc<Notify> {
        self.workers.lock().entry(node).or_default().clone()
    }

    fn wake(&self, node: NodeId) {
        if let Some(worker) = self.workers.lock().get(&node) {
            worker.notify_one();
        }
    }

    /// Wakes the workers of all nodes.
    pub(crate) fn wake_all(&self) {
        for worker in self.workers.lock().values() {
            worker.notify_one();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use ptah_rpc::clients::ReplicaState;
    use ptah_types::{LogIndex, ReplicaId, Term};

    use super::*;

    pub(crate) fn replica(group: u64, replica: u64, state: ReplicaState, initialized: bool) -> ReplicaReport {
        ReplicaReport {
            group: RaftGroupId::new(group).unwrap(),
            replica: ReplicaId::new(replica).ok(),
            state,
            trouble: String::new(),
            term: Term(0),
            leader: None,
            applied: LogIndex(0),
            initialized,
            voters: Vec::new(),
            learners: Vec::new(),
            members_settled: false,
            learner_lag: 0,
        }
    }

    pub(crate) fn report(node: u64, revision: u64, replicas: Vec<ReplicaReport>) -> NodeReport {
        NodeReport {
            node: NodeId::new(node).unwrap(),
            address: format!("127.0.0.1:{}", 7_000 + node),
            version: "test".to_owned(),
            disk_free_bytes: 1,
            disk_total_bytes: 2,
            replicas,
            placement_epoch: 1,
            placement_revision: revision,
            refuses_messages: false,
            disk_needed_bytes: 0,
            yielding: BTreeSet::new(),
        }
    }

    #[tokio::test]
    async fn a_node_is_alive_for_the_window_after_it_was_seen() {
        let node = NodeId::new(1).unwrap();
        let nodes = Nodes::new(Duration::from_millis(50));
        assert!(!nodes.health(node).alive);
        nodes.reported(report(1, 0, Vec::new()));
        assert!(nodes.is_alive(node));
        assert_eq!(nodes.count_alive(), 1);
        let died = async {
            while nodes.is_alive(node) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), died).await.unwrap();
        assert!(
            nodes.health(node).observed.is_some(),
            "its last report is still known"
        );
    }

    #[tokio::test]
    async fn registering_again_forgets_what_was_reported() {
        let nodes = Nodes::new(Duration::from_secs(5));
        nodes.reported(report(1, 0, vec![replica(7, 1, ReplicaState::Open, true)]));
        let group = RaftGroupId::new(7).unwrap();
        let health = nodes.health(NodeId::new(1).unwrap());
        assert_eq!(
            health.observed.unwrap().replica(group).unwrap().state,
            ReplicaState::Open
        );
        nodes.registered(NodeId::new(1).unwrap());
        assert!(nodes.health(NodeId::new(1).unwrap()).observed.is_none());
    }

    #[tokio::test]
    async fn only_news_wakes() {
        let nodes = Nodes::new(Duration::from_secs(5));
        nodes.reported(report(1, 0, Vec::new()));
        nodes.news().await;
        nodes.reported(report(1, 0, Vec::new()));
        let woken = tokio::time::timeout(Duration::from_millis(20), nodes.news()).await;
        assert!(woken.is_err(), "the same again is not news");
        nodes.reported(report(1, 1, Vec::new()));
        nodes.news().await;
    }
}
