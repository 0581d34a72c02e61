//! What nodes report is recorded: which replicas were opened, which groups were initialised, which deletions are done.

use ptah_rpc::clients::ReplicaState;
use ptah_rpc::records::{PlacementRecord, RecordKey, RecordValue};
use ptah_types::NodeId;
use tracing::{debug, warn};

use super::{COMPACTION_INTERVAL, Change, Decider, Step};
use crate::nodes::Nodes;
use crate::view::View;

/// Placements of one write.
const BATCH: usize = 500;
/// Newest revisions whose tombstones stay, so that watchers that were away for a moment need not list again.
const KEEP_REVISIONS: u64 = 10_000;
/// A compaction that would gain less is not worth the write.
const LEAST_GAIN: u64 = 1_000;

impl Decider {
    /// Records until nothing new is left.
    pub(super) async fn record_progress(&mut self) {
        let nodes = &self.parts.nodes;
        while self.parts.lease.authority().is_ok() {
            let recorded = self
                .decide("record progress", |view| Ok(progress(view, nodes)))
                .await;
            match recorded {
                Ok(0) => return,
                Ok(count) => debug!(count, "progress of placements recorded"),
                Err(error) => {
                    // The next report brings it up again.
                    warn!(%error, "progress of placements cannot be recorded");
                    return;
                }
            }
        }
    }

    /// Lets the store drop tombstones that no node needs any more.
    pub(super) async fn compact(&mut self) {
        let Ok(epoch) = self.parts.lease.authority() else {
            return;
        };
        let Some(floor) = self.parts.metadata.read(floor) else {
            return;
        };
        if floor < self.compacted_to.saturating_add(LEAST_GAIN) {
            return;
        }
        match self.parts.client.compact(floor, epoch).await {
            Ok(floor) => {
                self.compacted_to = floor;
                self.parts.metadata.update(|view| view.forget_tombstones(floor));
            }
            Err(error) => {
                let again_in = COMPACTION_INTERVAL.as_secs();
                warn!(%error, again_in, "old metadata cannot be dropped");
            }
        }
    }
}

pub(super) fn floor(view: &View) -> u64 {
    view.settled_revision()
        .min(view.revision().saturating_sub(KEEP_REVISIONS))
}

/// What reports say beyond what is recorded.
pub(super) fn progress(view: &View, nodes: &Nodes) -> Step<usize> {
    let mut updated = Vec::new();
    for placement in view.unfinished() {
        let now = observed(placement.value, nodes);
        if now != *placement.value {
            updated.push((placement.revision, now));
        }
        if updated.len() == BATCH {
            break;
        }
    }
    if updated.is_empty() {
        return Step::Done(0);
    }
    let count = updated.len();
    let mut change = Change::new(move |_| count);
    for (revision, placement) in updated {
        change.put(
            RecordKey::placement(&placement.partition),
            revision,
            RecordValue::Placement(placement),
        );
    }
    Step::Commit(change)
}

/// The placement with the flags that reports add. Flags are never taken back.
fn observed(placement: &PlacementRecord, nodes: &Nodes) -> PlacementRecord {
    let mut now = placement.clone();
    for replica in &mut now.replicas {
        let Some(seen) = replica_of(nodes, replica.node, placement) else {
            continue;
        };
        if seen.replica.is_some_and(|id| id != replica.replica) {
            continue;
        }
        now.initialized |= seen.initialized;
        replica.opened |= match seen.state {
            // Whatever is wrong with it now, it is on that disk.
            ReplicaState::Open | ReplicaState::Damaged | ReplicaState::Failed => true,
            ReplicaState::Starting | ReplicaState::Lost | ReplicaState::UnknownGroup => false,
        };
    }
    now
}

fn replica_of(
    nodes: &Nodes,
    node: NodeId,
    placement: &PlacementRecord,
) -> Option<ptah_rpc::clients::ReplicaReport> {
    nodes.health(node).observed?.replica(placement.group).cloned()
}
