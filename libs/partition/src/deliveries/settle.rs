//! How a lease ends: acknowledged, refused, expired, or its holder is gone.

use ptah_types::Timestamp;

use super::replicate::Round;
use super::spans::{Span, State};
use super::{ConsumerId, Deliveries, MAX_RUNS};
use crate::{RangeSet, SequenceRange};

/// What became of an ack.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "an ack is answered when its round is confirmed"]
pub struct AckOutcome {
    /// How many messages were not acknowledged before.
    pub newly: u64,
    /// The ack may be answered when this round or a later one is confirmed; at once if there is none.
    pub settled_by: Option<Round>,
    /// Not acknowledged: not stored, or too many separate ranges ahead of deliveries.
    pub refused: RangeSet,
}

impl Deliveries {
    /// Acknowledges messages, whoever holds them. Repeating it changes nothing.
    pub fn ack(&mut self, ranges: &[SequenceRange]) -> AckOutcome {
        let (mut newly, mut refused) = (0, RangeSet::new());
        for range in ranges {
            if let Some(not_stored) = range.clip(self.end, u64::MAX) {
                refused.insert(not_stored);
            }
            for (last, span) in self.spans.take_parts(*range, |_| true) {
                self.return_credit(&span, last);
                newly += self.replication.ack(span.first, last);
            }
            for part in self.take_set_aside(*range) {
                newly += self.replication.ack(part.first().get(), part.last().get());
            }
            let Some(ahead) = range.clip(self.next_new, self.end - 1) else {
                continue;
            };
            if self.ahead.len() >= MAX_RUNS && !self.ahead.touches(ahead) {
                refused.insert(ahead);
                continue;
            }
            for part in self.ahead.missing(ahead) {
                newly += self.replication.ack(part.first().get(), part.last().get());
            }
            self.ahead.insert(ahead);
            self.skip_ahead();
        }
        AckOutcome {
            newly,
            settled_by: self.replication.acks_settled_by(),
            refused,
        }
    }

    /// The consumer does not want messages that it was sent: they go out again at once. Messages held back since the
    /// change of leader count as the consumer's. Others stay as they are.
    pub fn nack(&mut self, consumer: ConsumerId, ranges: &[SequenceRange]) {
        for range in ranges {
            for (last, span) in self
                .spans
                .take_parts(*range, |s| s.is_sent_to(consumer) || s.is_held())
            {
                self.come_back(last, span);
            }
        }
    }

    /// The consumer needs one ack deadline more, from `now` on. Holders as for [`Deliveries::nack`].
    pub fn extend(&mut self, consumer: ConsumerId, ranges: &[SequenceRange], now: Timestamp) {
        let later = now.plus_millis(self.ack_deadline_ms);
        for range in ranges {
            for (last, mut span) in self
                .spans
                .take_parts(*range, |s| s.is_sent_to(consumer) || s.is_held())
            {
                if let State::Held { deadline } | State::Leased { deadline, .. } = &mut span.state {
                    *deadline = later;
                }
                self.spans.insert(last, span);
            }
        }
    }

    /// The consumer is gone: everything it holds goes out again at once.
    pub fn release(&mut self, consumer: ConsumerId) {
        self.consumers.close(consumer);
        while let Some((last, span)) = self.spans.take_held_by(consumer) {
            self.come_back(last, span);
        }
    }

    /// Lets everything go out again whose deadline is `now` or earlier.
    pub fn expire(&mut self, now: Timestamp) {
        while let Some((last, span)) = self.spans.take_expired(now) {
            self.come_back(last, span);
        }
    }

    /// When [`Deliveries::expire`] has something to do next.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.spans.next_deadline()
    }

    pub(super) fn come_back(&mut self, last: u64, span: Span) {
        self.return_credit(&span, last);
        self.spans.insert_ready(last, span.back());
    }

    /// Gives credit back for messages that their holder did not get.
    pub(super) fn return_credit(&mut self, span: &Span, last: u64) {
        if let Some(holder) = span.unsent_holder() {
            let messages =
                u32::try_from(last.saturating_sub(span.first).saturating_add(1)).unwrap_or(u32::MAX);
            self.consumers.add_credit(holder, messages);
        }
    }
}
