//! Sparse index of one segment: from log index, sequence or time to a position nearby.
//!
//! Frames that were appended since the store was opened are indexed as they come; older ones when a reader passes them.

use ptah_types::{LogIndex, Sequence, Timestamp};

use crate::Frame;

/// Bytes of frames between two entries.
const STEP: u64 = 32 << 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    position: u64,
    index: LogIndex,
    sequence: Option<Sequence>,
    timestamp: Timestamp,
}

/// What a reader looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    Index(LogIndex),
    Sequence(Sequence),
}

/// The index. Frames in `hole_from..hole_to` are not indexed yet.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct SparseIndex {
    entries: Vec<Entry>,
    hole_from: u64,
    hole_to: u64,
}

impl SparseIndex {
    /// Of a segment that already has `length` bytes.
    pub(crate) fn unread(length: u64) -> Self {
        Self {
            entries: Vec::new(),
            hole_from: 0,
            hole_to: length,
        }
    }

    /// Bytes in memory.
    pub(crate) fn memory(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
    }

    /// Gives the memory back; readers fill the index again.
    pub(crate) fn forget(&mut self, length: u64) {
        *self = Self::unread(length);
    }

    /// Notes a frame that was appended at `position`.
    pub(crate) fn appended(&mut self, position: u64, frame: &Frame) {
        if self
            .entries
            .last()
            .is_none_or(|last| position >= last.position + STEP)
        {
            self.entries.push(entry(position, frame));
        }
    }

    /// Notes a frame of `len` bytes that a reader passed.
    pub(crate) fn passed(&mut self, position: u64, len: u64, frame: &Frame) {
        if position != self.hole_from || position >= self.hole_to {
            return;
        }
        self.hole_from += len;
        let place = self.entries.partition_point(|entry| entry.position < position);
        let far = place
            .checked_sub(1)
            .is_none_or(|before| position >= self.entries[before].position + STEP);
        if far
            && self
                .entries
                .get(place)
                .is_none_or(|entry| entry.position != position)
        {
            self.entries.insert(place, entry(position, frame));
        }
    }

    /// First message of the last indexed frame before `time`.
    pub(crate) fn sequence_before(&self, time: Timestamp) -> Option<Sequence> {
        let place = self.entries.partition_point(|entry| entry.timestamp < time);
        self.entries.get(place.checked_sub(1)?)?.sequence
    }

    /// Forgets what lies at or behind `length`.
    pub(crate) fn cut(&mut self, length: u64) {
        self.entries.retain(|entry| entry.position < length);
        self.hole_from = self.hole_from.min(length);
        self.hole_to = self.hole_to.min(length);
    }

    /// A frame's position at or before the target; 0 when nothing better is known.
    pub(crate) fn seek(&self, target: Target) -> u64 {
        let before = |entry: &Entry| match target {
            Target::Index(index) => entry.index <= index,
            Target::Sequence(sequence) => entry.sequence.is_some_and(|found| found <= sequence),
        };
        let place = self.entries.partition_point(before);
        place.checked_sub(1).map_or(0, |last| self.entries[last].position)
    }
}

fn entry(position: u64, frame: &Frame) -> Entry {
    Entry {
        position,
        index: frame.index,
        sequence: frame.base_sequence,
        timestamp: frame.timestamp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::batch;

    #[test]
    fn a_reader_fills_the_hole_and_seeks_become_exact() {
        let mut index = SparseIndex::unread(10 * STEP);
        assert_eq!(index.seek(Target::Index(LogIndex(9))), 0);
        for n in 0..10 {
            index.passed(n * STEP, STEP, &batch(1, n + 1, n + 1, 1, 10));
        }
        assert_eq!(index.seek(Target::Index(LogIndex(9))), 8 * STEP);
        assert_eq!(index.seek(Target::Sequence(Sequence::new(3).unwrap())), 2 * STEP);
        index.appended(10 * STEP, &batch(1, 11, 11, 1, 10));
        assert_eq!(index.seek(Target::Index(LogIndex(99))), 10 * STEP);
        index.cut(4 * STEP);
        assert_eq!(index.seek(Target::Index(LogIndex(99))), 3 * STEP);
    }
}
