//! A group's meta slots: its hard state and the tables of its segments.
//!
//! `meta.a` and `meta.b` are written in turn. Each holds the same content twice, so a flipped bit costs nothing and a torn
//! write leaves the other slot. All numbers little endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `PTAHMETA` |
//! | 8 | 4 | CRC-32C of bytes 12..32 and the body |
//! | 12 | 4 | format version |
//! | 16 | 8 | bytes of the body |
//! | 24 | 8 | version of the slot; the higher one counts |
//! | 32 | | body: see `encode_body` |
//!
//! The second copy starts in the middle of the file.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use parking_lot::Mutex;
use ptah_types::{
    ClusterId, LogId, LogIndex, NodeId, PartitionKey, PartitionNumber, RaftGroupId, ReplicaId, StationId,
    TenantName, Term, Timestamp,
};

use crate::codec::{Reader, Short, crc32c, put_u32, put_u64};
use crate::segment::{Segment, SparseIndex, Sum};
use crate::types::{GroupSpec, Identity, VoteRecord};
use crate::wal::{BLOCK, FORMAT};

const MAGIC: u64 = u64::from_le_bytes(*b"PTAHMETA");
const HEADER_LEN: usize = 32;

/// Everything that a meta slot says.
#[derive(Clone, Debug)]
pub(crate) struct MetaImage {
    pub(crate) spec: GroupSpec,
    pub(crate) version: u64,
    /// All records of the group up to this one are contained.
    pub(crate) record: u64,
    /// All records of the group in units up to this one are contained.
    pub(crate) wal_seq: u64,
    pub(crate) dir_number: u64,
    pub(crate) vote: Option<VoteRecord>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    pub(crate) last: Option<LogId>,
    pub(crate) next_sequence: u64,
    pub(crate) terms: Vec<LogId>,
    pub(crate) messages: Vec<Segment>,
    pub(crate) commands: Vec<Segment>,
}

/// File name of the slot that a version goes to.
pub(crate) fn slot_name(version: u64) -> &'static str {
    if version.is_multiple_of(2) {
        "meta.a"
    } else {
        "meta.b"
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn log_id(&mut self, id: LogId) {
        self.u64(id.term.0);
        self.u64(id.index.0);
    }

    fn optional(&mut self, id: Option<LogId>) {
        self.u64(u64::from(id.is_some()));
        self.log_id(id.unwrap_or_default());
    }

    fn segments(&mut self, segments: &[Segment]) {
        self.u64(segments.len() as u64);
        for segment in segments {
            self.u64(segment.first_index.0);
            self.log_id(segment.last);
            self.u64(segment.first_sequence);
            self.u64(segment.next_sequence);
            self.u64(segment.length);
            self.u64(segment.first_timestamp.0);
            self.u64(segment.last_timestamp.0);
            self.u64(segment.sum.length);
            self.u64(u64::from(segment.sum.crc));
            self.log_id(segment.sum.last);
            self.u64(segment.sum.next_sequence);
            self.u64(segment.sum.last_timestamp.0);
        }
    }
}

fn log_id(reader: &mut Reader<'_>) -> Result<LogId, Short> {
    Ok(LogId {
        term: Term(reader.u64()?),
        index: LogIndex(reader.u64()?),
    })
}

fn optional(reader: &mut Reader<'_>) -> Result<Option<LogId>, Short> {
    let there = reader.u64()? == 1;
    let id = log_id(reader)?;
    Ok(there.then_some(id))
}

fn segments(reader: &mut Reader<'_>) -> Result<Vec<Segment>, Short> {
    let count = reader.u64()?;
    let mut out = Vec::new();
    for _ in 0..count {
        let first_index = LogIndex(reader.u64()?);
        let last = log_id(reader)?;
        let first_sequence = reader.u64()?;
        let next_sequence = reader.u64()?;
        let length = reader.u64()?;
        out.push(Segment {
            first_index,
            last,
            first_sequence,
            next_sequence,
            length,
            written: length,
            first_timestamp: Timestamp(reader.u64()?),
            last_timestamp: Timestamp(reader.u64()?),
            sum: Sum {
                length: reader.u64()?,
                crc: reader.u64()? as u32,
                last: log_id(reader)?,
                next_sequence: reader.u64()?,
                last_timestamp: Timestamp(reader.u64()?),
            },
            exists: true,
            index: Arc::new(Mutex::new(SparseIndex::unread(length))),
        });
    }
    Ok(out)
}

impl MetaImage {
    fn encode_body(&self, identity: &Identity) -> Vec<u8> {
        let mut out = Writer(Vec::with_capacity(512));
        out.0.extend_from_slice(identity.cluster.as_bytes());
        out.u64(identity.node.get());
        out.u64(self.spec.group.get());
        out.u64(self.spec.replica.get());
        out.u64(self.spec.segment_bytes);
        out.u64(self.spec.key.station.get());
        out.u64(u64::from(self.spec.key.partition.get()));
        let tenant = self.spec.key.tenant.as_str().as_bytes();
        out.u64(tenant.len() as u64);
        out.0.extend_from_slice(tenant);
        for value in [self.record, self.wal_seq, self.dir_number, self.next_sequence] {
            out.u64(value);
        }
        let vote = self.vote;
        out.u64(u64::from(vote.is_some()));
        out.u64(vote.map_or(0, |vote| vote.term.0));
        out.u64(vote.and_then(|vote| vote.voted_for).map_or(0, ReplicaId::get));
        out.u64(u64::from(vote.is_some_and(|vote| vote.committed)));
        for id in [self.committed, self.purged, self.last] {
            out.optional(id);
        }
        out.u64(self.terms.len() as u64);
        for start in &self.terms {
            out.log_id(*start);
        }
        out.segments(&self.messages);
        out.segments(&self.commands);
        out.0
    }

    /// The slot file's bytes.
    pub(crate) fn encode(&self, identity: &Identity) -> Vec<u8> {
        let body = self.encode_body(identity);
        let half = (HEADER_LEN + body.len()).next_multiple_of(BLOCK);
        let mut out = vec![0; 2 * half];
        let end = HEADER_LEN + body.len();
        put_u64(&mut out, 0, MAGIC);
        put_u32(&mut out, 12, FORMAT);
        put_u64(&mut out, 16, body.len() as u64);
        put_u64(&mut out, 24, self.version);
        out[HEADER_LEN..end].copy_from_slice(&body);
        let crc = crc32c(&out[12..end]);
        put_u32(&mut out, 8, crc);
        let (first, second) = out.split_at_mut(half);
        second[..end].copy_from_slice(&first[..end]);
        out
    }

    /// Reads a slot file: the first valid copy. `None` when there is none for this group.
    pub(crate) fn decode(bytes: &[u8], identity: &Identity, group: RaftGroupId) -> Option<Self> {
        let second = bytes.get(bytes.len() / 2..)?;
        Self::decode_copy(bytes, identity, group).or_else(|| Self::decode_copy(second, identity, group))
    }

    fn decode_copy(bytes: &[u8], identity: &Identity, group: RaftGroupId) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let magic = reader.u64().ok()?;
        let crc = reader.u32().ok()?;
        let format = reader.u32().ok()?;
        let len = usize::try_from(reader.u64().ok()?).ok()?;
        let version = reader.u64().ok()?;
        let covered = bytes.get(12..HEADER_LEN.checked_add(len)?)?;
        if magic != MAGIC || format != FORMAT || crc != crc32c(covered) {
            return None;
        }
        let mut body = Reader::new(bytes.get(HEADER_LEN..HEADER_LEN + len)?);
        let (owner, image) = Self::decode_body(&mut body, version).ok()??;
        (owner == *identity && image.spec.group == group && body.rest().is_empty()).then_some(image)
    }

    fn decode_spec(reader: &mut Reader<'_>) -> Result<Option<(Identity, GroupSpec)>, Short> {
        let cluster: [u8; 16] = reader.take(16)?.try_into().map_err(|_| Short)?;
        let (node, group, replica) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let segment_bytes = reader.u64()?;
        let station = reader.u64()?;
        let partition = u32::try_from(reader.u64()?).map_err(|_| Short)?;
        let len = usize::try_from(reader.u64()?).map_err(|_| Short)?;
        let tenant = std::str::from_utf8(reader.take(len)?).map_err(|_| Short)?;
        let parts = (|| {
            let identity = Identity {
                cluster: ClusterId::from_bytes(cluster).ok()?,
                node: NodeId::new(node).ok()?,
            };
            let key = PartitionKey {
                tenant: TenantName::from_str(tenant).ok()?,
                station: StationId::new(station).ok()?,
                partition: PartitionNumber::new(partition).ok()?,
            };
            let (group, replica) = (RaftGroupId::new(group).ok()?, ReplicaId::new(replica).ok()?);
            Some((
                identity,
                GroupSpec {
                    group,
                    replica,
                    key,
                    segment_bytes,
                },
            ))
        })();
        Ok(parts)
    }

    fn decode_body(reader: &mut Reader<'_>, version: u64) -> Result<Option<(Identity, Self)>, Short> {
        let Some((identity, spec)) = Self::decode_spec(reader)? else {
            return Ok(None);
        };
        let (record, wal_seq, dir_number, next_sequence) =
            (reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?);
        let voted = reader.u64()? == 1;
        let vote = VoteRecord {
            term: Term(reader.u64()?),
            voted_for: ReplicaId::new(reader.u64()?).ok(),
            committed: reader.u64()? == 1,
        };
        let (committed, purged, last) = (optional(reader)?, optional(reader)?, optional(reader)?);
        let count = reader.u64()?;
        let mut terms = Vec::new();
        for _ in 0..count {
            terms.push(log_id(reader)?);
        }
        let image = Self {
            spec,
            version,
            record,
            wal_seq,
            dir_number,
            vote: voted.then_some(vote),
            committed,
            purged,
            last,
            next_sequence,
            terms,
            messages: segments(reader)?,
            commands: segments(reader)?,
        };
        Ok(Some((identity, image)))
    }
}

/// Directory of a group's segments and checkpoints.
pub(crate) fn data_dir(group_dir: &Path, number: u64) -> std::path::PathBuf {
    group_dir.join(format!("d{number}"))
}
