//! The partition, the log, and who leads.

use std::collections::VecDeque;

use bytes::Bytes;
use ptah_partition::{BatchHead, BatchStamp, Command, GroupSpec, Partition, Round, encode_commands};
use ptah_types::{ConsumerGroupId, Sequence, StartAt, Timestamp};

use crate::Step;
use crate::deliver::Group;
use crate::produce::Producers;

/// A log entry.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    Batch(BatchStamp),
    Commands {
        round: Option<(usize, Round)>,
        payload: Bytes,
    },
}

pub(crate) struct World {
    pub(crate) partition: Partition,
    /// Everything applied, for a replica that starts from nothing.
    log: Vec<Entry>,
    pub(crate) in_flight: VecDeque<Entry>,
    producers: Producers,
    groups: Vec<Group>,
    /// Time of leases; never runs backwards.
    now: u64,
    /// Time of messages.
    wall: u64,
}

pub(crate) fn group_id(index: usize) -> ConsumerGroupId {
    ConsumerGroupId::new(index as u64 + 1).unwrap()
}

fn millis(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

impl World {
    pub(crate) fn new() -> Self {
        let mut partition = Partition::new();
        let mut log = Vec::new();
        for (index, start) in [StartAt::First, StartAt::End].into_iter().enumerate() {
            let spec = GroupSpec {
                name: "audit".parse().unwrap(),
                start,
                ack_deadline_ms: 1_000,
                max_in_flight: 40,
            };
            let command = Command::EnsureGroup {
                group: group_id(index),
                spec,
            };
            let payload = encode_commands(&[command]).unwrap();
            partition.apply_entry(&payload, millis(0)).unwrap();
            log.push(Entry::Commands { round: None, payload });
        }
        Self {
            producers: Producers::new(&partition),
            groups: (0..2).map(|index| Group::new(&partition, index, 0)).collect(),
            partition,
            log,
            in_flight: VecDeque::new(),
            now: 0,
            wall: 0,
        }
    }

    pub(crate) fn step(&mut self, step: Step) {
        match step {
            Step::Append { session, count } => self.produce(session, 0, count),
            Step::Retry { session, back } => self.produce(session, back + 1, 0),
            Step::Skip { session } => self.producers.skip(session, millis(self.wall)),
            Step::Apply(entries) => (0..entries.min(self.in_flight.len())).for_each(|_| self.apply_oldest()),
            Step::Clock(wall) => self.wall = wall,
            Step::Pass { millis } => self.pass(millis),
            Step::Round { group } => self.round(group),
            Step::FailRound { group, lost } => self.fail_round(group, lost),
            Step::Flow {
                group,
                consumer,
                credit,
            } => self.flow(group, consumer, credit),
            Step::ChangeLeader { keep } => self.change_leader(keep),
            Step::Poison => self.poison(),
            Step::Checkpoint => self.partition = Partition::decode(&self.partition.encode()).unwrap(),
            Step::Trim { keep } => self.trim(keep),
            Step::Credit { group, .. }
            | Step::Lease { group, .. }
            | Step::Send { group, .. }
            | Step::GiveBack { group }
            | Step::AckSent { group, .. }
            | Step::AckAny { group, .. }
            | Step::Nack { group, .. }
            | Step::NackSent { group, .. }
            | Step::Extend { group, .. }
            | Step::Release { group, .. }
            | Step::Recall { group, .. }
            | Step::Detach { group, .. } => self.groups[group].step(step, &self.partition, self.now),
        }
    }

    fn produce(&mut self, session: u64, back: usize, count: u32) {
        let proposed = self
            .producers
            .append(session, back, count, millis(self.wall), &self.in_flight);
        self.in_flight.extend(proposed.map(Entry::Batch));
    }

    fn apply_oldest(&mut self) {
        let Some(entry) = self.in_flight.pop_front() else {
            return;
        };
        self.log.push(entry.clone());
        match entry {
            Entry::Batch(stamp) => {
                let before = self.partition.last_timestamp();
                self.producers.applied(&stamp, &self.partition);
                self.partition.apply_batch(&stamp, head(&stamp)).unwrap();
                assert!(
                    self.partition.last_timestamp() >= before,
                    "message time runs backwards"
                );
                self.producers.sequencer.committed(self.partition.next_sequence());
            }
            Entry::Commands { round, payload } => {
                let applied = self.partition.apply_entry(&payload, millis(self.wall)).unwrap();
                if let Some((group, round)) = round {
                    self.groups[group].confirmed(round, &applied, &self.partition, self.now);
                }
            }
        }
        for group in &mut self.groups {
            group.observe(&self.partition);
        }
    }

    fn pass(&mut self, millis: u64) {
        self.now += millis;
        for group in &mut self.groups {
            group.expire(self.now);
        }
    }

    fn flow(&mut self, group: usize, consumer: u64, credit: u32) {
        let all = [
            Step::Credit {
                group,
                consumer,
                credit,
            },
            Step::Lease { group, most: 100 },
            Step::Round { group },
            Step::Apply(usize::MAX),
            Step::Send {
                group,
                leases: 100,
                cut: 0,
            },
            Step::Round { group },
            Step::Apply(usize::MAX),
        ];
        for step in all {
            self.step(step);
        }
    }

    fn round(&mut self, group: usize) {
        if let Some(replicate) = self.groups[group].next_round() {
            let payload = encode_commands(&replicate.commands).unwrap();
            let round = Some((group, replicate.round));
            self.in_flight.push_back(Entry::Commands { round, payload });
        }
    }

    fn fail_round(&mut self, group: usize, lost: bool) {
        let failed = self.groups[group].fail_round();
        if lost && let Some(failed) = failed {
            let failed = |entry: &Entry| matches!(entry, Entry::Commands { round, .. } if *round == Some((group, failed)));
            self.in_flight.retain(|entry| !failed(entry));
        }
    }

    /// The old leader's first `keep` proposals survive, the others never happened.
    fn change_leader(&mut self, keep: usize) {
        self.in_flight.truncate(keep);
        // Nobody is left who could be told that a round of the old leader was applied.
        for entry in &mut self.in_flight {
            if let Entry::Commands { round, .. } = entry {
                *round = None;
            }
        }
        while !self.in_flight.is_empty() {
            self.apply_oldest();
        }
        self.producers.rebuild(&self.partition);
        for group in &mut self.groups {
            group.change_leader(&self.partition, self.now);
        }
    }

    fn poison(&mut self) {
        self.producers.poison(millis(self.wall));
        while !self.in_flight.is_empty() {
            self.apply_oldest();
        }
        self.producers.rebuild(&self.partition);
    }

    fn trim(&mut self, keep: u64) {
        let next = self.partition.next_sequence().get();
        let first = Sequence::new(next.saturating_sub(keep).max(1)).unwrap();
        let payload = encode_commands(&[Command::TrimTo { first }]).unwrap();
        self.in_flight.push_back(Entry::Commands { round: None, payload });
    }

    pub(crate) fn check(&self) {
        self.partition.check().unwrap();
        for group in &self.groups {
            group.check(&self.partition);
        }
    }

    /// Everything settles: what nobody acknowledged is delivered, and a replica of the log is the same.
    pub(crate) fn drain(&mut self) {
        while !self.in_flight.is_empty() {
            self.apply_oldest();
        }
        for group in 0..self.groups.len() {
            for _ in 0..40 {
                self.pass(2_000);
                self.groups[group].take_and_ack_all(&self.partition, self.now);
                self.round(group);
                while !self.in_flight.is_empty() {
                    self.apply_oldest();
                }
                self.check();
            }
            self.groups[group].check_drained(&self.partition);
        }
        let mut replica = Partition::new();
        for entry in &self.log {
            match entry {
                Entry::Batch(stamp) => {
                    replica.apply_batch(stamp, head(stamp)).unwrap();
                }
                Entry::Commands { payload, .. } => {
                    // Time of commands shows only in when a group was made, and those are made at 0.
                    replica.apply_entry(payload, millis(0)).unwrap();
                }
            }
        }
        assert_eq!(
            replica.encode(),
            self.partition.encode(),
            "a replica of the same log differs"
        );
    }
}

fn head(stamp: &BatchStamp) -> BatchHead {
    BatchHead {
        count: stamp.count,
        bytes: 10 * u64::from(stamp.count),
    }
}
