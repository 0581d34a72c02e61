//! Bytes of whole segments: for the snapshot of another replica, and for scrubbing.

use bytes::{Bytes, BytesMut};
use ptah_types::LogIndex;

use super::GroupLog;
use super::read::{ATTEMPTS, Plan, SEGMENTS, StreamReader, plans};
use crate::ReadError;
use crate::segment::{FrameCursor, StreamKind, Target};

impl GroupLog {
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
