//! Taking over from a leader whose node is suspected to be dead or cut off.
//!
//! openraft refuses elections while the old leader's lease lives. The survivors use the path of a planned transfer
//! instead: voters grant although the lease lives. Before that they ask each other once, which tells two things:
//!
//! - whether a majority of the group's voters does not hear the leader's node either. Without that nobody moves, unless
//!   the process is gone for certain (its connections broke and its address refuses, or another process is there);
//! - whose log is longest. That survivor campaigns at once, the others only when nothing comes of it. Equal logs are
//!   told apart by a number out of group and replica, which spreads the groups of a dead node over the survivors.
//!
//! If the suspicion was an error, a healthy leader is replaced in milliseconds, which is harmless; terms keep the old one
//! from acknowledging anything. Takeovers are bounded: some groups at once, the rest waits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::raft::TransferLeaderRequest;
use parking_lot::Mutex;
use ptah_service::Tasks;
use ptah_types::{LogId, NodeId, RaftGroupId, ReplicaId};
use tokio::runtime::Handle;
use tokio::sync::broadcast::error::RecvError;

use crate::cell::{Cell, Leadership};
use crate::detector::{Belief, Detector, Event};
use crate::directory::Directory;
use crate::shield::unbroken;
use crate::transport::Transport;
use crate::transport::grpc::calls;
use crate::types::Members;

/// Groups that the survivors are asked about in one message.
const CHUNK: usize = 256;
/// Campaigns that are under way at once.
const AT_ONCE: usize = 32;
/// How long the answer of a survivor is waited for.
const SURVEY_DEADLINE: Duration = Duration::from_millis(150);
/// How long one campaign may take before the next group has its turn.
const CAMPAIGN_PATIENCE: Duration = Duration::from_millis(300);
/// Pause before groups that nobody took are looked at again: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);
/// A survivor that is not the best one waits for those before it this many rounds each.
const ROUNDS_PER_RANK: u32 = 3;
/// Rounds until groups of a dead process are left to openraft's own election.
const MAX_ROUNDS: u32 = 20;

/// What takeovers need. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Takeover {
    pub(crate) directory: Arc<Directory>,
    pub(crate) detector: Arc<Detector>,
    pub(crate) transport: Transport,
    pub(crate) tasks: Tasks,
}

/// A group whose leader is suspected.
struct Target {
    cell: Arc<Cell>,
    seen: Leadership,
    voters: Members,
}

/// What the survivors said.
#[derive(Default)]
struct Survey {
    /// Nodes that do not hear the suspect either.
    agreeing: BTreeSet<NodeId>,
    ends: BTreeMap<(RaftGroupId, ReplicaId), Option<LogId>>,
}

impl Takeover {
    /// Acts on suspicions until the host stops.
    pub(crate) async fn run(self) {
        let stopping = self.tasks.stopping();
        let busy: Arc<Mutex<BTreeSet<NodeId>>> = Arc::default();
        let mut events = self.detector.events();
        loop {
            let event = tokio::select! {
                () = stopping.cancelled() => return,
                event = events.recv() => event,
            };
            let (node, replaced) = match event {
                Ok(Event::Suspected(node)) => (node, false),
                Ok(Event::Replaced(node)) => (node, true),
                Ok(Event::HeardAgain(_)) => continue,
                // What was missed is left to openraft's own election.
                Err(RecvError::Lagged(_)) => continue,
                Err(RecvError::Closed) => return,
            };
            // A takeover that is under way notices by itself what else is known of the node.
            if busy.lock().insert(node) {
                let (this, busy, stopping) = (self.clone(), Arc::clone(&busy), self.tasks.stopping());
                self.tasks
                    .spawn(format!("takeover from node {node}"), async move {
                        tokio::select! {
                            () = stopping.cancelled() => {}
                            () = this.take_over(node, replaced) => {}
                        }
                        busy.lock().remove(&node);
                    });
            }
        }
    }

    /// Goes on until every group has another leader, or the node is heard again.
    async fn take_over(&self, node: NodeId, replaced: bool) {
        let process = self.detector.incarnation(node);
        let mut targets = self.targets(node);
        let mut pause = FIRST_PAUSE;
        for round in 0.. {
            targets.retain(Target::still_stands);
            let certain = replaced
                || self.detector.belief(node) == Belief::Gone
                || self.detector.incarnation(node) != process;
            let over = !certain && self.detector.belief(node) == Belief::Alive;
            if targets.is_empty() || over || (certain && round >= MAX_ROUNDS) {
                return;
            }
            for chunk in targets.chunks(CHUNK) {
                let survey = self.survey(node, chunk, certain).await;
                let mine = chunk.iter().filter(|target| {
                    target.is_allowed(&survey, certain) && target.is_my_turn(&survey, round)
                });
                futures_util::stream::iter(mine)
                    .for_each_concurrent(AT_ONCE, |target| self.campaign(target))
                    .await;
            }
            tokio::time::sleep(pause).await;
            if round >= ROUNDS_PER_RANK {
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// Groups that the node leads and this one votes in.
    fn targets(&self, node: NodeId) -> Vec<Target> {
        let cells = self.directory.all();
        let mut targets: Vec<Target> = cells
            .into_iter()
            .filter_map(|cell| {
                let seen = cell.leadership();
                if seen.leader != Some(node) {
                    return None;
                }
                let (voters, _) = cell.members();
                let votes = voters.iter().any(|(replica, _)| *replica == cell.replica);
                votes.then_some(Target { cell, seen, voters })
            })
            .collect();
        // Those that somebody may be waiting for come first.
        targets.sort_by_key(|target| !target.cell.pulse.is_awake());
        targets
    }

    /// Asks the other voters' nodes. Those that do not answer in time say nothing.
    async fn survey(&self, suspect: NodeId, chunk: &[Target], certain: bool) -> Survey {
        let own = self.transport.own_node();
        let mut by_node: BTreeMap<NodeId, Vec<RaftGroupId>> = BTreeMap::new();
        for target in chunk {
            for (_, node) in &target.voters {
                if *node != suspect && *node != own && self.detector.belief(*node) == Belief::Alive {
                    by_node.entry(*node).or_default().push(target.cell.group);
                }
            }
        }
        let questions = by_node.into_iter().map(|(node, groups)| async move {
            let question = calls::survey(&self.transport, node, suspect, groups);
            let answer = tokio::time::timeout(SURVEY_DEADLINE, question).await;
            (node, answer)
        });
        let mut survey = Survey::default();
        for (node, answer) in futures_util::future::join_all(questions).await {
            match answer {
                Ok(Ok(answer)) => {
                    if answer.suspected || certain {
                        survey.agreeing.insert(node);
                    }
                    survey.ends.extend(answer.ends);
                }
                Ok(Err(why)) => tracing::debug!(%node, %why, "survivor was not asked"),
                Err(_) => tracing::debug!(%node, "survivor does not answer"),
            }
        }
        survey
    }

    async fn campaign(&self, target: &Target) {
        if !target.still_stands() {
            return;
        }
        let cell = &target.cell;
        let Some(running) = cell.running() else { return };
        cell.wake();
        let vote = running.raft.server_metrics().borrow_watched().vote;
        let last = running.raft.data_metrics().borrow_watched().last_log;
        cell.shared.metrics.takeovers.inc();
        tracing::info!(group = %cell.group.to_hex(), term = %target.seen.term, "leader's node is suspected, taking over");
        let request = TransferLeaderRequest::new(vote, cell.replica.get(), last);
        let call = async move { running.raft.handle_transfer_leader(request).await };
        match unbroken(&self.tasks, &Handle::current(), "takeover", call).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::debug!(group = %cell.group.to_hex(), %error, "takeover was not started")
            }
            Err(error) => tracing::debug!(group = %cell.group.to_hex(), %error, "takeover was not started"),
        }
        let mut leadership = cell.watch_leadership();
        let decided =
            leadership.wait_for(|now| now.leader.is_some() && (now.term, now.leader) != target.seen_by());
        // Whoever won, or nobody: the next round sees it.
        drop(tokio::time::timeout(CAMPAIGN_PATIENCE, decided).await);
    }
}

impl Target {
    fn seen_by(&self) -> (ptah_types::Term, Option<NodeId>) {
        (self.seen.term, self.seen.leader)
    }

    /// Whether the group has no other leader yet.
    fn still_stands(&self) -> bool {
        let now = self.cell.leadership();
        now.leader.is_none() || (now.term, now.leader) == self.seen_by()
    }

    /// Whether a majority of the voters agrees, this one among them.
    fn is_allowed(&self, survey: &Survey, certain: bool) -> bool {
        let agreeing = self
            .voters
            .iter()
            .filter(|(replica, node)| *replica == self.cell.replica || survey.agreeing.contains(node));
        certain || agreeing.count() * 2 > self.voters.len()
    }

    /// Whether this replica is the best survivor, or those before it did nothing for long enough.
    fn is_my_turn(&self, survey: &Survey, round: u32) -> bool {
        let (group, own) = (self.cell.group, self.cell.replica);
        let end = self
            .cell
            .with_running(|running| running.log.last_log_id())
            .flatten();
        let mine = (end, lot(group, own));
        let better = self.voters.iter().filter(|(replica, node)| {
            *replica != own
                && survey.agreeing.contains(node)
                && survey
                    .ends
                    .get(&(group, *replica))
                    .is_some_and(|end| (*end, lot(group, *replica)) > mine)
        });
        let rank = u32::try_from(better.count()).unwrap_or(u32::MAX);
        round >= rank.saturating_mul(ROUNDS_PER_RANK)
    }
}

/// A number that tells equal survivors of a group apart, another order in each group.
fn lot(group: RaftGroupId, replica: ReplicaId) -> u64 {
    let mixed = (group.get() ^ replica.get().rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}
