//! Places in a partition and in a log. Mixing them is how data gets lost, so each is a type.

use std::fmt;
use std::num::NonZeroU64;

/// A message's place in its partition; the first message is 1, and there are no gaps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Sequence(NonZeroU64);

impl Sequence {
    /// Place of the first message.
    pub const FIRST: Self = Self(NonZeroU64::MIN);

    /// Makes the sequence; `None` for zero.
    pub const fn new(value: u64) -> Option<Self> {
        match NonZeroU64::new(value) {
            Some(value) => Some(Self(value)),
            None => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The place after this one; `None` at the end of numbers.
    pub fn next(self) -> Option<Self> {
        self.advance(1)
    }

    /// The place `count` further on; `None` past the end of numbers.
    pub fn advance(self, count: u64) -> Option<Self> {
        self.0.checked_add(count).map(Self)
    }

    /// How many places `self` is after `earlier`; 0 when it is not after.
    pub fn distance_from(self, earlier: Self) -> u64 {
        self.get().saturating_sub(earlier.get())
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Place of an entry in a Raft log. Entries of every kind count, so it runs apart from [`Sequence`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LogIndex(pub u64);

impl LogIndex {
    /// The index after this one; stays at the end of numbers.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for LogIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Raft term: number of a reign. One leader per term.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Term(pub u64);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Full name of a log entry. Ordered by term, then index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LogId {
    /// Term of the leader that made the entry.
    pub term: Term,
    /// Its place in the log.
    pub index: LogIndex,
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.index)
    }
}

/// Wall-clock time in nanoseconds since 1970-01-01 00:00 UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// From whole milliseconds since the epoch; stays at the end of numbers.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// Whole milliseconds since the epoch.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// This time plus `millis` milliseconds; stays at the end of numbers.
    pub const fn plus_millis(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis.saturating_mul(1_000_000)))
    }

    /// Milliseconds from `earlier` to this time; 0 when it is not earlier.
    pub const fn millis_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_end_without_wrapping() {
        let last = Sequence::new(u64::MAX).unwrap();
        assert_eq!(last.next(), None);
        assert_eq!(Sequence::FIRST.advance(4), Sequence::new(5));
        assert_eq!(Sequence::FIRST.distance_from(last), 0);
    }

    #[test]
    fn a_higher_term_beats_a_higher_index() {
        let old = LogId {
            term: Term(1),
            index: LogIndex(9),
        };
        let new = LogId {
            term: Term(2),
            index: LogIndex(3),
        };
        assert!(old < new);
    }
}
