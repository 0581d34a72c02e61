//! Recovery: records of the write-ahead log applied to the state of the meta slot.

use bytes::Bytes;

use super::GroupLog;
use super::meta::data_dir;
use super::state::{Cut, GroupState};
use crate::frame::FRAME_HEADER_LEN;
use crate::segment::{FrameCursor, StreamKind};
use crate::wal::Record;
use crate::{Damage, FrameHeader, ReadError};

impl GroupLog {
    /// Applies a record that is the next one of this group. An error means that the log contradicts itself.
    pub(crate) fn replay(&self, number: u64, record: Record, wal_file: u64) -> Result<(), String> {
        let mut state = self.state.lock();
        self.apply(&mut state, number, record)?;
        state.next_record = number + 1;
        state.durable_record = number;
        state.hold(wal_file, number);
        self.account(&mut state);
        Ok(())
    }

    /// A write-ahead log file has records that the meta slot contains. They are kept until a slot is known to be durable.
    pub(crate) fn hold(&self, wal_file: u64) {
        let mut state = self.state.lock();
        let covered = state.durable_record;
        state.hold(wal_file, covered);
    }

    fn apply(&self, state: &mut GroupState, number: u64, record: Record) -> Result<(), String> {
        let dir = data_dir(&self.dir, state.dir_number);
        match record {
            Record::Append(frames) => {
                state
                    .check(&self.spec, &frames)
                    .map_err(|error| error.to_string())?;
                for frame in frames {
                    state.push(frame, number);
                }
                state.flushed = state.last;
            }
            Record::AppendLarge {
                segment,
                position,
                header,
            } => {
                self.apply_large(state, number, segment, position, &header)?;
            }
            Record::Vote(vote) => {
                state.vote = Some(vote);
                state.durable_vote = Some(vote);
            }
            Record::Committed(id) => {
                if state.log_id_at(id.index) == Some(id) {
                    state.committed = Some(id);
                    state.durable_committed = Some(id);
                }
            }
            Record::Truncate {
                after,
                messages,
                commands,
                next_sequence,
            } => {
                state.truncate_tail(after.map(|after| after.index));
                state.cut_stream(StreamKind::Messages, messages.as_ref());
                state.cut_stream(StreamKind::Commands, commands.as_ref());
                state.truncated_to(after);
                state.next_sequence = next_sequence;
                state.barrier = number;
            }
            Record::Purge(upto) => {
                state.purge(upto, &dir);
                state.dropped_by(number);
            }
            Record::DropMessages { first_kept } => {
                state.drop_before(first_kept, &dir);
                state.dropped_by(number);
            }
        }
        Ok(())
    }

    fn apply_large(
        &self,
        state: &mut GroupState,
        number: u64,
        segment: ptah_types::LogIndex,
        position: u64,
        header: &FrameHeader,
    ) -> Result<(), String> {
        let fields = header.fields();
        state.check_header(&self.spec, fields)?;
        let kind = StreamKind::of(fields);
        // What was cut before was cut before this frame was written.
        state
            .cuts
            .retain(|cut| cut.kind != kind || cut.segment != segment);
        let mut frame = fields.clone();
        match self.read_large(state, kind, segment, position, header) {
            Ok(payload) => frame.payload = payload,
            Err(error) => {
                let name = self.segment_name(state.dir_number, kind, segment);
                let what = format!("large frame {} cannot be read: {error}", fields.index);
                let damage = Damage::new(name.path, crate::segment::file_offset(position), what);
                state.missing.push((fields.index, damage));
            }
        }
        state.push_len(frame, header.encoded_len() as u64, number, true);
        let place = state.tail.iter().next_back().map(|entry| entry.place);
        if place.is_none_or(|place| place.segment != segment || place.position != position) {
            return Err(format!("large frame {} is not where the log says", fields.index));
        }
        if let Some(segment) = state.stream_mut(kind).find_mut(segment) {
            segment.exists = true;
        }
        state.update_written();
        state.flushed = state.last;
        Ok(())
    }

    fn read_large(
        &self,
        state: &GroupState,
        kind: StreamKind,
        segment: ptah_types::LogIndex,
        position: u64,
        header: &FrameHeader,
    ) -> Result<Bytes, ReadError> {
        let name = self.segment_name(state.dir_number, kind, segment);
        let file = self.shared.files.open(&name)?;
        let end = position + header.encoded_len() as u64;
        let mut cursor = FrameCursor::new(file, name, position, end, FRAME_HEADER_LEN);
        let found = cursor.peek()?;
        if found.as_ref() != Some(header) {
            return Err(cursor.damage("another frame is there"));
        }
        cursor.take(header).map(|(frame, _)| frame.payload)
    }

    /// After everything was replayed: whether all frames are really there.
    pub(crate) fn check_recovered(&self) -> Result<(), Damage> {
        let state = self.state.lock();
        if let Some((_, damage)) = state.missing.first() {
            return Err(damage.clone());
        }
        for kind in [StreamKind::Messages, StreamKind::Commands] {
            for segment in &state.stream(kind).segments {
                let name = self.segment_name(state.dir_number, kind, segment.first_index);
                if segment.written > 0 {
                    self.check_length(&name.path, segment.written)?;
                }
            }
        }
        Ok(())
    }

    fn check_length(&self, path: &std::path::Path, written: u64) -> Result<(), Damage> {
        let len = self.shared.disk.open_read(path).and_then(|file| file.len());
        let needed = crate::segment::file_offset(written);
        match len {
            Ok(len) if len >= needed => Ok(()),
            Ok(len) => Err(Damage::new(
                path,
                len,
                format!("the file has {len} bytes, {needed} were written"),
            )),
            Err(error) => Err(Damage::new(path, 0, format!("the file cannot be read: {error}"))),
        }
    }

    /// After recovery: files that lie ready, and those that nothing needs.
    pub(crate) fn tidy_files(&self, names: &[String]) {
        let mut state = self.state.lock();
        let dir = data_dir(&self.dir, state.dir_number);
        for kind in [StreamKind::Messages, StreamKind::Commands] {
            for segment in &mut state.stream_mut(kind).segments {
                segment.exists |= segment.written > 0;
            }
        }
        for name in names {
            let Some((kind, first)) = StreamKind::parse_file_name(name) else {
                continue;
            };
            if state.stream(kind).find(first).is_none() {
                tracing::info!(file = %dir.join(name).display(), "segment file belongs to no segment, it will be deleted");
                // As a cut it happens before a new segment can get this name.
                state.cuts.insert(
                    0,
                    Cut {
                        record: 0,
                        kind,
                        segment: first,
                        length: None,
                    },
                );
                state.dirty = true;
            }
        }
    }
}
