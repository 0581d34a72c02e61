//! Log entries as openraft sees them, and the frames that they are on disk and on the wire.
//!
//! Invariant: an entry and its frame hold the same bytes, in both directions, without copying the payload. The frame
//! holds nothing local, so that it is equal on all replicas.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::entry::RaftEntry;
use ptah_partition::{BatchStamp, SessionNumber};
use ptah_segment_log::{Frame, FrameKind, crc32c};
use ptah_types::{LogId, LogIndex, RaftGroupId, Sequence, SessionId, Timestamp};

use crate::types::{Entry, EntryPayload, HomeNode, Membership, log_id, raft_log_id};

/// Flag of a command frame without effect: a barrier, or a batch that was made void. Stored, never renumber.
const FLAG_VOID: u32 = 1;
/// Codec of a membership payload. Stored, never renumber.
const MEMBERSHIP_CODEC: u8 = 1;
/// Most configurations and nodes that a membership payload may list; far above what is ever used.
const MAX_MEMBERS: usize = 1024;

/// Content of an application's entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    pub(crate) body: Body,
    pub(crate) timestamp: Timestamp,
    pub(crate) payload: Bytes,
    pub(crate) payload_crc: u32,
    pub(crate) codec: u8,
    /// True from the proposal until the log store has taken it: only such a batch may be made void.
    pub(crate) fresh: bool,
}

/// What kind of content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Body {
    /// Messages.
    Batch {
        base_sequence: Sequence,
        count: u32,
        session: Option<SessionNumber>,
    },
    /// Commands to the partition's state.
    Commands,
    /// Nothing that has an effect.
    Void(Void),
}

/// Why an entry has no effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Void {
    /// It is a barrier.
    Barrier,
    /// It was a batch that did not continue the log.
    Superseded,
    /// It was an entry for which the leader's disk had no room.
    NoRoom,
}

impl Void {
    /// Stored, never renumber.
    fn number(self) -> u64 {
        match self {
            Self::Barrier => 0,
            Self::Superseded => 1,
            Self::NoRoom => 2,
        }
    }

    /// What a newer build stores has no effect here either.
    fn of_number(number: u64) -> Self {
        match number {
            1 => Self::Superseded,
            2 => Self::NoRoom,
            _ => Self::Barrier,
        }
    }
}

impl Record {
    pub(crate) fn batch(stamp: &BatchStamp, payload: Bytes, payload_crc: u32) -> Self {
        Self {
            body: Body::Batch {
                base_sequence: stamp.base_sequence,
                count: stamp.count,
                session: stamp.session,
            },
            timestamp: stamp.timestamp,
            payload,
            payload_crc,
            codec: 0,
            fresh: true,
        }
    }

    pub(crate) fn commands(payload: Bytes, timestamp: Timestamp) -> Self {
        Self {
            body: Body::Commands,
            timestamp,
            payload_crc: crc32c(&payload),
            payload,
            codec: 0,
            fresh: true,
        }
    }

    pub(crate) fn barrier() -> Self {
        Self::void(Void::Barrier)
    }

    fn void(why: Void) -> Self {
        Self {
            body: Body::Void(why),
            timestamp: Timestamp(0),
            payload: Bytes::new(),
            payload_crc: crc32c(&[]),
            codec: 0,
            fresh: true,
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.body {
            Body::Batch {
                base_sequence, count, ..
            } => write!(f, "batch of {count} at {base_sequence}"),
            Body::Commands => write!(f, "commands in {} bytes", self.payload.len()),
            Body::Void(_) => write!(f, "void"),
        }
    }
}

/// Why a frame is not an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("membership entry {0} cannot be read: {1}")]
    Membership(LogIndex, &'static str),
    #[error("batch entry {0} names no sequence")]
    NoSequence(LogIndex),
}

/// Whether the entry was proposed here and is not stored yet.
pub(crate) fn is_fresh(entry: &Entry) -> bool {
    matches!(&entry.payload, EntryPayload::Normal(record) if record.fresh)
}

/// The frame of an entry. `takes` tells whether the log takes a fresh record; one that it does not take is made void,
/// which keeps sequences dense whatever happened to the proposals before it.
pub(crate) fn frame_of(entry: Entry, group: RaftGroupId, takes: impl FnOnce(&Record) -> bool) -> Frame {
    let id = log_id(&entry.log_id());
    match entry.payload {
        EntryPayload::Blank => bare_frame(FrameKind::Blank, group, id, Bytes::new()),
        EntryPayload::Membership(membership) => {
            let mut frame = bare_frame(FrameKind::Membership, group, id, encode_membership(&membership));
            frame.codec = MEMBERSHIP_CODEC;
            frame
        }
        EntryPayload::Normal(record) => {
            let record = if record.fresh && !takes(&record) {
                Record::void(Void::Superseded)
            } else {
                record
            };
            record_frame(record, group, id)
        }
    }
}

/// The frame without its content, at the same place of the log: nothing is stored of a proposal that finds no room.
pub(crate) fn without_content(frame: &Frame) -> Frame {
    let id = LogId {
        term: frame.term,
        index: frame.index,
    };
    record_frame(Record::void(Void::NoRoom), frame.group, id)
}

fn bare_frame(kind: FrameKind, group: RaftGroupId, id: LogId, payload: Bytes) -> Frame {
    Frame {
        kind,
        codec: 0,
        flags: 0,
        group,
        term: id.term,
        index: id.index,
        base_sequence: None,
        count: 0,
        timestamp: Timestamp(0),
        session: None,
        number: 0,
        payload_crc: crc32c(&payload),
        payload,
    }
}

fn record_frame(record: Record, group: RaftGroupId, id: LogId) -> Frame {
    let mut frame = Frame {
        kind: FrameKind::Command,
        codec: record.codec,
        flags: 0,
        group,
        term: id.term,
        index: id.index,
        base_sequence: None,
        count: 0,
        timestamp: record.timestamp,
        session: None,
        number: 0,
        payload: record.payload,
        payload_crc: record.payload_crc,
    };
    match record.body {
        Body::Batch {
            base_sequence,
            count,
            session,
        } => {
            frame.kind = FrameKind::Batch;
            frame.base_sequence = Some(base_sequence);
            frame.count = count;
            frame.session = session.map(|s| s.session);
            frame.number = session.map_or(0, |s| s.number.get());
        }
        Body::Commands => {}
        Body::Void(why) => {
            frame.flags = FLAG_VOID;
            frame.number = why.number();
        }
    }
    frame
}

/// The stamp of a batch frame.
pub(crate) fn stamp_of(frame: &Frame) -> Option<BatchStamp> {
    Some(BatchStamp {
        base_sequence: frame.base_sequence?,
        count: frame.count,
        timestamp: frame.timestamp,
        session: session_of(frame.session, frame.number),
    })
}

fn session_of(session: Option<SessionId>, number: u64) -> Option<SessionNumber> {
    SessionNumber::new(session?, number)
}

/// The entry of a frame.
pub(crate) fn entry_of(frame: Frame) -> Result<Entry, RecordError> {
    let id = raft_log_id(LogId {
        term: frame.term,
        index: frame.index,
    });
    let payload = match frame.kind {
        FrameKind::Blank => EntryPayload::Blank,
        FrameKind::Membership => EntryPayload::Membership(
            decode_membership(&frame.payload).map_err(|why| RecordError::Membership(frame.index, why))?,
        ),
        FrameKind::Batch => {
            let base_sequence = frame.base_sequence.ok_or(RecordError::NoSequence(frame.index))?;
            EntryPayload::Normal(Record {
                body: Body::Batch {
                    base_sequence,
                    count: frame.count,
                    session: session_of(frame.session, frame.number),
                },
                timestamp: frame.timestamp,
                payload: frame.payload,
                payload_crc: frame.payload_crc,
                codec: frame.codec,
                fresh: false,
            })
        }
        FrameKind::Command => EntryPayload::Normal(Record {
            body: if frame.flags & FLAG_VOID == 0 {
                Body::Commands
            } else {
                Body::Void(Void::of_number(frame.number))
            },
            timestamp: frame.timestamp,
            payload: frame.payload,
            payload_crc: frame.payload_crc,
            codec: frame.codec,
            fresh: false,
        }),
    };
    Ok(Entry::new(id, payload))
}

/// Layout: configurations (u16 count, each u16 count and u64 ids), then nodes (u16 count, each u64 id, u64 node).
pub(crate) fn encode_membership(membership: &Membership) -> Bytes {
    let mut out = BytesMut::new();
    let configs = membership.get_joint_config();
    out.put_u16_le(configs.len() as u16);
    for config in configs {
        out.put_u16_le(config.len() as u16);
        for id in config {
            out.put_u64_le(*id);
        }
    }
    let nodes: Vec<_> = membership.nodes().collect();
    out.put_u16_le(nodes.len() as u16);
    for (id, home) in nodes {
        out.put_u64_le(*id);
        out.put_u64_le(home.0);
    }
    out.freeze()
}

/// Reads [`encode_membership`] back.
pub(crate) fn decode_membership(mut input: &[u8]) -> Result<Membership, &'static str> {
    let configs = read_list(&mut input, |input| read_list(input, read_u64))?;
    let nodes = read_list(&mut input, |input| {
        Ok((read_u64(input)?, HomeNode(read_u64(input)?)))
    })?;
    if !input.is_empty() {
        return Err("bytes are left over");
    }
    let nodes: std::collections::BTreeMap<u64, HomeNode> = nodes.into_iter().collect();
    let configs: Vec<std::collections::BTreeSet<u64>> =
        configs.into_iter().map(|ids| ids.into_iter().collect()).collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|_| "a voter has no node")
}

fn read_u64(input: &mut &[u8]) -> Result<u64, &'static str> {
    input.try_get_u64_le().map_err(|_| "it ends early")
}

fn read_list<T>(
    input: &mut &[u8],
    mut read: impl FnMut(&mut &[u8]) -> Result<T, &'static str>,
) -> Result<Vec<T>, &'static str> {
    let count = usize::from(input.try_get_u16_le().map_err(|_| "it ends early")?);
    if count > MAX_MEMBERS {
        return Err("it lists too many members");
    }
    (0..count).map(|_| read(input)).collect()
}

#[cfg(test)]
mod tests;
