//! Segments: files of frames, and what is known of them in memory.
//!
//! A file is a header block of 4 KiB and frames back to back. Positions count from the end of the header block, so
//! that they are equal on all replicas. Which segment a frame goes to depends on the frames alone.
//!
//! | header | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `PTAHSEG1` |
//! | 8 | 4 | CRC-32C of bytes 12..64 |
//! | 12 | 4 | format version |
//! | 16 | 16 | cluster |
//! | 32 | 8 | node |
//! | 40 | 8 | Raft group |
//! | 48 | 8 | 1 messages, 2 commands |
//! | 56 | 8 | log index of the first frame: the file's name |

mod cursor;
mod files;
mod index;
mod stream;

use std::path::{Path, PathBuf};

use ptah_types::{LogIndex, RaftGroupId};

use crate::codec::{crc32c, put_u32, put_u64};
use crate::types::Identity;
use crate::wal::{BLOCK, FORMAT};

pub(crate) use cursor::FrameCursor;
pub(crate) use files::FileCache;
pub(crate) use index::{SparseIndex, Target};
pub(crate) use stream::{Place, Segment, Stream, Sum};

const MAGIC: u64 = u64::from_le_bytes(*b"PTAHSEG1");
const HEADER_LEN: usize = 64;
/// Commands vanish at checkpoints, so their segments are smaller: less is left over when the log is purged.
const COMMAND_SEGMENT_BYTES: u64 = 4 << 20;
/// A command segment is deleted whole, so it must be small beside what is kept of the log.
const COMMAND_SEGMENT_PART: u64 = 8;

/// The two kinds of segments of a group. Stored, never renumber.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u64)]
pub(crate) enum StreamKind {
    Messages = 1,
    Commands = 2,
}

impl StreamKind {
    pub(crate) fn of(frame: &crate::Frame) -> Self {
        match frame.kind {
            crate::FrameKind::Batch => Self::Messages,
            _ => Self::Commands,
        }
    }

    /// Size at which segments of this kind are closed.
    pub(crate) fn limit(self, segment_bytes: u64) -> u64 {
        match self {
            Self::Messages => segment_bytes,
            Self::Commands => (segment_bytes / COMMAND_SEGMENT_PART).clamp(1, COMMAND_SEGMENT_BYTES),
        }
    }

    pub(crate) fn file_name(self, first: LogIndex) -> String {
        match self {
            Self::Messages => format!("m-{:020}.seg", first.0),
            Self::Commands => format!("c-{:020}.seg", first.0),
        }
    }

    /// Reads [`StreamKind::file_name`] back.
    pub(crate) fn parse_file_name(name: &str) -> Option<(Self, LogIndex)> {
        let (kind, rest) = match name.split_at_checked(2)? {
            ("m-", rest) => (Self::Messages, rest),
            ("c-", rest) => (Self::Commands, rest),
            _ => return None,
        };
        let digits = rest.strip_suffix(".seg")?;
        (digits.len() == 20)
            .then(|| digits.parse().ok())?
            .map(|first| (kind, LogIndex(first)))
    }
}

/// Names a segment file of one group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SegmentName {
    pub(crate) identity: Identity,
    pub(crate) group: RaftGroupId,
    pub(crate) kind: StreamKind,
    pub(crate) first: LogIndex,
    pub(crate) path: PathBuf,
}

impl SegmentName {
    pub(crate) fn new(
        identity: Identity,
        group: RaftGroupId,
        kind: StreamKind,
        first: LogIndex,
        dir: &Path,
    ) -> Self {
        let path = dir.join(kind.file_name(first));
        Self {
            identity,
            group,
            kind,
            first,
            path,
        }
    }

    /// The header block.
    pub(crate) fn header(&self) -> [u8; BLOCK] {
        let mut out = [0; BLOCK];
        put_u64(&mut out, 0, MAGIC);
        put_u32(&mut out, 12, FORMAT);
        out[16..32].copy_from_slice(self.identity.cluster.as_bytes());
        put_u64(&mut out, 32, self.identity.node.get());
        put_u64(&mut out, 40, self.group.get());
        put_u64(&mut out, 48, self.kind as u64);
        put_u64(&mut out, 56, self.first.0);
        let crc = crc32c(&out[12..HEADER_LEN]);
        put_u32(&mut out, 8, crc);
        out
    }

    /// Whether `bytes` is this segment's header block.
    pub(crate) fn matches(&self, bytes: &[u8]) -> bool {
        bytes.get(..HEADER_LEN) == Some(&self.header()[..HEADER_LEN])
    }
}

/// Where a position is in the file.
pub(crate) fn file_offset(position: u64) -> u64 {
    position + BLOCK as u64
}
