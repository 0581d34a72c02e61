//! Frames: one log entry each, the same bytes in the write-ahead log, in segments and between replicas.
//!
//! A frame is an 80-byte little-endian header and the payload. It holds nothing local, so segment files of two
//! replicas are equal behind their header blocks.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | CRC-32C of bytes 4..80 |
//! | 4 | 2 | magic `PF` |
//! | 6 | 1 | kind (1 blank, 2 batch, 3 command, 4 membership) |
//! | 7 | 1 | codec of the payload; chosen by the writer, opaque here |
//! | 8 | 4 | flags; opaque here |
//! | 12 | 4 | payload length |
//! | 16 | 8 | Raft group |
//! | 24 | 8 | term |
//! | 32 | 8 | log index |
//! | 40 | 8 | base sequence; 0 for frames without messages |
//! | 48 | 4 | message count; 0 for frames without messages |
//! | 52 | 4 | CRC-32C of the payload |
//! | 56 | 8 | timestamp |
//! | 64 | 8 | producer session; 0 for none |
//! | 72 | 8 | producer's number in its session |

use bytes::{Bytes, BytesMut};
use ptah_types::limits::MAX_BATCH_BYTES;
use ptah_types::{LogId, LogIndex, RaftGroupId, Sequence, SessionId, Term, Timestamp};

use crate::codec::{Reader, crc32c, put_u16, put_u32, put_u64};

/// Bytes in front of a frame's payload.
pub const FRAME_HEADER_LEN: usize = 80;
const MAGIC: u16 = u16::from_le_bytes(*b"PF");

/// What a frame holds. Stored, never renumber.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum FrameKind {
    /// Nothing; a new leader's first entry.
    Blank = 1,
    /// Messages.
    Batch = 2,
    /// A command to the partition's state.
    Command = 3,
    /// A membership of the Raft group.
    Membership = 4,
}

impl FrameKind {
    fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Blank),
            2 => Some(Self::Batch),
            3 => Some(Self::Command),
            4 => Some(Self::Membership),
            _ => None,
        }
    }
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The bytes end inside the frame.
    #[error("frame needs {needed} bytes, {found} are there")]
    Short {
        /// Bytes needed at least.
        needed: usize,
        /// Bytes given.
        found: usize,
    },
    /// The header's checksum differs.
    #[error("frame header has the wrong checksum")]
    HeaderChecksum,
    /// The payload's checksum differs.
    #[error("payload of frame {0} has the wrong checksum")]
    PayloadChecksum(LogIndex),
    /// The checksum is right, the content is not.
    #[error("frame header has an invalid {0}")]
    Invalid(&'static str),
}

/// One log entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// What it holds.
    pub kind: FrameKind,
    /// Codec of the payload; opaque here.
    pub codec: u8,
    /// Flags; opaque here.
    pub flags: u32,
    /// The Raft group it belongs to.
    pub group: RaftGroupId,
    /// Term of the leader that made it.
    pub term: Term,
    /// Its place in the log.
    pub index: LogIndex,
    /// Sequence of the first message; `Some` exactly for [`FrameKind::Batch`].
    pub base_sequence: Option<Sequence>,
    /// Number of messages; at least 1 exactly for [`FrameKind::Batch`].
    pub count: u32,
    /// When the leader accepted it.
    pub timestamp: Timestamp,
    /// The produce session it came from.
    pub session: Option<SessionId>,
    /// The append's number in that session.
    pub number: u64,
    /// The content.
    pub payload: Bytes,
    /// CRC-32C of `payload`, computed where the payload was built.
    pub payload_crc: u32,
}

/// A frame's header alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    frame: Frame,
    payload_len: usize,
}

impl FrameHeader {
    /// Bytes of the payload that follows.
    pub fn payload_len(&self) -> usize {
        self.payload_len
    }

    /// Bytes of header and payload.
    pub fn encoded_len(&self) -> usize {
        FRAME_HEADER_LEN + self.payload_len
    }

    /// Header of `frame`.
    pub(crate) fn of(frame: &Frame) -> Self {
        let mut fields = frame.clone();
        fields.payload = Bytes::new();
        Self {
            frame: fields,
            payload_len: frame.payload.len(),
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; FRAME_HEADER_LEN] {
        self.frame.header_bytes(self.payload_len)
    }

    /// The frame with an empty payload: everything but the content.
    pub fn fields(&self) -> &Frame {
        &self.frame
    }

    /// Completes the frame; checks length and checksum of the payload.
    pub fn with_payload(&self, payload: Bytes) -> Result<Frame, FrameError> {
        if payload.len() != self.payload_len {
            return Err(FrameError::Short {
                needed: self.payload_len,
                found: payload.len(),
            });
        }
        if crc32c(&payload) != self.frame.payload_crc {
            return Err(FrameError::PayloadChecksum(self.frame.index));
        }
        let mut frame = self.frame.clone();
        frame.payload = payload;
        Ok(frame)
    }
}

impl Frame {
    /// A frame without messages; computes the payload's checksum.
    pub fn plain(
        kind: FrameKind,
        group: RaftGroupId,
        id: LogId,
        timestamp: Timestamp,
        payload: Bytes,
    ) -> Self {
        let payload_crc = crc32c(&payload);
        Self {
            kind,
            codec: 0,
            flags: 0,
            group,
            term: id.term,
            index: id.index,
            base_sequence: None,
            count: 0,
            timestamp,
            session: None,
            number: 0,
            payload,
            payload_crc,
        }
    }

    /// A frame of `count` messages from `base` on, with the checksum that was computed where the payload was built.
    pub fn batch(
        group: RaftGroupId,
        id: LogId,
        timestamp: Timestamp,
        base: Sequence,
        count: u32,
        payload: Bytes,
        payload_crc: u32,
    ) -> Self {
        Self {
            kind: FrameKind::Batch,
            base_sequence: Some(base),
            count,
            payload_crc,
            payload,
            ..Self::plain(FrameKind::Batch, group, id, timestamp, Bytes::new())
        }
    }

    /// Full name of the entry.
    pub fn log_id(&self) -> LogId {
        LogId {
            term: self.term,
            index: self.index,
        }
    }

    /// Sequence after the last message; `None` for frames without messages.
    pub fn end_sequence(&self) -> Option<Sequence> {
        self.base_sequence?.advance(u64::from(self.count))
    }

    /// Bytes of header and payload.
    pub fn encoded_len(&self) -> usize {
        FRAME_HEADER_LEN + self.payload.len()
    }

    /// The header's bytes.
    pub fn encode_header(&self) -> [u8; FRAME_HEADER_LEN] {
        self.header_bytes(self.payload.len())
    }

    fn header_bytes(&self, payload_len: usize) -> [u8; FRAME_HEADER_LEN] {
        let mut out = [0; FRAME_HEADER_LEN];
        put_u16(&mut out, 4, MAGIC);
        out[6] = self.kind as u8;
        out[7] = self.codec;
        put_u32(&mut out, 8, self.flags);
        put_u32(&mut out, 12, payload_len as u32);
        put_u64(&mut out, 16, self.group.get());
        put_u64(&mut out, 24, self.term.0);
        put_u64(&mut out, 32, self.index.0);
        put_u64(&mut out, 40, self.base_sequence.map_or(0, Sequence::get));
        put_u32(&mut out, 48, self.count);
        put_u32(&mut out, 52, self.payload_crc);
        put_u64(&mut out, 56, self.timestamp.0);
        put_u64(&mut out, 64, self.session.map_or(0, SessionId::get));
        put_u64(&mut out, 72, self.number);
        let crc = crc32c(&out[4..]);
        put_u32(&mut out, 0, crc);
        out
    }

    /// Appends the frame's bytes: the form of the wire and of segments.
    pub fn encode_into(&self, out: &mut BytesMut) {
        out.extend_from_slice(&self.encode_header());
        out.extend_from_slice(&self.payload);
    }

    /// Takes one frame off the front of `input`, sharing its payload. Checks both checksums and every field.
    pub fn decode(input: &mut Bytes) -> Result<Self, FrameError> {
        let header = Self::decode_header(input)?;
        let needed = header.encoded_len();
        if input.len() < needed {
            return Err(FrameError::Short {
                needed,
                found: input.len(),
            });
        }
        let frame = header.with_payload(input.slice(FRAME_HEADER_LEN..needed))?;
        let _ = input.split_to(needed);
        Ok(frame)
    }

    /// Reads a frame's header from the front of `input`.
    pub fn decode_header(input: &[u8]) -> Result<FrameHeader, FrameError> {
        let Some(bytes) = input.first_chunk::<FRAME_HEADER_LEN>() else {
            return Err(FrameError::Short {
                needed: FRAME_HEADER_LEN,
                found: input.len(),
            });
        };
        let mut reader = Reader::new(bytes);
        let crc = reader.u32().map_err(|_| FrameError::Invalid("length"))?;
        if crc != crc32c(&bytes[4..]) {
            return Err(FrameError::HeaderChecksum);
        }
        Self::parse_fields(&mut reader)
    }

    fn parse_fields(reader: &mut Reader<'_>) -> Result<FrameHeader, FrameError> {
        let short = |_| FrameError::Invalid("length");
        if reader.u16().map_err(short)? != MAGIC {
            return Err(FrameError::Invalid("magic"));
        }
        let kind = FrameKind::from_u8(reader.u8().map_err(short)?).ok_or(FrameError::Invalid("kind"))?;
        let codec = reader.u8().map_err(short)?;
        let flags = reader.u32().map_err(short)?;
        let payload_len = reader.u32().map_err(short)? as usize;
        if payload_len > MAX_BATCH_BYTES {
            return Err(FrameError::Invalid("payload length"));
        }
        let group =
            RaftGroupId::new(reader.u64().map_err(short)?).map_err(|_| FrameError::Invalid("group"))?;
        let frame = Frame {
            kind,
            codec,
            flags,
            group,
            term: Term(reader.u64().map_err(short)?),
            index: LogIndex(reader.u64().map_err(short)?),
            base_sequence: Sequence::new(reader.u64().map_err(short)?),
            count: reader.u32().map_err(short)?,
            payload_crc: reader.u32().map_err(short)?,
            timestamp: Timestamp(reader.u64().map_err(short)?),
            session: SessionId::new(reader.u64().map_err(short)?).ok(),
            number: reader.u64().map_err(short)?,
            payload: Bytes::new(),
        };
        frame.check()?;
        Ok(FrameHeader { frame, payload_len })
    }

    /// Checks what every frame must fulfil, whoever made it.
    pub fn check(&self) -> Result<(), FrameError> {
        let is_batch = self.kind == FrameKind::Batch;
        if is_batch != self.base_sequence.is_some() || is_batch != (self.count > 0) {
            return Err(FrameError::Invalid("base sequence or count"));
        }
        if is_batch && self.end_sequence().is_none() {
            return Err(FrameError::Invalid("sequence range"));
        }
        if self.payload.len() > MAX_BATCH_BYTES {
            return Err(FrameError::Invalid("payload length"));
        }
        Ok(())
    }
}
