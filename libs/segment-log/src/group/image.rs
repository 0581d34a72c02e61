//! Between the state in memory and the content of a meta slot.

use ptah_types::LogIndex;

use super::meta::MetaImage;
use super::state::GroupState;
use crate::segment::StreamKind;
use crate::types::GroupSpec;

impl GroupState {
    /// The state after `record`: what the meta slot says. Frames of later records are left out.
    pub(crate) fn image(&self, spec: &GroupSpec, wal_seq: u64, record: u64) -> MetaImage {
        let mut messages = self.messages.clone();
        let mut commands = self.commands.clone();
        let mut next_sequence = self.next_sequence;
        let mut last = self.last;
        for entry in self.tail.iter().rev().take_while(|entry| entry.record > record) {
            let stream = if entry.place.kind == StreamKind::Messages {
                &mut messages
            } else {
                &mut commands
            };
            stream.undo(&entry.place, &entry.frame);
            if let Some(base) = entry.frame.base_sequence {
                next_sequence = base.get();
            }
            let before = entry
                .frame
                .index
                .0
                .checked_sub(1)
                .and_then(|index| self.log_id_at(LogIndex(index)));
            last = before.or(self.purged);
        }
        let terms = self
            .terms
            .iter()
            .copied()
            .filter(|start| last.is_some_and(|last| start.index <= last.index));
        MetaImage {
            spec: spec.clone(),
            version: self.next_version(),
            record,
            wal_seq,
            dir_number: self.dir_number,
            vote: self.durable_vote,
            committed: self.durable_committed.min(last),
            purged: self.purged,
            last,
            next_sequence,
            terms: terms.collect(),
            messages: messages.segments.into(),
            commands: commands.segments.into(),
        }
    }

    /// The state that a meta slot describes.
    pub(crate) fn restore(image: MetaImage) -> Self {
        let mut state = Self::new(&image.spec);
        state.vote = image.vote;
        state.durable_vote = image.vote;
        state.committed = image.committed;
        state.durable_committed = image.committed;
        state.purged = image.purged;
        state.last = image.last;
        state.flushed = image.last;
        state.terms = image.terms.into();
        state.next_sequence = image.next_sequence;
        state.messages.segments = image.messages.into();
        state.commands.segments = image.commands.into();
        state.next_record = image.record + 1;
        state.durable_record = image.record;
        state.dir_number = image.dir_number;
        state.meta_version = image.version;
        state.slot_proven = false;
        state.covered = image.record;
        state
    }
}
