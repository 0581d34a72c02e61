//! Reading: from memory when possible, else from segments, every frame checked.
//!
//! Files are read without a lock. When the log changed meanwhile, what was read is thrown away and read again.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use ptah_types::{LogIndex, Sequence, Timestamp};

use super::GroupLog;
use super::state::GroupState;
use crate::segment::{FrameCursor, SparseIndex, Stream, StreamKind, Target};
use crate::store::count;
use crate::{Damage, Frame, FrameHeader, ReadError};

/// Attempts before a reader gives up on a log that keeps changing.
const ATTEMPTS: usize = 8;
/// Most segments of a stream that one read looks at.
const SEGMENTS: usize = 64;

struct SegmentPlan {
    kind: StreamKind,
    first: LogIndex,
    last: LogIndex,
    next_sequence: u64,
    written: u64,
    index: Arc<Mutex<SparseIndex>>,
}

/// What a read from disk needs, taken under the lock.
struct Plan {
    generation: u64,
    dir_number: u64,
    segments: Vec<SegmentPlan>,
}

fn plans(stream: &Stream, skip: usize) -> Vec<SegmentPlan> {
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
struct Budget {
    left: u64,
    frames: Vec<Frame>,
}

impl Budget {
    fn new(max_bytes: u64) -> Self {
        Self {
            left: max_bytes,
            frames: Vec::new(),
        }
    }

    fn fits(&self, bytes: usize) -> bool {
        self.frames.is_empty() || bytes as u64 <= self.left
    }

    fn add(&mut self, frame: Frame) {
        self.left = self.left.saturating_sub(frame.encoded_len() as u64);
        self.frames.push(frame);
    }

    /// Whether all of `frames` fit, and more may.
    fn extend(&mut self, frames: Vec<Frame>) -> bool {
        for frame in frames {
            if !self.fits(frame.encoded_len()) {
                return false;
            }
            self.add(frame);
        }
        self.left > 0
    }

    fn collect<'a>(mut self, frames: impl Iterator<Item = &'a Frame>) -> Vec<Frame> {
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
struct StreamReader<'a> {
    group: &'a GroupLog,
    dir_number: u64,
    rest: std::vec::IntoIter<SegmentPlan>,
    open: Option<(FrameCursor, Arc<Mutex<SparseIndex>>)>,
    target: Target,
    chunk: usize,
}

impl<'a> StreamReader<'a> {
    fn new(
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
    fn peek(&mut self) -> Result<Option<FrameHeader>, ReadError> {
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

    fn take(&mut self, header: &FrameHeader) -> Result<Option<(Frame, Bytes)>, ReadError> {
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
        self.from_memory(&state, from, to, max_bytes)
    }

    fn from_memory(
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
            .from_index(from)
            .map(|entry| &entry.frame)
            .take_while(|frame| frame.index < to);
        Some(Budget::new(max_bytes).collect(frames))
    }

    #[expect(
        clippy::type_complexity,
        reason = "frames from memory, or the plan and the end of what is on disk"
    )]
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
        if let Some(frames) = self.from_memory(&state, from, to, max_bytes) {
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
    fn still_true<T>(&self, generation: u64, result: Result<T, ReadError>) -> Option<Result<T, ReadError>> {
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

    /// Batch frames that hold the messages `from..upto` (exclusive), from the frame that contains `from` on, until
    /// `max_bytes` would be exceeded; at least one when `from` exists. The caller bounds `upto` by what is applied. Blocks
    /// when the frames are not in memory.
    pub fn read_messages(
        &self,
        from: Sequence,
        upto: Sequence,
        max_bytes: u64,
    ) -> Result<Vec<Frame>, ReadError> {
        let mut budget = Budget::new(max_bytes);
        let mut at = from;
        while at < upto {
            let part = match self.read_messages_part(at, upto, budget.left) {
                Err(error) if budget.frames.is_empty() => return Err(error),
                Err(_) => break,
                Ok(part) => part,
            };
            let Some(end) = part.last().and_then(Frame::end_sequence) else {
                break;
            };
            at = end;
            if !budget.extend(part) {
                break;
            }
        }
        Ok(budget.frames)
    }

    fn read_messages_part(
        &self,
        from: Sequence,
        upto: Sequence,
        max_bytes: u64,
    ) -> Result<Vec<Frame>, ReadError> {
        for _ in 0..ATTEMPTS {
            let (plan, upto) = {
                let state = self.state.lock();
                let first = Sequence::new(state.first_sequence()).unwrap_or(Sequence::FIRST);
                if from < first {
                    return Err(ReadError::Dropped { asked: from, first });
                }
                if let Some(frames) = self.messages_from_memory(&state, from, upto, max_bytes) {
                    return Ok(frames);
                }
                let segments = &state.messages.segments;
                let skip = segments.partition_point(|segment| segment.next_sequence <= from.get());
                let segments = plans(&state.messages, skip);
                // From here on segments may have gaps that memory fills.
                let upto = state.tail.first_sequence().map_or(upto, |first| upto.min(first));
                (
                    Plan {
                        generation: state.generation,
                        dir_number: state.dir_number,
                        segments,
                    },
                    upto,
                )
            };
            let generation = plan.generation;
            let result = self.read_message_files(plan, from, upto, max_bytes);
            if let Some(result) = self.still_true(generation, result) {
                return result;
            }
        }
        Err(ReadError::Busy(self.spec.group))
    }

    /// Like [`GroupLog::read_messages`], but only from memory: `None` when the disk would be touched or messages were dropped.
    pub fn read_messages_cached(&self, from: Sequence, upto: Sequence, max_bytes: u64) -> Option<Vec<Frame>> {
        let state = self.state.lock();
        if from.get() < state.first_sequence() {
            return None;
        }
        self.messages_from_memory(&state, from, upto, max_bytes)
    }

    fn messages_from_memory(
        &self,
        state: &GroupState,
        from: Sequence,
        upto: Sequence,
        max: u64,
    ) -> Option<Vec<Frame>> {
        if from >= upto || from.get() >= state.next_sequence {
            return Some(Vec::new());
        }
        let entries = state.tail.from_sequence(from.get())?;
        count(&self.shared.counters.reads_from_memory, 1);
        let frames = entries
            .map(|entry| &entry.frame)
            .filter(|frame| frame.base_sequence.is_some());
        let frames = frames.take_while(|frame| frame.base_sequence.is_some_and(|base| base < upto));
        Some(Budget::new(max).collect(frames))
    }

    fn read_message_files(
        &self,
        plan: Plan,
        from: Sequence,
        upto: Sequence,
        max: u64,
    ) -> Result<Vec<Frame>, ReadError> {
        count(&self.shared.counters.reads_from_disk, 1);
        let last = plan
            .segments
            .last()
            .map(|segment| (segment.first, segment.next_sequence));
        let dir = plan.dir_number;
        let mut reader = StreamReader::new(self, dir, plan.segments, Target::Sequence(from), max);
        let mut budget = Budget::new(max);
        let mut expected = None;
        while let Some(header) = reader.peek()? {
            let fields = header.fields();
            if fields.base_sequence.is_none_or(|base| base >= upto) {
                break;
            }
            let follows = match expected {
                None => fields.base_sequence.is_some_and(|base| base <= from),
                Some(expected) => fields.base_sequence == Some(expected),
            };
            if !follows {
                let (first, _) = last.unwrap_or_default();
                let path = self.segment_name(dir, StreamKind::Messages, first).path;
                let what = format!(
                    "sequence {} is missing before log index {}",
                    expected.unwrap_or(from),
                    fields.index
                );
                return Err(Damage::new(path, 0, what).into());
            }
            if !budget.fits(header.encoded_len()) {
                break;
            }
            expected = fields.end_sequence();
            if let Some((frame, _)) = reader.take(&header)? {
                budget.add(frame);
            }
        }
        if budget.frames.is_empty() {
            let (first, next) = last.unwrap_or_default();
            let path = self.segment_name(dir, StreamKind::Messages, first).path;
            return Err(Damage::new(
                path,
                0,
                format!("sequence {from} is in no segment, the last ends at {next}"),
            )
            .into());
        }
        Ok(budget.frames)
    }

    /// First message whose frame's time is at or after `time`; `None` when all are earlier. Blocking.
    pub fn sequence_at(&self, time: Timestamp) -> Result<Option<Sequence>, ReadError> {
        let (start, end) = {
            let state = self.state.lock();
            let Some(segment) = state
                .messages
                .segments
                .iter()
                .find(|segment| segment.last_timestamp >= time)
            else {
                return Ok(None);
            };
            let first = Sequence::new(segment.first_sequence);
            if segment.first_timestamp >= time {
                return Ok(first);
            }
            let near = segment.index.lock().sequence_before(time);
            (near.or(first), state.next_sequence())
        };
        let mut at = start.unwrap_or(Sequence::FIRST);
        loop {
            let frames = self.read_messages(at, end, 1 << 20)?;
            if let Some(found) = frames.iter().find(|frame| frame.timestamp >= time) {
                return Ok(found.base_sequence);
            }
            match frames.last().and_then(Frame::end_sequence) {
                Some(next) => at = next,
                None => return Ok(None),
            }
        }
    }

    /// Bytes of a message segment's frames, every frame in them verified; ends at a frame's end, at or before
    /// `offset + len`, but a frame larger than `len` comes whole. `offset` must be a frame's start. Blocking.
    pub fn read_segment_range(&self, segment: LogIndex, offset: u64, len: u64) -> Result<Bytes, ReadError> {
        let (generation, dir_number, written) = {
            let state = self.state.lock();
            let written = state.messages.find(segment).map_or(0, |segment| segment.written);
            (state.generation, state.dir_number, written)
        };
        if offset >= written {
            let to = offset.saturating_add(len);
            return Err(ReadError::NoSuchRange {
                segment,
                from: offset,
                to,
            });
        }
        let result = self.copy_range(dir_number, segment, offset, len, written);
        match self.still_true(generation, result) {
            Some(result) => result,
            None => Err(ReadError::Busy(self.spec.group)),
        }
    }

    fn copy_range(
        &self,
        dir: u64,
        segment: LogIndex,
        offset: u64,
        len: u64,
        written: u64,
    ) -> Result<Bytes, ReadError> {
        let name = self.segment_name(dir, StreamKind::Messages, segment);
        let file = self.shared.files.open(&name)?;
        let chunk = len.clamp(64 << 10, 1 << 20) as usize;
        let mut cursor = FrameCursor::new(file, name, offset, written, chunk);
        let mut out = BytesMut::new();
        while let Some(header) = cursor.peek()? {
            if !out.is_empty() && (out.len() + header.encoded_len()) as u64 > len {
                break;
            }
            let (_, bytes) = cursor.take(&header)?;
            out.extend_from_slice(&bytes);
        }
        Ok(out.freeze())
    }

    /// Verifies message segments on disk from log index `from` on, about `max_bytes` of them: answers the log index to
    /// continue at, `None` when the end was reached. For scrubbing. Blocking.
    pub fn verify(&self, from: LogIndex, max_bytes: u64) -> Result<Option<LogIndex>, ReadError> {
        for _ in 0..ATTEMPTS {
            let plan = {
                let state = self.state.lock();
                let segments = plans(&state.messages, state.messages.at_or_after(from));
                Plan {
                    generation: state.generation,
                    dir_number: state.dir_number,
                    segments,
                }
            };
            let generation = plan.generation;
            let result = self.verify_files(plan, from, max_bytes);
            if let Some(result) = self.still_true(generation, result) {
                return result;
            }
        }
        Err(ReadError::Busy(self.spec.group))
    }

    fn verify_files(
        &self,
        plan: Plan,
        from: LogIndex,
        max_bytes: u64,
    ) -> Result<Option<LogIndex>, ReadError> {
        let next =
            (plan.segments.len() == SEGMENTS).then(|| plan.segments.last().map(|last| last.last.next()));
        let mut reader = StreamReader::new(
            self,
            plan.dir_number,
            plan.segments,
            Target::Index(from),
            256 << 10,
        );
        let mut left = max_bytes;
        while let Some(header) = reader.peek()? {
            if left == 0 {
                return Ok(Some(header.fields().index));
            }
            reader.take(&header)?;
            left = left.saturating_sub(header.encoded_len() as u64);
        }
        Ok(next.flatten())
    }
}
