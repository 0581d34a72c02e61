//! Frames in memory: those that are not in their segment yet, and the newest of those that are.

use std::collections::VecDeque;

use ptah_types::{LogIndex, Sequence};

use crate::Frame;
use crate::segment::{Place, StreamKind};

/// Bytes that an entry costs beside its frame.
const ENTRY_COST: u64 = 192;
/// Frames that are given up at once.
const TRIM_FRAMES: usize = 4096;

/// One frame in memory.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) frame: Frame,
    /// The record that makes it durable.
    pub(crate) record: u64,
    pub(crate) place: Place,
    /// Whether its bytes are in the segment, or are not needed there.
    pub(crate) in_segment: bool,
    /// Next sequence of the log after this frame.
    pub(crate) sequence_after: u64,
}

impl Entry {
    fn cost(&self) -> u64 {
        self.frame.encoded_len() as u64 + ENTRY_COST
    }
}

/// The end of a log in memory, in index order. It holds every frame that is not in its segment.
#[derive(Default)]
pub(crate) struct Tail {
    entries: VecDeque<Entry>,
    /// Bytes of frames that are not in their segment.
    pub(crate) unflushed: u64,
    /// Bytes of frames that are.
    pub(crate) recent: u64,
    /// What of these two the store's totals contain.
    pub(crate) published: (u64, u64),
}

impl Tail {
    pub(crate) fn push(&mut self, entry: Entry) {
        *self.counter(entry.in_segment) += entry.cost();
        self.entries.push_back(entry);
    }

    fn counter(&mut self, in_segment: bool) -> &mut u64 {
        if in_segment {
            &mut self.recent
        } else {
            &mut self.unflushed
        }
    }

    pub(crate) fn pop_back_if(&mut self, test: impl FnOnce(&Entry) -> bool) -> Option<Entry> {
        if !self.entries.back().is_some_and(test) {
            return None;
        }
        let entry = self.entries.pop_back()?;
        *self.counter(entry.in_segment) -= entry.cost();
        Some(entry)
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.entries.iter()
    }

    pub(crate) fn first_index(&self) -> Option<LogIndex> {
        self.entries.front().map(|entry| entry.frame.index)
    }

    /// Entries from the first one at or behind `index`.
    pub(crate) fn range_from(&self, index: LogIndex) -> impl Iterator<Item = &Entry> {
        let place = self.entries.partition_point(|entry| entry.frame.index < index);
        self.entries.range(place..)
    }

    /// First message in memory.
    pub(crate) fn first_sequence(&self) -> Option<Sequence> {
        let front = self.entries.front()?;
        front.frame.base_sequence.or(Sequence::new(front.sequence_after))
    }

    /// Entries from the one that holds the message `sequence`; `None` when that may be on disk only.
    pub(crate) fn range_with(&self, sequence: u64) -> Option<impl Iterator<Item = &Entry>> {
        let place = self
            .entries
            .partition_point(|entry| entry.sequence_after <= sequence);
        let base = self.entries.get(place)?.frame.base_sequence?;
        (base.get() <= sequence).then(|| self.entries.range(place..))
    }

    /// First entry whose record is above `record`.
    pub(crate) fn first_behind(&self, record: u64) -> Option<&Entry> {
        let place = self.entries.partition_point(|entry| entry.record <= record);
        self.entries.get(place)
    }

    /// Marks entries as being in their segment.
    pub(crate) fn mark(&mut self, which: impl Fn(&Entry) -> bool) {
        let (mut moved, mut unflushed, mut recent) = (0, self.unflushed, self.recent);
        for entry in self.entries.iter_mut().filter(|entry| !entry.in_segment) {
            if which(entry) {
                entry.in_segment = true;
                moved += entry.cost();
            }
        }
        unflushed -= moved;
        recent += moved;
        (self.unflushed, self.recent) = (unflushed, recent);
    }

    /// Marks entries up to `record` from index `from` on, at most `limit`; where to go on.
    pub(crate) fn mark_from(&mut self, from: LogIndex, limit: usize, record: u64) -> Option<LogIndex> {
        let start = self.entries.partition_point(|entry| entry.frame.index < from);
        let mut moved = 0;
        let mut next = None;
        for (number, entry) in self.entries.range_mut(start..).enumerate() {
            if entry.record > record {
                break;
            }
            if number == limit {
                next = Some(entry.frame.index);
                break;
            }
            if !entry.in_segment {
                entry.in_segment = true;
                moved += entry.cost();
            }
        }
        self.unflushed -= moved;
        self.recent += moved;
        next
    }

    /// Frames of a segment that is dropped need not be written.
    pub(crate) fn forget_segment(&mut self, kind: StreamKind, segment: LogIndex) {
        self.mark(|entry| entry.place.kind == kind && entry.place.segment == segment);
    }

    /// Gives up the oldest written frames until at most `keep` bytes of them are left. A frame behind
    /// `record` stays: the meta slot must be able to leave it out. Whether more could go: one call gives up a bounded number.
    pub(crate) fn trim(&mut self, keep: u64, record: u64) -> bool {
        let may_go = |entry: &Entry| entry.in_segment && entry.record <= record;
        for _ in 0..TRIM_FRAMES {
            if self.recent <= keep || !self.entries.front().is_some_and(may_go) {
                return false;
            }
            if let Some(entry) = self.entries.pop_front() {
                self.recent -= entry.cost();
            }
        }
        true
    }
}
