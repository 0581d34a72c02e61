//! What is out or must go out again, as runs of messages in the same state.
//!
//! A run is kept under its last place, so that acknowledging in order only moves its start. Four indexes follow every
//! change of a run: those that wait for a consumer, those that wait for their count, deadlines, and holders.

use std::collections::{BTreeMap, BTreeSet};

use ptah_types::Timestamp;

use super::ConsumerId;
use crate::SequenceRange;
use crate::applied::Broken;

/// How far a lease has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// Its delivery count must be replicated first.
    Counting,
    /// Handed to the caller, not yet to the consumer.
    Sendable,
    /// Handed to the consumer.
    Sent,
}

/// Where a run is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Waits for a consumer.
    Ready,
    /// May be out under an earlier leader, which knew with whom.
    Held { deadline: Timestamp },
    /// Is out.
    Leased {
        consumer: ConsumerId,
        deadline: Timestamp,
        stage: Stage,
    },
}

/// Messages in the same state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    pub(super) first: u64,
    /// How often they have been delivered, without a lease that is open.
    pub(super) deliveries: u32,
    /// Delivery count up to which nothing needs to be replicated; at least 1.
    pub(super) recorded: u32,
    pub(super) state: State,
}

impl Span {
    /// Count of the delivery that is open or comes next.
    pub(super) fn delivery_count(&self) -> u32 {
        self.deliveries.saturating_add(1)
    }

    /// The same, waiting for a consumer. What was sent counts as delivered.
    pub(super) fn back(mut self) -> Self {
        if self.is_sent() {
            self.deliveries = self.delivery_count();
        }
        self.state = State::Ready;
        self
    }

    pub(super) fn is_sent(&self) -> bool {
        matches!(
            self.state,
            State::Leased {
                stage: Stage::Sent,
                ..
            }
        )
    }

    pub(super) fn is_held(&self) -> bool {
        matches!(self.state, State::Held { .. })
    }

    pub(super) fn is_sent_to(&self, holder: ConsumerId) -> bool {
        matches!(self.state, State::Leased { consumer, stage: Stage::Sent, .. } if consumer == holder)
    }

    pub(super) fn is_sendable_to(&self, holder: ConsumerId) -> bool {
        matches!(self.state, State::Leased { consumer, stage: Stage::Sendable, .. } if consumer == holder)
    }

    /// Who holds it.
    pub(super) fn holder(&self) -> Option<ConsumerId> {
        match self.state {
            State::Leased { consumer, .. } => Some(consumer),
            _ => None,
        }
    }

    /// Who holds it without having got it.
    pub(super) fn unsent_holder(&self) -> Option<ConsumerId> {
        match self.state {
            State::Leased { consumer, stage, .. } if stage != Stage::Sent => Some(consumer),
            _ => None,
        }
    }
}

/// All runs.
#[derive(Debug, Default)]
pub(super) struct Spans {
    by_last: BTreeMap<u64, Span>,
    messages: u64,
    ready: BTreeSet<u64>,
    counting: BTreeSet<u64>,
    deadlines: BTreeSet<(Timestamp, u64)>,
    holders: BTreeMap<ConsumerId, BTreeSet<u64>>,
}

impl Spans {
    /// Messages in all runs.
    pub(super) fn messages(&self) -> u64 {
        self.messages
    }

    /// Number of runs.
    pub(super) fn len(&self) -> usize {
        self.by_last.len()
    }

    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(super) fn has_counting(&self) -> bool {
        !self.counting.is_empty()
    }

    /// Runs whose count must be replicated, in order.
    pub(super) fn counting(&self) -> impl Iterator<Item = (u64, Span)> {
        self.counting
            .iter()
            .filter_map(|last| Some((*last, *self.by_last.get(last)?)))
    }

    /// Adds a run to a place where none is.
    pub(super) fn insert(&mut self, last: u64, span: Span) {
        self.messages += last - span.first + 1;
        self.index(last, &span);
        self.by_last.insert(last, span);
    }

    /// Adds a run that waits for a consumer, as one with its neighbours if they are alike.
    pub(super) fn insert_ready(&mut self, mut last: u64, mut span: Span) {
        let alike = |other: &Span| {
            (other.state, other.deliveries, other.recorded) == (State::Ready, span.deliveries, span.recorded)
        };
        let left = span
            .first
            .checked_sub(1)
            .filter(|before| self.by_last.get(before).is_some_and(alike));
        let right = self.by_last.range(last.saturating_add(1)..).next();
        let right = right
            .filter(|(_, other)| other.first == last + 1 && alike(other))
            .map(|(right, _)| *right);
        if let Some(left) = left.and_then(|left| self.take(left)) {
            span.first = left.first;
        }
        if let Some(right) = right
            && self.take(right).is_some()
        {
            last = right;
        }
        self.insert(last, span);
    }

    /// Takes the whole run that ends at `last`.
    fn take(&mut self, last: u64) -> Option<Span> {
        let span = self.by_last.remove(&last)?;
        self.unindex(last, &span);
        self.messages -= last - span.first + 1;
        Some(span)
    }

    /// Takes up to `most` messages from the front of the lowest run that waits for a consumer.
    pub(super) fn take_ready(&mut self, most: u64) -> Option<(u64, Span)> {
        let last = *self.ready.first()?;
        let span = self.by_last.get_mut(&last)?;
        let taken = *span;
        let taken_last = taken.first.saturating_add(most - 1);
        if taken_last >= last {
            return Some((last, self.take(last)?));
        }
        span.first = taken_last + 1;
        self.messages -= most;
        Some((taken_last, taken))
    }

    /// Takes the next run whose deadline is `now` or earlier.
    pub(super) fn take_expired(&mut self, now: Timestamp) -> Option<(u64, Span)> {
        let (_, last) = *self.deadlines.first().filter(|(deadline, _)| *deadline <= now)?;
        Some((last, self.take(last)?))
    }

    /// Takes one of the runs that a consumer holds.
    pub(super) fn take_held_by(&mut self, consumer: ConsumerId) -> Option<(u64, Span)> {
        let last = *self.holders.get(&consumer)?.first()?;
        Some((last, self.take(last)?))
    }

    /// Takes the runs that a consumer holds and was not sent.
    pub(super) fn take_unsent_of(&mut self, consumer: ConsumerId) -> Vec<(u64, Span)> {
        let unsent = |last: &u64| self.by_last.get(last).is_some_and(|span| !span.is_sent());
        let held = self.holders.get(&consumer).into_iter().flatten().copied();
        let lasts: Vec<_> = held.filter(unsent).collect();
        lasts
            .into_iter()
            .filter_map(|last| Some((last, self.take(last)?)))
            .collect()
    }

    /// Takes what lies in `range` and is `wanted` out of its runs, in order; the rest of each run stays.
    pub(super) fn take_parts(
        &mut self,
        range: SequenceRange,
        wanted: impl Fn(&Span) -> bool,
    ) -> Vec<(u64, Span)> {
        let mut taken = Vec::new();
        let mut cursor = range.first().get();
        while let Some((last, span)) = self.by_last.range_mut(cursor..).next() {
            let (last, whole) = (*last, *span);
            if whole.first > range.last().get() {
                break;
            }
            if wanted(&whole) {
                let part = Span {
                    first: whole.first.max(range.first().get()),
                    ..whole
                };
                let part_last = last.min(range.last().get());
                if part_last == last {
                    self.by_last.remove(&last);
                    self.unindex(last, &whole);
                } else {
                    span.first = part_last + 1;
                }
                if whole.first < part.first {
                    self.by_last.insert(part.first - 1, whole);
                    self.index(part.first - 1, &whole);
                }
                self.messages -= part_last - part.first + 1;
                taken.push((part_last, part));
            }
            let Some(behind) = last.checked_add(1) else { break };
            cursor = behind;
        }
        taken
    }

    fn index(&mut self, last: u64, span: &Span) {
        match span.state {
            State::Ready => {
                self.ready.insert(last);
            }
            State::Held { deadline } => {
                self.deadlines.insert((deadline, last));
            }
            State::Leased {
                consumer,
                deadline,
                stage,
            } => {
                self.deadlines.insert((deadline, last));
                self.holders.entry(consumer).or_default().insert(last);
                if stage == Stage::Counting {
                    self.counting.insert(last);
                }
            }
        }
    }

    fn unindex(&mut self, last: u64, span: &Span) {
        match span.state {
            State::Ready => {
                self.ready.remove(&last);
            }
            State::Held { deadline } => {
                self.deadlines.remove(&(deadline, last));
            }
            State::Leased {
                consumer,
                deadline,
                stage,
            } => {
                self.deadlines.remove(&(deadline, last));
                if let Some(held) = self.holders.get_mut(&consumer) {
                    held.remove(&last);
                    if held.is_empty() {
                        self.holders.remove(&consumer);
                    }
                }
                if stage == Stage::Counting {
                    self.counting.remove(&last);
                }
            }
        }
    }

    /// Whether runs are disjoint, lie before `next_new`, and are what the indexes say.
    pub(super) fn check(&self, next_new: u64) -> Result<(), Broken> {
        let mut again = Self::default();
        let mut previous = 0;
        for (last, span) in &self.by_last {
            let placed = previous < span.first && span.first <= *last && *last < next_new;
            Broken::unless(placed && span.recorded >= 1, || {
                format!("run {}-{last} is out of place", span.first)
            })?;
            again.insert(*last, *span);
            previous = *last;
        }
        let same = again.messages == self.messages
            && again.ready == self.ready
            && again.counting == self.counting
            && again.deadlines == self.deadlines
            && again.holders == self.holders;
        Broken::unless(same, || "indexes of runs differ from the runs".into())
    }
}
