//! Reconciling: one worker per storage node compares what is wanted of its node with what the node reports, and orders
//! the difference. An order may be lost or come twice; the next comparison finds out.

mod order;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ptah_rpc::clients::PlacementOrder;
use ptah_rpc::{Channels, ReplicaClient, RpcError};
use ptah_service::{Random, Stopping, Tasks};
use ptah_types::NodeId;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::lease::Lease;
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::sync::Metadata;
use order::{Circumstances, Memory, difference};

pub(crate) use order::{is_gone, is_gone_replica};

/// A node that does not take an order in this time is asked again later.
const ORDER_DEADLINE: Duration = Duration::from_secs(5);
/// A worker looks this often without being woken, for orders that were taken but led to nothing.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What workers work with.
#[derive(Clone)]
pub struct ReconcileParts {
    /// What is wanted.
    pub metadata: Metadata,
    /// What is.
    pub nodes: Nodes,
    /// Whether to order at all.
    pub lease: Lease,
    /// Ways to the nodes.
    pub channels: Channels,
    /// Jitter of pauses.
    pub random: Arc<dyn Random>,
    /// Where to count.
    pub metrics: Metrics,
}

/// Starts a worker for every node that there is, and wakes all of them when placements change.
pub async fn run(parts: ReconcileParts, tasks: Tasks) {
    let stopping = tasks.stopping();
    let mut progress = parts.metadata.progress();
    let mut layout = 0;
    let mut started = BTreeSet::new();
    loop {
        let now = progress.borrow_and_update().layout;
        if now != layout {
            layout = now;
            start_missing(&parts, &tasks, &mut started);
            parts.nodes.wake_all();
        }
        parts.metrics.nodes_alive(parts.nodes.count_alive());
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            changed = progress.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}

fn start_missing(parts: &ReconcileParts, tasks: &Tasks, started: &mut BTreeSet<NodeId>) {
    let nodes: Vec<NodeId> = parts
        .metadata
        .read(|view| view.nodes().map(|node| node.node).collect())
        .unwrap_or_default();
    for node in nodes {
        if started.insert(node) {
            let worker = Worker {
                parts: parts.clone(),
                node,
                wake: parts.nodes.waker_of(node),
                memory: Memory::default(),
            };
            let stopping = tasks.stopping();
            tasks.spawn_critical(format!("node-{node}"), async move {
                worker.run(stopping).await;
                Ok(())
            });
        }
    }
}

/// The worker of one node.
struct Worker {
    parts: ReconcileParts,
    node: NodeId,
    wake: Arc<Notify>,
    memory: Memory,
}

/// What a round came to.
enum Round {
    Nothing,
    Ordered,
    Failed,
}

impl Worker {
    async fn run(mut self, stopping: Stopping) {
        let mut pause = FIRST_PAUSE;
        loop {
            let round = tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                round = self.round() => round,
            };
            let wait = match round {
                // A large difference goes in several orders.
                Round::Ordered => {
                    pause = FIRST_PAUSE;
                    continue;
                }
                Round::Nothing => {
                    pause = FIRST_PAUSE;
                    LOOK_INTERVAL
                }
                Round::Failed => {
                    let jitter = self
                        .parts
                        .random
                        .below(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
                    let wait = pause + Duration::from_millis(jitter);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    wait
                }
            };
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                () = self.wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Compares once, and orders the difference.
    async fn round(&mut self) -> Round {
        let Ok(epoch) = self.parts.lease.authority() else {
            return Round::Nothing;
        };
        let health = self.parts.nodes.health(self.node);
        if !health.alive {
            return Round::Nothing;
        }
        let (node, memory) = (self.node, &mut self.memory);
        let now = Instant::now();
        memory.begin(epoch, now);
        let alive = self.parts.nodes.alive();
        let circumstances = Circumstances {
            epoch,
            alive: &alive,
            now,
        };
        let found = self.parts.metadata.read(|view| {
            let address = view.node(node)?.value.address.clone();
            let order = difference(view, node, health.observed.as_deref(), memory, &circumstances)?;
            Some((address, order))
        });
        let Some((address, order)) = found.flatten() else {
            return Round::Nothing;
        };
        let outcome = self.send(&address, &order).await;
        self.parts.metrics.ordered(outcome.is_ok());
        match outcome {
            Ok(()) => {
                debug!(node = %self.node, ensure = order.ensure.len(), remove = order.remove.len(), "order taken");
                self.memory.taken(&order, Instant::now());
                Round::Ordered
            }
            Err(error) => {
                warn!(node = %self.node, %error, "order not taken; trying again");
                Round::Failed
            }
        }
    }

    async fn send(&self, address: &str, order: &PlacementOrder) -> Result<(), RpcError> {
        let channel = self.parts.channels.to(address)?;
        ReplicaClient::new(channel)
            .with_deadline(ORDER_DEADLINE)
            .apply_placement(order)
            .await
    }
}

/// Addresses of all nodes.
type Peers = BTreeMap<NodeId, String>;
