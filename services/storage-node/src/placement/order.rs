//! What an instruction of the control plane makes of the placement: a pure step.

use ptah_rpc::clients::{PlacementOrder, ReplicaSpec};
use ptah_types::{RaftGroupId, ReplicaId};

use super::{Fence, PlacedReplica, Placement, Removal};

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
    /// A node holds one replica of a group at a time.
    #[error(
        "replica {placed} of raft group {group} is here; it has to be removed before replica {wanted} is placed"
    )]
    OtherReplica {
        /// The group.
        group: RaftGroupId,
        /// The replica that is here.
        placed: ReplicaId,
        /// The one to place.
        wanted: ReplicaId,
    },
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
        let removal = Removal {
            group: tombstone.group,
            replica: tombstone.replica,
        };
        if order
            .ensure
            .iter()
            .any(|spec| removal.concerns(spec.group, spec.replica))
        {
            return Err(MergeError::Contradiction(tombstone.group));
        }
        let placed = merged.replicas.get(&tombstone.group);
        if placed.is_some_and(|placed| removal.concerns(tombstone.group, placed.replica)) {
            merged.replicas.remove(&tombstone.group);
        }
        merged.removals.insert(removal, tombstone.revision);
    }
    for spec in order.ensure {
        let (group, wanted) = (spec.group, spec.replica);
        if merged
            .removals
            .keys()
            .any(|removal| removal.concerns(group, wanted))
        {
            return Err(MergeError::Removed(group));
        }
        let placed = merged.replicas.get(&group).map(|placed| placed.replica);
        if let Some(placed) = placed.filter(|placed| *placed != wanted) {
            return Err(MergeError::OtherReplica {
                group,
                placed,
                wanted,
            });
        }
        let placed = place(merged.replicas.get(&group), spec);
        merged.replicas.insert(group, placed);
    }
    Ok(merged)
}

impl Removal {
    /// Whether a replica is among what is removed.
    fn concerns(&self, group: RaftGroupId, replica: ReplicaId) -> bool {
        self.group == group && self.replica.is_none_or(|removed| removed == replica)
    }
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
    use std::collections::{BTreeMap, BTreeSet};

    use ptah_rpc::clients::ReplicaTombstone;
    use ptah_types::{ClusterId, NodeId, PartitionKey, PartitionNumber, StationId};

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
            members: Vec::new(),
            yielding: BTreeSet::new(),
        }
    }

    fn removal(group_id: u64, replica: Option<u64>) -> Removal {
        Removal {
            group: group(group_id),
            replica: replica.map(|id| ReplicaId::new(id).unwrap()),
        }
    }

    fn tombstone(group_id: u64, replica: Option<u64>, revision: u64) -> ReplicaTombstone {
        let Removal { group, replica } = removal(group_id, replica);
        ReplicaTombstone {
            group,
            revision,
            replica,
        }
    }

    #[test]
    fn a_replica_makes_room_for_another_one_of_its_group() {
        let newer = ReplicaSpec {
            replica: ReplicaId::new(4).unwrap(),
            initialize: false,
            ..spec(1)
        };
        let mut first = order(1, 1);
        first.ensure = vec![spec(1)];
        let placement = merge(&empty(), first.clone()).unwrap();
        let mut beside = order(1, 2);
        beside.ensure = vec![newer.clone()];
        assert!(
            matches!(
                merge(&placement, beside.clone()),
                Err(MergeError::OtherReplica { .. })
            ),
            "not beside the one that is here"
        );
        beside.remove = vec![tombstone(1, Some(1), 2)];
        let placement = merge(&placement, beside).unwrap();
        assert_eq!(placement.replicas[&group(1)].replica, newer.replica);
        assert_eq!(placement.removals, BTreeMap::from([(removal(1, Some(1)), 2)]));
        first.revision = 3;
        assert_eq!(
            merge(&placement, first),
            Err(MergeError::Removed(group(1))),
            "the one that left does not come back"
        );
        // A late repetition of the tombstone leaves the new one alone.
        let mut again = order(1, 3);
        again.remove = vec![tombstone(1, Some(1), 3)];
        let placement = merge(&placement, again).unwrap();
        assert_eq!(placement.replicas[&group(1)].replica, newer.replica);
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
        second.remove = vec![tombstone(1, None, 2)];
        let placement = merge(&placement, second).unwrap();
        assert_eq!(placement.replicas.keys().copied().collect::<Vec<_>>(), [group(2)]);
        assert_eq!(placement.removals, BTreeMap::from([(removal(1, None), 2)]));
    }

    #[test]
    fn a_removed_group_is_never_placed_again() {
        let mut remove = order(1, 1);
        remove.remove = vec![tombstone(1, None, 1)];
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
