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

use bytes::Bytes;
use ptah_types::{ClusterId, LogId, LogIndex, RaftGroupId, Sequence, Term, Timestamp};

use crate::codec::{Reader, Short, crc32c, put_u32, put_u64};
use crate::types::{Checkpoint, Manifest, ManifestSegment};
use crate::wal::FORMAT;

const MAGIC: u64 = u64::from_le_bytes(*b"PTAHCKP1");
const HEADER_LEN: usize = 96;
const ENTRY_LEN: usize = 88;
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
