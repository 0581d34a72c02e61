//! What the leader writes on a batch, and what an append is answered with.

use std::num::NonZeroU64;

use ptah_types::{Sequence, SessionId, Timestamp};

/// Place of an append or a message in one produce session. Numbers run from 1 without a gap.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionNumber {
    /// The session.
    pub session: SessionId,
    /// Its running number.
    pub number: NonZeroU64,
}

impl SessionNumber {
    /// Makes the pair; `None` for number zero.
    pub fn new(session: SessionId, number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(|number| Self { session, number })
    }
}

/// What the leader stamps on an accepted batch; part of the log entry, outside the payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchStamp {
    /// Sequence of the first message.
    pub base_sequence: Sequence,
    /// Number of messages.
    pub count: u32,
    /// Time of all messages of the batch; never before that of an earlier batch.
    pub timestamp: Timestamp,
    /// Who sent it, if the sender wants it to be stored once however often it is sent.
    pub session: Option<SessionNumber>,
}

impl BatchStamp {
    /// The messages of the batch.
    pub fn appended(&self) -> Appended {
        Appended {
            base_sequence: self.base_sequence,
            count: self.count,
            timestamp: self.timestamp,
        }
    }
}

/// Messages that an append became.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    /// Sequence of the first one.
    pub base_sequence: Sequence,
    /// How many.
    pub count: u32,
    /// Time of all of them.
    pub timestamp: Timestamp,
}

impl Appended {
    /// Sequence of the last message.
    pub fn last(&self) -> Sequence {
        let more = u64::from(self.count.saturating_sub(1));
        self.base_sequence.advance(more).unwrap_or(self.base_sequence)
    }

    /// The sequence after the last message; `None` at the end of numbers.
    pub fn next(&self) -> Option<Sequence> {
        self.base_sequence.advance(u64::from(self.count))
    }
}
