//! Ranges of sequences: sets and maps that cost per run, not per message.
//!
//! Runs are kept in a tree under their *last* place. Taking from the front of a run, which is what acknowledging in
//! order does, then changes a value and never a key.

use std::collections::BTreeMap;
use std::fmt;

use ptah_types::Sequence;

use crate::codec::{Malformed, Reader, Writer};

/// An inclusive run of sequences; never empty.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceRange {
    first: Sequence,
    last: Sequence,
}

impl SequenceRange {
    /// The run from `first` to `last`; `None` if it would be empty.
    pub fn new(first: Sequence, last: Sequence) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// One sequence.
    pub const fn single(sequence: Sequence) -> Self {
        Self {
            first: sequence,
            last: sequence,
        }
    }

    /// From plain numbers; `None` if empty or if it has place zero.
    pub(crate) fn from_numbers(first: u64, last: u64) -> Option<Self> {
        Self::new(Sequence::new(first)?, Sequence::new(last)?)
    }

    /// First place.
    pub const fn first(self) -> Sequence {
        self.first
    }

    /// Last place.
    pub const fn last(self) -> Sequence {
        self.last
    }

    /// How many places; stays at the end of numbers.
    pub const fn count(self) -> u64 {
        (self.last.get() - self.first.get()).saturating_add(1)
    }

    /// Whether `sequence` is in the run.
    pub fn contains(self, sequence: Sequence) -> bool {
        self.first <= sequence && sequence <= self.last
    }

    /// The part of the run between the places `low` and `high`.
    pub(crate) fn clip(self, low: u64, high: u64) -> Option<Self> {
        Self::from_numbers(self.first.get().max(low), self.last.get().min(high))
    }

    /// All places in order.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Sequence> {
        (self.first.get()..=self.last.get()).filter_map(Sequence::new)
    }
}

impl fmt::Display for SequenceRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return self.first.fmt(f);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl fmt::Debug for SequenceRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Value per run of places. Runs are disjoint; neighbours that touch have different values.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SpanMap<V> {
    /// Last place of the run -> (first place, value).
    runs: BTreeMap<u64, (u64, V)>,
    covered: u64,
}

impl<V> Default for SpanMap<V> {
    fn default() -> Self {
        Self {
            runs: BTreeMap::new(),
            covered: 0,
        }
    }
}

impl<V: Copy + Eq> SpanMap<V> {
    pub(crate) fn get(&self, place: u64) -> Option<V> {
        let (_, (first, value)) = self.runs.range(place..).next()?;
        (*first <= place).then_some(*value)
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, u64, V)> {
        self.runs
            .iter()
            .map(|(last, (first, value))| (*first, *last, *value))
    }

    /// Runs that reach into `first..=last`, whole.
    pub(crate) fn overlapping(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, u64, V)> {
        self.runs
            .range(first..)
            .map(|(last, (first, value))| (*first, *last, *value))
            .take_while(move |(run_first, ..)| *run_first <= last)
    }

    pub(crate) fn len(&self) -> usize {
        self.runs.len()
    }

    pub(crate) fn covered(&self) -> u64 {
        self.covered
    }

    /// Gives `first..=last` the value, whatever was there before; joins neighbours of the same value.
    pub(crate) fn set(&mut self, first: u64, last: u64, value: V) {
        self.remove(first, last);
        let (mut joined_first, mut joined_last) = (first, last);
        if let Some(before) = first.checked_sub(1)
            && let Some((left_first, left)) = self.runs.get(&before).copied()
            && left == value
        {
            self.runs.remove(&before);
            joined_first = left_first;
        }
        if let Some(after) = last.checked_add(1)
            && let Some((right_last, (right_first, right))) =
                self.runs.range(after..).next().map(|(k, v)| (*k, *v))
            && right_first == after
            && right == value
        {
            self.runs.remove(&right_last);
            joined_last = right_last;
        }
        self.runs.insert(joined_last, (joined_first, value));
        self.covered += last - first + 1;
    }

    /// Takes `first..=last` out; returns how many places had a value.
    pub(crate) fn remove(&mut self, first: u64, last: u64) -> u64 {
        let mut removed = 0;
        while let Some((run_last, run)) = self.runs.range_mut(first..).next() {
            let (run_last, (run_first, value)) = (*run_last, *run);
            if run_first > last {
                break;
            }
            removed += run_last.min(last) - run_first.max(first) + 1;
            if run_last > last {
                run.0 = last + 1;
            } else {
                self.runs.remove(&run_last);
            }
            if run_first < first {
                self.runs.insert(first - 1, (run_first, value));
            }
        }
        self.covered -= removed;
        removed
    }

    /// Whether adding `first..=last` joins a run that is there, so that the number of runs does not grow.
    pub(crate) fn touches(&self, first: u64, last: u64) -> bool {
        let next = self.runs.range(first.saturating_sub(1)..).next();
        next.is_some_and(|(_, (run_first, _))| *run_first <= last.saturating_add(1))
    }
}

/// A set of sequences, kept as sorted runs that do not touch.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RangeSet {
    spans: SpanMap<()>,
}

impl RangeSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a run; returns how many of its sequences are new.
    pub fn insert(&mut self, range: SequenceRange) -> u64 {
        let before = self.spans.covered();
        self.spans.set(range.first.get(), range.last.get(), ());
        self.spans.covered() - before
    }

    /// Takes a run out; returns how many of its sequences were there.
    pub fn remove(&mut self, range: SequenceRange) -> u64 {
        self.spans.remove(range.first.get(), range.last.get())
    }

    /// Whether the sequence is in the set.
    pub fn contains(&self, sequence: Sequence) -> bool {
        self.spans.get(sequence.get()).is_some()
    }

    /// The runs in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = SequenceRange> {
        self.spans
            .iter()
            .filter_map(|(first, last, ())| SequenceRange::from_numbers(first, last))
    }

    /// Number of runs.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Number of sequences.
    pub fn covered(&self) -> u64 {
        self.spans.covered()
    }

    /// Whether there is nothing in the set.
    pub fn is_empty(&self) -> bool {
        self.spans.len() == 0
    }

    /// Moves at most `most` runs, the lowest ones, out into a set of their own.
    pub(crate) fn take_runs(&mut self, most: usize) -> Self {
        if self.len() <= most {
            return std::mem::take(self);
        }
        let taken: Self = self.iter().take(most).collect();
        for range in taken.iter() {
            self.remove(range);
        }
        taken
    }

    pub(crate) fn touches(&self, range: SequenceRange) -> bool {
        self.spans.touches(range.first.get(), range.last.get())
    }

    pub(crate) fn overlaps(&self, first: u64, last: u64) -> bool {
        self.spans.overlapping(first, last).next().is_some()
    }

    /// First run that ends at or behind `place`.
    pub(crate) fn run_from(&self, place: u64) -> Option<SequenceRange> {
        let (first, last, ()) = self.spans.overlapping(place, u64::MAX).next()?;
        SequenceRange::from_numbers(first, last)
    }

    /// The parts of `range` that are not in the set, in order.
    pub(crate) fn missing(&self, range: SequenceRange) -> Vec<SequenceRange> {
        let mut missing = Vec::new();
        let mut cursor = range.first.get();
        for (first, last, ()) in self.spans.overlapping(cursor, range.last.get()) {
            missing.extend(SequenceRange::from_numbers(cursor, first.saturating_sub(1)));
            let Some(behind) = last.checked_add(1) else {
                return missing;
            };
            cursor = behind;
        }
        missing.extend(SequenceRange::from_numbers(cursor, range.last.get()));
        missing
    }

    /// Distances instead of places, so that a run costs two or three bytes. `base` must lie before all of them.
    pub(crate) fn encode(&self, writer: &mut Writer, base: u64) {
        writer.varint(self.len() as u64);
        let mut previous = base;
        for (first, last, ()) in self.spans.iter() {
            writer.varint(first - previous);
            writer.varint(last - first);
            previous = last;
        }
    }

    /// Reads [`RangeSet::encode`] back; refuses runs out of order, touching or past the end of numbers.
    pub(crate) fn decode(reader: &mut Reader<'_>, base: u64, most: usize) -> Result<Self, Malformed> {
        let count = reader.count(most, 2, "number of ranges")?;
        let mut set = Self::new();
        let mut previous = base;
        for index in 0..count {
            let gap = reader.varint("start of a range")?;
            let length = reader.varint("length of a range")?;
            let least = if index == 0 { 1 } else { 2 };
            let ends = previous
                .checked_add(gap)
                .and_then(|first| Some((first, first.checked_add(length)?)));
            let Some((first, last)) = ends.filter(|_| gap >= least) else {
                return Err(reader.malformed("range out of order"));
            };
            set.spans.set(first, last, ());
            previous = last;
        }
        Ok(set)
    }
}

impl FromIterator<SequenceRange> for RangeSet {
    fn from_iter<I: IntoIterator<Item = SequenceRange>>(ranges: I) -> Self {
        let mut set = Self::new();
        for range in ranges {
            set.insert(range);
        }
        set
    }
}

impl fmt::Debug for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_span_map_equals_a_map_of_single_places(
            steps in prop::collection::vec((1_u64..60, 0_u64..12, prop::option::of(0_u8..3)), 0..80)
        ) {
            let mut spans = SpanMap::default();
            let mut model = BTreeMap::new();
            for (first, len, value) in steps {
                let last = first + len;
                if let Some(value) = value {
                    spans.set(first, last, value);
                    model.extend((first..=last).map(|place| (place, value)));
                } else {
                    let removed = (first..=last).filter(|place| model.remove(place).is_some()).count();
                    prop_assert_eq!(spans.remove(first, last), removed as u64);
                }
                prop_assert_eq!(spans.covered(), model.len() as u64);
                for place in 0..80 {
                    prop_assert_eq!(spans.get(place), model.get(&place).copied());
                }
                let runs: Vec<_> = spans.iter().collect();
                for pair in runs.windows(2) {
                    let joined = pair[0].1 + 1 == pair[1].0 && pair[0].2 == pair[1].2;
                    prop_assert!(pair[0].1 < pair[1].0 && !joined, "{:?}", runs);
                }
            }
        }

        #[test]
        fn sets_of_ranges_are_read_back(runs in prop::collection::vec((1_u64..10_000, 0_u64..50), 0..40)) {
            let set: RangeSet =
                runs.iter().filter_map(|(first, len)| SequenceRange::from_numbers(*first, first + len)).collect();
            let mut writer = Writer::default();
            set.encode(&mut writer, 0);
            let bytes = writer.into_bytes();
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(RangeSet::decode(&mut reader, 0, 100), Ok(set));
            prop_assert_eq!(reader.end(), Ok(()));
        }

        #[test]
        fn missing_parts_and_present_parts_make_the_whole(
            runs in prop::collection::vec((1_u64..100, 0_u64..10), 0..10), first in 1_u64..100, len in 0_u64..60
        ) {
            let set: RangeSet =
                runs.iter().filter_map(|(first, len)| SequenceRange::from_numbers(*first, first + len)).collect();
            let range = SequenceRange::from_numbers(first, first + len).unwrap();
            let missing: RangeSet = set.missing(range).into_iter().collect();
            for sequence in range.iter() {
                prop_assert_eq!(missing.contains(sequence), !set.contains(sequence));
            }
        }
    }
}
