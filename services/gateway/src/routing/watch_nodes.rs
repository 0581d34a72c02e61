//! One task per storage node that receives its leader table, started and stopped as nodes come and go in the catalog.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use ptah_rpc::RpcError;
use ptah_service::{Component, Random, Stopping, TaskHandle, Tasks};
use ptah_types::{NodeId, RaftGroupId};
use tracing::{debug, info};

use super::{Claim, Routing};
use crate::catalog::Catalog;
use crate::metrics::RoutingMetrics;

const FIRST_BACKOFF: Duration = Duration::from_millis(20);
/// A node that comes back is noticed within this time.
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// Part of a node's leader table.
pub struct LeaderNews {
    /// What is not named is not known to the node.
    pub full: bool,
    /// Claims.
    pub claims: Vec<(RaftGroupId, Claim)>,
}

/// Opens streams of leader tables. The first news of a stream is full.
pub trait LeaderSource: Send + Sync + 'static {
    /// Connects to the node at `address`.
    fn watch(&self, address: String) -> BoxFuture<'_, Result<Box<dyn LeaderStream>, RpcError>>;
}

/// News as they come.
pub trait LeaderStream: Send {
    /// Next news; `None` when the node ended the stream. May be dropped while waiting.
    fn next(&mut self) -> BoxFuture<'_, Option<Result<LeaderNews, RpcError>>>;
}

/// Parts of the watch.
#[derive(Clone)]
pub struct NodeWatch {
    /// Filled.
    pub routing: Routing,
    /// Tells nodes and addresses.
    pub catalog: Catalog,
    /// The nodes.
    pub source: Arc<dyn LeaderSource>,
    /// For jitter.
    pub random: Arc<dyn Random>,
    /// Counters.
    pub metrics: RoutingMetrics,
}

impl NodeWatch {
    /// Keeps one task per node of the catalog until told to stop. `component` is ready while the table of at least one
    /// node is being received, or there is no node.
    pub async fn run(self, tasks: Tasks, component: Component, stopping: Stopping) {
        let mut running: BTreeMap<NodeId, (String, TaskHandle)> = BTreeMap::new();
        let mut changes = self.catalog.watch();
        loop {
            changes.mark_unchanged();
            let wanted: BTreeMap<NodeId, String> = self.catalog.with(|view| {
                view.nodes()
                    .map(|node| (node.node, node.address.clone()))
                    .collect()
            });
            running.retain(|node, (address, task)| {
                let keep = wanted.get(node) == Some(address) && !task.is_finished();
                if !keep {
                    task.abort();
                    self.routing.set_connected(*node, false);
                }
                if !wanted.contains_key(node) {
                    self.routing.forget_node(*node);
                }
                keep
            });
            for (node, address) in wanted {
                running.entry(node).or_insert_with(|| {
                    let follow = self.clone().follow(node, address.clone(), stopping.clone());
                    (address, tasks.spawn(format!("leaders-of-node-{node}"), follow))
                });
            }
            self.tell(&component, running.len());
            tokio::select! {
                () = stopping.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
        }
    }

    fn tell(&self, component: &Component, nodes: usize) {
        let connected = self.routing.connected().len();
        self.metrics.connected_nodes.set(connected as i64);
        if !self.catalog.position().loaded {
            component.not_ready("the catalog is not loaded yet");
        } else if connected == 0 && nodes > 0 {
            component.not_ready("no storage node answers");
        } else {
            component.ready();
        }
    }

    async fn follow(self, node: NodeId, address: String, stopping: Stopping) {
        let mut backoff = FIRST_BACKOFF;
        while !stopping.is_stopping() {
            let ended = tokio::select! {
                () = stopping.cancelled() => return,
                ended = self.receive(node, &address, &mut backoff) => ended,
            };
            self.routing.set_connected(node, false);
            if let Err(error) = ended {
                self.metrics.failures.inc();
                debug!(%node, address, %error, "leader table of a node is not received");
            }
            let jitter = Duration::from_millis(self.random.below(backoff.as_millis() as u64 + 1));
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(backoff + jitter) => {}
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    async fn receive(&self, node: NodeId, address: &str, backoff: &mut Duration) -> Result<(), RpcError> {
        let mut stream = self.source.watch(address.to_owned()).await?;
        while let Some(news) = stream.next().await {
            let news = news?;
            if news.full {
                info!(%node, address, groups = news.claims.len(), "leader table of a node received");
                self.routing.set_connected(node, true);
                *backoff = FIRST_BACKOFF;
            }
            self.metrics.changes.inc_by(news.claims.len() as u64);
            self.routing.told(node, news.full, &news.claims);
        }
        Ok(())
    }
}
