//! Who leads which Raft group, out of what every node says. Without IO.
//!
//! A higher term wins. Within a term there is one leader: a node that knows it wins over one that does not, and whether it
//! is ready is told by the leader itself. A hint out of a refusal has no term: it only replaces the node that refused.

use std::collections::{BTreeMap, BTreeSet};

use ptah_types::{NodeId, RaftGroupId};

/// What one node says of one group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    /// Term.
    pub term: u64,
    /// Leader, if the node knows one.
    pub leader: Option<NodeId>,
    /// The teller leads and takes writes.
    pub ready: bool,
}

/// Where a group is to be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Route {
    /// Highest term known.
    pub term: u64,
    /// Leader of that term, if known.
    pub leader: Option<NodeId>,
    /// The leader itself says that it takes writes.
    pub ready: bool,
}

#[derive(Debug, Default)]
struct GroupClaims {
    by_node: BTreeMap<NodeId, Claim>,
    /// Term in which a refusal named another leader, and who it was.
    hint: Option<(u64, NodeId)>,
}

impl GroupClaims {
    fn route(&self) -> Route {
        let mut route = Route::default();
        for (teller, claim) in &self.by_node {
            if claim.term > route.term {
                route = Route {
                    term: claim.term,
                    leader: None,
                    ready: false,
                };
            }
            if claim.term == route.term && claim.leader.is_some() {
                route.leader = claim.leader;
                route.ready |= claim.ready && claim.leader == Some(*teller);
            }
        }
        if let Some((term, node)) = self.hint
            && term == route.term
            && route.leader != Some(node)
        {
            route.leader = Some(node);
            route.ready = false;
        }
        route
    }
}

/// Claims of all nodes about all groups.
#[derive(Debug, Default)]
pub struct RoutingTable {
    groups: BTreeMap<RaftGroupId, GroupClaims>,
}

impl RoutingTable {
    /// Takes in what a node says. With `full`, what it does not name it does not know any more. Returns the groups whose
    /// route may have changed.
    pub fn told(
        &mut self,
        node: NodeId,
        full: bool,
        claims: &[(RaftGroupId, Claim)],
    ) -> BTreeSet<RaftGroupId> {
        let mut touched = BTreeSet::new();
        if full {
            let named: BTreeSet<_> = claims.iter().map(|(group, _)| *group).collect();
            self.forget_node_except(node, &named, &mut touched);
        }
        for (group, claim) in claims {
            let known = self.groups.entry(*group).or_default();
            let newest = known.by_node.values().map(|claim| claim.term).max().unwrap_or(0);
            if claim.term > newest || (claim.ready && claim.leader == Some(node)) {
                known.hint = None;
            }
            known.by_node.insert(node, *claim);
            touched.insert(*group);
        }
        touched
    }

    /// A node is no more.
    pub fn forget_node(&mut self, node: NodeId) -> BTreeSet<RaftGroupId> {
        let mut touched = BTreeSet::new();
        self.forget_node_except(node, &BTreeSet::new(), &mut touched);
        touched
    }

    fn forget_node_except(
        &mut self,
        node: NodeId,
        named: &BTreeSet<RaftGroupId>,
        touched: &mut BTreeSet<RaftGroupId>,
    ) {
        self.groups.retain(|group, claims| {
            if !named.contains(group) && claims.by_node.remove(&node).is_some() {
                touched.insert(*group);
            }
            !claims.by_node.is_empty()
        });
    }

    /// `refuser` said that `leader` leads instead.
    pub fn hinted(&mut self, group: RaftGroupId, refuser: NodeId, leader: NodeId) {
        let known = self.groups.entry(group).or_default();
        let route = known.route();
        if route.leader.is_none_or(|leader| leader == refuser) && leader != refuser {
            known.hint = Some((route.term, leader));
        }
    }

    /// Where the group is to be reached.
    pub fn route(&self, group: RaftGroupId) -> Route {
        self.groups
            .get(&group)
            .map(GroupClaims::route)
            .unwrap_or_default()
    }

    /// How many groups each node leads.
    pub fn leaders_per_node(&self) -> BTreeMap<NodeId, u32> {
        let mut counts = BTreeMap::new();
        for leader in self.groups.values().filter_map(|claims| claims.route().leader) {
            *counts.entry(leader).or_default() += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn group() -> RaftGroupId {
        RaftGroupId::new(7).unwrap()
    }

    fn claim(term: u64, leader: u64, ready: bool) -> [(RaftGroupId, Claim); 1] {
        let leader = NodeId::new(leader).ok();
        [(group(), Claim { term, leader, ready })]
    }

    #[test]
    fn the_higher_term_wins_whoever_tells_it() {
        let mut table = RoutingTable::default();
        table.told(node(1), true, &claim(4, 1, true));
        table.told(node(2), true, &claim(5, 2, true));
        table.told(node(3), true, &claim(4, 1, false));
        assert_eq!(
            table.route(group()),
            Route {
                term: 5,
                leader: Some(node(2)),
                ready: true
            }
        );
    }

    #[test]
    fn an_election_without_a_winner_yet_has_no_leader() {
        let mut table = RoutingTable::default();
        table.told(node(1), true, &claim(4, 1, true));
        table.told(node(2), false, &claim(5, 0, false));
        assert_eq!(table.route(group()).leader, None);
    }

    #[test]
    fn only_the_leader_itself_says_that_it_is_ready() {
        let mut table = RoutingTable::default();
        table.told(node(2), true, &claim(5, 1, true));
        assert!(!table.route(group()).ready);
        table.told(node(1), true, &claim(5, 1, true));
        assert!(table.route(group()).ready);
    }

    #[test]
    fn a_hint_replaces_the_refuser_until_a_newer_term_is_told() {
        let mut table = RoutingTable::default();
        table.told(node(1), true, &claim(4, 1, true));
        table.hinted(group(), node(1), node(3));
        assert_eq!(table.route(group()).leader, Some(node(3)));
        table.hinted(group(), node(1), node(2));
        assert_eq!(
            table.route(group()).leader,
            Some(node(3)),
            "a late hint about another node changes nothing"
        );
        table.told(node(2), false, &claim(6, 2, true));
        assert_eq!(table.route(group()).leader, Some(node(2)));
    }

    #[test]
    fn a_full_table_takes_back_what_it_does_not_name() {
        let mut table = RoutingTable::default();
        table.told(node(1), true, &claim(4, 1, true));
        let touched = table.told(node(1), true, &[]);
        assert!(touched.contains(&group()));
        assert_eq!(table.route(group()), Route::default());
    }
}
