//! What applying an entry answers: results, refusals, and alarms.

use ptah_types::{Boundary, ConsumerGroupId, ErrorKind, Sequence, Timestamp};

use crate::{RangeSet, SessionNumber};

/// Result of one command. The same on every replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Applied {
    /// The consumer group exists.
    GroupEnsured {
        /// It did not exist before.
        created: bool,
        /// It existed with another ack deadline or another bound, which it now has.
        changed: bool,
    },
    /// The consumer group does not exist.
    GroupDropped {
        /// It existed before.
        existed: bool,
    },
    /// Messages are acknowledged.
    Acked {
        /// How many were not before.
        newly: u64,
        /// Could not be recorded: not stored yet, or too many separate ranges. They will be delivered again.
        refused: RangeSet,
    },
    /// Deliveries are recorded.
    Delivered {
        /// Everything before it may have been delivered.
        next_undelivered: Sequence,
    },
    /// Old messages are gone.
    Trimmed {
        /// Oldest message that is kept.
        first: Sequence,
        /// How many went with this command.
        removed: u64,
    },
    /// Nothing changed.
    Refused(Refusal),
}

/// Why a command changed nothing. Every replica refuses alike.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no such consumer group here.
    #[error("consumer group {0} not found in this partition")]
    UnknownGroup(ConsumerGroupId),
    /// The partition has as many consumer groups as it may have.
    #[error("partition has {limit} consumer groups already; delete one that is not used")]
    TooManyGroups {
        /// Most groups.
        limit: usize,
    },
    /// A group of that id has another name or starts elsewhere.
    #[error("consumer group {0} exists with another name or start")]
    GroupDiffers(ConsumerGroupId),
}

impl Boundary for Refusal {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownGroup(_) => ErrorKind::NotFound,
            Self::TooManyGroups { .. } => ErrorKind::Exhausted,
            Self::GroupDiffers(_) => ErrorKind::Conflict,
        }
    }
}

/// A batch in the log that the leader should never have proposed.
///
/// The state is unchanged and all replicas disagree alike. It is a defect: raise an alarm and stop serving the
/// partition, because messages that came after it would get places that differ from what the log says.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Disagreement {
    /// Sequences would have a gap or be used twice.
    #[error("batch is stamped with sequence {stamped}, expected {expected}")]
    Sequence {
        /// In the stamp.
        stamped: Sequence,
        /// Next one of the partition.
        expected: Sequence,
    },
    /// Stamp and payload differ, or the count is outside the limits.
    #[error("batch is stamped with {stamped} messages, its payload has {payload}")]
    Count {
        /// In the stamp.
        stamped: u32,
        /// In the payload.
        payload: u32,
    },
    /// Message time would run backwards.
    #[error("batch is stamped with time {}, the previous one has {}", stamped.0, previous.0)]
    Time {
        /// In the stamp.
        stamped: Timestamp,
        /// Of the batch before.
        previous: Timestamp,
    },
    /// The append repeats or skips a number of its session.
    #[error("session {} appends number {}, expected {expected}", session.session, session.number)]
    Session {
        /// In the stamp.
        session: SessionNumber,
        /// Next number of that session.
        expected: u64,
    },
    /// No sequences are left.
    #[error("partition has no sequence left behind {next}")]
    NumbersExhausted {
        /// Next one of the partition.
        next: Sequence,
    },
}

/// An invariant of the state that does not hold.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what}")]
pub struct Broken {
    /// Which one.
    pub what: String,
}

impl Broken {
    /// `Err` with the text unless `holds`.
    pub(crate) fn unless(holds: bool, what: impl FnOnce() -> String) -> Result<(), Self> {
        if holds {
            return Ok(());
        }
        Err(Self { what: what() })
    }
}
