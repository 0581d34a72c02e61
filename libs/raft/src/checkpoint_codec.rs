//! Bytes of a checkpoint: on disk (the state inside the segment log's checkpoint) and on the wire (state, position
//! and manifest of a snapshot that is offered).
//!
//! State: version u32, applied log id (term u64, index u64), membership log id (u8 flag, u64, u64), membership
//! (u32 length, bytes), partition (u32 length, bytes), CRC-32C of everything before. Little endian.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ptah_partition::Partition;
use ptah_segment_log::{Checkpoint, Manifest, ManifestSegment, crc32c};
use ptah_types::{LogId, LogIndex, Sequence, Term, Timestamp};

use crate::applied::Content;
use crate::record::{decode_membership, encode_membership};
use crate::types::{StoredMembership, log_id, raft_log_id};

/// Stored, never renumber.
const STATE_VERSION: u32 = 1;
/// On the wire; both ends must agree.
const OFFER_VERSION: u32 = 1;
/// Bytes of one manifest entry on the wire.
const SEGMENT_LEN: usize = 9 * 8 + 4;

/// Why bytes are not a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("checkpoint cannot be read: {0}")]
pub(crate) struct CheckpointInvalid(String);

fn invalid(what: impl ToString) -> CheckpointInvalid {
    CheckpointInvalid(what.to_string())
}

/// Bytes of the state; `None` when nothing is applied yet.
pub(crate) fn encode_state(content: &Content) -> Option<(LogId, Bytes)> {
    let at = content.last_applied?;
    let membership = encode_membership(content.membership.membership());
    let partition = content.partition.encode();
    let mut out = BytesMut::with_capacity(64 + membership.len() + partition.len());
    out.put_u32_le(STATE_VERSION);
    put_log_id(&mut out, at);
    match content.membership.log_id() {
        Some(id) => {
            out.put_u8(1);
            put_log_id(&mut out, log_id(id));
        }
        None => out.put_u8(0),
    }
    put_block(&mut out, &membership);
    put_block(&mut out, &partition);
    let crc = crc32c(&out);
    out.put_u32_le(crc);
    Some((at, out.freeze()))
}

/// Reads [`encode_state`] back.
pub(crate) fn decode_state(state: &[u8]) -> Result<Content, CheckpointInvalid> {
    let (mut input, mut tail) = state
        .split_at_checked(state.len().wrapping_sub(4))
        .ok_or_else(|| invalid("it is too short"))?;
    if tail.get_u32_le() != crc32c(input) {
        return Err(invalid("wrong checksum"));
    }
    let input = &mut input;
    let version = get_u32(input)?;
    if version != STATE_VERSION {
        return Err(invalid(format!("version {version} is not known to this build")));
    }
    let at = get_log_id(input)?;
    let membership_id = match input.try_get_u8().map_err(|_| ends_early())? {
        0 => None,
        _ => Some(raft_log_id(get_log_id(input)?)),
    };
    let membership = decode_membership(get_block(input)?).map_err(invalid)?;
    let partition = Partition::decode(get_block(input)?).map_err(invalid)?;
    Ok(Content {
        partition,
        last_applied: Some(at),
        membership: StoredMembership::new(membership_id, membership),
    })
}

/// Bytes of a snapshot that is offered to another replica.
pub(crate) fn encode_offer(checkpoint: &Checkpoint) -> Bytes {
    let segments = &checkpoint.manifest.segments;
    let mut out = BytesMut::with_capacity(64 + checkpoint.state.len() + segments.len() * SEGMENT_LEN);
    out.put_u32_le(OFFER_VERSION);
    put_log_id(&mut out, checkpoint.at);
    put_block(&mut out, &checkpoint.state);
    out.put_u64_le(checkpoint.manifest.next_sequence.map_or(0, Sequence::get));
    out.put_u32_le(segments.len() as u32);
    for segment in segments {
        put_segment(&mut out, segment);
    }
    let crc = crc32c(&out);
    out.put_u32_le(crc);
    out.freeze()
}

/// Reads [`encode_offer`] back.
pub(crate) fn decode_offer(offer: &Bytes) -> Result<Checkpoint, CheckpointInvalid> {
    let (mut input, mut tail) = offer
        .split_at_checked(offer.len().wrapping_sub(4))
        .ok_or_else(|| invalid("it is too short"))?;
    if tail.get_u32_le() != crc32c(input) {
        return Err(invalid("wrong checksum"));
    }
    let input = &mut input;
    let version = get_u32(input)?;
    if version != OFFER_VERSION {
        return Err(invalid(format!(
            "offer version {version} is not known to this build"
        )));
    }
    let at = get_log_id(input)?;
    let state = offer.slice_ref(get_block(input)?);
    let next_sequence = Sequence::new(get_u64(input)?);
    let count = get_u32(input)? as usize;
    if input.remaining() != count.saturating_mul(SEGMENT_LEN) {
        return Err(invalid("wrong number of segments"));
    }
    let segments = (0..count)
        .map(|_| get_segment(input))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Checkpoint {
        at,
        state,
        manifest: Manifest {
            segments,
            next_sequence,
        },
    })
}

fn put_segment(out: &mut BytesMut, segment: &ManifestSegment) {
    out.put_u64_le(segment.first_index.0);
    put_log_id(out, segment.last);
    out.put_u64_le(segment.first_sequence.get());
    out.put_u64_le(segment.next_sequence.get());
    out.put_u64_le(segment.length);
    out.put_u32_le(segment.crc);
    out.put_u64_le(segment.first_timestamp.0);
    out.put_u64_le(segment.last_timestamp.0);
    // Kept for later versions.
    out.put_u64_le(0);
}

fn get_segment(input: &mut &[u8]) -> Result<ManifestSegment, CheckpointInvalid> {
    let segment = ManifestSegment {
        first_index: LogIndex(get_u64(input)?),
        last: get_log_id(input)?,
        first_sequence: get_sequence(input)?,
        next_sequence: get_sequence(input)?,
        length: get_u64(input)?,
        crc: get_u32(input)?,
        first_timestamp: Timestamp(get_u64(input)?),
        last_timestamp: Timestamp(get_u64(input)?),
    };
    let _kept = get_u64(input)?;
    Ok(segment)
}

fn put_log_id(out: &mut BytesMut, id: LogId) {
    out.put_u64_le(id.term.0);
    out.put_u64_le(id.index.0);
}

fn put_block(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32_le(bytes.len() as u32);
    out.put_slice(bytes);
}

fn ends_early() -> CheckpointInvalid {
    invalid("it ends early")
}

fn get_u32(input: &mut &[u8]) -> Result<u32, CheckpointInvalid> {
    input.try_get_u32_le().map_err(|_| ends_early())
}

fn get_u64(input: &mut &[u8]) -> Result<u64, CheckpointInvalid> {
    input.try_get_u64_le().map_err(|_| ends_early())
}

fn get_sequence(input: &mut &[u8]) -> Result<Sequence, CheckpointInvalid> {
    Sequence::new(get_u64(input)?).ok_or_else(|| invalid("a sequence is zero"))
}

fn get_log_id(input: &mut &[u8]) -> Result<LogId, CheckpointInvalid> {
    Ok(LogId {
        term: Term(get_u64(input)?),
        index: LogIndex(get_u64(input)?),
    })
}

fn get_block<'a>(input: &mut &'a [u8]) -> Result<&'a [u8], CheckpointInvalid> {
    let len = get_u32(input)? as usize;
    let (block, rest) = input.split_at_checked(len).ok_or_else(ends_early)?;
    *input = rest;
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content() -> Content {
        Content {
            last_applied: Some(LogId {
                term: Term(3),
                index: LogIndex(9),
            }),
            ..Content::default()
        }
    }

    #[test]
    fn a_state_is_read_back_and_any_flipped_byte_is_noticed() {
        let (at, state) = encode_state(&content()).unwrap();
        assert_eq!(at.index, LogIndex(9));
        let back = decode_state(&state).unwrap();
        assert_eq!(encode_state(&back).unwrap(), (at, state.clone()));
        for place in 0..state.len() {
            let mut damaged = state.to_vec();
            damaged[place] ^= 4;
            assert!(decode_state(&damaged).is_err(), "byte {place}");
            assert!(decode_state(&state[..place]).is_err(), "cut at {place}");
        }
    }

    #[test]
    fn an_offer_is_read_back_and_any_flipped_byte_is_noticed() {
        let (at, state) = encode_state(&content()).unwrap();
        let segment = ManifestSegment {
            first_index: LogIndex(2),
            last: at,
            first_sequence: Sequence::FIRST,
            next_sequence: Sequence::new(8).unwrap(),
            length: 700,
            crc: 5,
            first_timestamp: Timestamp(1),
            last_timestamp: Timestamp(2),
        };
        let checkpoint = Checkpoint {
            at,
            state,
            manifest: Manifest {
                segments: vec![segment, segment],
                next_sequence: Sequence::new(8),
            },
        };
        let offer = encode_offer(&checkpoint);
        assert_eq!(decode_offer(&offer).unwrap(), checkpoint);
        for place in 0..offer.len() {
            let mut damaged = offer.to_vec();
            damaged[place] ^= 4;
            assert!(decode_offer(&damaged.into()).is_err(), "byte {place}");
            assert!(decode_offer(&offer.slice(..place)).is_err(), "cut at {place}");
        }
    }
}
