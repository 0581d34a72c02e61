//! One stream of a group: its segments, oldest first, and where the next frame goes.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use ptah_types::{LogId, LogIndex, Sequence, Timestamp};

use super::{SparseIndex, StreamKind};
use crate::Frame;
use crate::wal::StreamEnd;

/// A prefix of a segment whose checksum is known, ending at a frame's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Sum {
    pub(crate) length: u64,
    pub(crate) crc: u32,
    pub(crate) last: LogId,
    pub(crate) next_sequence: u64,
    pub(crate) last_timestamp: Timestamp,
}

/// What is known of one segment.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) first_index: LogIndex,
    pub(crate) last: LogId,
    /// 0 for commands.
    pub(crate) first_sequence: u64,
    /// After the last message; 0 for commands.
    pub(crate) next_sequence: u64,
    pub(crate) length: u64,
    /// Bytes that are in the file, from the start without a gap.
    pub(crate) written: u64,
    pub(crate) first_timestamp: Timestamp,
    pub(crate) last_timestamp: Timestamp,
    pub(crate) sum: Sum,
    /// Whether the file was made.
    pub(crate) exists: bool,
    pub(crate) index: Arc<Mutex<SparseIndex>>,
}

/// What a segment looked like before a frame was added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mark {
    pub(crate) last: LogId,
    pub(crate) last_timestamp: Timestamp,
}

/// Where a frame went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) kind: StreamKind,
    pub(crate) segment: LogIndex,
    pub(crate) position: u64,
    /// `None` when the frame is the segment's first.
    pub(crate) before: Option<Mark>,
}

/// One stream of a group.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    pub(crate) kind: StreamKind,
    limit: u64,
    pub(crate) segments: VecDeque<Segment>,
}

impl Stream {
    pub(crate) fn new(kind: StreamKind, segment_bytes: u64) -> Self {
        Self {
            kind,
            limit: kind.limit(segment_bytes),
            segments: VecDeque::new(),
        }
    }

    /// Gives the next frame, of `len` bytes, its place: a pure function of the frames before it.
    pub(crate) fn place(&mut self, frame: &Frame, len: u64) -> Place {
        let next_sequence = frame.end_sequence().map_or(0, Sequence::get);
        if let Some(open) = self.segments.back_mut()
            && open.length + len <= self.limit
        {
            let before = Mark {
                last: open.last,
                last_timestamp: open.last_timestamp,
            };
            let position = open.length;
            open.index.lock().appended(position, frame);
            open.length += len;
            open.last = frame.log_id();
            open.next_sequence = next_sequence;
            open.last_timestamp = open.last_timestamp.max(frame.timestamp);
            return Place {
                kind: self.kind,
                segment: open.first_index,
                position,
                before: Some(before),
            };
        }
        let mut index = SparseIndex::default();
        index.appended(0, frame);
        self.segments.push_back(Segment {
            first_index: frame.index,
            last: frame.log_id(),
            first_sequence: frame.base_sequence.map_or(0, Sequence::get),
            next_sequence,
            length: len,
            written: 0,
            first_timestamp: frame.timestamp,
            last_timestamp: frame.timestamp,
            sum: Sum::default(),
            exists: false,
            index: Arc::new(Mutex::new(index)),
        });
        Place {
            kind: self.kind,
            segment: frame.index,
            position: 0,
            before: None,
        }
    }

    /// Takes the last frame back.
    pub(crate) fn undo(&mut self, place: &Place, frame: &Frame) {
        let Some(open) = self.segments.back_mut() else {
            return;
        };
        let Some(before) = place.before else {
            self.segments.pop_back();
            return;
        };
        open.length = place.position;
        open.last = before.last;
        open.last_timestamp = before.last_timestamp;
        open.next_sequence = frame.base_sequence.map_or(0, Sequence::get);
    }

    /// Cuts the last segment to what `end` says; segments behind it go. `None` empties the stream.
    pub(crate) fn restore_end(&mut self, end: Option<&StreamEnd>) {
        let Some(end) = end else {
            self.segments.clear();
            return;
        };
        while self
            .segments
            .back()
            .is_some_and(|last| last.first_index > end.segment)
        {
            self.segments.pop_back();
        }
        if let Some(open) = self.segments.back_mut() {
            open.length = end.length;
            open.last = end.last;
            open.last_timestamp = end.last_timestamp;
            open.next_sequence = end.next_sequence.map_or(0, Sequence::get);
            open.forget_behind_end();
        }
    }

    pub(crate) fn end(&self) -> Option<StreamEnd> {
        self.segments.back().map(|open| StreamEnd {
            segment: open.first_index,
            length: open.length,
            last: open.last,
            last_timestamp: open.last_timestamp,
            next_sequence: Sequence::new(open.next_sequence),
        })
    }

    pub(crate) fn find(&self, first: LogIndex) -> Option<&Segment> {
        let place = self
            .segments
            .binary_search_by_key(&first, |segment| segment.first_index)
            .ok()?;
        self.segments.get(place)
    }

    pub(crate) fn find_mut(&mut self, first: LogIndex) -> Option<&mut Segment> {
        let place = self
            .segments
            .binary_search_by_key(&first, |segment| segment.first_index)
            .ok()?;
        self.segments.get_mut(place)
    }

    /// Number of the first segment with a frame at or behind `index`.
    pub(crate) fn at_or_after(&self, index: LogIndex) -> usize {
        self.segments
            .partition_point(|segment| segment.last.index < index)
    }
}

impl Segment {
    /// After `length` shrank: nothing behind it is known any more.
    pub(crate) fn forget_behind_end(&mut self) {
        self.written = self.written.min(self.length);
        if self.sum.length > self.length {
            self.sum = Sum::default();
        }
        self.index.lock().cut(self.length);
    }
}
