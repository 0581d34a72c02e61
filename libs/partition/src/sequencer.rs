//! Sequencer: from an append to a stamped batch. Only the leader has one.
//!
//! It decides against applied state *plus* what is in flight: it holds the session table as it will be once every
//! proposal is applied. That is right only as long as everything it stamped is applied, in order, and nothing else.
//! When that is in doubt it is poisoned, refuses everything, and a new one is built from the partition, after an entry
//! proposed later than all doubtful ones (a barrier) is applied.
//! Not here: proposing, waiting, answering.

use std::collections::VecDeque;

use ptah_types::limits::MAX_BATCH_MESSAGES;
use ptah_types::{Boundary, ErrorKind, Sequence, Timestamp};

use crate::partition::is_batch_count;
use crate::sessions::{Look, SESSION_WINDOW, Sessions};
use crate::{Appended, BatchStamp, Partition, SessionNumber};

/// Most appends that are proposed and not applied.
pub const MAX_IN_FLIGHT_APPENDS: usize = 1_024;

/// What the sequencer needs to know of an append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AppendHead {
    /// Session and number, if the append may be sent again.
    pub session: Option<SessionNumber>,
    /// Messages in the batch.
    pub count: u32,
}

/// What to do with an append.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "a stamped append must be proposed, or the sequencer poisoned"]
pub enum Decision {
    /// Propose the batch with this stamp, in the order of stamps.
    Propose(BatchStamp),
    /// It is stored already, as these messages: answer now.
    Duplicate(Appended),
    /// It is proposed already: answer when these messages are applied.
    InFlight(Appended),
    /// It is not stored by this call.
    Refused(AppendRefusal),
}

/// Why an append is not proposed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AppendRefusal {
    /// Numbers were skipped; an append sent earlier has not arrived.
    #[error("append is ahead of its session; send number {expected} first")]
    Gap {
        /// Number that may come next.
        expected: u64,
    },
    /// The session is not known, or not any more.
    #[error(
        "produce session is not known to this partition any more; the outcome of its open appends is unknown, go on with a new session"
    )]
    SessionExpired,
    /// The append was stored, too long ago to know where.
    #[error("append was stored already, before the {SESSION_WINDOW} last ones up to number {last}")]
    Forgotten {
        /// Newest number of the session.
        last: u64,
    },
    /// The number was used for another batch.
    #[error("append number was used for a batch of {stored} messages, this one has {sent}")]
    Conflict {
        /// Messages of the batch that has the number.
        stored: u32,
        /// Messages of this one.
        sent: u32,
    },
    /// Too much is in flight.
    #[error("partition has too many appends in flight; try again")]
    Busy,
    /// The sequencer waits to be rebuilt.
    #[error("leader is making sure of its log; try again")]
    Poisoned,
    /// No messages, or more than a batch may have.
    #[error("batch has {count} messages; use 1 to {MAX_BATCH_MESSAGES}")]
    BadCount {
        /// Messages of the batch.
        count: u32,
    },
    /// No sequences are left.
    #[error("partition has no sequences left")]
    NumbersExhausted,
}

impl Boundary for AppendRefusal {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Gap { .. } => ErrorKind::Conflict,
            Self::SessionExpired => ErrorKind::OutcomeUnknown,
            Self::Forgotten { .. } => ErrorKind::AlreadyExists,
            Self::Conflict { .. } | Self::BadCount { .. } => ErrorKind::InvalidArgument,
            Self::Busy | Self::NumbersExhausted => ErrorKind::Exhausted,
            Self::Poisoned => ErrorKind::Unavailable,
        }
    }
}

/// Gives accepted appends their sequences and time.
#[derive(Debug)]
pub struct Sequencer {
    /// As it will be once everything in flight is applied.
    sessions: Sessions,
    next: Sequence,
    last_timestamp: Timestamp,
    /// Everything before it is applied.
    applied: Sequence,
    in_flight: VecDeque<Appended>,
    poisoned: bool,
}

impl Sequencer {
    /// A sequencer that goes on where the partition is.
    ///
    /// Only right when no batch can be applied any more that this sequencer does not know: after the leader's first
    /// own entry, or a barrier proposed after the last doubtful batch, is applied.
    pub fn new(partition: &Partition) -> Self {
        Self {
            sessions: partition.sessions.clone(),
            next: partition.next_sequence(),
            last_timestamp: partition.last_timestamp(),
            applied: partition.next_sequence(),
            in_flight: VecDeque::new(),
            poisoned: false,
        }
    }

    /// Decides what becomes of an append.
    pub fn accept(&mut self, append: &AppendHead, now: Timestamp) -> Decision {
        if self.poisoned {
            return Decision::Refused(AppendRefusal::Poisoned);
        }
        if !is_batch_count(append.count) {
            return Decision::Refused(AppendRefusal::BadCount { count: append.count });
        }
        match append
            .session
            .map_or(Look::Next, |session| self.sessions.look(session))
        {
            Look::Next => self.stamp(append, now),
            Look::Known(known) => self.known(known, append.count),
            Look::Forgotten { last } => Decision::Refused(AppendRefusal::Forgotten { last }),
            Look::Gap { expected } => Decision::Refused(AppendRefusal::Gap { expected }),
            Look::Expired => Decision::Refused(AppendRefusal::SessionExpired),
        }
    }

    fn known(&self, known: Appended, sent: u32) -> Decision {
        if known.count != sent {
            return Decision::Refused(AppendRefusal::Conflict {
                stored: known.count,
                sent,
            });
        }
        if known.base_sequence < self.applied {
            return Decision::Duplicate(known);
        }
        Decision::InFlight(known)
    }

    fn stamp(&mut self, append: &AppendHead, now: Timestamp) -> Decision {
        if self.in_flight.len() >= MAX_IN_FLIGHT_APPENDS || self.would_forget_in_flight(append) {
            return Decision::Refused(AppendRefusal::Busy);
        }
        let stamp = BatchStamp {
            base_sequence: self.next,
            count: append.count,
            timestamp: self.last_timestamp.max(now),
            session: append.session,
        };
        let Some(next) = stamp.appended().next() else {
            return Decision::Refused(AppendRefusal::NumbersExhausted);
        };
        self.next = next;
        self.last_timestamp = stamp.timestamp;
        self.in_flight.push_back(stamp.appended());
        if let Some(session) = stamp.session {
            self.sessions.record(session, stamp.appended());
        }
        Decision::Propose(stamp)
    }

    /// Whether the append would push one out of its session's window that is not applied yet: a retry of that one
    /// could not be told when it is.
    fn would_forget_in_flight(&self, append: &AppendHead) -> bool {
        let oldest = append
            .session
            .and_then(|session| self.sessions.window_start(session.session));
        oldest.is_some_and(|oldest| oldest.base_sequence >= self.applied)
    }

    /// Tells how far the partition is applied. May be called late, and for many batches at once.
    pub fn committed(&mut self, next_sequence: Sequence) {
        while let Some(oldest) = self.in_flight.front()
            && oldest.base_sequence < next_sequence
        {
            // A batch is applied as a whole, and nothing is applied that was not stamped here.
            self.poisoned |= oldest.next().is_none_or(|end| end > next_sequence);
            self.in_flight.pop_front();
        }
        self.poisoned |= next_sequence > self.next;
        self.applied = self.applied.max(next_sequence);
    }

    /// Ends this sequencer: a stamped batch was not proposed, or its outcome is unknown.
    pub fn poison(&mut self) {
        self.poisoned = true;
    }

    /// Whether a new sequencer must be built.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// How many appends are proposed and not applied.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Place that the next message gets, after everything in flight.
    pub fn next_sequence(&self) -> Sequence {
        self.next
    }
}

#[cfg(test)]
mod tests;
