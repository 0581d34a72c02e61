//! Order and outcome of the batches of one partition, without IO.
//!
//! A batch gets its number when it enters and keeps number and content for as long as its session lives: whatever copy
//! of it reaches the partition, over whatever stream, is the same batch, and the partition stores it once. So:
//!
//! - answers are taken in order only; the oldest unanswered batch decides;
//! - after a lost stream or a refusal everything unanswered is sent again, oldest first, with the same numbers;
//! - the partition stores number n + 1 only after n. If the oldest batch is certainly not stored and is given up, nothing
//!   behind it can ever be stored under that session: the rest moves to a new session and is sent again;
//! - if the oldest batch may be stored and is given up, everything sent behind it may be stored too: all of it ends as
//!   unknown, and later batches use a new session.
//!
//! Not here: channels, timers, routes ([`super::partition`]).

use std::collections::VecDeque;

use ptah_partition::Batch;
use tokio::time::Instant;

/// Names one use of a channel; answers of an earlier use are not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BindingId(pub u64);

/// A batch under way.
#[derive(Debug)]
struct Entry<T> {
    number: u64,
    batch: Batch,
    deadline: Instant,
    ticket: T,
    /// An earlier sending ended without an answer, so a copy may be stored or still reach the partition.
    maybe_stored: bool,
}

/// Where the batches are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoredAt {
    /// Sequence of the first message.
    pub base_sequence: u64,
    /// Time of the messages in nanoseconds.
    pub timestamp_ns: u64,
    /// Stored by an earlier sending.
    pub duplicate: bool,
}

/// What a refusal means for the order of things.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefusalEffect {
    /// Not stored by this sending; sending it again may work.
    Retry,
    /// Not known whether it is stored; sending it again tells.
    Unknown,
    /// Not stored by this sending, and sending it again gives the same answer.
    Permanent,
    /// The partition does not know the session any more, or not far enough back to answer.
    SessionLost,
    /// Stored, but the partition does not remember where.
    Forgotten,
}

/// What becomes of a batch that leaves the pipeline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leaving {
    /// Stored.
    Stored(StoredAt),
    /// Certainly not stored, and refused for good.
    Refused,
    /// Certainly not stored when its time was over.
    TooLate,
    /// Stored or not: nobody knows.
    Unknown,
}

/// What the owner of the pipeline has to do after a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Consequence {
    /// The binding ended: find a leader and bind again.
    pub unbound: bool,
    /// Numbers start at 1 again: use a new session id from now on.
    pub new_session: bool,
}

/// A batch to put on the channel.
#[derive(Debug)]
pub struct Sending {
    /// Number within session and partition.
    pub number: u64,
    /// The batch.
    pub batch: Batch,
}

/// Batches of one partition in order of their numbers. `T` is what the owner needs to answer a batch.
#[derive(Debug)]
pub struct Pipeline<T> {
    entries: VecDeque<Entry<T>>,
    next_number: u64,
    window: usize,
    binding: Option<Binding>,
}

#[derive(Debug)]
struct Binding {
    id: BindingId,
    /// Entries before this place were sent on this binding and wait for an answer.
    sent: usize,
}

impl<T> Pipeline<T> {
    /// An empty pipeline that keeps at most `window` batches under way.
    pub fn new(window: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            next_number: 1,
            window: window.max(1),
            binding: None,
        }
    }

    /// Whether another batch may enter.
    pub fn has_room(&self) -> bool {
        self.entries.len() < self.window
    }

    /// Batches under way.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The binding in use.
    pub fn binding(&self) -> Option<BindingId> {
        self.binding.as_ref().map(|binding| binding.id)
    }

    /// When the oldest batch is given up.
    pub fn deadline(&self) -> Option<Instant> {
        self.entries.front().map(|entry| entry.deadline)
    }

    /// Takes a batch in at the end. It is sent by [`Pipeline::next_sending`].
    pub fn push(&mut self, batch: Batch, ticket: T, deadline: Instant) {
        self.entries.push_back(Entry {
            number: self.next_number,
            batch,
            deadline,
            ticket,
            maybe_stored: false,
        });
        self.next_number += 1;
    }

    /// Begins to use a channel; everything unanswered is to be sent on it.
    pub fn bind(&mut self, id: BindingId) {
        self.unbind();
        self.binding = Some(Binding { id, sent: 0 });
    }

    /// Ends the use of the channel: what was sent on it without an answer may be stored.
    pub fn unbind(&mut self) {
        if let Some(binding) = self.binding.take() {
            for entry in self.entries.iter_mut().take(binding.sent) {
                entry.maybe_stored = true;
            }
        }
    }

    /// Ends the use of the channel, whose opening was refused: nothing sent on it was looked at.
    pub fn opening_refused(&mut self) {
        self.binding = None;
    }

    /// Next batch to put on the channel; `None` when all are sent or no channel is in use.
    pub fn next_sending(&mut self) -> Option<Sending> {
        let binding = self.binding.as_mut()?;
        let entry = self.entries.get(binding.sent)?;
        binding.sent += 1;
        Some(Sending {
            number: entry.number,
            batch: entry.batch.clone(),
        })
    }

    /// The oldest batch is stored. `None` when that is not the batch the answer is about: the peer broke the order, and
    /// the channel must not be used further.
    #[must_use]
    pub fn stored(&mut self, number: u64, at: StoredAt) -> Option<(T, Leaving)> {
        let binding = self.binding.as_mut()?;
        if binding.sent == 0 || self.entries.front()?.number != number {
            return None;
        }
        binding.sent -= 1;
        let entry = self.entries.pop_front()?;
        Some((entry.ticket, Leaving::Stored(at)))
    }

    /// The oldest batch was refused. Ends the binding.
    pub fn refused(
        &mut self,
        number: u64,
        effect: RefusalEffect,
        out: &mut Vec<(T, Leaving)>,
    ) -> Consequence {
        let in_order = self.entries.front().is_some_and(|entry| entry.number == number);
        let before = self.entries.front().is_some_and(|entry| entry.maybe_stored);
        self.unbind();
        let mut consequence = Consequence {
            unbound: true,
            new_session: false,
        };
        if !in_order {
            return consequence;
        }
        if let Some(front) = self.entries.front_mut() {
            front.maybe_stored =
                before || matches!(effect, RefusalEffect::Unknown | RefusalEffect::Forgotten);
        }
        consequence.new_session = match effect {
            RefusalEffect::Retry | RefusalEffect::Unknown => false,
            RefusalEffect::SessionLost if !before => true,
            RefusalEffect::Permanent if !before => {
                out.extend(
                    self.entries
                        .pop_front()
                        .map(|entry| (entry.ticket, Leaving::Refused)),
                );
                true
            }
            RefusalEffect::Permanent | RefusalEffect::SessionLost | RefusalEffect::Forgotten => {
                self.give_up_all(out);
                true
            }
        };
        if consequence.new_session {
            self.renumber();
        }
        consequence
    }

    /// Gives up what is out of time.
    pub fn expire(&mut self, now: Instant, out: &mut Vec<(T, Leaving)>) -> Consequence {
        let mut consequence = Consequence::default();
        while let Some(front) = self.entries.front()
            && front.deadline <= now
        {
            let was_bound = self.binding.is_some();
            self.unbind();
            consequence.unbound |= was_bound;
            consequence.new_session = true;
            if self.entries.front().is_some_and(|entry| entry.maybe_stored) {
                self.give_up_all(out);
            } else {
                out.extend(
                    self.entries
                        .pop_front()
                        .map(|entry| (entry.ticket, Leaving::TooLate)),
                );
            }
            self.renumber();
        }
        consequence
    }

    /// Gives up everything: the partition is gone or the process ends.
    pub fn abandon(&mut self, out: &mut Vec<(T, Leaving)>) {
        self.unbind();
        self.give_up_all(out);
        self.renumber();
    }

    /// Everything leaves. Behind a batch that may be stored everything may be; behind one that is not, nothing is.
    fn give_up_all(&mut self, out: &mut Vec<(T, Leaving)>) {
        let certain = self.entries.front().is_some_and(|entry| !entry.maybe_stored);
        for entry in self.entries.drain(..) {
            let leaving = if certain || !entry.maybe_stored {
                Leaving::TooLate
            } else {
                Leaving::Unknown
            };
            out.push((entry.ticket, leaving));
        }
    }

    /// Numbers what is left from 1, for a new session.
    fn renumber(&mut self) {
        self.next_number = 1;
        for entry in &mut self.entries {
            entry.number = self.next_number;
            entry.maybe_stored = false;
            self.next_number += 1;
        }
    }
}

#[cfg(test)]
mod tests;
