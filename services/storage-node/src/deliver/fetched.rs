//! Stored batches cut for a reader that has no consumer group.

use std::collections::VecDeque;

use ptah_partition::{BatchError, SequenceRange};
use ptah_raft::StoredBatch;
use ptah_types::RaftGroupId;

use super::cut;
use super::outbox::Part;
use super::views::ReadBatch;
use crate::error::PartitionError;

/// What was cut out of some stored batches.
pub(crate) struct StoredPieces {
    /// Parts in order, each at most as long as a transport fragment.
    pub(crate) parts: VecDeque<Part>,
    /// Bytes of all parts.
    pub(crate) bytes: u64,
    /// What is wanted behind them.
    pub(crate) rest: Option<SequenceRange>,
}

impl StoredPieces {
    /// Takes the messages of `wanted` out of `batches`, up to `max_bytes`, but at least one.
    pub(crate) fn cut(
        group: RaftGroupId,
        batches: Vec<StoredBatch>,
        wanted: SequenceRange,
        max_bytes: u64,
    ) -> Result<Self, PartitionError> {
        let mut pieces = Self {
            parts: VecDeque::new(),
            bytes: 0,
            rest: Some(wanted),
        };
        for batch in batches {
            pieces
                .add(ReadBatch::new(batch), max_bytes)
                .map_err(|error| PartitionError::Damaged {
                    group,
                    why: error.to_string(),
                })?;
        }
        Ok(pieces)
    }

    fn add(&mut self, mut batch: ReadBatch, max_bytes: u64) -> Result<(), BatchError> {
        while self.bytes < max_bytes
            && let Some(wanted) = self.rest.and_then(|rest| cut::overlap(&batch, rest))
        {
            let range = cut::fitting(&mut batch, wanted, max_bytes - self.bytes)?;
            let mut piece = cut::piece(&mut batch, range, 0)?;
            self.bytes += piece.payload.len() as u64;
            while !piece.is_done() {
                self.parts.push_back(piece.next_part(0));
            }
            let after = range.last().next();
            self.rest = self.rest.and_then(|rest| SequenceRange::new(after?, rest.last()));
        }
        Ok(())
    }
}
