//! Deliveries: which consumer of a group holds which message. Only the leader has one per group.
//!
//! Every stored message that is not acknowledged is either in a run of `spans` (out, or to go out again), or set aside
//! because it cannot be read, or at or behind `next_new` (never leased by this leader). What must always hold:
//! - a message is held by one consumer at a time, and goes back when its deadline passes;
//! - a delivery count from 2 on is replicated before the message goes out;
//! - an ack counts whoever held the message; an ack is never answered before it is applied;
//! - messages that are out and not acknowledged are bounded, in number and in runs.
//!
//! Replication goes in rounds, one at a time: what comes up during a round is the next one. See `replicate`.
//! Volatile: after a change of leader it is built again from the partition, and what may still be out under the old
//! leader is held back for one ack deadline.

mod consumers;
mod hand_back;
mod replicate;
mod settle;
mod spans;

#[cfg(test)]
mod tests;

use ptah_types::{ConsumerGroupId, Sequence, Timestamp};

pub use consumers::MAX_CONSUMERS;
pub use replicate::{Confirmed, Replicate, Round, Urgency};
pub use settle::AckOutcome;

use crate::applied::Broken;
use crate::group::{ConsumerGroup, MAX_ACK_RANGES};
use crate::{Partition, RangeSet, SequenceRange};
use consumers::Consumers;
use replicate::Replication;
use spans::{Span, Spans, Stage, State};

/// A consumer gets at most this many messages before it is the next one's turn.
const TURN_MESSAGES: u32 = 256;
/// From this many runs on nothing new is leased, so that acks do not run out of ranges.
const MAX_RUNS: usize = MAX_ACK_RANGES / 2;

/// A consumer, as the caller numbers them. Never used again for another consumer of the same leader.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConsumerId(pub u64);

/// The group has [`MAX_CONSUMERS`] consumers in this partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("consumer group has {MAX_CONSUMERS} consumers in this partition already")]
pub struct TooManyConsumers;

/// Messages that a consumer may be sent now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    /// Who gets them.
    pub consumer: ConsumerId,
    /// The messages.
    pub range: SequenceRange,
    /// Which delivery of them this is, counted from 1.
    pub delivery_count: u32,
}

/// Leases of one consumer group in one partition.
#[derive(Debug)]
pub struct Deliveries {
    ack_deadline_ms: u64,
    max_in_flight: u64,
    spans: Spans,
    consumers: Consumers,
    /// Lowest place that this leader has not leased. Messages before it that are in no run are acknowledged or set aside.
    next_new: u64,
    /// Oldest place that is kept.
    first: u64,
    /// Place that the next message gets.
    end: u64,
    /// Acknowledged before this leader leased them.
    ahead: RangeSet,
    /// Cannot be read: neither out nor acknowledged, and not handed out any more.
    set_aside: RangeSet,
    replication: Replication,
}

impl Deliveries {
    /// Takes over a group; `None` if the partition does not have it. `now` is the time from which leases of an
    /// earlier leader have one ack deadline left.
    pub fn new(partition: &Partition, group: ConsumerGroupId, now: Timestamp) -> Option<Self> {
        let state = partition.group(group)?;
        let spec = state.spec();
        let next_new = state.next_undelivered().get();
        let mut deliveries = Self {
            ack_deadline_ms: spec.ack_deadline_ms,
            max_in_flight: u64::from(spec.max_in_flight),
            spans: Spans::default(),
            consumers: Consumers::default(),
            next_new,
            first: partition.first_sequence().get(),
            end: partition.next_sequence().get(),
            ahead: state
                .acked_above_floor()
                .iter()
                .filter_map(|run| run.clip(next_new, u64::MAX))
                .collect(),
            set_aside: RangeSet::new(),
            replication: Replication::new(group, next_new - 1),
        };
        deliveries.hold_back(state, now);
        deliveries.skip_ahead();
        Some(deliveries)
    }

    /// Holds what may be out under an earlier leader.
    fn hold_back(&mut self, group: &ConsumerGroup, now: Timestamp) {
        let deadline = now.plus_millis(self.ack_deadline_ms);
        let mut hold = |first: u64, last: u64, count: u32| {
            let span = Span {
                first,
                deliveries: count,
                recorded: count,
                state: State::Held { deadline },
            };
            self.spans.insert(last, span);
        };
        let out =
            SequenceRange::from_numbers(group.first_unacked().get(), group.next_undelivered().get() - 1);
        for part in out.map_or(Vec::new(), |out| group.acked_above_floor().missing(out)) {
            let mut cursor = part.first().get();
            for (first, last, count) in group.counts().overlapping(cursor, part.last().get()) {
                if cursor < first {
                    hold(cursor, first - 1, 1);
                }
                hold(first, last, count);
                cursor = last + 1;
            }
            if cursor <= part.last().get() {
                hold(cursor, part.last().get(), 1);
            }
        }
    }

    /// Takes over settings that were changed. Leases that are out keep their deadline.
    pub fn configure(&mut self, ack_deadline_ms: u64, max_in_flight: u32) {
        self.ack_deadline_ms = ack_deadline_ms;
        self.max_in_flight = u64::from(max_in_flight);
    }

    /// Tells which messages are stored and applied: from `first` to before `next`. Cheap; call it after every apply.
    pub fn observe(&mut self, first: Sequence, next: Sequence) {
        self.end = self.end.max(next.get());
        if first.get() <= self.first {
            return;
        }
        self.first = first.get();
        if let Some(gone) = SequenceRange::from_numbers(1, self.first - 1) {
            for (last, span) in self.spans.take_parts(gone, |_| true) {
                self.return_credit(&span, last);
            }
            self.ahead.remove(gone);
            self.set_aside.remove(gone);
        }
        self.next_new = self.next_new.max(self.first);
        self.replication.recorded_up_to(self.first - 1);
        self.skip_ahead();
    }

    /// Lets a consumer in, or adds credit to one that is in: it wants `credit` messages.
    pub fn open(&mut self, consumer: ConsumerId, credit: u32) -> Result<(), TooManyConsumers> {
        self.consumers.open(consumer, credit)
    }

    /// The consumer wants `credit` messages more; false if it is not open.
    pub fn add_credit(&mut self, consumer: ConsumerId, credit: u32) -> bool {
        self.consumers.add_credit(consumer, credit)
    }

    /// How many more messages the consumer wants; `None` if it is not open.
    pub fn credit(&self, consumer: ConsumerId) -> Option<u32> {
        self.consumers.credit(consumer)
    }

    /// Number of open consumers.
    pub fn consumers(&self) -> usize {
        self.consumers.len()
    }

    /// Messages that are out or wait to go out again.
    pub fn outstanding(&self) -> u64 {
        self.spans.messages()
    }

    /// Whether a consumer with credit would get something.
    pub fn available(&self) -> bool {
        self.spans.has_ready() || self.new_room() > 0
    }

    /// Gives up to `max_messages` messages to consumers in turn: those to go out again first, then new ones in order.
    ///
    /// Returns what may be sent now. Redeliveries whose count must be replicated first are leased as well and come
    /// out of [`Deliveries::confirmed`].
    pub fn lease(&mut self, now: Timestamp, max_messages: u32) -> Vec<Lease> {
        let mut leases = Vec::new();
        let mut left = max_messages;
        while left > 0
            && let Some((consumer, credit)) = self.consumers.front()
        {
            let share = if self.consumers.waiting() == 1 {
                left
            } else {
                left.min(TURN_MESSAGES)
            };
            let Some((range, span)) = self.lease_run(consumer, share.min(credit), now) else {
                break;
            };
            // A run is no longer than the share.
            let messages = range.count() as u32;
            left -= messages;
            self.consumers.served(consumer, messages);
            if span.is_sendable_to(consumer) {
                leases.push(Lease {
                    consumer,
                    range,
                    delivery_count: span.delivery_count(),
                });
            }
        }
        leases
    }

    fn lease_run(
        &mut self,
        consumer: ConsumerId,
        most: u32,
        now: Timestamp,
    ) -> Option<(SequenceRange, Span)> {
        let (last, mut span) = match self.spans.take_ready(u64::from(most.max(1))) {
            Some(ready) => ready,
            None => self.take_new(u64::from(most))?,
        };
        let stage = if span.delivery_count() <= span.recorded {
            Stage::Sendable
        } else {
            Stage::Counting
        };
        span.state = State::Leased {
            consumer,
            deadline: now.plus_millis(self.ack_deadline_ms),
            stage,
        };
        self.spans.insert(last, span);
        Some((SequenceRange::from_numbers(span.first, last)?, span))
    }

    fn take_new(&mut self, most: u64) -> Option<(u64, Span)> {
        let room = most.min(self.new_room()).checked_sub(1)?;
        let first = self.next_new;
        let acked = self
            .ahead
            .run_from(first)
            .map_or(u64::MAX, |run| run.first().get() - 1);
        let last = first.saturating_add(room).min(acked);
        self.next_new = last + 1;
        self.skip_ahead();
        let span = Span {
            first,
            deliveries: 0,
            recorded: 1,
            state: State::Ready,
        };
        Some((last, span))
    }

    /// How many new messages may be leased.
    fn new_room(&self) -> u64 {
        if self.spans.len() + self.ahead.len() + self.set_aside.len() >= MAX_RUNS {
            return 0;
        }
        let stored = self.end.saturating_sub(self.next_new);
        stored.min(self.max_in_flight.saturating_sub(self.spans.messages()))
    }

    /// Moves `next_new` over messages that are acknowledged already.
    fn skip_ahead(&mut self) {
        while let Some(run) = self.ahead.run_from(self.next_new)
            && run.first().get() <= self.next_new
        {
            self.next_new = run.last().get() + 1;
            self.ahead.remove(run);
        }
    }

    /// Tells that messages of a lease are handed to the consumer now; call it right before. Returns the parts that the
    /// consumer still holds and has not got: send exactly those. A lease may be sent in pieces: give it with the range
    /// of the piece. Of a lease that expired meanwhile nothing is sent with an outdated delivery count.
    pub fn mark_lease_sent(&mut self, lease: &Lease, now: Timestamp) -> Vec<SequenceRange> {
        let same_delivery = |span: &Span| span.delivery_count() == lease.delivery_count;
        self.send(lease.consumer, lease.range, now, same_delivery)
    }

    /// As [`Deliveries::mark_lease_sent`] for a caller that does not tell consumers the delivery count.
    pub fn mark_sent(
        &mut self,
        consumer: ConsumerId,
        range: SequenceRange,
        now: Timestamp,
    ) -> Vec<SequenceRange> {
        self.send(consumer, range, now, |_| true)
    }

    fn send(
        &mut self,
        consumer: ConsumerId,
        range: SequenceRange,
        now: Timestamp,
        wanted: impl Fn(&Span) -> bool,
    ) -> Vec<SequenceRange> {
        let deadline = now.plus_millis(self.ack_deadline_ms);
        let mut sent = Vec::new();
        for (last, mut span) in self
            .spans
            .take_parts(range, |span| span.is_sendable_to(consumer) && wanted(span))
        {
            span.state = State::Leased {
                consumer,
                deadline,
                stage: Stage::Sent,
            };
            self.spans.insert(last, span);
            self.replication.sent_up_to(last);
            sent.extend(SequenceRange::from_numbers(span.first, last));
        }
        sent
    }

    /// Takes back messages that the consumer holds and was not sent: no delivery is counted, credit comes back.
    pub fn give_back(&mut self, consumer: ConsumerId, range: SequenceRange) {
        for (last, span) in self
            .spans
            .take_parts(range, |span| span.unsent_holder() == Some(consumer))
        {
            self.come_back(last, span);
        }
    }

    /// Whether everything fits together. Costs a walk over all runs.
    pub fn check(&self) -> Result<(), Broken> {
        self.spans.check(self.next_new)?;
        let ahead = self
            .ahead
            .iter()
            .next()
            .is_none_or(|run| run.first().get() > self.next_new);
        Broken::unless(ahead, || "acknowledged messages ahead are not skipped".into())?;
        let aside = self
            .set_aside
            .iter()
            .next_back()
            .is_none_or(|run| run.last().get() < self.next_new);
        Broken::unless(aside, || "messages are set aside that were not leased".into())?;
        Broken::unless(self.next_new <= self.end, || {
            "messages are leased that are not stored".into()
        })
    }
}
