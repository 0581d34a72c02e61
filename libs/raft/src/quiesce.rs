//! Putting idle groups to rest, and waking those that nobody would wake.
//!
//! A leader that had nothing to do for a while, and whose replicas all have everything, stops its heartbeats, tells the
//! others so in a last one, and stays without when all of them agree; openraft's timers stop on all sides. Whatever comes
//! for a replica wakes it (`pulse`); when anybody does not agree, the leader's heartbeats wake those that did.
//!
//! Without heartbeats nobody notices a dead leader by itself. A dead node is noticed by the detector, and its groups are
//! taken over like all others. When a node's process is replaced, leaders wake the groups that have a replica there. What
//! remains, a leader's replica that ended while its node lives, is found by asking the leader's node now and then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use ptah_service::Tasks;
use ptah_types::{LogId, NodeId, RaftGroupId, ReplicaId, Term};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use crate::cell::{Cell, Running};
use crate::detector::{Detector, Event};
use crate::directory::Directory;
use crate::transport::grpc::calls;
use crate::transport::{AppendHead, Beat, Route, Transport};
use crate::types::{Members, Vote, members, raft_log_id};

/// Idle groups are looked for this often, and more often when groups rest sooner.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Groups that are put to rest in one turn.
const AT_ONCE: usize = 256;
/// Between the end of the heartbeats and the question: those that are on their way shall arrive before it.
const SETTLE: Duration = Duration::from_millis(30);
/// How long the others may take to agree.
const AGREE_DEADLINE: Duration = Duration::from_millis(300);
/// How often leaders' nodes are asked whether they still lead the groups that rest here.
const CHECK_EVERY: Duration = Duration::from_secs(2);
/// How long that may take.
const CHECK_DEADLINE: Duration = Duration::from_secs(1);
/// Checks without an answer after which groups are woken, this many in each.
const SILENT_CHECKS: u32 = 3;
const WOKEN_PER_CHECK: usize = 64;

/// What it takes to put groups to rest.
pub(crate) struct Quiesce {
    pub(crate) directory: Arc<Directory>,
    pub(crate) detector: Arc<Detector>,
    pub(crate) transport: Transport,
    pub(crate) after: Duration,
}

/// A leader at one moment; it has nothing to do when it is the same for long.
#[derive(Clone, PartialEq)]
struct Moment {
    vote: Vote,
    last: LogId,
}

/// A group that may rest.
struct Candidate {
    cell: Arc<Cell>,
    moment: Moment,
    others: Members,
}

impl Quiesce {
    /// Puts groups to rest until the host stops.
    pub(crate) async fn rest(self: Arc<Self>, tasks: Tasks) {
        let stopping = tasks.stopping();
        let mut known: BTreeMap<RaftGroupId, (Moment, Instant)> = BTreeMap::new();
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY.min(self.after / 4)) => {}
            }
            let candidates = self.look(&mut known);
            if !candidates.is_empty() {
                self.put_to_rest(candidates).await;
            }
        }
    }

    /// Groups that were idle for long enough.
    fn look(&self, known: &mut BTreeMap<RaftGroupId, (Moment, Instant)>) -> Vec<Candidate> {
        let now = Instant::now();
        let mut before = std::mem::take(known);
        let mut candidates = Vec::new();
        for cell in self.directory.all() {
            if !cell.pulse.is_awake() || !cell.leadership().ready {
                continue;
            }
            let Some(moment) = cell.with_running(moment_of).flatten() else {
                continue;
            };
            let since = match before.remove(&cell.group) {
                Some((same, since)) if same == moment => since,
                _ => now,
            };
            known.insert(cell.group, (moment.clone(), since));
            if now - since < self.after || candidates.len() >= AT_ONCE {
                continue;
            }
            // Whatever becomes of it, it waits as long again before the next attempt.
            known.insert(cell.group, (moment.clone(), now));
            candidates.extend(self.candidate(cell, moment));
        }
        candidates
    }

    /// The group, when everything is everywhere and everybody is heard.
    fn candidate(&self, cell: Arc<Cell>, moment: Moment) -> Option<Candidate> {
        if cell.in_flight.entries() > 0 || cell.state.progress().index != moment.last.index {
            return None;
        }
        let own = cell.replica;
        let others = cell.with_running(|running| {
            let metrics = running.raft.metrics();
            let metrics = metrics.borrow_watched();
            let membership = metrics.membership_config.membership();
            if membership.get_joint_config().len() != 1 {
                return None;
            }
            let replication = metrics.replication.as_ref()?;
            let (voters, learners) = members(membership);
            let others: Members = voters
                .into_iter()
                .chain(learners)
                .filter(|(id, _)| *id != own)
                .collect();
            let is_everywhere = others.iter().all(|(replica, _)| {
                let matched = replication.get(&replica.get()).and_then(Option::as_ref);
                matched == Some(&raft_log_id(moment.last))
            });
            (is_everywhere && !others.is_empty()).then_some(others)
        })??;
        others
            .iter()
            .all(|(_, node)| self.detector.is_heard(*node))
            .then_some(Candidate { cell, moment, others })
    }

    async fn put_to_rest(&self, mut candidates: Vec<Candidate>) {
        candidates.retain(|candidate| candidate.cell.begin_rest());
        tokio::time::sleep(SETTLE).await;
        let asking = candidates.iter().map(|candidate| async {
            let agreed =
                candidate.is_unchanged() && candidate.cell.asks_for_rest() && self.all_agree(candidate).await;
            // A proposal between the look and the rest is in the log by now, or woke the group.
            if !(agreed && candidate.is_unchanged() && candidate.cell.rest_is_agreed()) {
                candidate.cell.wake();
            }
        });
        futures_util::future::join_all(asking).await;
    }

    async fn all_agree(&self, candidate: &Candidate) -> bool {
        let asking = candidate.others.iter().map(|(replica, node)| {
            let route = Route {
                group: candidate.cell.group,
                from: candidate.cell.replica,
                to: *replica,
            };
            let last = Some(raft_log_id(candidate.moment.last));
            let beat = Beat {
                route,
                head: AppendHead {
                    vote: candidate.moment.vote,
                    previous: last,
                    committed: last,
                },
                quiesce: true,
            };
            let answered = self.transport.beat(*node, beat);
            async move {
                match answered {
                    Some(answered) => matches!(
                        tokio::time::timeout(AGREE_DEADLINE, answered).await,
                        Ok(Ok(answer)) if answer.quiesced
                    ),
                    None => false,
                }
            }
        });
        futures_util::future::join_all(asking)
            .await
            .into_iter()
            .all(|agreed| agreed)
    }

    /// Wakes groups when something happens to a node, until the host stops.
    pub(crate) async fn follow_nodes(self: Arc<Self>, tasks: Tasks) {
        let stopping = tasks.stopping();
        let mut events = self.detector.events();
        loop {
            let event = tokio::select! {
                () = stopping.cancelled() => return,
                event = events.recv() => event,
            };
            match event {
                Ok(Event::Replaced(node)) => self.wake_groups_of(node),
                Ok(Event::Suspected(_) | Event::HeardAgain(_)) => {}
                Err(RecvError::Lagged(_)) => self.directory.all().iter().for_each(Cell::wake),
                Err(RecvError::Closed) => return,
            }
            self.beat_only_with_a_majority();
        }
    }

    /// The node's replicas know nothing of a rest: they wait for heartbeats.
    fn wake_groups_of(&self, node: NodeId) {
        for cell in self.directory.all() {
            if cell.pulse.is_awake() || cell.leadership().leader_replica != Some(cell.replica) {
                continue;
            }
            let (voters, learners) = cell.members();
            if voters.iter().chain(&learners).any(|(_, home)| *home == node) {
                cell.wake();
            }
        }
    }

    /// A leader that does not hear a majority of the voters keeps quiet, so that those who hear it, and whose answers do
    /// not arrive, elect another one.
    fn beat_only_with_a_majority(&self) {
        for cell in self.directory.all() {
            if cell.leadership().leader_replica != Some(cell.replica) {
                continue;
            }
            let (voters, _) = cell.members();
            let heard = voters
                .iter()
                .filter(|(replica, node)| *replica == cell.replica || !self.detector.is_missed(*node));
            let has_majority = heard.count() * 2 > voters.len();
            cell.with_running(|running| running.raft.runtime_config().heartbeat(has_majority));
        }
    }

    /// Asks the leaders' nodes about the groups that rest here, until the host stops.
    pub(crate) async fn check(self: Arc<Self>, tasks: Tasks) {
        let stopping = tasks.stopping();
        let mut silent: BTreeMap<NodeId, u32> = BTreeMap::new();
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(CHECK_EVERY) => {}
            }
            let resting = self.resting();
            silent.retain(|node, _| resting.contains_key(node));
            for (node, groups) in resting {
                let question = calls::check_quiet(&self.transport, node, &groups);
                let woken = match tokio::time::timeout(CHECK_DEADLINE, question).await {
                    Ok(Ok(not_led)) => {
                        silent.remove(&node);
                        not_led
                    }
                    Ok(Err(_)) | Err(_) => {
                        let checks = silent.entry(node).or_default();
                        *checks += 1;
                        let some = if *checks < SILENT_CHECKS {
                            0
                        } else {
                            WOKEN_PER_CHECK
                        };
                        groups.iter().take(some).map(|(group, _)| *group).collect()
                    }
                };
                for cell in woken.iter().filter_map(|group| self.directory.get(*group)) {
                    cell.wake();
                }
            }
        }
    }

    /// Groups that rest here and are led elsewhere, by the leader's node.
    fn resting(&self) -> BTreeMap<NodeId, Vec<(RaftGroupId, Term)>> {
        let mut resting: BTreeMap<NodeId, Vec<_>> = BTreeMap::new();
        for cell in self.directory.all() {
            let now = cell.leadership();
            if let Some(node) = now.leader
                && now.leader_replica != Some(cell.replica)
                && cell.pulse.is_quiet()
            {
                resting.entry(node).or_default().push((cell.group, now.term));
            }
        }
        resting
    }
}

impl Candidate {
    fn is_unchanged(&self) -> bool {
        let now = self.cell.with_running(moment_of).flatten();
        self.cell.is_resting() && self.cell.in_flight.entries() == 0 && now.as_ref() == Some(&self.moment)
    }
}

fn moment_of(running: &Running) -> Option<Moment> {
    Some(Moment {
        vote: running.raft.server_metrics().borrow_watched().vote,
        last: running.log.last_log_id()?,
    })
}

/// A follower agrees to rest when it has the same vote and everything that there is, and has applied it.
pub(crate) fn agree(cell: &Cell, from: ReplicaId, vote: &Vote, last: Option<LogId>) -> bool {
    let is_same = cell.with_running(|running| {
        moment_of(running).is_some_and(|own| own.vote == *vote && Some(own.last) == last)
    });
    let is_applied = last.is_some_and(|last| cell.state.progress().index == last.index);
    let is_leader = cell.leadership().leader_replica == Some(from);
    is_same == Some(true) && is_applied && is_leader && cell.follow_into_rest()
}
