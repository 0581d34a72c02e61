//! Where the replicas of a new station go. A pure function: the same nodes and loads give the same places.
//!
//! - Replicas of a partition are on different nodes, and in different zones as far as there are enough zones.
//! - Nodes with fewer replicas come first, over all stations.
//! - The first replica of a partition initialises its group and so leads it at first: first places are spread, too.

use std::collections::BTreeMap;

use ptah_types::{Boundary, ErrorKind, NodeId};

/// A node that may get replicas.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeLoad {
    /// The node.
    pub node: NodeId,
    /// Failure domain; empty when not known, which counts as a zone of its own.
    pub zone: String,
    /// Replicas that it has already.
    pub replicas: usize,
    /// Partitions whose first replica it has.
    pub firsts: usize,
}

/// Replicas cannot be placed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlacementError {
    /// The cluster is too small.
    #[error(
        "{needed} replicas need {needed} storage nodes, the cluster has {registered}; start more storage nodes or ask for fewer replicas"
    )]
    TooFewNodes {
        /// Nodes that are needed.
        needed: usize,
        /// Nodes that ever registered.
        registered: usize,
    },
    /// The cluster is large enough, but not all of it is there.
    #[error(
        "{needed} replicas need {needed} live storage nodes, {alive} of {registered} are alive; start the others or ask for fewer replicas"
    )]
    TooFewAlive {
        /// Nodes that are needed.
        needed: usize,
        /// Nodes that report.
        alive: usize,
        /// Nodes that ever registered.
        registered: usize,
    },
}

impl Boundary for PlacementError {
    fn kind(&self) -> ErrorKind {
        match self {
            // Repeating it gives the same answer until somebody adds nodes.
            Self::TooFewNodes { .. } => ErrorKind::Conflict,
            Self::TooFewAlive { .. } => ErrorKind::Unavailable,
        }
    }
}

/// Chooses nodes for `partitions` partitions of `replicas` replicas each; the first of each list is the first replica.
///
/// `alive` are the nodes to choose from, `registered` is how many there are in all, for the error.
pub fn place(
    partitions: u32,
    replicas: usize,
    alive: &[NodeLoad],
    registered: usize,
) -> Result<Vec<Vec<NodeId>>, PlacementError> {
    if registered < replicas {
        return Err(PlacementError::TooFewNodes {
            needed: replicas,
            registered,
        });
    }
    if alive.len() < replicas {
        return Err(PlacementError::TooFewAlive {
            needed: replicas,
            alive: alive.len(),
            registered,
        });
    }
    let mut nodes = alive.to_vec();
    nodes.sort_by_key(|node| node.node);
    let mut places = Vec::with_capacity(partitions as usize);
    for _ in 0..partitions {
        let mut chosen = choose(&nodes, replicas);
        // The one with the fewest first places leads.
        if let Some(first) = (0..chosen.len()).min_by_key(|at| (nodes[chosen[*at]].firsts, *at)) {
            chosen.swap(0, first);
            nodes[chosen[0]].firsts += 1;
        }
        for at in &chosen {
            nodes[*at].replicas += 1;
        }
        places.push(chosen.into_iter().map(|at| nodes[at].node).collect());
    }
    Ok(places)
}

/// Places in `nodes` for one partition: each time the node in the least used zone, then with the least load.
fn choose(nodes: &[NodeLoad], replicas: usize) -> Vec<usize> {
    let mut chosen: Vec<usize> = Vec::with_capacity(replicas);
    let mut in_zone: BTreeMap<&str, usize> = BTreeMap::new();
    for _ in 0..replicas {
        let crowd = |node: &NodeLoad| match node.zone.as_str() {
            "" => 0,
            zone => in_zone.get(zone).copied().unwrap_or(0),
        };
        let free = (0..nodes.len()).filter(|at| !chosen.contains(at));
        let best = free.min_by_key(|at| {
            let node = &nodes[*at];
            (crowd(node), node.replicas, node.node)
        });
        let Some(best) = best else { break };
        *in_zone.entry(&nodes[best].zone).or_default() += 1;
        chosen.push(best);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(zones: &[&str]) -> Vec<NodeLoad> {
        let node = |(index, zone): (usize, &&str)| NodeLoad {
            node: NodeId::new(index as u64 + 1).unwrap(),
            zone: (*zone).to_owned(),
            replicas: 0,
            firsts: 0,
        };
        zones.iter().enumerate().map(node).collect()
    }

    fn ids(places: &[Vec<NodeId>]) -> Vec<Vec<u64>> {
        places
            .iter()
            .map(|place| place.iter().map(|node| node.get()).collect())
            .collect()
    }

    fn counts(places: &[Vec<NodeId>]) -> BTreeMap<u64, usize> {
        let mut counts = BTreeMap::new();
        for node in places.iter().flatten() {
            *counts.entry(node.get()).or_default() += 1;
        }
        counts
    }

    #[test]
    fn the_table_of_places() {
        struct Case {
            what: &'static str,
            zones: &'static [&'static str],
            partitions: u32,
            replicas: usize,
            expected: &'static [&'static [u64]],
        }
        let cases = [
            Case {
                what: "one node",
                zones: &[""],
                partitions: 2,
                replicas: 1,
                expected: &[&[1], &[1]],
            },
            Case {
                what: "every node gets one",
                zones: &["", "", ""],
                partitions: 3,
                replicas: 1,
                expected: &[&[1], &[2], &[3]],
            },
            Case {
                what: "leaders rotate when all nodes hold all partitions",
                zones: &["", "", ""],
                partitions: 4,
                replicas: 3,
                expected: &[&[1, 2, 3], &[2, 1, 3], &[3, 2, 1], &[1, 2, 3]],
            },
            Case {
                what: "zones before load",
                zones: &["a", "a", "b", "c"],
                partitions: 2,
                replicas: 3,
                expected: &[&[1, 3, 4], &[2, 3, 4]],
            },
            Case {
                what: "more replicas than zones",
                zones: &["a", "a", "a", "b", "b"],
                partitions: 1,
                replicas: 5,
                expected: &[&[1, 4, 2, 5, 3]],
            },
        ];
        for case in cases {
            let places = place(
                case.partitions,
                case.replicas,
                &nodes(case.zones),
                case.zones.len(),
            )
            .unwrap();
            assert_eq!(ids(&places), case.expected, "{}", case.what);
        }
    }

    #[test]
    fn the_emptier_node_comes_first() {
        let mut loads = nodes(&["", "", ""]);
        loads[0].replicas = 10;
        loads[1].replicas = 3;
        let places = place(3, 1, &loads, 3).unwrap();
        assert_eq!(ids(&places), [[3], [3], [3]]);
    }

    #[test]
    fn a_large_station_is_spread_evenly_and_never_twice_on_a_node() {
        let places = place(100, 3, &nodes(&["a", "a", "b", "b", "c"]), 5).unwrap();
        for place in &places {
            let mut unique = place.clone();
            unique.sort();
            unique.dedup();
            assert_eq!(unique.len(), 3);
        }
        let counts = counts(&places);
        // Zone c has one node: every partition has a replica there; the rest is even.
        assert_eq!(counts[&5], 100);
        for node in 1..=4 {
            assert_eq!(counts[&node], 50, "{counts:?}");
        }
    }

    #[test]
    fn too_few_nodes_are_named_with_both_numbers() {
        let small = place(1, 3, &nodes(&["", ""]), 2).unwrap_err();
        assert_eq!(small.kind(), ErrorKind::Conflict);
        assert!(
            small
                .to_string()
                .contains("need 3 storage nodes, the cluster has 2"),
            "{small}"
        );
        let down = place(1, 3, &nodes(&["", ""]), 4).unwrap_err();
        assert_eq!(down.kind(), ErrorKind::Unavailable);
        assert!(down.to_string().contains("2 of 4 are alive"), "{down}");
    }

    #[test]
    fn the_order_of_the_input_does_not_matter() {
        let mut reversed = nodes(&["a", "b", "b", "c"]);
        let places = place(5, 3, &reversed, 4).unwrap();
        reversed.reverse();
        assert_eq!(place(5, 3, &reversed, 4).unwrap(), places);
    }
}
