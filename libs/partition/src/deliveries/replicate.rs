//! What deliveries replicate, in rounds.
//!
//! A round is one log entry: acks, delivery counts and the watermark of everything sent. One round is in flight at a
//! time; what comes up meanwhile makes the next one, so that rounds grow with the load and no timer is needed.
//! All of it may be repeated without harm, so a round that failed simply goes into the next one.

use ptah_types::{ConsumerGroupId, Sequence, Timestamp};

use super::spans::{Span, Stage, State};
use super::{Deliveries, Lease};
use crate::{Applied, Command, DeliveryCount, MAX_COMMAND_RANGES, RangeSet, SequenceRange};

/// Number of a round; later rounds are greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Round(pub u64);

/// How soon a round should be proposed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Urgency {
    /// There is nothing to replicate.
    Nothing,
    /// Only the watermark has moved: nobody waits. Without it more is delivered twice after a change of leader.
    Lazy,
    /// Acks or redeliveries wait for it.
    Now,
}

/// One round to propose as one log entry.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "a round ends with `confirmed` or `failed`"]
pub struct Replicate {
    /// Its number.
    pub round: Round,
    /// What to propose, in this order.
    pub commands: Vec<Command>,
}

/// What a round that was applied brings.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Confirmed {
    /// Redeliveries that may be sent now.
    pub leases: Vec<Lease>,
    /// Acks that the partition could not record: too many separate ranges. The messages go out again; the acks are
    /// answered with an error.
    pub refused_acks: RangeSet,
    /// The partition does not have the group any more: nothing of the round was recorded, drop the deliveries.
    pub group_is_gone: bool,
}

#[derive(Debug)]
struct InFlight {
    round: Round,
    acks: RangeSet,
    counts: Vec<DeliveryCount>,
    watermark: u64,
}

/// What is to be replicated, and what is on its way.
#[derive(Debug)]
pub(super) struct Replication {
    group: ConsumerGroupId,
    acks: RangeSet,
    /// Highest place that was sent.
    sent: u64,
    /// Watermark that the partition has.
    recorded: u64,
    in_flight: Option<InFlight>,
    next_round: Round,
}

impl Replication {
    pub(super) fn new(group: ConsumerGroupId, recorded: u64) -> Self {
        Self {
            group,
            acks: RangeSet::new(),
            sent: recorded,
            recorded,
            in_flight: None,
            next_round: Round(1),
        }
    }

    pub(super) fn sent_up_to(&mut self, last: u64) {
        self.sent = self.sent.max(last);
    }

    pub(super) fn recorded_up_to(&mut self, last: u64) {
        self.recorded = self.recorded.max(last);
    }

    /// Notes an ack; returns how many messages it has.
    pub(super) fn ack(&mut self, first: u64, last: u64) -> u64 {
        SequenceRange::from_numbers(first, last).map_or(0, |range| self.acks.insert(range))
    }

    /// Whether delivery counts are on their way into the log.
    pub(super) fn has_counts_in_flight(&self) -> bool {
        self.in_flight
            .as_ref()
            .is_some_and(|round| !round.counts.is_empty())
    }

    /// Round after which every ack so far is applied.
    pub(super) fn acks_settled_by(&self) -> Option<Round> {
        if !self.acks.is_empty() {
            return Some(self.next_round);
        }
        let on_its_way = self.in_flight.as_ref().filter(|round| !round.acks.is_empty());
        on_its_way.map(|round| round.round)
    }
}

impl Deliveries {
    /// How soon the next round should be proposed. A round that is in flight does not count.
    pub fn urgency(&self) -> Urgency {
        let in_flight = self.replication.in_flight.as_ref();
        let counts_on_their_way = in_flight.is_some_and(|round| !round.counts.is_empty());
        if !self.replication.acks.is_empty() || (self.spans.has_counting() && !counts_on_their_way) {
            return Urgency::Now;
        }
        let recorded = in_flight
            .map_or(0, |round| round.watermark)
            .max(self.replication.recorded);
        if self.replication.sent > recorded {
            Urgency::Lazy
        } else {
            Urgency::Nothing
        }
    }

    /// Starts the next round; `None` while one is in flight or if there is nothing to replicate.
    pub fn to_replicate(&mut self) -> Option<Replicate> {
        if self.replication.in_flight.is_some() || self.urgency() == Urgency::Nothing {
            return None;
        }
        let replication = &mut self.replication;
        let counts: Vec<_> = self
            .spans
            .counting()
            .filter_map(|(last, span)| count_of(last, &span))
            .collect();
        let in_flight = InFlight {
            round: replication.next_round,
            acks: std::mem::take(&mut replication.acks),
            counts,
            watermark: replication.sent,
        };
        let replicate = Replicate {
            round: in_flight.round,
            commands: in_flight.commands(replication.group),
        };
        replication.next_round = Round(in_flight.round.0 + 1);
        replication.in_flight = Some(in_flight);
        Some(replicate)
    }

    /// The round was applied with these results. Rounds that are not in flight are ignored.
    pub fn confirmed(&mut self, round: Round, applied: &[Applied], now: Timestamp) -> Confirmed {
        let Some(in_flight) = self
            .replication
            .in_flight
            .take_if(|in_flight| in_flight.round == round)
        else {
            return Confirmed::default();
        };
        self.replication.recorded_up_to(in_flight.watermark);
        let mut confirmed = Confirmed::default();
        for result in applied {
            match result {
                Applied::Acked { refused, .. } => {
                    self.take_back_acks(refused, now);
                    confirmed.refused_acks = confirmed.refused_acks.iter().chain(refused.iter()).collect();
                }
                Applied::Refused(_) => confirmed.group_is_gone = true,
                _ => {}
            }
        }
        if confirmed.group_is_gone {
            return confirmed;
        }
        for count in in_flight.counts {
            self.counted(count, now, &mut confirmed.leases);
        }
        confirmed
    }

    /// The count is replicated: what waits for it may be sent.
    fn counted(
        &mut self,
        DeliveryCount { range, count }: DeliveryCount,
        now: Timestamp,
        leases: &mut Vec<Lease>,
    ) {
        for (last, mut span) in self.spans.take_parts(range, |_| true) {
            span.recorded = span.recorded.max(count);
            let delivery_count = span.delivery_count();
            match &mut span.state {
                State::Ready => {
                    self.spans.insert_ready(last, span);
                    continue;
                }
                State::Leased {
                    consumer,
                    deadline,
                    stage,
                } if *stage == Stage::Counting && delivery_count <= count => {
                    *stage = Stage::Sendable;
                    *deadline = now.plus_millis(self.ack_deadline_ms);
                    let range = SequenceRange::from_numbers(span.first, last);
                    leases.extend(range.map(|range| Lease {
                        consumer: *consumer,
                        range,
                        delivery_count,
                    }));
                }
                State::Held { .. } | State::Leased { .. } => {}
            }
            self.spans.insert(last, span);
        }
    }

    /// Acks that were not recorded: the messages are as if they were out with nobody known.
    fn take_back_acks(&mut self, refused: &RangeSet, now: Timestamp) {
        let deadline = now.plus_millis(self.ack_deadline_ms);
        for range in refused.iter() {
            self.ahead.remove(range);
            let Some(range) = range.clip(self.first, self.next_new - 1) else {
                continue;
            };
            self.spans.take_parts(range, |_| true);
            self.replication.sent_up_to(range.last().get());
            let span = Span {
                first: range.first().get(),
                deliveries: 1,
                recorded: 1,
                state: State::Held { deadline },
            };
            self.spans.insert(range.last().get(), span);
        }
    }

    /// The round was not applied as far as is known, and this node still leads: its content goes into the next one.
    /// Rounds that are not in flight are ignored.
    pub fn failed(&mut self, round: Round) {
        if let Some(in_flight) = self
            .replication
            .in_flight
            .take_if(|in_flight| in_flight.round == round)
        {
            for range in in_flight.acks.iter() {
                self.replication.acks.insert(range);
            }
        }
    }
}

fn count_of(last: u64, span: &Span) -> Option<DeliveryCount> {
    let range = SequenceRange::from_numbers(span.first, last)?;
    Some(DeliveryCount {
        range,
        count: span.delivery_count(),
    })
}

impl InFlight {
    fn commands(&self, group: ConsumerGroupId) -> Vec<Command> {
        let mut commands = Vec::new();
        let mut acks = self.acks.clone();
        while !acks.is_empty() {
            let ranges = acks.take_runs(MAX_COMMAND_RANGES);
            commands.push(Command::Ack { group, ranges });
        }
        let Some(watermark) = Sequence::new(self.watermark) else {
            return commands;
        };
        if self.counts.is_empty() {
            let counts = Vec::new();
            commands.push(Command::Delivered {
                group,
                watermark,
                counts,
            });
        }
        for counts in self.counts.chunks(MAX_COMMAND_RANGES) {
            let counts = counts.to_vec();
            commands.push(Command::Delivered {
                group,
                watermark,
                counts,
            });
        }
        commands
    }
}
