//! Entries as bytes on the wire: encoded frames one after another, cut into pieces without copying big payloads, and
//! put together again on the other side.

use bytes::{Bytes, BytesMut};
use ptah_segment_log::{FRAME_HEADER_LEN, Frame, FrameError};
use ptah_types::limits::{FRAGMENT_BYTES, MAX_BATCH_BYTES};
use ptah_types::{LogIndex, RaftGroupId};

use crate::record::{RecordError, entry_of, frame_of};
use crate::types::{Entry, RaftLogId};

/// Payloads from this size on are not copied behind their header but sent as pieces of their own.
const SHARE_FROM: usize = 32 << 10;
/// Most bytes of one append request: the largest entry, and a bunch of small ones before it.
pub(crate) const MAX_REQUEST_BYTES: u64 = (MAX_BATCH_BYTES + (4 << 20)) as u64;

/// Why received bytes are not the entries that they should be. Nothing of them is written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EntriesError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("entry {index} belongs to group {}", found.to_hex())]
    OtherGroup { index: LogIndex, found: RaftGroupId },
    #[error("entry {found} follows entry {expected} where it should be it")]
    OutOfOrder { expected: u64, found: LogIndex },
    #[error("entry {0} has a term that is lower than before, or higher than the leader's")]
    Term(LogIndex),
    #[error("append request of {0} bytes is larger than allowed")]
    TooLarge(u64),
}

/// Encodes entries into pieces of at most [`FRAGMENT_BYTES`]; no piece when there are no entries.
pub(crate) fn encode_entries(entries: Vec<Entry>, group: RaftGroupId) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    let mut small = BytesMut::new();
    for entry in entries {
        // Entries come from the log: they are not fresh and stay what they are.
        let frame = frame_of(entry, group, |_| true);
        let shared = frame.payload.len() >= SHARE_FROM;
        let len = FRAME_HEADER_LEN + if shared { 0 } else { frame.payload.len() };
        if small.len() + len > FRAGMENT_BYTES {
            pieces.push(small.split().freeze());
        }
        small.extend_from_slice(&frame.encode_header());
        if shared {
            pieces.push(small.split().freeze());
            cut(frame.payload, &mut pieces);
        } else {
            small.extend_from_slice(&frame.payload);
        }
    }
    if !small.is_empty() {
        pieces.push(small.freeze());
    }
    pieces
}

fn cut(mut payload: Bytes, pieces: &mut Vec<Bytes>) {
    while payload.len() > FRAGMENT_BYTES {
        pieces.push(payload.split_to(FRAGMENT_BYTES));
    }
    pieces.push(payload);
}

/// Pieces of one request on their way in.
#[derive(Default)]
pub(crate) struct Assembly {
    first: Bytes,
    joined: Option<BytesMut>,
}

impl Assembly {
    /// Adds a piece, behind which `remaining` bytes follow.
    pub(crate) fn add(&mut self, piece: Bytes, remaining: u64) -> Result<(), EntriesError> {
        let have = self.joined.as_ref().map_or(self.first.len(), BytesMut::len);
        let total = (have as u64 + piece.len() as u64).saturating_add(remaining);
        if total > MAX_REQUEST_BYTES {
            return Err(EntriesError::TooLarge(total));
        }
        if let Some(joined) = &mut self.joined {
            joined.extend_from_slice(&piece);
        } else if have == 0 {
            self.first = piece;
        } else {
            // The size is known now; a liar gains nothing, because it is bounded above.
            let mut joined = BytesMut::with_capacity(total as usize);
            joined.extend_from_slice(&std::mem::take(&mut self.first));
            joined.extend_from_slice(&piece);
            self.joined = Some(joined);
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Bytes {
        self.joined.map_or(self.first, BytesMut::freeze)
    }
}

/// Reads entries behind `previous`, verifying every checksum, and that they are what a leader of `term` may send.
pub(crate) fn decode_entries(
    mut bytes: Bytes,
    group: RaftGroupId,
    previous: Option<RaftLogId>,
    term: u64,
) -> Result<Vec<Entry>, EntriesError> {
    let mut expected = previous.map_or(0, |id| id.index().saturating_add(1));
    let mut lowest_term = previous.map_or(0, |id| id.committed_leader_id().term);
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let frame = Frame::decode(&mut bytes)?;
        if frame.group != group {
            return Err(EntriesError::OtherGroup {
                index: frame.index,
                found: frame.group,
            });
        }
        if frame.index.0 != expected {
            return Err(EntriesError::OutOfOrder {
                expected,
                found: frame.index,
            });
        }
        if frame.term.0 < lowest_term || frame.term.0 > term {
            return Err(EntriesError::Term(frame.index));
        }
        expected = expected.saturating_add(1);
        lowest_term = frame.term.0;
        entries.push(entry_of(frame)?);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests;
