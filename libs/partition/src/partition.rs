//! The replicated state of one partition.
//!
//! Invariants ([`Partition::check`]): sequences are dense; message time never runs backwards; a session's append is
//! stored once; a group's floor and watermark only move forward; everything has a bound.
//! Not here: deciding what is proposed ([`crate::Sequencer`], [`crate::Deliveries`]) and the messages themselves.

use std::collections::BTreeMap;

use ptah_types::limits::{MAX_BATCH_MESSAGES, MAX_GROUPS_PER_STATION};
use ptah_types::{ConsumerGroupId, Sequence, Timestamp};

use crate::applied::{Applied, Broken, Disagreement, Refusal};
use crate::group::ConsumerGroup;
use crate::sessions::{Look, Sessions};
use crate::sizes::Sizes;
use crate::{Appended, BatchHead, BatchStamp, Command, CommandError, GroupSpec, RangeSet, decode_commands};

/// Most consumer groups of a partition.
pub const MAX_GROUPS: usize = MAX_GROUPS_PER_STATION;

/// State that every replica of a partition derives from the same log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Partition {
    pub(crate) first: Sequence,
    pub(crate) next: Sequence,
    pub(crate) last_timestamp: Timestamp,
    pub(crate) sizes: Sizes,
    pub(crate) sessions: Sessions,
    pub(crate) groups: BTreeMap<ConsumerGroupId, ConsumerGroup>,
}

impl Default for Partition {
    fn default() -> Self {
        Self::new()
    }
}

impl Partition {
    /// A partition without messages.
    pub fn new() -> Self {
        Self {
            first: Sequence::FIRST,
            next: Sequence::FIRST,
            last_timestamp: Timestamp::default(),
            sizes: Sizes::default(),
            sessions: Sessions::default(),
            groups: BTreeMap::new(),
        }
    }

    /// Oldest message that is kept; equal to [`Partition::next_sequence`] when there is none.
    pub fn first_sequence(&self) -> Sequence {
        self.first
    }

    /// Place that the next message gets.
    pub fn next_sequence(&self) -> Sequence {
        self.next
    }

    /// Time of the newest message.
    pub fn last_timestamp(&self) -> Timestamp {
        self.last_timestamp
    }

    /// How many messages are kept.
    pub fn messages(&self) -> u64 {
        self.next.distance_from(self.first)
    }

    /// Bytes of the batches that are kept; after a trim inside a batch or bucket an estimate.
    pub fn bytes(&self) -> u64 {
        self.sizes.bytes()
    }

    /// All consumer groups in the order of their ids.
    pub fn groups(&self) -> impl Iterator<Item = (ConsumerGroupId, &ConsumerGroup)> {
        self.groups.iter().map(|(id, group)| (*id, group))
    }

    /// One consumer group.
    pub fn group(&self, id: ConsumerGroupId) -> Option<&ConsumerGroup> {
        self.groups.get(&id)
    }

    /// How many produce sessions are known.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Applies a batch that the log holds: checks again what the leader decided.
    pub fn apply_batch(&mut self, stamp: &BatchStamp, head: BatchHead) -> Result<Appended, Disagreement> {
        let next = self.verify(stamp, head)?;
        let appended = stamp.appended();
        self.next = next;
        self.last_timestamp = stamp.timestamp;
        self.sizes.append(u64::from(stamp.count), head.bytes);
        if let Some(append) = stamp.session {
            self.sessions.record(append, appended);
        }
        Ok(appended)
    }

    fn verify(&self, stamp: &BatchStamp, head: BatchHead) -> Result<Sequence, Disagreement> {
        let expected = self.next;
        if stamp.base_sequence != expected {
            return Err(Disagreement::Sequence {
                stamped: stamp.base_sequence,
                expected,
            });
        }
        if stamp.count != head.count || !is_batch_count(stamp.count) {
            return Err(Disagreement::Count {
                stamped: stamp.count,
                payload: head.count,
            });
        }
        if stamp.timestamp < self.last_timestamp {
            return Err(Disagreement::Time {
                stamped: stamp.timestamp,
                previous: self.last_timestamp,
            });
        }
        if let Some(session) = stamp.session {
            let expected = match self.sessions.look(session) {
                Look::Next => session.number.get(),
                Look::Known(_) => session.number.get().saturating_add(1),
                Look::Forgotten { last } => last.saturating_add(1),
                Look::Gap { expected } => expected,
                Look::Expired => 1,
            };
            if self.sessions.look(session) != Look::Next {
                return Err(Disagreement::Session { session, expected });
            }
        }
        let next = stamp.appended().next();
        next.ok_or(Disagreement::NumbersExhausted { next: expected })
    }

    /// Decodes the commands of a log entry and applies them in order. On error nothing is applied.
    pub fn apply_entry(&mut self, payload: &[u8], now: Timestamp) -> Result<Vec<Applied>, CommandError> {
        let commands = decode_commands(payload)?;
        Ok(commands.iter().map(|command| self.apply(command, now)).collect())
    }

    /// Applies one command. `now` is the time that the leader wrote on the entry.
    pub fn apply(&mut self, command: &Command, now: Timestamp) -> Applied {
        match command {
            Command::EnsureGroup { group, spec } => self.ensure_group(*group, spec, now),
            Command::DropGroup { group } => Applied::GroupDropped {
                existed: self.groups.remove(group).is_some(),
            },
            Command::Ack { group, ranges } => self.ack(*group, ranges),
            Command::Delivered {
                group,
                watermark,
                counts,
            } => {
                let next = self.next;
                self.with_group(*group, |group| {
                    group.delivered(*watermark, counts, next);
                    Applied::Delivered {
                        next_undelivered: group.next_undelivered(),
                    }
                })
            }
            Command::TrimTo { first } => self.trim(*first),
        }
    }

    fn with_group(
        &mut self,
        id: ConsumerGroupId,
        act: impl FnOnce(&mut ConsumerGroup) -> Applied,
    ) -> Applied {
        let (first, next) = (self.first, self.next);
        let Some(group) = self.groups.get_mut(&id) else {
            return Applied::Refused(Refusal::UnknownGroup(id));
        };
        let applied = act(group);
        debug_assert_eq!(group.check(first, next), Ok(()));
        applied
    }

    fn ensure_group(&mut self, id: ConsumerGroupId, spec: &GroupSpec, now: Timestamp) -> Applied {
        if let Some(group) = self.groups.get_mut(&id) {
            if !group.is_same(spec) {
                return Applied::Refused(Refusal::GroupDiffers(id));
            }
            return Applied::GroupEnsured {
                created: false,
                changed: group.reconfigure(spec),
            };
        }
        if self.groups.len() >= MAX_GROUPS {
            return Applied::Refused(Refusal::TooManyGroups { limit: MAX_GROUPS });
        }
        let group = ConsumerGroup::new(spec.clone(), now, self.first, self.next);
        self.groups.insert(id, group);
        Applied::GroupEnsured {
            created: true,
            changed: false,
        }
    }

    fn ack(&mut self, id: ConsumerGroupId, ranges: &RangeSet) -> Applied {
        let next = self.next;
        self.with_group(id, |group| {
            let (newly, refused) = group.ack(ranges, next);
            Applied::Acked { newly, refused }
        })
    }

    fn trim(&mut self, first: Sequence) -> Applied {
        let first = first.clamp(self.first, self.next);
        let removed = first.distance_from(self.first);
        self.first = first;
        self.sizes.trim(removed);
        for group in self.groups.values_mut() {
            group.trim(first);
        }
        Applied::Trimmed { first, removed }
    }

    /// Whether all invariants hold. Costs a walk over the whole state.
    pub fn check(&self) -> Result<(), Broken> {
        Broken::unless(self.first <= self.next, || {
            "oldest message is behind the end".into()
        })?;
        Broken::unless(self.groups.len() <= MAX_GROUPS, || {
            "too many consumer groups".into()
        })?;
        self.sizes.check(self.first, self.next)?;
        self.sessions.check(self.next)?;
        for (id, group) in &self.groups {
            group.check(self.first, self.next).map_err(|broken| Broken {
                what: format!("consumer group {id}: {}", broken.what),
            })?;
        }
        Ok(())
    }
}

/// Whether a batch may have this many messages.
pub(crate) fn is_batch_count(count: u32) -> bool {
    count >= 1 && count as usize <= MAX_BATCH_MESSAGES
}
