//! What an instruction of the control plane makes of the placement: a pure step.

use ptah_rpc::clients::{PlacementOrder, ReplicaSpec};
use ptah_types::RaftGroupId;

use super::{Fence, PlacedReplica, Placement};

/// Why an instruction is refused. Nothing of it is carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MergeError {
    /// A newer one was carried out before.
    #[error(
        "placement of epoch {} and revision {} is older than epoch {} and revision {}, which this node has carried out",
        given.epoch, given.revision, newest.epoch, newest.revision
    )]
    Stale {
        /// The instruction's.
        given: Fence,
        /// Newest one carried out.
        newest: Fence,
    },
    /// A group to keep and to remove.
    #[error("raft group {0} is both placed and removed by the same order")]
    Contradiction(RaftGroupId),
    /// A group that was removed is placed again; ids are never used again.
    #[error("raft group {0} is being removed; a new partition needs a new raft group")]
    Removed(RaftGroupId),
}

/// The placement after `order`. What the order does not name stays as it is.
pub(super) fn merge(placement: &Placement, order: PlacementOrder) -> Result<Placement, MergeError> {
    let given = Fence {
        epoch: order.epoch,
        revision: order.revision,
    };
    if given < placement.fence {
        let newest = placement.fence;
        return Err(MergeError::Stale { given, newest });
    }
    let mut merged = placement.clone();
    merged.fence = given;
    if !order.peers.is_empty() {
        merged.peers = order.peers;
    }
    for tombstone in order.remove {
        if order.ensure.iter().any(|spec| spec.group == tombstone.group) {
            return Err(MergeError::Contradiction(tombstone.group));
        }
        merged.replicas.remove(&tombstone.group);
        merged.removals.insert(tombstone.group, tombstone.revision);
    }
    for spec in order.ensure {
        if merged.removals.contains_key(&spec.group) {
            return Err(MergeError::Removed(spec.group));
        }
        let group = spec.group;
        let placed = place(merged.replicas.get(&group), spec);
        merged.replicas.insert(group, placed);
    }
    Ok(merged)
}

/// What is known here is not forgotten: that the replica was open, and that its group is initialised.
fn place(known: Option<&PlacedReplica>, spec: ReplicaSpec) -> PlacedReplica {
    let known = known.filter(|known| known.replica == spec.replica);
    let was_open = known.is_some_and(|known| known.opened);
    let initialized = known.is_some_and(|known| known.initialized);
    PlacedReplica {
        key: spec.partition,
        replica: spec.replica,
        members: spec.members,
        opened: spec.opened || was_open,
        initialize: spec.initialize && !initialized,
        initialized,
        max_message_bytes: spec.max_message_bytes,
        generation: spec.generation,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ptah_rpc::clients::ReplicaTombstone;
    use ptah_types::{ClusterId, NodeId, PartitionKey, PartitionNumber, ReplicaId, StationId};

    use super::super::Owner;
    use super::*;

    fn empty() -> Placement {
        Placement::empty(Owner {
            cluster: ClusterId::from_random_bytes([1; 16]),
            node: NodeId::new(1).unwrap(),
            disk_id: String::new(),
        })
    }

    fn group(id: u64) -> RaftGroupId {
        RaftGroupId::new(id).unwrap()
    }

    fn spec(id: u64) -> ReplicaSpec {
        ReplicaSpec {
            partition: PartitionKey {
                tenant: "default".parse().unwrap(),
                station: StationId::new(1).unwrap(),
                partition: PartitionNumber::FIRST,
            },
            group: group(id),
            replica: ReplicaId::new(1).unwrap(),
            members: vec![(ReplicaId::new(1).unwrap(), NodeId::new(1).unwrap())],
            opened: false,
            initialize: true,
            max_message_bytes: 10,
            generation: 1,
        }
    }

    fn order(epoch: u64, revision: u64) -> PlacementOrder {
        PlacementOrder {
            epoch,
            revision,
            peers: BTreeMap::new(),
            ensure: Vec::new(),
            remove: Vec::new(),
        }
    }

    #[test]
    fn an_order_older_than_the_last_one_changes_nothing() {
        let placement = merge(&empty(), order(2, 5)).unwrap();
        assert!(matches!(
            merge(&placement, order(2, 4)),
            Err(MergeError::Stale { .. })
        ));
        assert!(matches!(
            merge(&placement, order(1, 9)),
            Err(MergeError::Stale { .. })
        ));
        assert!(merge(&placement, order(2, 5)).is_ok());
        assert!(merge(&placement, order(3, 1)).is_ok());
    }

    #[test]
    fn what_an_order_does_not_name_stays() {
        let mut first = order(1, 1);
        first.ensure = vec![spec(1), spec(2)];
        let placement = merge(&empty(), first).unwrap();
        let mut second = order(1, 2);
        second.remove = vec![ReplicaTombstone {
            group: group(1),
            revision: 2,
        }];
        let placement = merge(&placement, second).unwrap();
        assert_eq!(placement.replicas.keys().copied().collect::<Vec<_>>(), [group(2)]);
        assert_eq!(placement.removals, BTreeMap::from([(group(1), 2)]));
    }

    #[test]
    fn a_removed_group_is_never_placed_again() {
        let mut remove = order(1, 1);
        remove.remove = vec![ReplicaTombstone {
            group: group(1),
            revision: 1,
        }];
        let placement = merge(&empty(), remove.clone()).unwrap();
        let mut again = order(1, 2);
        again.ensure = vec![spec(1)];
        assert_eq!(merge(&placement, again), Err(MergeError::Removed(group(1))));
        remove.ensure = vec![spec(1)];
        assert_eq!(merge(&empty(), remove), Err(MergeError::Contradiction(group(1))));
    }

    #[test]
    fn a_replica_that_is_open_may_still_be_told_to_initialise_its_group() {
        let mut first = order(1, 1);
        first.ensure = vec![ReplicaSpec {
            initialize: false,
            ..spec(1)
        }];
        let mut placement = merge(&empty(), first).unwrap();
        placement.replicas.get_mut(&group(1)).unwrap().opened = true;
        let mut second = order(1, 2);
        second.ensure = vec![spec(1)];
        assert!(merge(&placement, second).unwrap().replicas[&group(1)].initialize);
    }

    #[test]
    fn an_open_replica_may_be_asked_to_initialise_later() {
        let mut opening = order(1, 1);
        opening.ensure = vec![spec(1)];
        opening.ensure[0].initialize = false;
        let mut placement = merge(&empty(), opening).unwrap();
        placement.replicas.get_mut(&group(1)).unwrap().opened = true;
        let mut initialising = order(1, 2);
        initialising.ensure = vec![spec(1)];
        assert!(merge(&placement, initialising).unwrap().replicas[&group(1)].initialize);
    }

    #[test]
    fn a_replica_that_was_open_and_initialised_stays_so() {
        let mut first = order(1, 1);
        first.ensure = vec![spec(1)];
        let mut placement = merge(&empty(), first.clone()).unwrap();
        let placed = placement.replicas.get_mut(&group(1)).unwrap();
        placed.opened = true;
        placed.initialized = true;
        let placed = merge(&placement, first).unwrap().replicas[&group(1)].clone();
        assert_eq!((placed.opened, placed.initialize), (true, false));
    }
}
