//! The task that looks at all nodes at every interval, and finds out about those whose connections break.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ptah_service::Tasks;
use ptah_types::NodeId;
use tokio::time::{Instant, MissedTickBehavior};

use super::Detector;
use crate::directory::Directory;
use crate::transport::Transport;

/// How long one attempt to connect may take. A dead process refuses at once.
const CONNECT_PATIENCE: Duration = Duration::from_millis(250);
/// How often the address is tried: a stream may break before the process is gone.
const ATTEMPTS: u32 = 20;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(10);

/// Watches until the host stops.
pub(crate) async fn run(
    detector: Arc<Detector>,
    directory: Arc<Directory>,
    transport: Transport,
    tasks: Tasks,
) {
    let stopping = tasks.stopping();
    let mut ticks = tokio::time::interval(detector.interval());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let lost = tokio::select! {
            () = stopping.cancelled() => return,
            node = directory.next_lost() => Some(node),
            _ = ticks.tick() => None,
        };
        let Some(node) = lost else {
            let nodes: BTreeSet<NodeId> = transport.other_nodes();
            transport.keep_pinging(&nodes);
            detector.look(&nodes, Instant::now());
            continue;
        };
        let (detector, transport) = (Arc::clone(&detector), transport.clone());
        tasks.spawn(format!("look after node {node}"), async move {
            let process = detector.incarnation(node);
            if is_gone(&transport, node).await && detector.incarnation(node) == process {
                detector.is_gone(node, Instant::now());
            }
        });
    }
}

async fn is_gone(transport: &Transport, node: NodeId) -> bool {
    for _ in 0..ATTEMPTS {
        if transport.is_certainly_gone(node, CONNECT_PATIENCE).await {
            return true;
        }
        tokio::time::sleep(ATTEMPT_PAUSE).await;
    }
    false
}
