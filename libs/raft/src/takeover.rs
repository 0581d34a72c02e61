//! Taking over from a leader whose process is certainly gone.
//!
//! openraft refuses elections while the old leader's lease lives. When a node's heartbeat stream ends and its address
//! refuses connections, no process can be leading there any more, and the survivors use the path of a planned
//! transfer: voters grant although the lease lives. Survivors take turns by replica id; one whose log is behind is
//! refused, and the next one tries. If the death was an error after all (another process now listens elsewhere with
//! the same data), a healthy leader is replaced, which is harmless.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::raft::TransferLeaderRequest;
use ptah_service::{Ports, Tasks};
use ptah_types::NodeId;

use crate::cell::{Cell, Leadership};
use crate::directory::Directory;
use crate::transport::Transport;
use crate::types::members;

/// How long one attempt to connect may take. A dead process refuses at once.
const CONNECT_PATIENCE: Duration = Duration::from_millis(250);
/// How often the address is tried: a stream may break before the process is gone.
const ATTEMPTS: u32 = 10;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(30);
/// Survivors take their turns this far apart.
const TURN: Duration = Duration::from_millis(60);
/// Random part of a turn.
const JITTER_MICROS: u64 = 10_000;

/// Waits for lost nodes.
pub(crate) async fn run(directory: Arc<Directory>, transport: Transport, ports: Ports, tasks: Tasks) {
    let stopping = tasks.stopping();
    loop {
        let node = tokio::select! {
            () = stopping.cancelled() => return,
            node = directory.next_lost() => node,
        };
        let (directory, transport, ports) = (Arc::clone(&directory), transport.clone(), ports.clone());
        let owner = tasks.clone();
        tasks.spawn(format!("takeover from node {node}"), async move {
            if is_gone(&transport, node).await {
                take_over(&directory, &ports, &owner, node);
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

fn take_over(directory: &Directory, ports: &Ports, tasks: &Tasks, node: NodeId) {
    for cell in directory.all() {
        let leadership = cell.leadership();
        if leadership.leader != Some(node) {
            continue;
        }
        let Some(turn) = turn_of(&cell, node) else {
            continue;
        };
        let jitter = Duration::from_micros(ports.random.below(JITTER_MICROS));
        let name = format!("takeover of group {}", cell.group.to_hex());
        tasks.spawn(name, async move {
            tokio::time::sleep(TURN * turn + jitter).await;
            campaign(&cell, leadership).await;
        });
    }
}

/// This replica's place among the surviving voters; `None` when it is none.
fn turn_of(cell: &Cell, dead: NodeId) -> Option<u32> {
    let stored = cell.with_running(|running| {
        running
            .raft
            .server_metrics()
            .borrow_watched()
            .membership_config
            .clone()
    })?;
    let (voters, _) = members(stored.membership());
    let mut survivors = voters.iter().filter(|(_, home)| *home != dead);
    let place = survivors.position(|(replica, _)| *replica == cell.replica)?;
    u32::try_from(place).ok()
}

async fn campaign(cell: &Cell, seen: Leadership) {
    let now = cell.leadership();
    if (now.term, now.leader) != (seen.term, seen.leader) {
        return;
    }
    let Some(running) = cell.running() else { return };
    let vote = running.raft.server_metrics().borrow_watched().vote;
    let last = running.raft.data_metrics().borrow_watched().last_log;
    cell.shared.metrics.takeovers.inc();
    tracing::info!(group = %cell.group.to_hex(), term = %seen.term, "leader's process is gone, taking over");
    let request = TransferLeaderRequest::new(vote, cell.replica.get(), last);
    if let Err(error) = running.raft.handle_transfer_leader(request).await {
        tracing::debug!(group = %cell.group.to_hex(), %error, "takeover was not started");
    }
}
