//! Reading: from memory when possible, else from segments, every frame checked.
//!
//! Files are read without a lock. When the log changed meanwhile, what was read is thrown away and read again.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use ptah_types::LogIndex;

use super::GroupLog;
use super::state::GroupState;
use crate::segment::{FrameCursor, SparseIndex, Stream, StreamKind, Target};
use crate::store::count;
use crate::{Damage, Frame, FrameHeader, ReadError};

/// Attempts before a reader gives up on a log that keeps changing.
pub(super) const ATTEMPTS: usize = 8;
/// Most segments of a stream that one read looks at.
pub(super) const SEGMENTS: usize = 64;

pub(super) struct SegmentPlan {
    pub(super) kind: StreamKind,
    pub(super) first: LogIndex,
    pub(super) last: LogIndex,
    pub(super) next_sequence: u64,
    pub(super) written: u64,
    pub(super) index: Arc<Mutex<SparseIndex>>,
}

/// What a read from disk needs, taken under the lock.
pub(super) struct Plan {
    pub(super) generation: u64,
    pub(super) dir_number: u64,
    pub(super) segments: Vec<SegmentPlan>,
}

pub(super) fn plans(stream: &Stream, skip: usize) -> Vec<SegmentPlan> {
    let plan = |segment: &crate::segment::Segment| SegmentPlan {
        kind: stream.kind,
        first: segment.first_index,
        last: segment.last.index,
        next_sequence: segment.next_sequence,
        written: segment.written,
        index: segment.index.clone(),
    };
    // A segment of which nothing was written yet may have no file.
    let written = stream
        .segments
        .iter()
        .skip(skip)
        .take_while(|segment| segment.written > 0);
    written.take(SEGMENTS).map(plan).collect()
}

/// Collects frames up to a number of bytes; at least one.
pub(super) struct Budget {
    pub(super) left: u64,
    pub(super) frames: Vec<Frame>,
}

impl Budget {
    pub(super) fn new(max_bytes: u64) -> Self {
        Self {
            left: max_bytes,
            frames: Vec::new(),
        }
    }

    pub(super) fn fits(&self, bytes: usize) -> bool {
        self.frames.is_empty() || bytes as u64 <= self.left
    }

    pub(super) fn add(&mut self, frame: Frame) {
        self.left = self.left.saturating_sub(frame.encoded_len() as u64);
        self.frames.push(frame);
    }

    /// Whether all of `frames` fit, and more may.
    pub(super) fn extend(&mut self, frames: Vec<Frame>) -> bool {
        for frame in frames {
            if !self.fits(frame.encoded_len()) {
                return false;
            }
            self.add(frame);
        }
        self.left > 0
    }

    pub(super) fn collect<'a>(mut self, frames: impl Iterator<Item = &'a Frame>) -> Vec<Frame> {
        for frame in frames {
            if !self.fits(frame.encoded_len()) {
                break;
            }
            self.add(frame.clone());
        }
        self.frames
    }
}

/// Walks over the segments of one stream.
pub(super) struct StreamReader<'a> {
    group: &'a GroupLog,
    dir_number: u64,
    rest: std::vec::IntoIter<SegmentPlan>,
    open: Option<(FrameCursor, Arc<Mutex<SparseIndex>>)>,
    target: Target,
    chunk: usize,
}

impl<'a> StreamReader<'a> {
    pub(super) fn new(
        group: &'a GroupLog,
        dir_number: u64,
        plans: Vec<SegmentPlan>,
        target: Target,
        max_bytes: u64,
    ) -> Self {
        let chunk = max_bytes.clamp(64 << 10, 256 << 10) as usize;
        Self {
            group,
            dir_number,
            rest: plans.into_iter(),
            open: None,
            target,
            chunk,
        }
    }

    fn before_target(&self, frame: &Frame) -> bool {
        match self.target {
            Target::Index(index) => frame.index < index,
            Target::Sequence(sequence) => frame.end_sequence().is_none_or(|end| end <= sequence),
        }
    }

    /// Header of the next frame at or behind the target.
    pub(super) fn peek(&mut self) -> Result<Option<FrameHeader>, ReadError> {
        loop {
            if self.open.is_none() && !self.open_next()? {
                return Ok(None);
            }
            let Some((cursor, index)) = &mut self.open else {
                return Ok(None);
            };
            let Some(header) = cursor.peek()? else {
                self.open = None;
                continue;
            };
            let position = cursor.position();
            let len = header.encoded_len() as u64;
            index.lock().passed(position, len, header.fields());
            let fields = header.fields().clone();
            if !self.before_target(&fields) {
                return Ok(Some(header));
            }
            if let Some((cursor, _)) = &mut self.open {
                cursor.skip(&header);
            }
        }
    }

    fn open_next(&mut self) -> Result<bool, ReadError> {
        let Some(plan) = self.rest.next() else {
            return Ok(false);
        };
        let name = self.group.segment_name(self.dir_number, plan.kind, plan.first);
        let file = self.group.shared.files.open(&name)?;
        let start = plan.index.lock().seek(self.target);
        let cursor = FrameCursor::new(file, name, start, plan.written, self.chunk);
        self.open = Some((cursor, plan.index));
        Ok(true)
    }

    pub(super) fn take(&mut self, header: &FrameHeader) -> Result<Option<(Frame, Bytes)>, ReadError> {
        match &mut self.open {
            Some((cursor, _)) => cursor.take(header).map(Some),
            None => Ok(None),
        }
    }
}

impl GroupLog {
    /// Frames `from..to` (exclusive) that exist, in order, from `from` on, until `max_bytes` would be exceeded; at least
    /// one when `from` exists; empty when `from` is above the last entry. Blocks when the frames are not in memory.
    pub fn read(&self, from: LogIndex, to: LogIndex, max_bytes: u64) -> Result<Vec<Frame>, ReadError> {
        let mut budget = Budget::new(max_bytes);
        let mut at = from;
        // The first part may be on disk, the second in memory.
        while at < to {
            let part = match self.read_part(at, to, budget.left) {
                Err(error) if budget.frames.is_empty() => return Err(error),
                // The next call tells it.
                Err(_) => break,
                Ok(part) => part,
            };
            let Some(last) = part.last() else { break };
            at = last.index.next();
            if !budget.extend(part) {
                break;
            }
        }
        Ok(budget.frames)
    }

    fn read_part(&self, from: LogIndex, to: LogIndex, max_bytes: u64) -> Result<Vec<Frame>, ReadError> {
        for _ in 0..ATTEMPTS {
            let plan = match self.plan_read(from, to, max_bytes)? {
                Ok(frames) => return Ok(frames),
                Err(plan) => plan,
            };
            let (plan, to) = plan;
            let generation = plan.generation;
            let result = self.read_log(plan, from, to, max_bytes);
            if let Some(result) = self.still_true(generation, result) {
                return result;
            }
        }
        Err(ReadError::Busy(self.spec.group))
    }

    /// Like [`GroupLog::read`], but only from memory: `None` when the disk would be touched or the range was purged.
    pub fn read_cached(&self, from: LogIndex, to: LogIndex, max_bytes: u64) -> Option<Vec<Frame>> {
        let state = self.state.lock();
        if state.last.is_none_or(|last| from > last.index) || from >= to {
            return Some(Vec::new());
        }
        if state.purged.is_some_and(|purged| from <= purged.index) {
            return None;
        }
        self.in_memory(&state, from, to, max_bytes)
    }

    fn in_memory(
        &self,
        state: &GroupState,
        from: LogIndex,
        to: LogIndex,
        max_bytes: u64,
    ) -> Option<Vec<Frame>> {
        if state.tail.first_index().is_none_or(|first| first > from) {
            return None;
        }
        count(&self.shared.counters.reads_from_memory, 1);
        let frames = state
            .tail
            .range_from(from)
            .map(|entry| &entry.frame)
            .take_while(|frame| frame.index < to);
        Some(Budget::new(max_bytes).collect(frames))
    }

    fn plan_read(
        &self,
        from: LogIndex,
        to: LogIndex,
        max_bytes: u64,
    ) -> Result<Result<Vec<Frame>, (Plan, LogIndex)>, ReadError> {
        let state = self.state.lock();
        if state.last.is_none_or(|last| from > last.index) || from >= to {
            return Ok(Ok(Vec::new()));
        }
        let first = state.first_index();
        if from < first {
            return Err(ReadError::Purged { asked: from, first });
        }
        if let Some(frames) = self.in_memory(&state, from, to, max_bytes) {
            return Ok(Ok(frames));
        }
        let mut end = to.min(state.last.map_or(to, |last| last.index.next()));
        end = end.min(state.tail.first_index().unwrap_or(end));
        let mut segments = Vec::new();
        for kind in [StreamKind::Messages, StreamKind::Commands] {
            let stream = state.stream(kind);
            let some = plans(stream, stream.at_or_after(from));
            if some.len() == SEGMENTS
                && let Some(last) = some.last()
            {
                end = end.min(last.last.next());
            }
            segments.extend(some);
        }
        let plan = Plan {
            generation: state.generation,
            dir_number: state.dir_number,
            segments,
        };
        Ok(Err((plan, end)))
    }

    fn read_log(
        &self,
        plan: Plan,
        from: LogIndex,
        to: LogIndex,
        max_bytes: u64,
    ) -> Result<Vec<Frame>, ReadError> {
        count(&self.shared.counters.reads_from_disk, 1);
        let dir = plan.dir_number;
        let (messages, commands): (Vec<_>, Vec<_>) = plan
            .segments
            .into_iter()
            .partition(|segment| segment.kind == StreamKind::Messages);
        let whole = messages
            .last()
            .or(commands.last())
            .map(|segment| (segment.kind, segment.first));
        let target = Target::Index(from);
        let mut readers = [
            StreamReader::new(self, dir, messages, target, max_bytes),
            StreamReader::new(self, dir, commands, target, max_bytes),
        ];
        let mut budget = Budget::new(max_bytes);
        let mut expected = from;
        while expected < to {
            let mut found = None;
            for reader in &mut readers {
                if let Some(header) = reader.peek()?.filter(|header| header.fields().index == expected) {
                    found = Some((reader, header));
                    break;
                }
            }
            let Some((reader, header)) = found else {
                let (kind, first) = whole.unwrap_or((StreamKind::Messages, from));
                let path = self.segment_name(dir, kind, first).path;
                return Err(Damage::new(path, 0, format!("log index {expected} is in no segment")).into());
            };
            if !budget.fits(header.encoded_len()) {
                break;
            }
            if let Some((frame, _)) = reader.take(&header)? {
                budget.add(frame);
            }
            expected = expected.next();
        }
        Ok(budget.frames)
    }

    /// The result, unless the log changed while it was read.
    pub(super) fn still_true<T>(
        &self,
        generation: u64,
        result: Result<T, ReadError>,
    ) -> Option<Result<T, ReadError>> {
        let mut state = self.state.lock();
        if state.generation != generation {
            return None;
        }
        if let Err(error) = &result
            && matches!(error, ReadError::Damaged(_))
        {
            count(&self.shared.counters.damaged_reads, 1);
            state.note_damage(error);
        }
        Some(result)
    }
}
