//! What nodes report is recorded: which replicas were opened or lost, which groups were initialised, which replicas have
//! left, which deletions are done.

use std::collections::BTreeSet;

use ptah_rpc::clients::ReplicaState;
use ptah_rpc::records::{NodeDuty, PlacementRecord, RecordKey, RecordValue, RetiredReplica};
use ptah_types::ReplicaId;
use tracing::{debug, warn};

use super::moves::{Places, leader_and_node, of_reports};
use super::{COMPACTION_INTERVAL, Change, Decider, Step};
use crate::nodes::Nodes;
use crate::reconcile::is_gone_replica;
use crate::view::{Versioned, View};

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
    let places = of_reports(view, nodes);
    for placement in view.unfinished() {
        let now = observed(placement, view, &places);
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

/// The placement with what reports add. Flags are never taken back.
fn observed(placement: Versioned<&PlacementRecord>, view: &View, places: &Places) -> PlacementRecord {
    let mut now = placement.value.clone();
    let group = now.group;
    for replica in &mut now.replicas {
        let seen = places
            .get(&replica.node)
            .and_then(|place| place.observed.as_ref());
        let Some(seen) = seen.and_then(|observed| observed.replica(group)) else {
            continue;
        };
        if seen.replica.is_some_and(|id| id != replica.replica) {
            continue;
        }
        now.initialized |= seen.initialized;
        replica.lost |= replica.opened && seen.state == ReplicaState::Lost;
        replica.opened |= match seen.state {
            // Whatever is wrong with it now, it is on that disk.
            ReplicaState::Open | ReplicaState::Damaged | ReplicaState::Failed => true,
            ReplicaState::Starting | ReplicaState::Lost | ReplicaState::UnknownGroup => false,
        };
    }
    let_go(&mut now, placement.revision, places);
    now.retired.retain(|retired| {
        let duty = view.node(retired.node).map(|node| node.value.duty);
        let seen = places
            .get(&retired.node)
            .and_then(|place| place.observed.as_ref());
        let gone = seen.is_some_and(|seen| is_gone_replica(seen, group, retired.replica, placement.revision));
        !(gone || matches!(duty, None | Some(NodeDuty::Forgotten)))
    });
    now
}

/// Replicas that leave are retired when the leader says that the group goes on without them, and has heard of no other
/// wish than the one of that revision: it would not change members for an older one any more.
fn let_go(placement: &mut PlacementRecord, revision: u64, places: &Places) {
    if !placement.replicas.iter().any(|replica| replica.leaving) {
        return;
    }
    let wanted: BTreeSet<ReplicaId> = placement.wanted().map(|replica| replica.replica).collect();
    let has_left = leader_and_node(placement, places).is_some_and(|(leader, node)| {
        let voters: BTreeSet<ReplicaId> = leader.voters.iter().copied().collect();
        let is_so = leader.members_settled && voters == wanted && leader.learners.is_empty();
        is_so && node.report.placement_revision >= revision
    });
    if !has_left {
        return;
    }
    let leaving = placement.replicas.iter().filter(|replica| replica.leaving);
    let retired = leaving.map(|replica| RetiredReplica {
        replica: replica.replica,
        node: replica.node,
    });
    placement.retired.extend(retired.collect::<Vec<_>>());
    placement.replicas.retain(|replica| !replica.leaving);
}
