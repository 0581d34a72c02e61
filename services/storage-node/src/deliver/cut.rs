//! Cutting stored batches to what a pull may be sent.

use bytes::Bytes;
use ptah_partition::{BatchError, SequenceRange, crc32c};
use ptah_types::limits::{FRAGMENT_BYTES, TARGET_BATCH_BYTES};
use ptah_types::{Sequence, Timestamp};

use super::outbox::Part;
use super::views::ReadBatch;

/// A batch of more than this is cut even when all of it may be sent, so that deliveries stay near the usual size.
const MOST_BYTES: u64 = 2 * TARGET_BATCH_BYTES as u64;

/// An encoded batch on its way to a pull.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub(super) range: SequenceRange,
    pub(super) timestamp: Timestamp,
    pub(super) payload: Bytes,
    pub(super) crc: u32,
    pub(super) delivery_count: u32,
    sent_bytes: usize,
}

impl Piece {
    /// The next part for the wire.
    pub(super) fn next_part(&mut self, pull_id: u64) -> Part {
        let offset = self.sent_bytes;
        let end = (offset + FRAGMENT_BYTES).min(self.payload.len());
        self.sent_bytes = end;
        Part {
            pull_id,
            base_sequence: self.range.first(),
            count: u32::try_from(self.range.count()).unwrap_or(u32::MAX),
            timestamp: self.timestamp,
            crc: self.crc,
            payload: self.payload.slice(offset..end),
            total_bytes: u32::try_from(self.payload.len()).unwrap_or(u32::MAX),
            offset: u32::try_from(offset).unwrap_or(u32::MAX),
            delivery_count: self.delivery_count,
        }
    }

    /// Whether every part was taken.
    pub(super) fn is_done(&self) -> bool {
        self.sent_bytes >= self.payload.len()
    }
}

/// The part of `wanted` that lies in the batch.
pub(super) fn overlap(batch: &ReadBatch, wanted: SequenceRange) -> Option<SequenceRange> {
    let last = batch
        .stamp
        .base_sequence
        .advance(u64::from(batch.stamp.count.checked_sub(1)?))?;
    SequenceRange::new(
        wanted.first().max(batch.stamp.base_sequence),
        wanted.last().min(last),
    )
}

/// How much of `wanted`, which lies in the batch, fits into `bytes` of credit: its first messages, at least one.
pub(super) fn fitting(
    batch: &mut ReadBatch,
    wanted: SequenceRange,
    bytes: u64,
) -> Result<SequenceRange, BatchError> {
    let limit = bytes.min(MOST_BYTES);
    if batch.stored.payload.len() as u64 <= limit || wanted.count() == 1 {
        return Ok(wanted);
    }
    let limit = limit.min(TARGET_BATCH_BYTES as u64);
    let skip = index_in(batch, wanted.first());
    let most = usize::try_from(wanted.count()).unwrap_or(usize::MAX);
    let view = batch.view()?;
    let mut used = 0;
    let mut messages = 0;
    for message in view.iter().skip(skip).take(most) {
        used += message.encoded_len() as u64;
        if used > limit && messages > 0 {
            break;
        }
        messages += 1;
    }
    let last = wanted
        .first()
        .advance(messages.max(1) - 1)
        .unwrap_or(wanted.first());
    Ok(SequenceRange::new(wanted.first(), last.min(wanted.last())).unwrap_or(wanted))
}

/// The messages of `range`, which lies in the batch, as a batch of their own. A whole batch is passed on as it is.
pub(super) fn piece(
    batch: &mut ReadBatch,
    range: SequenceRange,
    delivery_count: u32,
) -> Result<Piece, BatchError> {
    let whole = range.count() == u64::from(batch.stamp.count);
    let (payload, crc) = if whole {
        (batch.stored.payload.clone(), batch.stored.crc)
    } else {
        let first = index_in(batch, range.first());
        let end = index_in(batch, range.last()) + 1;
        let payload = batch.view()?.slice(first..end).ok_or(BatchError::Malformed {
            what: "number of messages",
            message: None,
        })?;
        let crc = crc32c(&payload);
        (payload, crc)
    };
    Ok(Piece {
        range,
        timestamp: batch.timestamp(),
        payload,
        crc,
        delivery_count,
        sent_bytes: 0,
    })
}

fn index_in(batch: &ReadBatch, sequence: Sequence) -> usize {
    usize::try_from(sequence.distance_from(batch.stamp.base_sequence)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use ptah_partition::{BatchBuilder, BatchStamp, BatchView, Door, MessageParts};
    use ptah_raft::StoredBatch;

    use super::*;

    fn sequence(number: u64) -> Sequence {
        Sequence::new(number).unwrap()
    }

    fn range(first: u64, last: u64) -> SequenceRange {
        SequenceRange::new(sequence(first), sequence(last)).unwrap()
    }

    /// Messages of 100 bytes from sequence 10 on.
    fn batch(count: u32) -> ReadBatch {
        let mut builder = BatchBuilder::new();
        for index in 0..count {
            let payload = vec![index as u8; 100];
            builder
                .push(&MessageParts::new(Door::GRPC, "s", &payload), [])
                .unwrap();
        }
        let built = builder.finish().unwrap();
        ReadBatch::new(StoredBatch {
            stamp: BatchStamp {
                base_sequence: sequence(10),
                count,
                timestamp: Timestamp(5),
                session: None,
            },
            payload: built.payload,
            crc: built.crc,
        })
    }

    #[test]
    fn a_whole_batch_is_passed_on_without_a_copy() {
        let mut batch = batch(4);
        let piece = piece(&mut batch, range(10, 13), 1).unwrap();
        assert_eq!(piece.payload.as_ptr(), batch.stored.payload.as_ptr());
        assert_eq!(piece.crc, batch.stored.crc);
    }

    #[test]
    fn a_part_of_a_batch_holds_exactly_its_messages() {
        let piece = piece(&mut batch(4), range(11, 12), 3).unwrap();
        let view = BatchView::parse(piece.payload.clone()).unwrap();
        let first_bytes: Vec<u8> = view.iter().map(|message| message.payload()[0]).collect();
        assert_eq!((first_bytes, piece.crc), (vec![1, 2], crc32c(&piece.payload)));
    }

    #[test]
    fn as_much_is_taken_as_the_credit_allows_and_at_least_one_message() {
        assert_eq!(fitting(&mut batch(4), range(10, 13), 1).unwrap(), range(10, 10));
        assert_eq!(fitting(&mut batch(4), range(11, 13), 300).unwrap(), range(11, 12));
        assert_eq!(
            fitting(&mut batch(4), range(11, 13), 1 << 20).unwrap(),
            range(11, 13)
        );
    }

    #[test]
    fn what_lies_outside_the_batch_is_not_taken() {
        assert_eq!(overlap(&batch(4), range(1, 11)), Some(range(10, 11)));
        assert_eq!(overlap(&batch(4), range(14, 20)), None);
    }

    #[test]
    fn a_large_piece_goes_in_parts_that_make_up_the_whole() {
        let mut builder = BatchBuilder::new();
        let body = vec![7; 600 << 10];
        builder
            .push(&MessageParts::new(Door::GRPC, "s", &body), [])
            .unwrap();
        let built = builder.finish().unwrap();
        let mut piece = Piece {
            range: range(1, 1),
            timestamp: Timestamp(1),
            payload: built.payload.clone(),
            crc: built.crc,
            delivery_count: 1,
            sent_bytes: 0,
        };
        let mut whole = Vec::new();
        while !piece.is_done() {
            let part = piece.next_part(3);
            assert_eq!(part.offset as usize, whole.len());
            assert!(part.payload.len() <= FRAGMENT_BYTES);
            whole.extend_from_slice(&part.payload);
        }
        assert_eq!(whole, built.payload);
    }
}
