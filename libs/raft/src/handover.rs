//! Ending replicas in order: leadership goes to another voter first.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use openraft::async_runtime::watch::WatchReceiver as _;

use crate::cell::{Cell, ReplicaState, Shared};
use crate::shield::unbroken;
use crate::types::Raft;

/// Leaderships that move at the same time: a group takes nothing while its leadership moves, so that all at once would
/// let each wait for all.
const HANDOVERS_AT_A_TIME: usize = 8;
/// How long one of them is tried.
const ONE_HANDOVER: Duration = Duration::from_millis(500);
/// How long a replica may take to stop.
const REPLICA_STOP: Duration = Duration::from_secs(15);

/// Waits until a replica that was told to stop has stopped; its core is cut otherwise.
pub(crate) async fn wait_stopped(cell: &Cell) {
    let mut ticks = cell.shared.replicas.subscribe();
    let ended = async {
        loop {
            let state = cell.replica_state();
            if !matches!(
                state,
                ReplicaState::Opening | ReplicaState::Running | ReplicaState::Restarting
            ) {
                return;
            }
            if ticks.changed().await.is_err() {
                return;
            }
        }
    };
    if tokio::time::timeout(REPLICA_STOP, ended).await.is_err() {
        tracing::error!(group = %cell.group.to_hex(), "replica does not stop");
    }
}

/// Moves every leadership to the voter that has most of the log, and waits until it is taken.
pub(crate) async fn hand_over(cells: &[Arc<Cell>]) {
    let moves = futures_util::stream::iter(cells);
    moves
        .for_each_concurrent(HANDOVERS_AT_A_TIME, |cell: &Arc<Cell>| async move {
            // One that finds no successor must not take the others' time.
            let _ = tokio::time::timeout(ONE_HANDOVER, hand_over_one(cell)).await;
        })
        .await;
}

async fn hand_over_one(cell: &Arc<Cell>) {
    if !cell.leadership().ready {
        return;
    }
    cell.until_awake().await;
    let Some(running) = cell.running() else { return };
    let target = best_follower(cell, &running.raft);
    let Some(target) = target else { return };
    if hand_leadership(&cell.shared, running.raft, target).await.is_err() {
        return;
    }
    let mut leadership = cell.watch_leadership();
    // Either it is handed over, or the replica is gone.
    let _ = leadership.wait_for(|leadership| !leadership.ready).await;
}

/// Asks another replica to lead.
pub(crate) async fn hand_leadership(shared: &Shared, raft: Raft, to: u64) -> Result<(), String> {
    let call = async move { raft.trigger().transfer_leader(to).await };
    unbroken(&shared.tasks, &shared.runtime, "leadership transfer", call)
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())
}

fn best_follower(cell: &Cell, raft: &crate::types::Raft) -> Option<u64> {
    let own = cell.replica.get();
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let voters: Vec<u64> = metrics.membership_config.membership().voter_ids().collect();
    let replication = metrics.replication.as_ref()?;
    replication
        .iter()
        .filter(|(replica, matched)| **replica != own && voters.contains(replica) && matched.is_some())
        .max_by_key(|(_, matched)| matched.as_ref().map(|id| id.index()))
        .map(|(replica, _)| *replica)
}
