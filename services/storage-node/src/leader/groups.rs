//! Consumer groups of a led partition: looking them up, making them, and waking them when messages were added.

use std::sync::Arc;

use ptah_partition::{Applied, Command, GroupSpec, encode_commands};
use ptah_raft::{Committed, Outcome, ProposeError};
use ptah_types::{Boundary, ConsumerGroupId, ErrorKind, Sequence};
use tokio::sync::oneshot;

use super::PartitionLeader;
use crate::deliver::GroupDelivery;
use crate::error::PartitionError;

/// How far a consumer group is on a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct GroupProgress {
    /// The group.
    pub(crate) group: ConsumerGroupId,
    /// Every message before it is acknowledged.
    pub(crate) first_unacked: Sequence,
    /// Every message before it was handed out at least once.
    pub(crate) next_undelivered: Sequence,
    /// Messages that are not acknowledged.
    pub(crate) pending: u64,
}

/// State of a led partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PartitionState {
    /// Oldest message that is kept.
    pub(crate) first_sequence: Sequence,
    /// Sequence that the next message gets.
    pub(crate) next_sequence: Sequence,
    /// Its consumer groups, in order of their ids.
    pub(crate) groups: Vec<GroupProgress>,
}

impl PartitionLeader {
    /// The deliveries of a consumer group, which must be on the partition.
    pub(crate) fn group(&self, id: ConsumerGroupId) -> Result<Arc<GroupDelivery>, PartitionError> {
        if let Some(group) = self.groups.read().get(&id) {
            return Ok(Arc::clone(group));
        }
        let mut groups = self.groups.write();
        if self.core.has_ended() {
            return Err(self.core.not_leader());
        }
        if let Some(group) = groups.get(&id) {
            return Ok(Arc::clone(group));
        }
        let group =
            GroupDelivery::begin(Arc::clone(&self.core), id).ok_or(PartitionError::UnknownGroup(id))?;
        groups.insert(id, Arc::clone(&group));
        Ok(group)
    }

    /// Makes a consumer group, or gives an existing one the settings that may change. Answers after commit.
    pub(crate) async fn ensure_group(
        &self,
        id: ConsumerGroupId,
        spec: GroupSpec,
    ) -> Result<(), PartitionError> {
        let same = self
            .core
            .replica
            .with_partition(|partition| partition.group(id).is_some_and(|group| *group.spec() == spec));
        if same && !self.core.has_ended() {
            return Ok(());
        }
        let settings = (spec.ack_deadline_ms, spec.max_in_flight);
        let commands = encode_commands(&[Command::EnsureGroup { group: id, spec }])
            .map_err(|error| PartitionError::Invalid(error.to_string()))?;
        let (sender, receiver) = oneshot::channel();
        // A caller that has gone does not need the answer.
        let done = Box::new(move |result| drop(sender.send(result)));
        let now = self.core.shared.ports.clock.now();
        self.core
            .replica
            .propose_commands(self.core.term, commands, now, done)
            .map_err(|error| self.core.refusal(error))?;
        let decided = tokio::time::timeout(self.core.shared.limits.append_deadline, receiver).await;
        let decided = decided
            .ok()
            .and_then(Result::ok)
            .unwrap_or(Err(ProposeError::OutcomeUnknown));
        ensured(decided.map_err(|error| self.core.refusal(error))?)?;
        if let Some(group) = self.groups.read().get(&id) {
            group.configure(settings.0, settings.1);
        }
        Ok(())
    }

    /// State of the partition and its groups.
    pub(crate) fn describe(&self) -> PartitionState {
        self.core.replica.with_partition(|partition| {
            let next = partition.next_sequence();
            let progress = |(group, state): (ConsumerGroupId, &ptah_partition::ConsumerGroup)| {
                let unacked = next.distance_from(state.first_unacked());
                GroupProgress {
                    group,
                    first_unacked: state.first_unacked(),
                    next_undelivered: state.next_undelivered(),
                    pending: unacked.saturating_sub(state.acked_above_floor().covered()),
                }
            };
            PartitionState {
                first_sequence: partition.first_sequence(),
                next_sequence: next,
                groups: partition.groups().map(progress).collect(),
            }
        })
    }

    /// Messages that are set aside because they cannot be read, by consumer group; groups without any are left out.
    pub(crate) fn set_aside(&self) -> Vec<(ConsumerGroupId, u64)> {
        let groups = self.groups.read();
        let aside = groups.iter().map(|(id, group)| (*id, group.messages_set_aside()));
        aside.filter(|(_, messages)| *messages > 0).collect()
    }

    /// Messages were added: pulls that wait get them.
    pub(super) fn messages_were_added(&self) {
        let groups = self.groups.read();
        if !groups.values().any(|group| group.has_pulls()) {
            return;
        }
        let (first, next) = self
            .core
            .replica
            .with_partition(|partition| (partition.first_sequence(), partition.next_sequence()));
        for group in groups.values().filter(|group| group.has_pulls()) {
            group.observe(first, next);
        }
    }
}

fn ensured(committed: Committed) -> Result<(), PartitionError> {
    let Outcome::Commands(applied) = committed.outcome else {
        return Ok(());
    };
    for result in applied {
        if let Applied::Refused(refusal) = result {
            return Err(match refusal.kind() {
                ErrorKind::Exhausted => PartitionError::TooManyGroups(refusal.to_string()),
                _ => PartitionError::Conflict(refusal.to_string()),
            });
        }
    }
    Ok(())
}
