//! Handing back: credit and leases that a consumer cannot use, messages that cannot be read, and what is left to hand
//! out at all.

use super::spans::State;
use super::{ConsumerId, Deliveries, SequenceRange};

impl Deliveries {
    /// Takes back up to `most` of the consumer's credit that is not leased; answers how much that was.
    pub fn retract_credit(&mut self, consumer: ConsumerId, most: u32) -> u32 {
        self.consumers.retract(consumer, most)
    }

    /// Takes back messages that the consumer holds and that did not reach it after all, also those marked as sent: no
    /// delivery is counted. Credit comes back for those that were not marked.
    pub fn recall(&mut self, consumer: ConsumerId, range: SequenceRange) {
        for (last, mut span) in self
            .spans
            .take_parts(range, |span| span.holder() == Some(consumer))
        {
            self.return_credit(&span, last);
            span.state = State::Ready;
            self.spans.insert_ready(last, span);
        }
    }

    /// The consumer wants nothing more. What it holds and was not sent goes out again; what it was sent stays out until
    /// it is acknowledged or its deadline passes.
    pub fn detach(&mut self, consumer: ConsumerId) {
        self.consumers.close(consumer);
        for (last, span) in self.spans.take_unsent_of(consumer) {
            self.spans.insert_ready(last, span.back());
        }
    }

    /// Sets messages aside that the consumer holds and that cannot be read: as long as this leader leads they are not
    /// handed out, and they count as neither delivered nor acknowledged. Acknowledging them is how somebody gives them
    /// up. Returns how many were set aside.
    pub fn set_aside(&mut self, consumer: ConsumerId, range: SequenceRange) -> u64 {
        let mut messages = 0;
        for (last, span) in self
            .spans
            .take_parts(range, |span| span.holder() == Some(consumer))
        {
            self.return_credit(&span, last);
            let part = SequenceRange::from_numbers(span.first, last);
            messages += part.map_or(0, |part| self.set_aside.insert(part));
        }
        messages
    }

    /// Messages that are set aside.
    pub fn messages_set_aside(&self) -> u64 {
        self.set_aside.covered()
    }

    /// Takes those of a range that are set aside.
    pub(super) fn take_set_aside(&mut self, range: SequenceRange) -> Vec<SequenceRange> {
        let (first, last) = (range.first().get(), range.last().get());
        let parts: Vec<_> = self
            .set_aside
            .iter()
            .filter_map(|run| run.clip(first, last))
            .collect();
        self.set_aside.remove(range);
        parts
    }

    /// Whether every stored message was handed out or set aside, and none waits to go out again. Also false while a bound on what
    /// may be out keeps messages back.
    pub fn is_drained(&self) -> bool {
        !self.spans.has_ready() && !self.spans.has_counting() && self.next_new >= self.end
    }

    /// Whether redeliveries wait for a round that is not in flight.
    pub fn has_redeliveries_to_count(&self) -> bool {
        self.spans.has_counting() && !self.replication.has_counts_in_flight()
    }
}
