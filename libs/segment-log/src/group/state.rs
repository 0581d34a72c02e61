//! What a group's log looks like now, in memory: changed the same way by calls and by recovery.

use std::collections::VecDeque;
use std::path::PathBuf;

use ptah_types::{LogId, LogIndex, Sequence};

use super::drops::Delete;
use super::queued::Op;
use super::tail::{Entry, Tail};
use crate::segment::{Segment, Stream, StreamKind};
use crate::types::{GroupSpec, VoteRecord};
use crate::{Damage, Frame, ReadError, RefusedReason};

/// A cut of a segment's file that waits until the record that orders it is durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Cut {
    /// The truncation.
    pub(crate) record: u64,
    pub(crate) kind: StreamKind,
    pub(crate) segment: LogIndex,
    /// `None`: the whole file goes.
    pub(crate) length: Option<u64>,
}

pub(crate) struct GroupState {
    pub(crate) vote: Option<VoteRecord>,
    pub(crate) durable_vote: Option<VoteRecord>,
    pub(crate) committed: Option<LogId>,
    pub(crate) durable_committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    pub(crate) last: Option<LogId>,
    pub(crate) flushed: Option<LogId>,
    /// First log id of every term in the log.
    pub(crate) terms: VecDeque<LogId>,
    pub(crate) next_sequence: u64,
    pub(crate) messages: Stream,
    pub(crate) commands: Stream,
    pub(crate) tail: Tail,
    pub(crate) next_record: u64,
    pub(crate) durable_record: u64,
    /// Last record that changed more than the end of the log; files may follow only when it is durable.
    pub(crate) barrier: u64,
    pub(crate) last_truncate: u64,
    pub(crate) cuts: Vec<Cut>,
    /// Files that are no segments any more, in the order of the records that say so.
    pub(crate) deletes: Vec<Delete>,
    /// Changes when frames that could be read go away.
    pub(crate) generation: u64,
    /// Number of the data directory.
    pub(crate) dir_number: u64,
    pub(crate) blocked: VecDeque<Op>,
    pub(crate) large_outstanding: bool,
    pub(crate) installing: bool,
    /// Why no frames are taken until the group's files can be written again.
    pub(crate) unwritable: Option<String>,
    /// A snapshot is on its way in.
    pub(crate) staging: bool,
    /// Directories of installs that were given up.
    pub(crate) given_up: Vec<PathBuf>,
    pub(crate) dirty: bool,
    /// The last record of the flush that is running and has not fixed its meta slot yet.
    pub(crate) flushing: Option<u64>,
    /// Counts flushes that ended with an error.
    pub(crate) failed_flushes: u64,
    pub(crate) meta_version: u64,
    /// Whether the newest slot is known to survive power loss. The one that a start finds may be in the page cache only.
    pub(crate) slot_proven: bool,
    /// All records up to this one are in segments and the meta slot.
    pub(crate) covered: u64,
    /// Write-ahead log files with records of this group, and the last record in each.
    pub(crate) wal_files: VecDeque<(u64, u64)>,
    pub(crate) checkpoint: Option<LogId>,
    pub(crate) damage: Vec<Damage>,
    /// During recovery: large frames that cannot be read. Fine when a truncation follows.
    pub(crate) missing: Vec<(LogIndex, Damage)>,
    pub(crate) dropped: bool,
}

impl GroupState {
    pub(crate) fn new(spec: &GroupSpec) -> Self {
        Self {
            vote: None,
            durable_vote: None,
            committed: None,
            durable_committed: None,
            purged: None,
            last: None,
            flushed: None,
            terms: VecDeque::new(),
            next_sequence: 1,
            messages: Stream::new(StreamKind::Messages, spec.segment_bytes),
            commands: Stream::new(StreamKind::Commands, spec.segment_bytes),
            tail: Tail::default(),
            next_record: 1,
            durable_record: 0,
            barrier: 0,
            last_truncate: 0,
            cuts: Vec::new(),
            deletes: Vec::new(),
            generation: 0,
            dir_number: 1,
            blocked: VecDeque::new(),
            large_outstanding: false,
            installing: false,
            unwritable: None,
            staging: false,
            given_up: Vec::new(),
            dirty: false,
            flushing: None,
            failed_flushes: 0,
            meta_version: 0,
            slot_proven: true,
            covered: 0,
            wal_files: VecDeque::new(),
            checkpoint: None,
            damage: Vec::new(),
            missing: Vec::new(),
            dropped: false,
        }
    }

    pub(crate) fn stream(&self, kind: StreamKind) -> &Stream {
        match kind {
            StreamKind::Messages => &self.messages,
            StreamKind::Commands => &self.commands,
        }
    }

    pub(crate) fn stream_mut(&mut self, kind: StreamKind) -> &mut Stream {
        match kind {
            StreamKind::Messages => &mut self.messages,
            StreamKind::Commands => &mut self.commands,
        }
    }

    /// Version of the next slot: it goes over the older slot, or over a newest one that is not proven.
    pub(crate) fn next_version(&self) -> u64 {
        self.meta_version + if self.slot_proven { 1 } else { 2 }
    }

    /// The group needs a write-ahead log file for its records up to `last`.
    pub(crate) fn hold(&mut self, file: u64, last: u64) {
        self.dirty = true;
        match self.wal_files.back_mut() {
            Some((newest, known)) if *newest == file => *known = last,
            _ => self.wal_files.push_back((file, last)),
        }
    }

    pub(crate) fn take_number(&mut self) -> u64 {
        let number = self.next_record;
        self.next_record += 1;
        number
    }

    /// Whether all frames follow the log and each other.
    pub(crate) fn check(&self, spec: &GroupSpec, frames: &[Frame]) -> Result<(), RefusedReason> {
        let mut expected = self.last.map(|last| last.index.next());
        let mut term = self.last.map(|last| last.term);
        let mut sequence = self.next_sequence;
        for frame in frames {
            let invalid = |what: String| RefusedReason::Invalid {
                index: frame.index,
                what,
            };
            if let Some(expected) = expected.filter(|expected| *expected != frame.index) {
                return Err(RefusedReason::Gap {
                    expected,
                    found: frame.index,
                });
            }
            frame.check().map_err(|error| invalid(error.to_string()))?;
            if frame.group != spec.group {
                return Err(invalid(format!("it belongs to group {}", frame.group.to_hex())));
            }
            if term.is_some_and(|term| frame.term < term) {
                return Err(invalid(
                    "its term is below the term of the entry before it".to_owned(),
                ));
            }
            if let Some(base) = frame.base_sequence {
                if base.get() != sequence {
                    return Err(invalid(format!(
                        "its base sequence is {base}, the log expects {sequence}"
                    )));
                }
                sequence += u64::from(frame.count);
            }
            expected = Some(frame.index.next());
            term = Some(frame.term);
        }
        Ok(())
    }

    /// After frames were marked as written: a segment is written up to its first frame that is only in memory.
    pub(crate) fn update_written(&mut self) {
        let waiting = self
            .tail
            .iter()
            .filter(|entry| !entry.in_segment)
            .map(|entry| entry.place);
        let mut first = std::collections::BTreeMap::new();
        for place in waiting {
            first.entry((place.kind, place.segment)).or_insert(place.position);
        }
        for stream in [&mut self.messages, &mut self.commands] {
            for segment in &mut stream.segments {
                let waits = first.get(&(stream.kind, segment.first_index));
                segment.written = waits.copied().unwrap_or(segment.length);
            }
        }
    }

    /// Remembers damage that a reader met.
    pub(crate) fn note_damage(&mut self, error: &ReadError) {
        if let ReadError::Damaged(damage) = error
            && self.damage.len() < 16
            && !self.damage.contains(damage)
        {
            self.damage.push(damage.clone());
        }
    }

    /// Adds a frame at the end.
    pub(crate) fn push(&mut self, frame: Frame, record: u64) {
        let len = frame.encoded_len() as u64;
        self.push_len(frame, len, record, false);
    }

    /// Adds a frame of `len` bytes; with `in_segment` its bytes are in their segment already.
    pub(crate) fn push_len(&mut self, frame: Frame, len: u64, record: u64, in_segment: bool) {
        let id = frame.log_id();
        if self.terms.back().is_none_or(|last| last.term != id.term) {
            self.terms.push_back(id);
        }
        self.last = Some(id);
        let place = self.stream_mut(StreamKind::of(&frame)).place(&frame, len);
        if let Some(end) = frame.end_sequence() {
            self.next_sequence = end.get();
        }
        let sequence_after = self.next_sequence;
        self.tail.push(Entry {
            frame,
            record,
            place,
            in_segment,
            sequence_after,
        });
    }

    pub(crate) fn first_index(&self) -> LogIndex {
        match (self.purged, self.terms.front()) {
            (Some(purged), _) => purged.index.next(),
            (None, Some(first)) => first.index,
            (None, None) => LogIndex(0),
        }
    }

    pub(crate) fn log_id_at(&self, index: LogIndex) -> Option<LogId> {
        if let Some(purged) = self.purged.filter(|purged| purged.index == index) {
            return Some(purged);
        }
        if self.last.is_none_or(|last| index > last.index) || index < self.first_index() {
            return None;
        }
        let place = self.terms.partition_point(|start| start.index <= index);
        let start = place.checked_sub(1).and_then(|place| self.terms.get(place))?;
        Some(LogId {
            term: start.term,
            index,
        })
    }

    /// End of the log when all records up to `record` are durable. A frame that left memory is.
    pub(crate) fn durable_end(&self, record: u64) -> Option<LogId> {
        let Some(waiting) = self.tail.first_behind(record) else {
            return self.last;
        };
        let before = waiting.frame.index.0.checked_sub(1);
        before.and_then(|index| self.log_id_at(LogIndex(index)))
    }

    /// Takes entries above `keep` out of the tail and of the streams. Frames that are only on disk stay in the streams.
    pub(crate) fn truncate_tail(&mut self, keep: Option<LogIndex>) {
        let above = |index: LogIndex| keep.is_none_or(|keep| index > keep);
        self.missing.retain(|(index, _)| !above(*index));
        while let Some(entry) = self.tail.pop_back_if(|entry| above(entry.frame.index)) {
            let place = entry.place;
            let kind = place.kind;
            self.note_cut(kind, place.segment, place.before.map(|_| place.position));
            self.stream_mut(kind).undo(&place, &entry.frame);
            if let Some(base) = entry.frame.base_sequence {
                self.next_sequence = base.get();
            }
        }
        for kind in [StreamKind::Messages, StreamKind::Commands] {
            if let Some(open) = self.stream_mut(kind).segments.back_mut() {
                open.forget_behind_end();
            }
        }
    }

    /// Sets everything that follows from the log ending at `last`.
    pub(crate) fn truncated_to(&mut self, last: Option<LogId>) {
        self.last = last;
        let end = last.map(|last| last.index);
        self.terms
            .retain(|start| end.is_some_and(|end| start.index <= end));
        if self.purged.is_some() && self.purged == last {
            self.terms.clear();
        }
        self.flushed = self.flushed.min(last);
        self.committed = self.committed.min(last);
        self.durable_committed = self.durable_committed.min(last);
        self.generation += 1;
    }

    /// Remembers that a segment's file may be longer than its content.
    pub(crate) fn note_cut(&mut self, kind: StreamKind, segment: LogIndex, length: Option<u64>) {
        // The record of the truncation is taken right after.
        let record = self.next_record;
        let same = |cut: &&mut Cut| cut.record == record && cut.kind == kind && cut.segment == segment;
        match self.cuts.iter_mut().find(same) {
            Some(cut) => cut.length = cut.length.min(length),
            None => self.cuts.push(Cut {
                record,
                kind,
                segment,
                length,
            }),
        }
    }

    /// The cuts whose truncation is durable.
    pub(crate) fn take_cuts(&mut self) -> Vec<Cut> {
        let durable = self.durable_record;
        let ready = self.cuts.iter().take_while(|cut| cut.record <= durable).count();
        self.cuts.drain(..ready).collect()
    }

    /// Puts cuts back that were not made.
    pub(crate) fn return_cuts(&mut self, mut cuts: Vec<Cut>) {
        cuts.append(&mut self.cuts);
        self.cuts = cuts;
    }

    /// Whether a header is that of the next frame.
    pub(crate) fn check_header(&self, spec: &GroupSpec, fields: &Frame) -> Result<(), String> {
        self.check(spec, std::slice::from_ref(fields))
            .map_err(|error| error.to_string())
    }

    /// Cuts a stream to `end` where that is below what the tail gave.
    pub(crate) fn cut_stream(&mut self, kind: StreamKind, end: Option<&crate::wal::StreamEnd>) {
        let kept = end.map(|end| end.segment);
        let gone = |segment: &&Segment| kept.is_none_or(|kept| segment.first_index > kept);
        let removed: Vec<LogIndex> = self
            .stream(kind)
            .segments
            .iter()
            .filter(gone)
            .map(|segment| segment.first_index)
            .collect();
        for segment in removed {
            self.note_cut(kind, segment, None);
        }
        if let Some(end) = end {
            let longer = self
                .stream(kind)
                .find(end.segment)
                .is_some_and(|segment| segment.length > end.length);
            if longer {
                self.note_cut(kind, end.segment, Some(end.length));
            }
        }
        self.stream_mut(kind).restore_end(end);
    }

    pub(crate) fn first_sequence(&self) -> u64 {
        self.messages
            .segments
            .front()
            .map_or(self.next_sequence, |oldest| oldest.first_sequence)
    }

    pub(crate) fn next_sequence(&self) -> Sequence {
        Sequence::new(self.next_sequence).unwrap_or(Sequence::FIRST)
    }
}
