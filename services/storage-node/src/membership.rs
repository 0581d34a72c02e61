//! Changes of members and of leaders that the control plane asks for, carried out by the node that leads a group.
//!
//! An instruction holds for a short time and is in memory only: the control plane repeats it until the reports say that it
//! is done. A node that does not hear of the control plane stops changing members by itself, and one that leads a group
//! later goes on where the one before stopped.
//! Not here: what the members are to be (control plane), how they change (`ptah-raft`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use parking_lot::Mutex;
use ptah_raft::{MembersStep, MembershipError, Replica};
use ptah_rpc::clients::GroupMembers;
use ptah_service::Stopping;
use ptah_types::{NodeId, RaftGroupId, ReplicaId};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::node::Node;

/// Groups whose members change at the same time.
const AT_ONCE: usize = 16;
/// Time between two steps of a group.
const STEP_PAUSE: Duration = Duration::from_millis(50);
/// A node that shall not lead looks for what it leads this often.
const YIELD_PAUSE: Duration = Duration::from_millis(500);

/// What was asked for.
#[derive(Default)]
pub(crate) struct Membership {
    asked: Mutex<Asked>,
    news: Notify,
}

#[derive(Default)]
struct Asked {
    /// Voters, and until when the instruction holds.
    groups: BTreeMap<RaftGroupId, (Members, Instant)>,
    /// Nodes that shall not lead.
    yielding: BTreeSet<NodeId>,
    /// What the last step of a group came to, so that it is logged once.
    noted: BTreeMap<RaftGroupId, String>,
}

type Members = Vec<(ReplicaId, NodeId)>;

impl Membership {
    /// Takes an instruction that is not older than one before.
    pub(crate) fn follow(&self, groups: Vec<GroupMembers>, yielding: BTreeSet<NodeId>) {
        let now = Instant::now();
        let mut asked = self.asked.lock();
        for members in groups {
            let until = now + members.valid;
            asked.groups.insert(members.group, (members.voters, until));
        }
        asked.yielding = yielding;
        drop(asked);
        self.news.notify_one();
    }

    /// Nodes that shall not lead.
    pub(crate) fn yielding(&self) -> BTreeSet<NodeId> {
        self.asked.lock().yielding.clone()
    }

    /// What still holds.
    fn current(&self) -> Vec<(RaftGroupId, Members)> {
        let now = Instant::now();
        let mut asked = self.asked.lock();
        asked.groups.retain(|_, (_, until)| *until > now);
        let Asked { groups, noted, .. } = &mut *asked;
        noted.retain(|group, _| groups.contains_key(group));
        groups
            .iter()
            .map(|(group, (voters, _))| (*group, voters.clone()))
            .collect()
    }

    /// True for what was not noted of the group yet.
    fn is_news(&self, group: RaftGroupId, what: &str) -> bool {
        let known = self.asked.lock().noted.insert(group, what.to_owned());
        known.as_deref() != Some(what)
    }
}

impl Node {
    /// Does what is asked for until the node stops.
    pub(crate) async fn drive_members(&self, stopping: Stopping) {
        loop {
            let groups = self.membership.current();
            let yielding = self.membership.yielding();
            let pause = match (groups.is_empty(), yielding.contains(&self.host.node())) {
                (false, _) => Some(STEP_PAUSE),
                (true, true) => Some(YIELD_PAUSE),
                (true, false) => None,
            };
            let work = async {
                self.step_all(groups).await;
                if yielding.contains(&self.host.node()) {
                    self.yield_all(&yielding).await;
                }
            };
            // Steps go on by themselves when this is dropped.
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                () = work => {}
            }
            let rest = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => self.membership.news.notified().await,
                }
            };
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                () = rest => {}
            }
        }
    }

    async fn step_all(&self, groups: Vec<(RaftGroupId, Members)>) {
        let led = groups.into_iter().filter_map(|(group, voters)| {
            let replica = self.host.replica(group)?;
            let leadership = replica.leadership();
            (leadership.ready && leadership.leader_replica == Some(replica.id())).then_some((replica, voters))
        });
        let steps = led.map(|(replica, voters)| async move {
            let step = replica.step_members(&voters).await;
            self.note_step(&replica, step);
        });
        futures_util::stream::iter(steps)
            .for_each_concurrent(AT_ONCE, |step| step)
            .await;
    }

    fn note_step(&self, replica: &Replica, step: Result<MembersStep, MembershipError>) {
        let (group, partition) = (replica.group(), replica.key());
        match step {
            Ok(MembersStep::Changed | MembersStep::HandedOver) => {
                let members = replica.status();
                tracing::info!(%partition, %group, ?step, voters = ?members.voters, learners = ?members.learners, "members");
            }
            Ok(MembersStep::Settled | MembersStep::Waiting | MembersStep::CatchingUp(_)) => {}
            // Another leader does it.
            Err(MembershipError::NotLeader) => {}
            Err(error) => {
                if self.membership.is_news(group, &error.to_string()) {
                    tracing::warn!(%partition, %group, %error, "members are not changed yet; trying again");
                }
            }
        }
    }

    /// Hands over what this node leads and another one can.
    async fn yield_all(&self, avoid: &BTreeSet<NodeId>) {
        let handing = self.led().into_iter().map(|leader| async move {
            let replica = &leader.core().replica;
            if let Err(error) = replica.yield_leadership(avoid).await {
                tracing::debug!(partition = %replica.key(), %error, "leadership is not handed over yet");
            }
        });
        futures_util::stream::iter(handing)
            .for_each_concurrent(AT_ONCE, |handing| handing)
            .await;
    }
}
