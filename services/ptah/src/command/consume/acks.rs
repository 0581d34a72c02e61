//! Which messages to acknowledge, and which acknowledgements are not confirmed yet.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::client::Message;

/// Sequences of written messages, per partition, neighbours joined.
pub(super) fn ranges_of(messages: &[Message]) -> BTreeMap<u32, Vec<RangeInclusive<u64>>> {
    let mut by_partition: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for message in messages {
        by_partition
            .entry(message.partition)
            .or_default()
            .push(message.sequence);
    }
    by_partition
        .into_iter()
        .map(|(partition, sequences)| (partition, join(sequences)))
        .collect()
}

fn join(mut sequences: Vec<u64>) -> Vec<RangeInclusive<u64>> {
    sequences.sort_unstable();
    let mut ranges: Vec<RangeInclusive<u64>> = Vec::new();
    for sequence in sequences {
        match ranges.last_mut() {
            Some(last) if sequence <= last.end().saturating_add(1) => *last = *last.start()..=sequence,
            _ => ranges.push(sequence..=sequence),
        }
    }
    ranges
}

/// Acknowledgements on their way.
#[derive(Debug, Default)]
pub(super) struct Unconfirmed {
    last_id: u64,
    messages: BTreeMap<u64, u64>,
}

impl Unconfirmed {
    /// A number for an acknowledgement of `messages` messages.
    pub(super) fn begin(&mut self, messages: u64) -> u64 {
        self.last_id += 1;
        self.messages.insert(self.last_id, messages);
        self.last_id
    }

    /// The acknowledgement is answered; tells how many messages it was about.
    pub(super) fn end(&mut self, confirm_id: u64) -> u64 {
        self.messages.remove(&confirm_id).unwrap_or(0)
    }

    /// Whether all are answered.
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Messages whose acknowledgement is not answered.
    pub(super) fn message_count(&self) -> u64 {
        self.messages.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_range_in_any_order() {
        assert_eq!(join(vec![3, 1, 2, 7, 5, 6, 5]), [1..=3, 5..=7]);
        assert_eq!(join(vec![u64::MAX, u64::MAX]), [u64::MAX..=u64::MAX]);
        assert!(join(Vec::new()).is_empty());
    }

    #[test]
    fn an_acknowledgement_is_open_until_it_is_answered() {
        let mut open = Unconfirmed::default();
        let first = open.begin(3);
        let second = open.begin(4);
        assert_eq!(open.end(first), 3);
        assert_eq!(open.end(first), 0, "answered before");
        assert_eq!((open.is_empty(), open.message_count()), (false, 4));
        assert_eq!(open.end(second), 4);
        assert!(open.is_empty());
    }
}
