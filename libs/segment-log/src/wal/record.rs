//! Records: what a commit unit carries for each group.

use bytes::Bytes;
use ptah_types::{LogId, LogIndex, RaftGroupId, ReplicaId, Sequence, Term, Timestamp};

use crate::codec::{Reader, Short, put_u32, put_u64};
use crate::frame::FRAME_HEADER_LEN;
use crate::types::VoteRecord;
use crate::{Frame, FrameHeader};

pub(crate) const RECORD_HEADER_LEN: usize = 24;

/// Kind of a record. Stored, never renumber.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub(crate) enum RecordKind {
    Append = 1,
    AppendLarge = 2,
    Vote = 3,
    Committed = 4,
    Truncate = 5,
    Purge = 6,
    DropMessages = 7,
    Numbers = 8,
}

/// Where one stream of a group ends after a truncation, so that recovery need not read segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct StreamEnd {
    pub(crate) segment: LogIndex,
    pub(crate) length: u64,
    pub(crate) last: LogId,
    pub(crate) last_timestamp: Timestamp,
    pub(crate) next_sequence: Option<Sequence>,
}

/// Content of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Record {
    Append(Vec<Frame>),
    AppendLarge {
        segment: LogIndex,
        position: u64,
        header: FrameHeader,
    },
    Vote(VoteRecord),
    Committed(LogId),
    Truncate {
        after: Option<LogId>,
        messages: Option<StreamEnd>,
        commands: Option<StreamEnd>,
        next_sequence: u64,
    },
    Purge(LogId),
    DropMessages {
        first_kept: LogIndex,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecordHeader {
    pub(crate) kind: RecordKind,
    pub(crate) len: u32,
    pub(crate) group: u64,
    pub(crate) number: u64,
}

impl RecordHeader {
    pub(crate) fn encode(&self) -> [u8; RECORD_HEADER_LEN] {
        let mut out = [0; RECORD_HEADER_LEN];
        out[0] = self.kind as u8;
        put_u32(&mut out, 4, self.len);
        put_u64(&mut out, 8, self.group);
        put_u64(&mut out, 16, self.number);
        out
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Short> {
        let kind = match reader.u8()? {
            1 => RecordKind::Append,
            2 => RecordKind::AppendLarge,
            3 => RecordKind::Vote,
            4 => RecordKind::Committed,
            5 => RecordKind::Truncate,
            6 => RecordKind::Purge,
            7 => RecordKind::DropMessages,
            8 => RecordKind::Numbers,
            _ => return Err(Short),
        };
        reader.take(3)?;
        Ok(Self {
            kind,
            len: reader.u32()?,
            group: reader.u64()?,
            number: reader.u64()?,
        })
    }
}

/// Splits a unit's records; `None` when they contradict the header.
pub(crate) fn split_records(records: &Bytes, count: u32) -> Option<Vec<(RecordHeader, Bytes)>> {
    let mut out = Vec::with_capacity(count.min(65_536) as usize);
    let mut at = 0;
    while at < records.len() {
        let mut reader = Reader::new(&records[at..]);
        let header = RecordHeader::decode(&mut reader).ok()?;
        let body = reader.take(header.len as usize).ok()?;
        out.push((header, records.slice_ref(body)));
        at = records.len() - reader.rest().len();
    }
    (out.len() == count as usize).then_some(out)
}

fn put_log_id(out: &mut Vec<u8>, id: LogId) {
    out.extend_from_slice(&id.term.0.to_le_bytes());
    out.extend_from_slice(&id.index.0.to_le_bytes());
}

fn read_log_id(reader: &mut Reader<'_>) -> Result<LogId, Short> {
    Ok(LogId {
        term: Term(reader.u64()?),
        index: LogIndex(reader.u64()?),
    })
}

fn put_end(out: &mut Vec<u8>, end: Option<&StreamEnd>) {
    let Some(end) = end else {
        out.extend_from_slice(&[0; 56]);
        return;
    };
    out.extend_from_slice(&1u64.to_le_bytes());
    out.extend_from_slice(&end.segment.0.to_le_bytes());
    out.extend_from_slice(&end.length.to_le_bytes());
    put_log_id(out, end.last);
    out.extend_from_slice(&end.last_timestamp.0.to_le_bytes());
    out.extend_from_slice(&end.next_sequence.map_or(0, Sequence::get).to_le_bytes());
}

fn read_end(reader: &mut Reader<'_>) -> Result<Option<StreamEnd>, Short> {
    let there = reader.u64()? == 1;
    let end = StreamEnd {
        segment: LogIndex(reader.u64()?),
        length: reader.u64()?,
        last: read_log_id(reader)?,
        last_timestamp: Timestamp(reader.u64()?),
        next_sequence: Sequence::new(reader.u64()?),
    };
    Ok(there.then_some(end))
}

impl Record {
    pub(crate) fn kind(&self) -> RecordKind {
        match self {
            Self::Append(_) => RecordKind::Append,
            Self::AppendLarge { .. } => RecordKind::AppendLarge,
            Self::Vote(_) => RecordKind::Vote,
            Self::Committed(_) => RecordKind::Committed,
            Self::Truncate { .. } => RecordKind::Truncate,
            Self::Purge(_) => RecordKind::Purge,
            Self::DropMessages { .. } => RecordKind::DropMessages,
        }
    }

    /// Encodes every kind but [`Record::Append`], whose frames are written without this detour.
    pub(crate) fn encode_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::Append(frames) => {
                for frame in frames {
                    out.extend_from_slice(&frame.encode_header());
                    out.extend_from_slice(&frame.payload);
                }
            }
            Self::AppendLarge {
                segment,
                position,
                header,
            } => {
                out.extend_from_slice(&segment.0.to_le_bytes());
                out.extend_from_slice(&position.to_le_bytes());
                out.extend_from_slice(&header.encode());
            }
            Self::Vote(vote) => {
                out.extend_from_slice(&vote.term.0.to_le_bytes());
                out.extend_from_slice(&vote.voted_for.map_or(0, ReplicaId::get).to_le_bytes());
                out.extend_from_slice(&u64::from(vote.committed).to_le_bytes());
            }
            Self::Committed(id) | Self::Purge(id) => put_log_id(out, *id),
            Self::Truncate {
                after,
                messages,
                commands,
                next_sequence,
            } => {
                out.extend_from_slice(&u64::from(after.is_some()).to_le_bytes());
                put_log_id(out, after.unwrap_or_default());
                put_end(out, messages.as_ref());
                put_end(out, commands.as_ref());
                out.extend_from_slice(&next_sequence.to_le_bytes());
            }
            Self::DropMessages { first_kept } => out.extend_from_slice(&first_kept.0.to_le_bytes()),
        }
    }

    /// Reads a record; `None` when the body is not one of that kind. Frames are checked against their checksums.
    pub(crate) fn decode(kind: RecordKind, group: RaftGroupId, body: &Bytes) -> Option<Self> {
        if kind == RecordKind::Append {
            return decode_frames(group, body.clone()).map(Self::Append);
        }
        let mut reader = Reader::new(body);
        let record = Self::decode_small(kind, group, &mut reader).ok()??;
        reader.rest().is_empty().then_some(record)
    }

    fn decode_small(
        kind: RecordKind,
        group: RaftGroupId,
        reader: &mut Reader<'_>,
    ) -> Result<Option<Self>, Short> {
        Ok(Some(match kind {
            RecordKind::Append | RecordKind::Numbers => return Ok(None),
            RecordKind::AppendLarge => {
                let segment = LogIndex(reader.u64()?);
                let position = reader.u64()?;
                let header = Frame::decode_header(reader.take(FRAME_HEADER_LEN)?).map_err(|_| Short)?;
                if header.fields().group != group {
                    return Ok(None);
                }
                Self::AppendLarge {
                    segment,
                    position,
                    header,
                }
            }
            RecordKind::Vote => Self::Vote(VoteRecord {
                term: Term(reader.u64()?),
                voted_for: ReplicaId::new(reader.u64()?).ok(),
                committed: reader.u64()? == 1,
            }),
            RecordKind::Committed => Self::Committed(read_log_id(reader)?),
            RecordKind::Purge => Self::Purge(read_log_id(reader)?),
            RecordKind::Truncate => {
                let there = reader.u64()? == 1;
                let after = read_log_id(reader)?;
                Self::Truncate {
                    after: there.then_some(after),
                    messages: read_end(reader)?,
                    commands: read_end(reader)?,
                    next_sequence: reader.u64()?,
                }
            }
            RecordKind::DropMessages => Self::DropMessages {
                first_kept: LogIndex(reader.u64()?),
            },
        }))
    }
}

fn decode_frames(group: RaftGroupId, mut rest: Bytes) -> Option<Vec<Frame>> {
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let frame = Frame::decode(&mut rest).ok()?;
        if frame.group != group {
            return None;
        }
        frames.push(frame);
    }
    Some(frames)
}

/// Last record numbers of groups, carried by a seal.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Numbers {
    /// All groups with a record in a unit from this one on are listed.
    pub(crate) since_seq: u64,
    /// Group and its last record number, sorted.
    pub(crate) last: Vec<(u64, u64)>,
}

impl Numbers {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + self.last.len() * 16);
        out.extend_from_slice(&self.since_seq.to_le_bytes());
        for (group, number) in &self.last {
            out.extend_from_slice(&group.to_le_bytes());
            out.extend_from_slice(&number.to_le_bytes());
        }
        out
    }

    pub(crate) fn decode(body: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(body);
        let since_seq = reader.u64().ok()?;
        let mut last = Vec::new();
        while !reader.rest().is_empty() {
            last.push((reader.u64().ok()?, reader.u64().ok()?));
        }
        Some(Self { since_seq, last })
    }
}
