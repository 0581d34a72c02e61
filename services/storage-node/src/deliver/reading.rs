//! Reading what a pull was leased, and passing over what is damaged.
//!
//! Damaged messages are never served. Where other voters have them, the replica ends and one of those takes over. A
//! partition that has no other copy goes on: what cannot be read is set aside for the group and told, the rest is
//! delivered.

use std::sync::Arc;

use ptah_partition::{ConsumerId, Lease, SequenceRange};
use ptah_raft::{ReadMessagesError, Replica, StoredBatch};
use ptah_types::Sequence;
use ptah_types::limits::TARGET_BATCH_BYTES;

use super::group::GroupDelivery;

/// Damaged messages that one read passes over; more take more reads, so that other pulls have their turns.
const MOST_PASSED: u64 = 256;

/// A read that ended.
pub(super) struct Read {
    pub(super) pull_id: u64,
    /// What was to be read.
    pub(super) lease: Lease,
    /// What at its start cannot be read.
    pub(super) damaged: Option<Damaged>,
    /// What comes behind that; nothing when the end was not reached.
    pub(super) result: Result<Vec<StoredBatch>, ReadMessagesError>,
}

/// Messages that cannot be read.
pub(super) struct Damaged {
    pub(super) range: SequenceRange,
    pub(super) why: String,
}

/// Reads the start of a lease.
pub(super) async fn read(replica: Replica, pull_id: u64, lease: Lease) -> Read {
    let (first, last) = (lease.range.first(), lease.range.last());
    let upto = last.next().unwrap_or(last);
    let mut damaged: Option<Damaged> = None;
    let mut from = first;
    let result = loop {
        let result = replica.read(from, upto, TARGET_BATCH_BYTES as u64).await;
        let why = match result {
            Err(ReadMessagesError::Damaged(why)) if is_alone(&replica) => why,
            result => break result,
        };
        let passed = note(&mut damaged, first, from, why);
        match from.next() {
            Some(next) if next <= last && passed < MOST_PASSED => from = next,
            _ => break Ok(Vec::new()),
        }
    };
    Read {
        pull_id,
        lease,
        damaged,
        result,
    }
}

/// Whether nobody else has the messages.
pub(crate) fn is_alone(replica: &Replica) -> bool {
    replica.status().voters.len() <= 1
}

/// Adds `at` to what is damaged from `first` on; answers how many messages that are.
fn note(damaged: &mut Option<Damaged>, first: Sequence, at: Sequence, why: String) -> u64 {
    let Some(range) = SequenceRange::new(first, at) else {
        return 0;
    };
    match damaged {
        Some(damaged) => damaged.range = range,
        None => *damaged = Some(Damaged { range, why }),
    }
    range.count()
}

/// What is left of a lease behind `range`, which is at its start.
pub(super) fn behind(lease: Lease, range: SequenceRange) -> Option<Lease> {
    let range = SequenceRange::new(range.last().next()?, lease.range.last())?;
    Some(Lease { range, ..lease })
}

impl GroupDelivery {
    /// Sets messages aside that a pull holds and that cannot be read: the group gets the others.
    pub(super) fn set_aside(self: &Arc<Self>, consumer: ConsumerId, range: SequenceRange, why: &str) {
        let mut state = self.state.lock();
        let messages = state.deliveries.set_aside(consumer, range);
        self.hand_out(&mut state);
        self.replicate_when_due(&mut state);
        self.set_alarm(&state);
        drop(state);
        if messages > 0 {
            self.core.shared.metrics.set_aside_messages.inc_by(messages);
            tracing::error!(
                partition = %self.core.replica.key(),
                consumer_group = %self.id,
                first = %range.first(),
                last = %range.last(),
                why,
                "messages cannot be read and are set aside; they are not delivered and not acknowledged"
            );
        }
    }

    /// Messages that are set aside.
    pub(crate) fn messages_set_aside(&self) -> u64 {
        self.state.lock().deliveries.messages_set_aside()
    }
}
