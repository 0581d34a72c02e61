//! Batches that were read and checked lately, so that a pull with little credit does not read and check a batch anew
//! for every few messages.

use std::collections::VecDeque;

use ptah_partition::{BatchError, BatchStamp, BatchView, SequenceRange};
use ptah_raft::StoredBatch;
use ptah_types::{RaftGroupId, Sequence, Timestamp};

const MAX_BYTES: usize = 4 << 20;
const MAX_VIEWS: usize = 16;

/// A stored batch; its messages are looked at when it has to be cut.
#[derive(Clone, Debug)]
pub(super) struct ReadBatch {
    pub(super) stamp: BatchStamp,
    pub(super) stored: StoredBatch,
    view: Option<BatchView>,
}

impl ReadBatch {
    pub(super) fn new(stored: StoredBatch) -> Self {
        Self {
            stamp: stored.stamp,
            stored,
            view: None,
        }
    }

    pub(super) fn timestamp(&self) -> Timestamp {
        self.stamp.timestamp
    }

    /// The messages, checked once.
    pub(super) fn view(&mut self) -> Result<&BatchView, BatchError> {
        match &mut self.view {
            Some(view) => Ok(view),
            none => Ok(none.insert(BatchView::parse(self.stored.payload.clone())?)),
        }
    }

    /// Whether messages of the batch come behind `range`: likely the next ones to be wanted.
    pub(super) fn reaches_behind(&self, range: SequenceRange) -> bool {
        let end = self.stamp.base_sequence.advance(u64::from(self.stamp.count));
        end.is_some_and(|end| range.last().next().is_some_and(|next| next < end))
    }

    fn holds(&self, sequence: Sequence) -> bool {
        let base = self.stamp.base_sequence;
        base <= sequence && sequence.distance_from(base) < u64::from(self.stamp.count)
    }
}

/// A few batches of one stream, newest last. Bounded in number and bytes.
#[derive(Debug, Default)]
pub(super) struct Views {
    batches: VecDeque<(RaftGroupId, ReadBatch)>,
    bytes: usize,
}

impl Views {
    /// Takes the batch that holds `sequence` out, if it is here.
    pub(super) fn take(&mut self, group: RaftGroupId, sequence: Sequence) -> Option<ReadBatch> {
        let place = self
            .batches
            .iter()
            .position(|(of, batch)| *of == group && batch.holds(sequence))?;
        let (_, batch) = self.batches.remove(place)?;
        self.bytes -= batch.stored.payload.len();
        Some(batch)
    }

    /// Keeps a batch of which more will be wanted.
    pub(super) fn keep(&mut self, group: RaftGroupId, batch: ReadBatch) {
        let len = batch.stored.payload.len();
        if len > MAX_BYTES {
            return;
        }
        while self.batches.len() >= MAX_VIEWS || self.bytes + len > MAX_BYTES {
            let Some((_, oldest)) = self.batches.pop_front() else {
                break;
            };
            self.bytes -= oldest.stored.payload.len();
        }
        self.bytes += len;
        self.batches.push_back((group, batch));
    }
}
