//! What one producer was told about each of its messages.

use std::collections::BTreeMap;

use crate::client::{ClientError, Outcome};

/// Messages in a row that are stored in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StoredRange {
    pub(super) partition: u32,
    pub(super) first_sequence: u64,
    pub(super) first_counter: u64,
    pub(super) count: u64,
}

/// Every message of a producer and its answer.
#[derive(Debug)]
pub(super) struct Ledger {
    total: u64,
    answered: Bits,
    refused: Bits,
    stored: Vec<StoredRange>,
    stored_count: u64,
    refused_count: u64,
    errors: BTreeMap<String, u64>,
}

/// Different errors that are remembered in words.
const MAX_ERRORS: usize = 16;

impl Ledger {
    pub(super) fn new(total: u64) -> Self {
        Self {
            total,
            answered: Bits::new(total),
            refused: Bits::new(total),
            stored: Vec::new(),
            stored_count: 0,
            refused_count: 0,
            errors: BTreeMap::new(),
        }
    }

    /// Enters an answer. Every message is answered once: a second answer, or one about a message that was not sent,
    /// is a fault of the server.
    pub(super) fn enter(&mut self, outcome: &Outcome, sent: u64) -> Result<(), String> {
        let Outcome { first, count, result } = outcome;
        let end = first.checked_add(u64::from(*count)).filter(|end| *end <= sent);
        let Some(end) = end else {
            return Err(format!(
                "the server answered messages from {first} on, {count} of them, but only {sent} were sent"
            ));
        };
        for counter in *first..end {
            if !self.answered.insert(counter) {
                return Err(format!("the server answered message {counter} twice"));
            }
        }
        match result {
            Ok(stored) => {
                let range = StoredRange {
                    partition: stored.partition,
                    first_sequence: stored.first_sequence,
                    first_counter: *first,
                    count: u64::from(*count),
                };
                self.stored_count += range.count;
                self.add_range(range);
            }
            Err(error) => self.enter_error(*first..end, error),
        }
        Ok(())
    }

    fn enter_error(&mut self, counters: std::ops::Range<u64>, error: &ClientError) {
        let count = counters.end - counters.start;
        if self.errors.len() < MAX_ERRORS || self.errors.contains_key(&error.message) {
            *self.errors.entry(error.message.clone()).or_default() += count;
        }
        if error.kind.effect() == ptah_types::Effect::Unknown {
            return;
        }
        self.refused_count += count;
        for counter in counters {
            self.refused.insert(counter);
        }
    }

    fn add_range(&mut self, range: StoredRange) {
        if let Some(last) = self.stored.last_mut()
            && last.partition == range.partition
            && last.first_sequence + last.count == range.first_sequence
            && last.first_counter + last.count == range.first_counter
        {
            last.count += range.count;
            return;
        }
        self.stored.push(range);
    }

    /// Where the stored messages are.
    pub(super) fn stored_ranges(&self) -> &[StoredRange] {
        &self.stored
    }

    /// Whether a message is certainly not stored.
    pub(super) fn is_refused(&self, counter: u64) -> bool {
        self.refused.contains(counter)
    }

    /// Messages of the producer.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Messages that are stored.
    pub(super) fn stored_count(&self) -> u64 {
        self.stored_count
    }

    /// Messages that are certainly not stored.
    pub(super) fn refused_count(&self) -> u64 {
        self.refused_count
    }

    /// Messages without an answer, or answered with "not known".
    pub(super) fn unknown_count(&self) -> u64 {
        self.total - self.stored_count - self.refused_count
    }

    /// Errors in words, and how many messages each was about.
    pub(super) fn errors(&self) -> &BTreeMap<String, u64> {
        &self.errors
    }
}

/// A set of small numbers.
#[derive(Debug, Clone)]
pub(super) struct Bits {
    words: Vec<u64>,
}

impl Bits {
    /// A set of numbers below `limit`.
    pub(super) fn new(limit: u64) -> Self {
        Self {
            words: vec![0; usize::try_from(limit.div_ceil(64)).unwrap_or(usize::MAX)],
        }
    }

    /// Puts a number in; tells whether it was not there.
    pub(super) fn insert(&mut self, number: u64) -> bool {
        let mask = 1 << (number % 64);
        let word = &mut self.words[(number / 64) as usize];
        let is_new = *word & mask == 0;
        *word |= mask;
        is_new
    }

    /// Whether a number is in.
    pub(super) fn contains(&self, number: u64) -> bool {
        self.words
            .get((number / 64) as usize)
            .is_some_and(|word| word & (1 << (number % 64)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Stored;
    use ptah_types::ErrorKind;

    fn stored(first: u64, count: u32, first_sequence: u64) -> Outcome {
        Outcome {
            first,
            count,
            result: Ok(Stored {
                partition: 1,
                first_sequence,
            }),
        }
    }

    fn failed(first: u64, count: u32, kind: ErrorKind) -> Outcome {
        Outcome {
            first,
            count,
            result: Err(ClientError::new(kind, "no")),
        }
    }

    #[test]
    fn every_message_is_answered_once() {
        let mut ledger = Ledger::new(10);
        ledger.enter(&stored(0, 4, 1), 8).unwrap();
        assert!(
            ledger
                .enter(&stored(3, 1, 9), 8)
                .unwrap_err()
                .contains("message 3 twice")
        );
        assert!(
            ledger
                .enter(&stored(7, 2, 9), 8)
                .unwrap_err()
                .contains("only 8 were sent")
        );
    }

    #[test]
    fn neighbours_become_one_range_only_when_both_numbers_go_on() {
        let mut ledger = Ledger::new(10);
        ledger.enter(&stored(0, 2, 1), 10).unwrap();
        ledger.enter(&stored(2, 2, 3), 10).unwrap();
        ledger.enter(&stored(4, 2, 9), 10).unwrap();
        let counts: Vec<_> = ledger.stored_ranges().iter().map(|range| range.count).collect();
        assert_eq!(counts, [4, 2]);
    }

    #[test]
    fn the_fates_of_messages_are_kept_apart() {
        let mut ledger = Ledger::new(4);
        ledger.enter(&stored(0, 1, 1), 4).unwrap();
        ledger.enter(&failed(1, 1, ErrorKind::TooLarge), 4).unwrap();
        ledger.enter(&failed(2, 1, ErrorKind::OutcomeUnknown), 4).unwrap();
        let refused: Vec<_> = (0..5).filter(|counter| ledger.is_refused(*counter)).collect();
        assert_eq!(refused, [1]);
        assert_eq!(
            (
                ledger.stored_count(),
                ledger.refused_count(),
                ledger.unknown_count()
            ),
            (1, 1, 2)
        );
        assert_eq!(ledger.errors()["no"], 2);
    }
}
