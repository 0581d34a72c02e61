//! What a log gives up at its front: purged entries, dropped messages, and the files of both.

use std::path::PathBuf;

use ptah_types::{LogId, LogIndex};

use super::state::GroupState;
use crate::segment::{Segment, StreamKind};

/// A file that is no segment any more.
#[derive(Clone, Debug)]
pub(crate) struct Delete {
    /// Number of the record that dropped it; `None` until that is known. It may go when the meta slot covers the record.
    pub(crate) by: Option<u64>,
    pub(crate) path: PathBuf,
}

impl GroupState {
    /// Removes entries up to `upto` from the Raft log. Files of commands that are not needed any more are queued for deletion.
    pub(crate) fn purge(&mut self, upto: LogId, dir: &std::path::Path) {
        self.purged = Some(upto);
        if self.last.is_none_or(|last| last.index <= upto.index) {
            self.last = Some(upto);
            self.flushed = self.flushed.max(Some(upto));
            self.terms.clear();
        }
        let next = upto.index.next();
        while self.terms.get(1).is_some_and(|second| second.index <= next) {
            self.terms.pop_front();
        }
        if let Some(first) = self.terms.front_mut() {
            first.index = first.index.max(next);
        }
        while self.commands.segments.len() > 1
            && self
                .commands
                .segments
                .front()
                .is_some_and(|oldest| oldest.last.index <= upto.index)
        {
            let Some(oldest) = self.commands.segments.pop_front() else {
                break;
            };
            self.tail.forget_segment(StreamKind::Commands, oldest.first_index);
            self.deletes.push(Delete {
                by: None,
                path: dir.join(StreamKind::Commands.file_name(oldest.first_index)),
            });
        }
        self.generation += 1;
    }

    /// First segment that stays when messages before `first` are dropped; `None` when nothing is dropped.
    pub(crate) fn droppable(&self, first: u64) -> Option<LogIndex> {
        let purged = self.purged?;
        let segments = &self.messages.segments;
        let goes = |segment: &&Segment| {
            let full = segment.written == segment.length;
            segment.next_sequence <= first && segment.last.index <= purged.index && full
        };
        let count = segments
            .iter()
            .take(segments.len().saturating_sub(1))
            .take_while(goes)
            .count();
        if count == 0 {
            None
        } else {
            segments.get(count).map(|segment| segment.first_index)
        }
    }

    /// Drops message segments before the one named.
    pub(crate) fn drop_before(&mut self, first_kept: LogIndex, dir: &std::path::Path) {
        while self
            .messages
            .segments
            .front()
            .is_some_and(|oldest| oldest.first_index < first_kept)
        {
            let Some(oldest) = self.messages.segments.pop_front() else {
                break;
            };
            self.tail.forget_segment(StreamKind::Messages, oldest.first_index);
            self.deletes.push(Delete {
                by: None,
                path: dir.join(StreamKind::Messages.file_name(oldest.first_index)),
            });
        }
        self.generation += 1;
    }

    /// The record that says what was just dropped has this number.
    pub(crate) fn dropped_by(&mut self, number: u64) {
        self.barrier = number;
        for delete in self
            .deletes
            .iter_mut()
            .rev()
            .take_while(|delete| delete.by.is_none())
        {
            delete.by = Some(number);
        }
    }

    /// Takes the files that the meta slot names no more. What later records dropped stays: those come all the time, and
    /// waiting until none is under way could take for ever.
    pub(crate) fn take_deletable(&mut self) -> Vec<Delete> {
        let covered = self.covered;
        let count = self
            .deletes
            .iter()
            .take_while(|delete| delete.by.is_some_and(|by| by <= covered))
            .count();
        self.deletes.drain(..count).collect()
    }
}
