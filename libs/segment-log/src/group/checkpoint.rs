//! Writing, finding and summing up checkpoints.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use ptah_types::{LogId, LogIndex, Sequence};

use super::GroupLog;
use super::checkpoint_file::CheckpointFiles;
use super::flush::Flushed;
use super::meta::data_dir;
use crate::codec::RunningCrc;
use crate::disk::{read_file, replace_file};
use crate::segment::{FrameCursor, StreamKind, Sum};
use crate::types::{Checkpoint, Manifest, ManifestSegment};
use crate::{CheckpointError, Damage, ReadError};

/// Checkpoints that are kept.
const KEPT: usize = 2;
/// Largest checkpoint file that is read.
const LIMIT: u64 = 4 << 30;

impl GroupLog {
    /// Writes a state checkpoint; durable when this returns. Only up to the durable end of the log. The two newest are kept.
    /// Blocking.
    pub fn write_checkpoint(&self, at: LogId, state: Bytes) -> Result<(), CheckpointError> {
        self.shared.check_failed()?;
        self.check_checkpoint(at)?;
        // The segments must hold everything that the manifest names.
        if self.flush()? == Flushed::NotYet {
            let flushed = self.flushed_log_id();
            return Err(CheckpointError::AheadOfLog { at, flushed });
        }
        let _io = self.io.lock();
        let (manifest, dir_number) = self.manifest(at)?;
        let checkpoint = Checkpoint { at, state, manifest };
        let head = CheckpointFiles::encode_head(&self.shared.identity.cluster, self.spec.group, &checkpoint);
        let dir = data_dir(&self.dir, dir_number);
        replace_file(
            &*self.shared.disk,
            &dir.join(CheckpointFiles::name(at)),
            &[&head, &checkpoint.state],
        )?;
        crate::store::count(&self.shared.counters.file_syncs, 1);
        let mut group = self.state.lock();
        group.checkpoint = group.checkpoint.max(Some(at));
        // The next meta slot keeps the checksums, so that they are not computed again after a restart.
        group.dirty = true;
        drop(group);
        self.remove_old_checkpoints(&dir)?;
        Ok(())
    }

    fn check_checkpoint(&self, at: LogId) -> Result<(), CheckpointError> {
        let state = self.state.lock();
        if state.flushed < Some(at) {
            return Err(CheckpointError::AheadOfLog {
                at,
                flushed: state.flushed,
            });
        }
        if state.installing {
            return Err(CheckpointError::NotInLog {
                at,
                what: "a snapshot is being installed",
            });
        }
        if state.checkpoint.is_some_and(|newest| newest > at) {
            return Err(CheckpointError::NotInLog {
                at,
                what: "a newer checkpoint exists",
            });
        }
        if state.log_id_at(at.index) != Some(at) {
            return Err(CheckpointError::NotInLog {
                at,
                what: "the log has no such entry",
            });
        }
        Ok(())
    }

    /// The message segments up to `at`. The caller holds `io`.
    fn manifest(&self, at: LogId) -> Result<(Manifest, u64), ReadError> {
        let (segments, dir_number, next) = {
            let state = self.state.lock();
            let first = state
                .messages
                .segments
                .iter()
                .take_while(|segment| segment.first_index <= at.index);
            (
                first.cloned().collect::<Vec<_>>(),
                state.dir_number,
                state.next_sequence(),
            )
        };
        let mut manifest = Manifest {
            segments: Vec::new(),
            next_sequence: None,
        };
        for segment in segments {
            let sum = self.sum_up_to(dir_number, &segment, at.index)?;
            if let Some(kept) = self.state.lock().messages.find_mut(segment.first_index) {
                kept.sum = sum;
            }
            let (Some(first), Some(next)) = (
                Sequence::new(segment.first_sequence),
                Sequence::new(sum.next_sequence),
            ) else {
                continue;
            };
            manifest.next_sequence = Some(next);
            manifest.segments.push(ManifestSegment {
                first_index: segment.first_index,
                last: sum.last,
                first_sequence: first,
                next_sequence: next,
                length: sum.length,
                crc: sum.crc,
                first_timestamp: segment.first_timestamp,
                last_timestamp: sum.last_timestamp,
            });
        }
        if manifest.segments.is_empty() {
            // No message is at or below `at`, so the next one is the first that the log still has, or will have.
            let state = self.state.lock();
            let first = state
                .messages
                .segments
                .front()
                .map(|segment| segment.first_sequence);
            manifest.next_sequence = first.and_then(Sequence::new).or(Some(next));
        }
        Ok((manifest, dir_number))
    }

    /// Continues a segment's checksum over the frames up to `upto`. Reads only what was added since the last checkpoint.
    fn sum_up_to(
        &self,
        dir_number: u64,
        segment: &crate::segment::Segment,
        upto: LogIndex,
    ) -> Result<Sum, ReadError> {
        let mut sum = segment.sum;
        if sum.length > 0 && sum.last.index > upto {
            sum = Sum::default();
        }
        if sum.length == segment.length {
            return Ok(sum);
        }
        let name = self.segment_name(dir_number, StreamKind::Messages, segment.first_index);
        let file = self.shared.files.open(&name)?;
        let mut cursor = FrameCursor::new(file, name, sum.length, segment.written, 256 << 10);
        let mut crc = RunningCrc::from_value(sum.crc);
        while let Some(header) = cursor.peek()? {
            let fields = header.fields();
            if fields.index > upto {
                break;
            }
            let (frame, bytes) = cursor.take(&header)?;
            crc.extend(&bytes);
            sum = Sum {
                length: cursor.position(),
                crc: crc.value(),
                last: frame.log_id(),
                next_sequence: frame.end_sequence().map_or(0, Sequence::get),
                last_timestamp: sum.last_timestamp.max(frame.timestamp),
            };
        }
        Ok(sum)
    }

    fn checkpoint_names(&self, dir: &Path) -> io::Result<Vec<(LogId, PathBuf)>> {
        let entries = self.shared.disk.list(dir)?;
        let named = |name: &str| CheckpointFiles::parse_name(name).map(|at| (at, dir.join(name)));
        let mut found: Vec<_> = entries.iter().filter_map(|entry| named(&entry.name)).collect();
        found.sort();
        Ok(found)
    }

    fn remove_old_checkpoints(&self, dir: &Path) -> io::Result<()> {
        let found = self.checkpoint_names(dir)?;
        for (_, path) in found.iter().rev().skip(KEPT) {
            self.remove(path)?;
        }
        Ok(())
    }

    fn load(&self, path: &Path) -> Result<Checkpoint, ReadError> {
        let bytes = read_file(&*self.shared.disk, path, LIMIT).map_err(ReadError::io("read", path))?;
        let cluster = &self.shared.identity.cluster;
        let found = CheckpointFiles::decode(&Bytes::from(bytes), cluster, self.spec.group);
        let what = "the checkpoint is incomplete or its checksum is wrong";
        found.ok_or_else(|| Damage::new(path, 0, what).into())
    }

    /// The newest checkpoint, its manifest without the segments that were dropped since. A damaged one is passed over when
    /// the log still holds everything behind an older one (or everything). Blocking.
    pub fn latest_checkpoint(&self) -> Result<Option<Checkpoint>, ReadError> {
        self.newest_checkpoint(false)
    }

    fn newest_checkpoint(&self, needed: bool) -> Result<Option<Checkpoint>, ReadError> {
        let (purged, dir_number, first_segment) = {
            let state = self.state.lock();
            let first = state.messages.segments.front().map(|segment| segment.first_index);
            (state.purged, state.dir_number, first)
        };
        let dir = data_dir(&self.dir, dir_number);
        let found = self.checkpoint_names(&dir).map_err(ReadError::io("list", &dir))?;
        let mut damage = None;
        for (at, path) in found.into_iter().rev() {
            if purged.is_some_and(|purged| at.index < purged.index) {
                break;
            }
            match self.load(&path) {
                Ok(mut checkpoint) => {
                    let kept = |segment: &ManifestSegment| {
                        first_segment.is_none_or(|first| segment.first_index >= first)
                    };
                    checkpoint.manifest.segments.retain(kept);
                    return Ok(Some(checkpoint));
                }
                Err(error) => {
                    tracing::warn!(group = %self.spec.group.to_hex(), %error, "checkpoint cannot be used");
                    damage = damage.or(Some(error));
                }
            }
        }
        // Without a purge the log itself holds everything. Past a purge a checkpoint is needed.
        match (purged, damage) {
            (None, _) => Ok(None),
            (Some(_), Some(error)) => {
                self.state.lock().note_damage(&error);
                Err(error)
            }
            (Some(_), None) if !needed => Ok(None),
            (Some(purged), None) => {
                let expected = dir.join(CheckpointFiles::name(purged));
                let what =
                    format!("the log is purged up to {purged}, but there is no checkpoint at or behind it");
                Err(Damage::new(expected, 0, what).into())
            }
        }
    }

    /// At start: finds the newest usable checkpoint.
    pub(crate) fn recover_checkpoint(&self) -> Result<(), ReadError> {
        let newest = self.newest_checkpoint(true)?;
        self.state.lock().checkpoint = newest.map(|checkpoint| checkpoint.at);
        Ok(())
    }
}
