//! openraft's types with our choices filled in, and the way from and to domain types.
//!
//! openraft's node id is the replica id, which is unique for ever within a group; its node is the storage node that
//! the replica lives on, whose address comes from the peer table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use openraft::impls::leader_id_std;
use openraft::vote::leader_id_std::CommittedLeaderId;
use openraft::{OptionalSend, RaftTypeConfig};
use ptah_segment_log::VoteRecord;
use ptah_types::{LogId, LogIndex, NodeId, ReplicaId, Term};

use crate::proposal::ProposalResponder;
use crate::record::Record;
use crate::runtime::Runtime;
use crate::state_machine::StateMachine;

/// openraft's type parameters.
#[derive(Debug, Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = Record;
    type R = Answer;
    type NodeId = u64;
    type Node = HomeNode;
    type Term = u64;
    /// One leader per term: a log id is a term and an index.
    type LeaderId = leader_id_std::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Record, u64, HomeNode>;
    type Entry = openraft::Entry<CommittedLeaderId<u64>, Self::Payload>;
    type AsyncRuntime = Runtime;
    type Responder<T>
        = ProposalResponder<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// The storage node that a replica lives on; 0 only in tests of openraft.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct HomeNode(pub(crate) u64);

impl HomeNode {
    pub(crate) fn node(self) -> Option<NodeId> {
        NodeId::new(self.0).ok()
    }
}

impl fmt::Display for HomeNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.0)
    }
}

/// What applying an entry gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// A blank, membership or barrier entry.
    Nothing,
    /// Messages.
    Batch(ptah_partition::Appended),
    /// Commands, in order.
    Commands(Vec<ptah_partition::Applied>),
    /// The batch did not fit behind the log's last message and was made void before it was stored.
    Superseded,
    /// The partition's checks refused the entry, which the leader's log should not have taken: an alarm was raised.
    Refused {
        /// What they said.
        why: String,
        /// Whether messages of it are stored.
        stored: bool,
    },
    /// The leader's disk had no room for the entry, which was made void before it was stored.
    NoRoom,
}

pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type EntryPayload = openraft::EntryPayload<Record, u64, HomeNode>;
pub(crate) type RaftLogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, HomeNode>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = openraft::alias::SnapshotOf<TypeConfig, crate::snapshot::SnapshotData>;
pub(crate) type WriteResult = openraft::raft::ClientWriteResult<TypeConfig>;

pub(crate) fn raft_log_id(id: LogId) -> RaftLogId {
    RaftLogId::new(CommittedLeaderId::new(id.term.0), id.index.0)
}

pub(crate) fn log_id(id: &RaftLogId) -> LogId {
    LogId {
        term: Term(id.committed_leader_id().term),
        index: LogIndex(id.index()),
    }
}

pub(crate) fn raft_vote(record: VoteRecord) -> Vote {
    let leader_id = leader_id_std::LeaderId {
        term: record.term.0,
        voted_for: record.voted_for.map_or(0, ReplicaId::get),
    };
    Vote {
        leader_id,
        committed: record.committed,
    }
}

pub(crate) fn vote_record(vote: &Vote) -> VoteRecord {
    VoteRecord {
        term: Term(vote.leader_id.term),
        voted_for: ReplicaId::new(vote.leader_id.voted_for).ok(),
        committed: vote.committed,
    }
}

/// Members as openraft wants them: one configuration with these voters.
pub(crate) fn member_nodes(members: &[(ReplicaId, NodeId)]) -> BTreeMap<u64, HomeNode> {
    members
        .iter()
        .map(|(replica, node)| (replica.get(), HomeNode(node.get())))
        .collect()
}

/// Replicas and the nodes that they live on.
pub(crate) type Members = Vec<(ReplicaId, NodeId)>;

/// Voters and learners of a membership, with their nodes.
pub(crate) fn members(membership: &Membership) -> (Members, Members) {
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    let mut of_voters = Vec::new();
    let mut of_learners = Vec::new();
    for (id, home) in membership.nodes() {
        let (Ok(replica), Some(node)) = (ReplicaId::new(*id), home.node()) else {
            continue;
        };
        if voters.contains(id) {
            of_voters.push((replica, node));
        } else {
            of_learners.push((replica, node));
        }
    }
    (of_voters, of_learners)
}
