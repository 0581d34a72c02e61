//! Reading messages by sequence and by time.

use ptah_types::{LogIndex, Sequence, Timestamp};

use super::GroupLog;
use super::read::{ATTEMPTS, Budget, Plan, StreamReader, plans};
use super::state::GroupState;
use crate::segment::{StreamKind, Target};
use crate::store::count;
use crate::{Damage, Frame, ReadError};

impl GroupLog {
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
                if let Some(frames) = self.messages_in_memory(&state, from, upto, max_bytes) {
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
        self.messages_in_memory(&state, from, upto, max_bytes)
    }

    fn messages_in_memory(
        &self,
        state: &GroupState,
        from: Sequence,
        upto: Sequence,
        max: u64,
    ) -> Option<Vec<Frame>> {
        if from >= upto || from.get() >= state.next_sequence {
            return Some(Vec::new());
        }
        let entries = state.tail.range_with(from.get())?;
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
        // What is whole before something damaged is given; the next call tells the damage.
        if let Err(error) = self.collect_messages(&mut reader, &mut budget, from, upto, (dir, last))
            && budget.frames.is_empty()
        {
            return Err(error);
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

    fn collect_messages(
        &self,
        reader: &mut StreamReader<'_>,
        budget: &mut Budget,
        from: Sequence,
        upto: Sequence,
        (dir, last): (u64, Option<(LogIndex, u64)>),
    ) -> Result<(), ReadError> {
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
        Ok(())
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
}
