//! Which batches a leader's log takes.
//!
//! A batch that the partition's checks would refuse must never get into the log: all replicas would meet it, and its
//! sequences could not be given back. Whoever proposes has decided already, with a sequencer of its own; this one makes
//! sure, whatever happened to the proposals before it. It knows the sessions as they will be when everything in the log
//! is applied, because it sees every batch that is appended here.

use std::sync::Arc;

use ptah_partition::{AppendHead, AppendRefusal, BatchHead, Decision, Sequencer};
use ptah_types::Sequence;

use crate::applied::AppliedState;
use crate::record::{Body, Record};

/// Decides on fresh batches.
pub(crate) struct Admission {
    state: Arc<AppliedState>,
    /// Made anew from the applied state when it is not in step with the log.
    sequencer: Option<Sequencer>,
}

impl Admission {
    pub(crate) fn new(state: Arc<AppliedState>) -> Self {
        Self {
            state,
            sequencer: None,
        }
    }

    /// The log changed in another way than by batches that were taken here.
    pub(crate) fn forget(&mut self) {
        self.sequencer = None;
    }

    /// Whether a fresh record may be appended where the next message of the log is `next`.
    pub(crate) fn takes(&mut self, record: &Record, next: Sequence) -> bool {
        let Body::Batch {
            base_sequence,
            count,
            session,
        } = record.body
        else {
            return true;
        };
        let is_whole = BatchHead::read(&record.payload).is_ok_and(|head| head.count == count);
        if base_sequence != next || !is_whole {
            return false;
        }
        let head = AppendHead { session, count };
        let Some(sequencer) = self.in_step(next) else {
            return false;
        };
        let mut decision = sequencer.accept(&head, record.timestamp);
        if decision == Decision::Refused(AppendRefusal::Busy) {
            // It has not been told for a while what is applied.
            let applied = self.state.read(|content| content.partition.next_sequence());
            decision = match self.in_step(next) {
                Some(sequencer) => {
                    sequencer.committed(applied);
                    sequencer.accept(&head, record.timestamp)
                }
                None => return false,
            };
        }
        match decision {
            Decision::Propose(stamp) if stamp.timestamp == record.timestamp => true,
            Decision::Propose(_) => {
                // Its time lies before that of the batch before it.
                self.forget();
                false
            }
            Decision::Duplicate(_) | Decision::InFlight(_) | Decision::Refused(_) => false,
        }
    }

    /// The sequencer when it stands at `next`. A new one can be made when all batches of the log are applied, as they are
    /// when a leader begins, and behind every barrier.
    fn in_step(&mut self, next: Sequence) -> Option<&mut Sequencer> {
        let stands = |sequencer: &Sequencer| !sequencer.is_poisoned() && sequencer.next_sequence() == next;
        if !self.sequencer.as_ref().is_some_and(stands) {
            self.sequencer = self.state.read(|content| {
                let is_all = content.partition.next_sequence() == next;
                is_all.then(|| Sequencer::new(&content.partition))
            });
        }
        self.sequencer.as_mut()
    }
}

#[cfg(test)]
mod tests;
