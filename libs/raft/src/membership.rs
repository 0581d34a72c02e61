//! Changing the voters of a group, one step at a time, driven from outside.
//!
//! A step looks at the members that the log holds now and does the next thing towards the wanted ones: new replicas first
//! learn, then become voters in one joint change that also lets the old ones go, and a leader that has to go hands
//! leadership over before. Every step may be repeated, by any driver, on any leader: each change is made only if the
//! members are still the ones that it was decided from, and a joint membership that somebody left behind is finished
//! before anything else.
//!
//! Not here: stopping and deleting a replica that left (the host, told by a tombstone).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, Precondition};
use ptah_types::{NodeId, ReplicaId};

use crate::error::{MembershipError, TransferError};
use crate::handover::hand_leadership;
use crate::replica::Replica;
use crate::shield::to_the_end;
use crate::types::{HomeNode, Members, Raft, RaftLogId, TypeConfig, member_nodes, members};

/// A change that is not committed in this time is looked at again; it may still be committed.
const CHANGE_DEADLINE: Duration = Duration::from_secs(10);
/// A learner this few entries behind becomes a voter: it catches up with the rest while the change is committed.
const CLOSE: u64 = 128;

/// What a step came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MembersStep {
    /// The voters are the wanted ones, that is committed, and nobody else learns.
    Settled,
    /// Something was changed: look again.
    Changed,
    /// A change is not committed yet.
    Waiting,
    /// Replicas that are to be voters have to catch up; the slowest is this many entries behind.
    CatchingUp(u64),
    /// Leadership was offered to a replica that stays.
    HandedOver,
}

/// The members of a group as its leader sees them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GroupMembers {
    /// Voters; of both configurations while they change.
    pub voters: Members,
    /// Learners.
    pub learners: Members,
    /// Whether all of that is committed and no change is under way.
    pub settled: bool,
    /// Entries that the slowest learner is behind.
    pub learner_lag: u64,
}

/// What a step is decided from.
struct Seen {
    /// One configuration, or two while the voters change.
    configs: Vec<BTreeSet<u64>>,
    /// Voters and learners.
    all: BTreeSet<u64>,
    committed: bool,
    own: u64,
    /// Entries that the others are behind; nothing of one that has not been heard.
    behind: BTreeMap<u64, u64>,
}

/// The next thing to do.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Next {
    Settled,
    Wait,
    AddLearners(BTreeSet<u64>),
    RemoveLearners(BTreeSet<u64>),
    CatchUp(u64),
    SetVoters(BTreeSet<u64>),
    HandOver(u64),
    /// Replicas that were removed before.
    Refuse(BTreeSet<u64>),
}

impl Replica {
    /// Does the next thing, on the leader, to make the voters of the group exactly these. Repeat it until it is settled;
    /// any number of drivers may do so.
    pub async fn step_members(&self, wanted: &[(ReplicaId, NodeId)]) -> Result<MembersStep, MembershipError> {
        if wanted.is_empty() {
            return Err(MembershipError::Invalid("a group needs a voter".to_owned()));
        }
        if !self.leadership().ready || self.leadership().leader_replica != Some(self.id()) {
            return Err(MembershipError::NotLeader);
        }
        let running = self
            .cell
            .running()
            .ok_or_else(|| MembershipError::Unavailable("the replica is not running".to_owned()))?;
        self.cell.until_awake().await;
        let raft = running.raft;
        let (seen, last) = look(&raft, self.id());
        let ids = wanted.iter().map(|(replica, _)| replica.get()).collect();
        let changes = match next(&seen, &ids) {
            Next::Settled => return Ok(MembersStep::Settled),
            Next::Wait => return Ok(MembersStep::Waiting),
            Next::CatchUp(behind) => return Ok(MembersStep::CatchingUp(behind)),
            Next::HandOver(to) => {
                let handed = hand_leadership(&self.cell.shared, raft, to).await;
                return handed
                    .map(|()| MembersStep::HandedOver)
                    .map_err(MembershipError::Unavailable);
            }
            Next::Refuse(ids) => {
                let why = format!(
                    "replicas {ids:?} are no members and older than one that is; ids are never used again"
                );
                return Err(MembershipError::Invalid(why));
            }
            Next::AddLearners(ids) => {
                let mut nodes = member_nodes(wanted);
                nodes.retain(|id, _| ids.contains(id));
                ChangeMembers::AddNodes(nodes)
            }
            Next::RemoveLearners(ids) => ChangeMembers::RemoveNodes(ids),
            Next::SetVoters(ids) => ChangeMembers::ReplaceAllVoters(ids),
        };
        let shared = &self.cell.shared;
        let change = change(raft, changes, last);
        to_the_end(
            &shared.tasks,
            &shared.runtime,
            "change of members",
            CHANGE_DEADLINE,
            change,
        )
        .await
        .unwrap_or_else(|error| Err(MembershipError::OutcomeUnknown(error.to_string())))
        .map(|()| MembersStep::Changed)
    }

    /// The members as the leader sees them; `None` when this replica does not lead.
    pub fn led_members(&self) -> Option<GroupMembers> {
        let leadership = self.leadership();
        if !leadership.ready || leadership.leader_replica != Some(self.id()) {
            return None;
        }
        self.cell.with_running(|running| {
            let (seen, _) = look(&running.raft, self.id());
            let metrics = running.raft.server_metrics();
            let (voters, learners) = members(metrics.borrow_watched().membership_config.membership());
            let lag = |(replica, _): &(ReplicaId, NodeId)| seen.lag(replica.get());
            GroupMembers {
                settled: seen.committed && seen.configs.len() == 1,
                learner_lag: learners.iter().map(lag).max().unwrap_or(0),
                voters,
                learners,
            }
        })
    }

    /// Asks the voter that has most of the log, and is not on one of these nodes, to lead. False when there is none.
    pub async fn yield_leadership(&self, avoid: &BTreeSet<NodeId>) -> Result<bool, TransferError> {
        let Some(running) = self.cell.running() else {
            return Err(TransferError::Unavailable("it is not open".to_owned()));
        };
        if self.leadership().leader_replica != Some(self.id()) {
            return Err(TransferError::NotLeader);
        }
        self.cell.until_awake().await;
        let (seen, _) = look(&running.raft, self.id());
        let voters = self.status().voters;
        let others = voters
            .iter()
            .filter(|(replica, node)| *replica != self.id() && !avoid.contains(node))
            .map(|(replica, _)| replica.get());
        let Some(to) = seen.closest(others) else {
            return Ok(false);
        };
        hand_leadership(&self.cell.shared, running.raft, to)
            .await
            .map(|()| true)
            .map_err(TransferError::Unavailable)
    }
}

impl Seen {
    fn lag(&self, replica: u64) -> u64 {
        if replica == self.own {
            return 0;
        }
        self.behind.get(&replica).copied().unwrap_or(u64::MAX)
    }

    fn is_close(&self, replica: u64) -> bool {
        self.lag(replica) <= CLOSE
    }

    /// The one that has most of the log, of those that have nearly all.
    fn closest(&self, replicas: impl Iterator<Item = u64>) -> Option<u64> {
        replicas
            .filter(|replica| self.is_close(*replica))
            .min_by_key(|replica| (self.lag(*replica), *replica))
    }
}

/// What the leader knows, and the log entry of the members, on which a change depends.
fn look(raft: &Raft, own: ReplicaId) -> (Seen, Option<RaftLogId>) {
    let server = raft.server_metrics();
    let (stored, committed) = {
        let server = server.borrow_watched();
        (
            Arc::clone(&server.membership_config),
            *server.committed_membership_config.log_id(),
        )
    };
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let last = metrics.last_log_index.map_or(0, |index| index + 1);
    let behind = metrics.replication.iter().flatten().map(|(replica, matched)| {
        let has = matched.as_ref().map_or(0, |id| id.index() + 1);
        (*replica, last.saturating_sub(has))
    });
    let membership = stored.membership();
    let seen = Seen {
        configs: membership.get_joint_config().to_vec(),
        all: membership.nodes().map(|(id, _)| *id).collect(),
        committed: *stored.log_id() == committed,
        own: own.get(),
        behind: behind.collect(),
    };
    (seen, *stored.log_id())
}

/// The next thing to do towards these voters.
fn next(seen: &Seen, wanted: &BTreeSet<u64>) -> Next {
    let [voters] = seen.configs.as_slice() else {
        // A change is half done. It has to end before another one begins, and it can: a majority of both has it.
        return match seen.configs.last() {
            Some(goal) if seen.committed => Next::SetVoters(goal.clone()),
            _ => Next::Wait,
        };
    };
    if !seen.committed {
        return Next::Wait;
    }
    if voters == wanted {
        let strangers: BTreeSet<u64> = seen.all.difference(wanted).copied().collect();
        return match strangers.is_empty() {
            true => Next::Settled,
            false => Next::RemoveLearners(strangers),
        };
    }
    let missing: BTreeSet<u64> = wanted.difference(&seen.all).copied().collect();
    if !missing.is_empty() {
        // An instruction from before a removal must not bring the removed replica back, whose data may be gone.
        let newest = seen.all.last().copied().unwrap_or(0);
        let removed: BTreeSet<u64> = missing.iter().filter(|id| **id < newest).copied().collect();
        return match removed.is_empty() {
            true => Next::AddLearners(missing),
            false => Next::Refuse(removed),
        };
    }
    towards(seen, voters, wanted)
}

/// All wanted replicas are members; who has to become a voter, and who has to go?
fn towards(seen: &Seen, voters: &BTreeSet<u64>, wanted: &BTreeSet<u64>) -> Next {
    let far = |replica: &&u64| !seen.is_close(**replica);
    if let Some(slowest) = wanted
        .difference(voters)
        .filter(far)
        .map(|id| seen.lag(*id))
        .max()
    {
        return Next::CatchUp(slowest);
    }
    // A leader leaves last, and not while it leads.
    let mut goal = wanted.clone();
    goal.insert(seen.own);
    if *voters == goal {
        return match seen.closest(wanted.iter().copied()) {
            Some(to) => Next::HandOver(to),
            None => Next::CatchUp(wanted.iter().map(|id| seen.lag(*id)).min().unwrap_or(0)),
        };
    }
    let close = goal.iter().filter(|replica| seen.is_close(**replica)).count();
    if close <= goal.len() / 2 {
        // A majority of the new voters could not commit anything.
        return Next::CatchUp(goal.iter().map(|id| seen.lag(*id)).max().unwrap_or(0));
    }
    Next::SetVoters(goal)
}

/// Changes members if they are still the ones of that log entry.
async fn change(
    raft: Raft,
    changes: ChangeMembers<u64, HomeNode>,
    last: Option<RaftLogId>,
) -> Result<(), MembershipError> {
    let unchanged = Precondition::LastMembershipLogId {
        last_membership_log_id: last,
    };
    // Removed voters do not stay as learners, and learners stay what they are.
    raft.change_membership_if(changes, false, [unchanged])
        .await
        .map(|_| ())
        .map_err(membership_error)
}

fn membership_error(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> MembershipError {
    match error {
        RaftError::Fatal(fatal) => MembershipError::OutcomeUnknown(fatal.to_string()),
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => MembershipError::NotLeader,
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(error)) => {
            MembershipError::OutcomeUnknown(error.to_string())
        }
        RaftError::APIError(ClientWriteError::PreconditionFailed(error)) => {
            MembershipError::Conflict(error.to_string())
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => match error {
            ChangeMembershipError::InProgress(error) => MembershipError::Conflict(error.to_string()),
            other => MembershipError::Invalid(other.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    /// Replica 1 leads; who is not named in `behind` has not been heard.
    fn seen(configs: &[&[u64]], learners: &[u64], behind: &[(u64, u64)]) -> Seen {
        let configs: Vec<BTreeSet<u64>> = configs.iter().map(|ids| set(ids)).collect();
        Seen {
            all: configs.iter().flatten().chain(learners).copied().collect(),
            configs,
            committed: true,
            own: 1,
            behind: behind.iter().copied().collect(),
        }
    }

    #[test]
    fn the_table_of_steps() {
        let near = [(2, 0), (3, CLOSE), (4, 5), (5, 0)];
        let table: [(&str, Seen, &[u64], Next); 16] = [
            (
                "as wanted",
                seen(&[&[1, 2, 3]], &[], &near),
                &[1, 2, 3],
                Next::Settled,
            ),
            (
                "a learner that nobody wants",
                seen(&[&[1, 2, 3]], &[4], &near),
                &[1, 2, 3],
                Next::RemoveLearners(set(&[4])),
            ),
            (
                "a new one learns first",
                seen(&[&[1, 2, 3]], &[], &near),
                &[1, 3, 4],
                Next::AddLearners(set(&[4])),
            ),
            (
                "several at once",
                seen(&[&[1]], &[], &[]),
                &[1, 2, 3],
                Next::AddLearners(set(&[2, 3])),
            ),
            (
                "it is not heard of",
                seen(&[&[1, 2, 3]], &[4], &[(2, 0), (3, 0)]),
                &[1, 3, 4],
                Next::CatchUp(u64::MAX),
            ),
            (
                "it is too far behind",
                seen(&[&[1, 2, 3]], &[4], &[(2, 0), (3, 0), (4, CLOSE + 1)]),
                &[1, 3, 4],
                Next::CatchUp(CLOSE + 1),
            ),
            (
                "it is close",
                seen(&[&[1, 2, 3]], &[4], &near),
                &[1, 3, 4],
                Next::SetVoters(set(&[1, 3, 4])),
            ),
            (
                "a dead one does not hold its replacement up",
                seen(&[&[1, 2, 3]], &[4], &[(3, 0), (4, 0)]),
                &[1, 3, 4],
                Next::SetVoters(set(&[1, 3, 4])),
            ),
            (
                "the leader leaves last",
                seen(&[&[1, 2, 3]], &[4], &near),
                &[2, 3, 4],
                Next::SetVoters(set(&[1, 2, 3, 4])),
            ),
            (
                "and hands over before it does",
                seen(&[&[1, 2, 3, 4]], &[], &[(2, 9), (3, 1), (4, 2)]),
                &[2, 3, 4],
                Next::HandOver(3),
            ),
            (
                "to nobody that is far behind",
                seen(&[&[1, 2]], &[], &[(2, CLOSE + 1)]),
                &[2],
                Next::CatchUp(CLOSE + 1),
            ),
            (
                "fewer",
                seen(&[&[1, 2, 3, 4, 5]], &[], &near),
                &[1, 2, 3],
                Next::SetVoters(set(&[1, 2, 3])),
            ),
            (
                "never to voters without a majority that has the log",
                seen(&[&[1, 2, 3, 4, 5]], &[], &[(4, 0), (5, 0)]),
                &[1, 2, 3],
                Next::CatchUp(u64::MAX),
            ),
            (
                "what somebody left half done is finished",
                seen(&[&[1, 2, 3], &[1, 3, 4]], &[], &near),
                &[1, 2, 3],
                Next::SetVoters(set(&[1, 3, 4])),
            ),
            (
                "a removed one does not come back",
                seen(&[&[1, 3, 4]], &[], &near),
                &[1, 2, 3],
                Next::Refuse(set(&[2])),
            ),
            (
                "what was abandoned does not hold the next one up",
                seen(&[&[1, 2, 3]], &[4], &near),
                &[1, 3, 5],
                Next::AddLearners(set(&[5])),
            ),
        ];
        for (what, seen, wanted, expected) in table {
            assert_eq!(next(&seen, &set(wanted)), expected, "{what}");
        }
    }

    #[test]
    fn nothing_begins_before_the_members_are_committed() {
        for configs in [&[&[1, 2, 3][..]][..], &[&[1, 2, 3][..], &[1, 3, 4][..]][..]] {
            let seen = Seen {
                committed: false,
                ..seen(configs, &[], &[(2, 0), (3, 0), (4, 0)])
            };
            assert_eq!(next(&seen, &set(&[1, 3, 4])), Next::Wait);
        }
    }
}
