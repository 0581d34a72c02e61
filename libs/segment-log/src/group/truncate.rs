//! Truncation: the log ends earlier than it did, in memory and in segments.

use std::io;
use std::sync::Arc;

use ptah_types::{LogId, LogIndex, Sequence};

use super::GroupLog;
use super::state::GroupState;
use crate::segment::{FrameCursor, StreamKind, Target};
use crate::wal::{Effect, Record, StreamEnd};
use crate::{FlushDone, ReadError};

impl GroupLog {
    /// Removes all entries above `after`; `None` removes all that are not purged. Reads the disk only when the entries are
    /// not in memory any more.
    pub fn truncate_after(self: &Arc<Self>, after: Option<LogId>, done: FlushDone) {
        let mut state = self.state.lock();
        let refusal = self.refusal(&state).or_else(|| truncate_refusal(&state, after));
        if let Some(error) = refusal {
            drop(state);
            return done(Err(error));
        }
        let keep = after.or(state.purged);
        if state.last <= keep {
            drop(state);
            return done(Ok(()));
        }
        let record = match self.truncate_state(&mut state, keep) {
            Ok(record) => record,
            Err(error) => {
                state.note_damage(&error);
                drop(state);
                return done(Err(error.into()));
            }
        };
        let work = self.small(&mut state, record, Effect::Nothing, Some(done));
        self.account(&mut state);
        drop(state);
        self.shared.wake_all(work);
    }

    fn truncate_state(&self, state: &mut GroupState, keep: Option<LogId>) -> Result<Record, ReadError> {
        let index = keep.map(|keep| keep.index);
        // The ends on disk are looked up first: an error must leave the log as it was.
        let mut ends = [None, None];
        for (slot, kind) in [StreamKind::Messages, StreamKind::Commands]
            .into_iter()
            .enumerate()
        {
            let in_memory = state
                .tail
                .first_index()
                .is_some_and(|first| index.is_some_and(|index| first <= index.next()));
            if !in_memory {
                ends[slot] = Some(self.find_end(state, kind, index)?);
            }
        }
        state.truncate_tail(index);
        let kinds = [StreamKind::Messages, StreamKind::Commands];
        for (kind, end) in kinds.into_iter().zip(ends) {
            if let Some(end) = end {
                if kind == StreamKind::Messages {
                    let oldest = state
                        .messages
                        .segments
                        .front()
                        .map(|segment| segment.first_sequence);
                    let next = end
                        .map(|end| end.next_sequence.map_or(1, Sequence::get))
                        .or(oldest);
                    state.next_sequence = next.unwrap_or(state.next_sequence);
                }
                state.cut_stream(kind, end.as_ref());
            }
        }
        state.truncated_to(keep);
        Ok(Record::Truncate {
            after: keep,
            messages: state.messages.end(),
            commands: state.commands.end(),
            next_sequence: state.next_sequence,
        })
    }

    /// Where a stream ends when the log ends at `keep`, looked up in the segments.
    fn find_end(
        &self,
        state: &GroupState,
        kind: StreamKind,
        keep: Option<LogIndex>,
    ) -> Result<Option<StreamEnd>, ReadError> {
        let Some(keep) = keep else { return Ok(None) };
        let stream = state.stream(kind);
        let place = stream.at_or_after(keep.next());
        let Some(segment) = stream
            .segments
            .get(place)
            .filter(|segment| segment.first_index <= keep)
        else {
            let before = place.checked_sub(1).and_then(|place| stream.segments.get(place));
            return Ok(before.map(|segment| StreamEnd {
                segment: segment.first_index,
                length: segment.length,
                last: segment.last,
                last_timestamp: segment.last_timestamp,
                next_sequence: Sequence::new(segment.next_sequence),
            }));
        };
        let name = self.segment_name(state.dir_number, kind, segment.first_index);
        let file = self.shared.files.open(&name)?;
        let start = segment.index.lock().seek(Target::Index(keep));
        let mut cursor = FrameCursor::new(file, name, start, segment.written, 64 << 10);
        let mut end = None;
        while let Some(header) = cursor.peek()? {
            let fields = header.fields();
            if fields.index > keep {
                break;
            }
            cursor.skip(&header);
            end = Some(StreamEnd {
                segment: segment.first_index,
                length: cursor.position(),
                last: fields.log_id(),
                last_timestamp: fields.timestamp.max(segment.first_timestamp),
                next_sequence: fields.end_sequence(),
            });
        }
        end.map(Some)
            .ok_or_else(|| cursor.damage("the segment's first frame is missing"))
    }
}

fn truncate_refusal(state: &GroupState, after: Option<LogId>) -> Option<io::Error> {
    if state.installing {
        let text = "a snapshot is being installed; truncate before or after it";
        return Some(io::Error::new(io::ErrorKind::WouldBlock, text));
    }
    let after = after?;
    if state.purged.is_some_and(|purged| after.index < purged.index) {
        let text = format!("cannot truncate after {after}: it was purged");
        return Some(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let known = state.log_id_at(after.index);
    if state.last.is_some_and(|last| after.index <= last.index) && known != Some(after) {
        let text = format!("cannot truncate after {after}: the log has {known:?} there");
        return Some(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    None
}
