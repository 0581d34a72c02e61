//! Snapshot install: a checkpoint and the message segments it names replace the state.
//!
//! Everything is built in a data directory of its own (`d<n>`). The switch is one write of a meta slot that names this
//! directory: before it the old state counts, after it the new one. The second slot follows before the install is
//! reported, so that a single damaged slot never brings the old state back.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use ptah_types::{LogId, LogIndex};

use super::checkpoint_file::CheckpointFiles;
use super::staging::Staging;
use super::state::GroupState;
use super::switch::InstallJob;
use super::{GroupLog, flush::Flushed};
use crate::codec::{RunningCrc, crc32c};
use crate::disk::{DiskFile, replace_file};
use crate::segment::{FrameCursor, Segment, SegmentName, SparseIndex, StreamKind, Sum, file_offset};
use crate::store::LargeItem;
use crate::types::{Checkpoint, ManifestSegment, MissingRange, Work};
use crate::{FlushDone, Frame, InstallError, ReadError};

/// Bytes that are copied at once.
pub(super) const PIECE: u64 = 1 << 20;

pub(super) struct Staged {
    manifest: ManifestSegment,
    name: SegmentName,
    file: Option<Arc<dyn DiskFile>>,
    received: u64,
    crc: RunningCrc,
    complete: bool,
}

/// A snapshot on its way in. Dropping it leaves the old state.
pub struct Install {
    pub(super) group: Arc<GroupLog>,
    pub(super) checkpoint: Checkpoint,
    pub(super) dir: PathBuf,
    pub(super) staging: Staging,
    pub(super) staged: BTreeMap<LogIndex, Staged>,
}

fn invalid(text: String) -> InstallError {
    InstallError::Invalid(text)
}

fn check_manifest(checkpoint: &Checkpoint) -> Result<(), InstallError> {
    let mut before: Option<&ManifestSegment> = None;
    for segment in &checkpoint.manifest.segments {
        let ordered = before.is_none_or(|before| {
            before.last.index < segment.first_index && before.next_sequence == segment.first_sequence
        });
        let inside = segment.first_index <= segment.last.index && segment.last.index <= checkpoint.at.index;
        let filled = segment.length > 0 && segment.first_sequence < segment.next_sequence;
        if !ordered || !inside || !filled {
            return Err(invalid(format!(
                "segment {} contradicts the manifest",
                segment.first_index
            )));
        }
        before = Some(segment);
    }
    let next = before.map(|last| last.next_sequence);
    if next.is_some() && next != checkpoint.manifest.next_sequence {
        return Err(invalid(
            "the next sequence is not the end of the last segment".to_owned(),
        ));
    }
    Ok(())
}

impl GroupLog {
    /// Starts installing a snapshot. One at a time: `Busy` as long as another [`Install`] of the group lives or is switched
    /// to. Blocking.
    pub fn begin_install(self: &Arc<Self>, checkpoint: Checkpoint) -> Result<Install, InstallError> {
        self.shared.check_failed()?;
        check_manifest(&checkpoint)?;
        // Segments that are reused must be complete on disk.
        if self.flush()? == Flushed::NotYet {
            let error = io::Error::new(
                io::ErrorKind::WouldBlock,
                "a truncation or purge is not durable yet; try again",
            );
            return Err(error.into());
        }
        let staging = {
            let mut state = self.state.lock();
            if state
                .purged
                .is_some_and(|purged| checkpoint.at.index <= purged.index)
            {
                return Err(invalid(format!(
                    "the log is purged up to {:?} already",
                    state.purged
                )));
            }
            if state.dropped {
                return Err(invalid("the group was dropped".to_owned()));
            }
            Staging::take(self, &mut state)?
        };
        let (dir, dir_number) = (staging.dir(), staging.number());
        let disk = &self.shared.disk;
        self.shared.files.forget_under(&dir);
        if disk.exists(&dir)? {
            disk.remove_dir_all(&dir)?;
        }
        disk.create_dir_all(&dir)?;
        disk.sync_dir(&self.dir)?;
        let mut install = Install {
            group: self.clone(),
            checkpoint,
            dir,
            staging,
            staged: BTreeMap::new(),
        };
        for manifest in install.checkpoint.manifest.segments.clone() {
            let name = self.segment_name(dir_number, StreamKind::Messages, manifest.first_index);
            let crc = RunningCrc::default();
            let mut staged = Staged {
                manifest,
                name,
                file: None,
                received: 0,
                crc,
                complete: false,
            };
            self.reuse(&mut staged);
            install.staged.insert(manifest.first_index, staged);
        }
        Ok(install)
    }

    /// Takes over a local segment that has the same bytes. Anything unexpected only means that it is fetched.
    fn reuse(&self, staged: &mut Staged) {
        let manifest = &staged.manifest;
        let local = {
            let state = self.state.lock();
            let open = state.messages.segments.back().map(|segment| segment.first_index);
            let found = state.messages.find(manifest.first_index);
            found.map(|segment| {
                (
                    segment.clone(),
                    state.dir_number,
                    open != Some(segment.first_index),
                )
            })
        };
        let Some((segment, dir_number, sealed)) =
            local.filter(|(local, ..)| local.written >= manifest.length)
        else {
            return;
        };
        let from = self.segment_name(dir_number, StreamKind::Messages, manifest.first_index);
        let same = self
            .range_crc(&from, manifest.length)
            .is_ok_and(|crc| crc == manifest.crc);
        if !same {
            return;
        }
        // A closed file can be shared; one that grows must be copied.
        let linked = sealed
            && segment.length == manifest.length
            && self.shared.disk.hard_link(&from.path, &staged.name.path).is_ok();
        if linked || self.copy_segment(&from, staged).is_ok() {
            staged.received = staged.manifest.length;
            staged.complete = true;
        }
    }

    fn range_crc(&self, name: &SegmentName, length: u64) -> Result<u32, ReadError> {
        let file = self.shared.files.open(name)?;
        let mut crc = RunningCrc::default();
        let mut cursor = FrameCursor::new(file, name.clone(), 0, length, PIECE as usize);
        while let Some(header) = cursor.peek()? {
            crc.extend(&cursor.take(&header)?.1);
        }
        Ok(crc.value())
    }

    fn copy_segment(&self, from: &SegmentName, staged: &Staged) -> io::Result<()> {
        let source = self.shared.files.open(from)?;
        let target = self.shared.disk.create(&staged.name.path)?;
        target.write_at(&mut [IoSlice::new(&staged.name.header())], 0)?;
        let mut at = 0;
        while at < staged.manifest.length {
            let len = (staged.manifest.length - at).min(PIECE) as usize;
            let bytes = crate::disk::read_up_to(&*source, file_offset(at), len)?;
            target.write_at(&mut [IoSlice::new(&bytes)], file_offset(at))?;
            at += len as u64;
        }
        target.sync_data()
    }

    fn install_refused(&self, state: &GroupState, at: LogId) -> Option<InstallError> {
        if state.dropped {
            return Some(invalid("the group was dropped".to_owned()));
        }
        let behind = state.purged.is_some_and(|purged| at.index <= purged.index);
        behind.then(|| invalid(format!("the log was purged up to {:?} meanwhile", state.purged)))
    }
}

impl Install {
    /// What is still needed, in order. Fetch it with `read_segment_range` of the sender.
    pub fn missing(&self) -> Vec<MissingRange> {
        let open = self.staged.values().filter(|staged| !staged.complete);
        open.map(|staged| MissingRange {
            segment: staged.manifest.first_index,
            offset: staged.received,
            len: staged.manifest.length - staged.received,
        })
        .collect()
    }

    /// Adds bytes of a segment's frames at `offset`, in order within the segment. When the segment is complete it is
    /// verified; a damaged one is forgotten and is `missing` again. Blocking.
    pub fn write(&mut self, segment: LogIndex, offset: u64, bytes: &[u8]) -> Result<(), InstallError> {
        let group = self.group.clone();
        if group.state.lock().dropped {
            return Err(invalid("the group was dropped".to_owned()));
        }
        let Some(staged) = self.staged.get_mut(&segment).filter(|staged| !staged.complete) else {
            return Err(invalid(format!("segment {segment} is not missing")));
        };
        let end = offset + bytes.len() as u64;
        if offset != staged.received || end > staged.manifest.length {
            return Err(InstallError::OutOfOrder {
                segment,
                expected: staged.received,
                found: offset,
            });
        }
        let file = match &staged.file {
            Some(file) => file.clone(),
            None => {
                let file = group.shared.disk.create(&staged.name.path)?;
                file.write_at(&mut [IoSlice::new(&staged.name.header())], 0)?;
                staged.file = Some(file.clone());
                file
            }
        };
        file.write_at(&mut [IoSlice::new(bytes)], file_offset(offset))?;
        staged.crc.extend(bytes);
        staged.received = end;
        if end < staged.manifest.length {
            return Ok(());
        }
        let verified = staged.verify(&*file);
        let durable = verified.and_then(|()| file.sync_data().map_err(InstallError::from));
        staged.file = None;
        if durable.is_err() {
            // Also after a failed sync: a later one would not reach what was written.
            staged.received = 0;
            staged.crc = RunningCrc::default();
            return durable;
        }
        staged.complete = true;
        Ok(())
    }

    /// Switches over: afterwards `last_purged` is the checkpoint's log id, entries above it that belong to the same log stay,
    /// and the vote is unchanged. The large writer does it; `done` is called when the new state is durable. Appends are
    /// refused with `WouldExceed` until then. A crash leaves the old or the new state.
    pub fn finish(self, done: FlushDone) -> Result<(), InstallError> {
        if let Some(missing) = self.missing().first() {
            return Err(invalid(format!("segment {} is not complete", missing.segment)));
        }
        let group = self.group.clone();
        group.shared.check_failed()?;
        let head =
            CheckpointFiles::encode_head(&group.shared.identity.cluster, group.spec.group, &self.checkpoint);
        let path = self.dir.join(CheckpointFiles::name(self.checkpoint.at));
        replace_file(&*group.shared.disk, &path, &[&head, &self.checkpoint.state])?;
        group.shared.disk.sync_dir(&self.dir)?;
        let mut state = group.state.lock();
        if let Some(error) = group.install_refused(&state, self.checkpoint.at) {
            return Err(error);
        }
        state.installing = true;
        let after = state.next_record - 1;
        drop(state);
        let job = InstallJob {
            install: self,
            after,
            done: Some(done).into(),
        };
        group.shared.large.push_item(LargeItem::Install(Box::new(job)));
        group.shared.wake(Work::Large);
        Ok(())
    }
}

impl Staged {
    /// Checks every frame, their order, and the whole.
    fn verify(&self, file: &dyn DiskFile) -> Result<(), InstallError> {
        let segment = self.manifest.first_index;
        let damaged = |what: String| InstallError::Damaged { segment, what };
        if self.crc.value() != self.manifest.crc {
            return Err(damaged("the checksum differs from the manifest".to_owned()));
        }
        let mut at = 0;
        let mut last = None;
        let mut next = self.manifest.first_sequence;
        while at < self.manifest.length {
            let head = crate::disk::read_up_to(file, file_offset(at), crate::FRAME_HEADER_LEN)?;
            let header = Frame::decode_header(&head).map_err(|error| damaged(error.to_string()))?;
            let fields = header.fields();
            let offset = file_offset(at) + crate::FRAME_HEADER_LEN as u64;
            let payload = crate::disk::read_up_to(file, offset, header.payload_len())?;
            let ordered =
                last.is_none_or(|last: LogId| last.index < fields.index && last.term <= fields.term);
            let ours = fields.group == self.name.group && fields.base_sequence == Some(next);
            if !ordered || !ours || crc32c(&payload) != fields.payload_crc {
                return Err(damaged(format!("frame {} does not fit", fields.index)));
            }
            next = fields.end_sequence().unwrap_or(next);
            last = Some(fields.log_id());
            at += header.encoded_len() as u64;
        }
        let complete = at == self.manifest.length
            && last == Some(self.manifest.last)
            && next == self.manifest.next_sequence;
        if complete {
            Ok(())
        } else {
            Err(damaged("it ends elsewhere than the manifest says".to_owned()))
        }
    }

    /// Whether the whole file is there, and makes sure that it survives power loss.
    pub(super) fn check_file(&self, group: &GroupLog) -> io::Result<()> {
        let file = group.shared.files.open(&self.name)?;
        let (len, needed) = (file.len()?, file_offset(self.manifest.length));
        if len < needed {
            let what = format!(
                "{} has {len} bytes, {needed} are needed",
                self.name.path.display()
            );
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        file.sync_data()
    }

    pub(super) fn segment(&self) -> Segment {
        let manifest = &self.manifest;
        Segment {
            first_index: manifest.first_index,
            last: manifest.last,
            first_sequence: manifest.first_sequence.get(),
            next_sequence: manifest.next_sequence.get(),
            length: manifest.length,
            written: manifest.length,
            first_timestamp: manifest.first_timestamp,
            last_timestamp: manifest.last_timestamp,
            sum: Sum {
                length: manifest.length,
                crc: manifest.crc,
                last: manifest.last,
                next_sequence: manifest.next_sequence.get(),
                last_timestamp: manifest.last_timestamp,
            },
            exists: true,
            index: Arc::new(Mutex::new(SparseIndex::unread(manifest.length))),
        }
    }
}
