//! The node: its replicas, and which partitions it leads.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use ptah_raft::{GroupLeadership, RaftHost, ReadMessagesError, Replica};
use ptah_service::Tasks;
use ptah_types::{PartitionKey, RaftGroupId, Term};

use crate::budget::Budget;
use crate::deliver::is_alone;
use crate::error::PartitionError;
use crate::leader::{Beginning, PartitionLeader, PartitionSettings};
use crate::membership::Membership;
use crate::shared::Shared;

/// Everything that serves calls on partitions.
pub(crate) struct Node {
    /// What all parts share.
    pub(crate) shared: Arc<Shared>,
    /// The replicas.
    pub(crate) host: RaftHost,
    /// Memory for batches that are not answered.
    pub(crate) append_budget: Budget,
    /// Members that groups led here are to have.
    pub(crate) membership: Membership,
    tasks: Tasks,
    leaders: RwLock<Leaders>,
    settings: RwLock<BTreeMap<RaftGroupId, Arc<PartitionSettings>>>,
}

/// Reigns of this node.
#[derive(Default)]
struct Leaders {
    current: BTreeMap<RaftGroupId, Arc<PartitionLeader>>,
    /// Term of the newest reign that was begun in a group, whether it lasts or not.
    begun: BTreeMap<RaftGroupId, Term>,
}

impl Node {
    /// A node that leads nothing yet. `tasks` owns the tasks of led partitions.
    pub(crate) fn new(shared: Arc<Shared>, host: RaftHost, append_budget: Budget, tasks: Tasks) -> Self {
        Self {
            shared,
            host,
            append_budget,
            membership: Membership::default(),
            tasks,
            leaders: RwLock::default(),
            settings: RwLock::default(),
        }
    }

    /// Sets what the control plane says of a partition.
    pub(crate) fn configure(&self, group: RaftGroupId, generation: u64, max_message_bytes: u64) {
        let mut settings = self.settings.write();
        match settings.get(&group) {
            Some(known) => known.set(generation, max_message_bytes),
            None => {
                let new = PartitionSettings::new(generation, max_message_bytes);
                settings.insert(group, Arc::new(new));
            }
        }
    }

    /// Forgets a partition that was deleted.
    pub(crate) fn forget(&self, group: RaftGroupId) {
        self.settings.write().remove(&group);
        let mut leaders = self.leaders.write();
        self.end(&mut leaders, group);
        leaders.begun.remove(&group);
    }

    /// Checks that a caller means the partition that it reaches here.
    pub(crate) fn check_route(
        &self,
        group: RaftGroupId,
        key: &PartitionKey,
        generation: Option<u64>,
    ) -> Result<(), PartitionError> {
        let replica = self
            .host
            .replica(group)
            .ok_or(PartitionError::UnknownReplica { group })?;
        if replica.key() != key {
            return Err(PartitionError::OtherPartition {
                group,
                actual: replica.key().clone(),
                asked: key.clone(),
            });
        }
        let current = self
            .settings
            .read()
            .get(&group)
            .map_or(0, |settings| settings.generation());
        match generation {
            Some(asked) if asked < current => Err(PartitionError::StaleGeneration {
                key: key.clone(),
                asked,
                current,
            }),
            _ => Ok(()),
        }
    }

    /// The leader of a group, if it is led here.
    pub(crate) fn leader(&self, group: RaftGroupId) -> Result<Arc<PartitionLeader>, PartitionError> {
        if let Some(leader) = self.leaders.read().current.get(&group)
            && !leader.core().has_ended()
        {
            return Ok(Arc::clone(leader));
        }
        if self.host.replica(group).is_none() {
            return Err(PartitionError::UnknownReplica { group });
        }
        self.follow(group).ok_or_else(|| {
            let replica = self.host.replica(group);
            let elsewhere = replica.and_then(|replica| {
                let leader = replica.leadership().leader?;
                (leader != replica.node()).then_some(leader)
            });
            self.shared.not_leader(group, elsewhere)
        })
    }

    /// Makes or ends the leader of a group, so that it agrees with who leads now.
    ///
    /// The replica is looked at under the lock: what an earlier look has shown must not end a reign that began since.
    fn follow(&self, group: RaftGroupId) -> Option<Arc<PartitionLeader>> {
        self.agree(&mut self.leaders.write(), group)
    }

    fn agree(&self, leaders: &mut Leaders, group: RaftGroupId) -> Option<Arc<PartitionLeader>> {
        let replica = self.host.replica(group);
        let now = replica.as_ref().map(|replica| replica.leadership());
        let now = now.filter(|leadership| leadership.ready);
        if let Some(leader) = leaders.current.get(&group) {
            let same = now.is_some_and(|leadership| leader.core().is_reign_of(leadership));
            if same && !leader.core().has_ended() {
                return Some(Arc::clone(leader));
            }
            self.end(leaders, group);
        }
        let (replica, leadership) = (replica?, now?);
        if self.tasks.is_stopping() {
            return None;
        }
        let settings = Arc::clone(self.settings.read().get(&group)?);
        let before = leaders.begun.insert(group, leadership.term);
        let beginning = Beginning {
            leadership,
            again: before == Some(leadership.term),
        };
        let shared = Arc::clone(&self.shared);
        let leader = PartitionLeader::begin(shared, replica, settings, beginning, &self.tasks);
        tracing::info!(partition = %leader.core().replica.key(), %group, term = %leadership.term, "partition led");
        leaders.current.insert(group, Arc::clone(&leader));
        self.shared.metrics.partitions_led.inc();
        Some(leader)
    }

    fn end(&self, leaders: &mut Leaders, group: RaftGroupId) {
        if let Some(leader) = leaders.current.remove(&group) {
            leader.end();
            self.shared.metrics.partitions_led.dec();
        }
    }

    /// Follows every change of leadership until the host stops.
    pub(crate) async fn follow_leaders(&self) {
        let mut watch = self.host.watch_leaders();
        while let Some(changes) = watch.next().await {
            for GroupLeadership { group, .. } in changes {
                // The newest state counts; the change is only a hint.
                drop(self.follow(group));
            }
        }
    }

    /// Ends every reign: callers are sent elsewhere.
    pub(crate) fn end_all(&self) {
        for leader in std::mem::take(&mut self.leaders.write().current).into_values() {
            leader.end();
            self.shared.metrics.partitions_led.dec();
        }
    }

    /// Partitions led.
    pub(crate) fn led(&self) -> Vec<Arc<PartitionLeader>> {
        self.leaders.read().current.values().cloned().collect()
    }

    /// What a failed read means to the caller.
    pub(crate) fn read_error(&self, replica: &Replica, error: ReadMessagesError) -> PartitionError {
        match error {
            ReadMessagesError::Dropped { first } => {
                let why = format!("messages before {first} are not kept any more");
                PartitionError::Unavailable(why.into())
            }
            ReadMessagesError::Unavailable(why) => PartitionError::Unavailable(why.to_string().into()),
            ReadMessagesError::Damaged(why) if !is_alone(replica) => {
                let why = format!("messages are damaged here, another replica takes over ({why})");
                PartitionError::Unavailable(why.into())
            }
            damaged @ ReadMessagesError::Damaged(..) => PartitionError::Damaged {
                group: replica.group(),
                why: damaged.to_string(),
            },
        }
    }
}

#[cfg(test)]
mod tests;
