//! State checkpoints: opaque state at a log id, with the manifest of the message segments below it.
//!
//! `ckpt-<index>-<term>`, written aside, synced and renamed. All numbers little endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `PTAHCKP1` |
//! | 8 | 4 | CRC-32C of bytes 12..96 and the manifest |
//! | 12 | 4 | format version |
//! | 16 | 16 | cluster |
//! | 32 | 8 | Raft group |
//! | 40 | 16 | term and index of the last entry contained |
//! | 56 | 8 | next sequence; 0 for unknown |
//! | 64 | 8 | number of manifest entries |
//! | 72 | 8 | bytes of state |
//! | 80 | 4 | CRC-32C of the state |
//! | 84 | 12 | 0 |
//! | 96 | 88 each | manifest |
//! | | | state |

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use ptah_types::{ClusterId, LogId, LogIndex, RaftGroupId, Sequence, Term, Timestamp};

use super::GroupLog;
use super::flush::Flushed;
use super::meta::data_dir;
use crate::codec::{Reader, RunningCrc, Short, crc32c, put_u32, put_u64};
use crate::disk::{read_file, replace_file};
use crate::segment::{FrameCursor, StreamKind, Sum};
use crate::types::{Checkpoint, Manifest, ManifestSegment};
use crate::wal::FORMAT;
use crate::{CheckpointError, Damage, ReadError};

const MAGIC: u64 = u64::from_le_bytes(*b"PTAHCKP1");
const HEADER_LEN: usize = 96;
const ENTRY_LEN: usize = 88;
/// Checkpoints that are kept.
const KEPT: usize = 2;
/// Largest checkpoint file that is read.
const LIMIT: u64 = 4 << 30;

/// Encoding and names of checkpoint files.
pub(crate) struct CheckpointFiles;

impl CheckpointFiles {
    pub(crate) fn name(at: LogId) -> String {
        format!("ckpt-{:020}-{}", at.index.0, at.term.0)
    }

    pub(crate) fn parse_name(name: &str) -> Option<LogId> {
        let (index, term) = name.strip_prefix("ckpt-")?.split_once('-')?;
        Some(LogId {
            term: Term(term.parse().ok()?),
            index: LogIndex(index.parse().ok()?),
        })
    }

    /// Header and manifest.
    pub(crate) fn encode_head(cluster: &ClusterId, group: RaftGroupId, checkpoint: &Checkpoint) -> Vec<u8> {
        let manifest = &checkpoint.manifest;
        let mut out = vec![0; HEADER_LEN + manifest.segments.len() * ENTRY_LEN];
        put_u64(&mut out, 0, MAGIC);
        put_u32(&mut out, 12, FORMAT);
        out[16..32].copy_from_slice(cluster.as_bytes());
        put_u64(&mut out, 32, group.get());
        put_u64(&mut out, 40, checkpoint.at.term.0);
        put_u64(&mut out, 48, checkpoint.at.index.0);
        put_u64(&mut out, 56, manifest.next_sequence.map_or(0, Sequence::get));
        put_u64(&mut out, 64, manifest.segments.len() as u64);
        put_u64(&mut out, 72, checkpoint.state.len() as u64);
        put_u32(&mut out, 80, crc32c(&checkpoint.state));
        for (number, segment) in manifest.segments.iter().enumerate() {
            let at = HEADER_LEN + number * ENTRY_LEN;
            let values = [
                segment.first_index.0,
                segment.last.term.0,
                segment.last.index.0,
                segment.first_sequence.get(),
                segment.next_sequence.get(),
                segment.length,
                u64::from(segment.crc),
                segment.first_timestamp.0,
                segment.last_timestamp.0,
            ];
            for (field, value) in values.into_iter().enumerate() {
                put_u64(&mut out, at + field * 8, value);
            }
        }
        let crc = crc32c(&out[12..]);
        put_u32(&mut out, 8, crc);
        out
    }

    /// Reads a checkpoint file; `None` when it is not a complete one of this group.
    pub(crate) fn decode(bytes: &Bytes, cluster: &ClusterId, group: RaftGroupId) -> Option<Checkpoint> {
        Self::decode_inner(bytes, cluster, group).ok()?
    }

    fn decode_inner(
        bytes: &Bytes,
        cluster: &ClusterId,
        group: RaftGroupId,
    ) -> Result<Option<Checkpoint>, Short> {
        let mut reader = Reader::new(bytes);
        let (magic, crc, format) = (reader.u64()?, reader.u32()?, reader.u32()?);
        let owner = reader.take(16)?;
        let found_group = reader.u64()?;
        let at = LogId {
            term: Term(reader.u64()?),
            index: LogIndex(reader.u64()?),
        };
        let next_sequence = Sequence::new(reader.u64()?);
        let count = usize::try_from(reader.u64()?).map_err(|_| Short)?;
        let state_len = usize::try_from(reader.u64()?).map_err(|_| Short)?;
        let state_crc = reader.u32()?;
        reader.take(12)?;
        let head_len = count
            .checked_mul(ENTRY_LEN)
            .and_then(|len| len.checked_add(HEADER_LEN))
            .ok_or(Short)?;
        let head = bytes.get(..head_len).ok_or(Short)?;
        let ours = owner == cluster.as_bytes() && found_group == group.get();
        if magic != MAGIC || format != FORMAT || !ours || crc != crc32c(&head[12..]) {
            return Ok(None);
        }
        let mut segments = Vec::new();
        for _ in 0..count {
            let Some(segment) = Self::decode_segment(&mut reader)? else {
                return Ok(None);
            };
            segments.push(segment);
        }
        let state = bytes.slice_ref(reader.take(state_len)?);
        let complete = reader.rest().is_empty() && crc32c(&state) == state_crc;
        Ok(complete.then_some(Checkpoint {
            at,
            state,
            manifest: Manifest {
                segments,
                next_sequence,
            },
        }))
    }

    fn decode_segment(reader: &mut Reader<'_>) -> Result<Option<ManifestSegment>, Short> {
        let first_index = LogIndex(reader.u64()?);
        let last = LogId {
            term: Term(reader.u64()?),
            index: LogIndex(reader.u64()?),
        };
        let (first_sequence, next_sequence) = (Sequence::new(reader.u64()?), Sequence::new(reader.u64()?));
        let length = reader.u64()?;
        let crc = reader.u64()? as u32;
        let (first_timestamp, last_timestamp) = (Timestamp(reader.u64()?), Timestamp(reader.u64()?));
        reader.take(ENTRY_LEN - 72)?;
        let (Some(first_sequence), Some(next_sequence)) = (first_sequence, next_sequence) else {
            return Ok(None);
        };
        Ok(Some(ManifestSegment {
            first_index,
            last,
            first_sequence,
            next_sequence,
            length,
            crc,
            first_timestamp,
            last_timestamp,
        }))
    }
}

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
