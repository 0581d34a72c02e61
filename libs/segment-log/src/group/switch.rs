//! The switch from the old state to an installed snapshot: two meta slots that name the new directory.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ptah_types::Sequence;

use super::GroupLog;
use super::checkpoint_file::CheckpointFiles;
use super::install::{Install, PIECE};
use super::meta::{MetaImage, data_dir};
use super::state::GroupState;
use crate::Frame;
use crate::disk::DiskFile;
use crate::segment::{SegmentName, StreamKind, file_offset};
use crate::wal::Answer;

/// The switch, to be done by the large writer.
pub(crate) struct InstallJob {
    pub(crate) install: Install,
    /// May start when this record is durable.
    pub(crate) after: u64,
    pub(crate) done: Answer,
}

impl InstallJob {
    pub(crate) fn group(&self) -> &Arc<GroupLog> {
        &self.install.group
    }
}

/// Why a switch did not happen.
#[derive(Debug)]
pub(crate) enum SwitchError {
    /// The old state counts.
    OldState(io::Error),
    /// A slot may or may not be written: old or new, only a restart can tell.
    Unknown(io::Error),
}

impl Install {
    /// The switch. An error leaves the old state, unless it came from writing a slot: then the store must stop.
    pub(crate) fn switch(&self) -> Result<(), SwitchError> {
        let group = &self.group;
        let _io = group.io.lock();
        let result = self.switch_locked();
        let mut state = group.state.lock();
        state.installing = false;
        drop(state);
        group.shared.tell_room();
        result
    }

    fn switch_locked(&self) -> Result<(), SwitchError> {
        let group = &self.group;
        let wal_seq = group.shared.completed_seq.load(Ordering::Acquire);
        let mut fresh = self.fresh_state();
        self.carry_over(&mut fresh)
            .and_then(|()| self.check_files())
            .map_err(SwitchError::OldState)?;
        let image = {
            let state = group.state.lock();
            fresh.durable_vote = state.durable_vote;
            fresh.durable_committed = state
                .durable_committed
                .max(Some(self.checkpoint.at))
                .min(fresh.last);
            fresh.durable_record = state.durable_record;
            fresh.meta_version = state.meta_version;
            fresh.slot_proven = state.slot_proven;
            fresh.image(&group.spec, wal_seq, fresh.durable_record)
        };
        self.staging.keep();
        for version in [image.version, image.version + 1] {
            let image = MetaImage {
                version,
                ..image.clone()
            };
            group.write_meta(&image, false).map_err(SwitchError::Unknown)?;
        }
        let mut state = group.state.lock();
        let old_dir = data_dir(&group.dir, state.dir_number);
        self.take_over(&mut state, fresh, &image);
        group.account(&mut state);
        drop(state);
        group.shared.files.forget_under(&old_dir);
        if let Err(error) = group.shared.disk.remove_dir_all(&old_dir) {
            tracing::warn!(dir = %old_dir.display(), %error, "old data of a group is left over; the next start removes it");
        }
        Ok(())
    }

    /// The last look before the new directory counts: everything that the slots will name is there and durable.
    fn check_files(&self) -> io::Result<()> {
        let group = &self.group;
        for staged in self.staged.values() {
            staged.check_file(group)?;
        }
        let checkpoint = self.dir.join(CheckpointFiles::name(self.checkpoint.at));
        group.shared.disk.open(&checkpoint)?.sync_data()?;
        group.shared.disk.sync_dir(&self.dir)
    }

    fn fresh_state(&self) -> GroupState {
        let mut fresh = GroupState::new(&self.group.spec);
        fresh.dir_number = self.staging.number();
        fresh.purged = Some(self.checkpoint.at);
        fresh.last = Some(self.checkpoint.at);
        fresh.checkpoint = Some(self.checkpoint.at);
        let next = self.checkpoint.manifest.next_sequence;
        fresh.next_sequence = next.map_or(1, Sequence::get);
        for staged in self.staged.values() {
            fresh.messages.segments.push_back(staged.segment());
        }
        fresh
    }

    /// Entries above the checkpoint that follow from it stay: they are written into the new directory.
    fn carry_over(&self, fresh: &mut GroupState) -> io::Result<()> {
        let group = &self.group;
        let at = self.checkpoint.at;
        let (last, same) = {
            let state = group.state.lock();
            (state.last, state.log_id_at(at.index) == Some(at))
        };
        let Some(last) = last.filter(|last| same && last.index > at.index) else {
            return Ok(());
        };
        let mut next = at.index.next();
        let mut files: BTreeMap<PathBuf, Arc<dyn DiskFile>> = BTreeMap::new();
        while next <= last.index {
            for frame in group.read(next, last.index.next(), PIECE)? {
                next = frame.index.next();
                self.carry_frame(fresh, &mut files, frame)?;
            }
        }
        for file in files.values() {
            file.sync_data()?;
        }
        group.shared.disk.sync_dir(&self.dir)
    }

    fn carry_frame(
        &self,
        fresh: &mut GroupState,
        files: &mut BTreeMap<PathBuf, Arc<dyn DiskFile>>,
        frame: Frame,
    ) -> io::Result<()> {
        let kind = StreamKind::of(&frame);
        fresh
            .check(&self.group.spec, std::slice::from_ref(&frame))
            .map_err(io::Error::other)?;
        let header = frame.encode_header();
        let payload = frame.payload.clone();
        fresh.push_len(frame, (header.len() + payload.len()) as u64, 0, true);
        let Some(place) = fresh.tail.iter().next_back().map(|entry| entry.place) else {
            return Ok(());
        };
        let name = self
            .group
            .segment_name(self.staging.number(), kind, place.segment);
        let file = match files.get(&name.path) {
            Some(file) => file.clone(),
            None if place.position == 0 => {
                let file = self.group.shared.disk.create(&name.path)?;
                file.write_at(&mut [IoSlice::new(&name.header())], 0)?;
                files.insert(name.path.clone(), file.clone());
                file
            }
            None => {
                // The last segment of the manifest grows: it must not be shared with the old directory.
                let file = self.own_copy(&name, place.position)?;
                files.insert(name.path.clone(), file.clone());
                file
            }
        };
        file.write_at(
            &mut [IoSlice::new(&header), IoSlice::new(&payload)],
            file_offset(place.position),
        )?;
        fresh.tail.trim(0, 0);
        if let Some(segment) = fresh.stream_mut(kind).find_mut(place.segment) {
            segment.written = segment.length;
            segment.exists = true;
        }
        Ok(())
    }

    fn own_copy(&self, name: &SegmentName, length: u64) -> io::Result<Arc<dyn DiskFile>> {
        let disk = &self.group.shared.disk;
        let source = disk.open_read(&name.path)?;
        let aside = name.path.with_extension("tmp");
        let target = disk.create(&aside)?;
        let mut at = 0;
        let end = file_offset(length);
        while at < end {
            let bytes = crate::disk::read_up_to(&*source, at, (end - at).min(PIECE) as usize)?;
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            target.write_at(&mut [IoSlice::new(&bytes)], at)?;
            at += bytes.len() as u64;
        }
        disk.rename(&aside, &name.path)?;
        Ok(target)
    }

    /// The new state becomes the current one. Votes and hints that came meanwhile stay.
    fn take_over(&self, state: &mut GroupState, fresh: GroupState, image: &MetaImage) {
        let published = state.tail.published;
        state.purged = fresh.purged;
        state.last = fresh.last;
        state.flushed = fresh.last;
        state.terms = fresh.terms;
        state.next_sequence = fresh.next_sequence;
        state.messages = fresh.messages;
        state.commands = fresh.commands;
        state.tail = fresh.tail;
        state.tail.published = published;
        state.committed = state.committed.max(fresh.purged).min(state.last);
        state.durable_committed = image.committed;
        state.dir_number = fresh.dir_number;
        state.checkpoint = fresh.checkpoint;
        state.cuts.clear();
        state.deletes.clear();
        state.damage.clear();
        state.meta_version = image.version + 1;
        state.slot_proven = true;
        state.covered = image.record;
        while state
            .wal_files
            .front()
            .is_some_and(|(_, last)| *last <= image.record)
        {
            state.wal_files.pop_front();
        }
        state.generation += 1;
        state.dirty = true;
    }
}
