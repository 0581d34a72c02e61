//! Acknowledgements of a consume stream, and their answers.

use std::sync::Arc;

use ptah_partition::SequenceRange;
use ptah_rpc::RpcError;
use ptah_types::PartitionNumber;
use tokio::time::Instant;

use super::acks::{ConfirmedAck, WaitingAcks, sequences};
use super::session::Session;
use super::slot::{Confirm, Slot};
use super::state::{Answer, State};
use crate::error::GatewayError;

/// Answers that wait for the client; with more of them nothing more of it is read.
const MAX_ANSWERS: usize = 1_024;

impl Session {
    /// The client acknowledges. With a confirm id the answer comes as an event. Without one, what finds no room while its
    /// partition has no leader is passed over: its messages are delivered again.
    pub fn ack(
        &self,
        partition: PartitionNumber,
        ranges: Vec<SequenceRange>,
        confirm_id: u64,
    ) -> Result<(), GatewayError> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let slot = state.slots.iter_mut().find(|slot| slot.partition == partition);
        let slot = slot.ok_or_else(|| {
            GatewayError::invalid(format!(
                "partition {partition} is not read by this stream; acknowledge what it delivers"
            ))
        })?;
        let count = sequences(&ranges);
        let taken = if confirm_id == 0 {
            self.ack_soon(slot, &ranges)
        } else {
            let confirm = state.last_confirm + 1;
            self.ack_with_answer(slot, ranges, confirm_id, confirm)
        };
        if taken {
            self.shared.metrics.acks.inc_by(count);
            state.last_confirm += u64::from(confirm_id != 0);
            return Ok(());
        }
        self.shared.metrics.acks_refused.inc();
        if confirm_id != 0 {
            let what = "too many acknowledgements wait for their partitions";
            state.answers.push_back(Answer {
                confirm_id,
                error: Some(GatewayError::Exhausted { what }),
                ack: None,
            });
            state.wake_output();
        }
        Ok(())
    }

    /// Whether there was room.
    fn ack_soon(&self, slot: &mut Slot, ranges: &[SequenceRange]) -> bool {
        let Some(acks) = WaitingAcks::new(ranges, &self.ack_room) else {
            return false;
        };
        match &slot.pull {
            Some(pull) => pull.outbox.ack(pull.id, acks),
            None => slot.acks.join(acks),
        }
        true
    }

    /// Whether there was room.
    fn ack_with_answer(
        &self,
        slot: &mut Slot,
        ranges: Vec<SequenceRange>,
        client_id: u64,
        confirm: u64,
    ) -> bool {
        let Some(ack) = ConfirmedAck::new(ranges, &self.ack_room) else {
            return false;
        };
        if let Some(pull) = &slot.pull {
            pull.outbox.ack_confirmed(pull.id, Arc::clone(&ack), confirm);
        }
        let waiting = Confirm {
            client_id,
            ack,
            deadline: Instant::now() + self.shared.settings.ack_deadline,
        };
        slot.confirms.insert(confirm, waiting);
        true
    }

    /// Waits while the client leaves many answers unread.
    pub async fn answers_taken(&self) {
        while self.state.lock().answers.len() >= MAX_ANSWERS {
            self.answer_taken.notified().await;
        }
    }

    /// Next answer for the client.
    pub(super) fn next_answer(&self, state: &mut State) -> Option<Answer> {
        let answer = state.answers.pop_front()?;
        if state.answers.len() + 1 == MAX_ANSWERS {
            self.answer_taken.notify_one();
        }
        Some(answer)
    }

    /// A confirmed acknowledgement was answered. What may work on another try is sent again until its deadline.
    pub(super) fn ack_confirmed(&self, index: usize, pull: u64, confirm: u64, error: Option<RpcError>) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let Some(slot) = state.slots.get_mut(index).filter(|slot| slot.is_pull(pull)) else {
            return;
        };
        if error.as_ref().is_some_and(|error| error.kind.is_retryable()) {
            slot.resend_confirms_at = Some(Instant::now() + self.shared.backoff(slot.failures));
            drop(guard);
            self.wake.notify_one();
            return;
        }
        if let Some(confirm) = slot.confirms.remove(&confirm) {
            state
                .answers
                .push_back(confirm.answer(error.map(GatewayError::from)));
            state.wake_output();
        }
    }

    /// Answers confirmed acknowledgements that are out of time, and sends others again.
    pub(super) fn tend_confirms(&self, state: &mut State, index: usize, now: Instant) {
        let Some(slot) = state.slots.get_mut(index) else {
            return;
        };
        while let Some(first) = slot.confirms.first_entry()
            && first.get().deadline <= now
        {
            let message = format!(
                "partition {} of station `{}` did not say in time whether the acknowledgement is stored; send it again",
                slot.partition, self.spec.station
            );
            let error = GatewayError::OutcomeUnknown(message.into());
            state.answers.push_back(first.remove().answer(Some(error)));
        }
        if slot.resend_confirms_at.is_some_and(|at| at <= now) {
            slot.send_confirms();
        }
        if !state.answers.is_empty() {
            state.wake_output();
        }
    }
}

impl Confirm {
    fn answer(self, error: Option<GatewayError>) -> Answer {
        Answer {
            confirm_id: self.client_id,
            error,
            ack: Some(self.ack),
        }
    }
}

impl Slot {
    /// Sends what waits for an answer, again if it was sent before.
    pub(super) fn send_confirms(&mut self) {
        self.resend_confirms_at = None;
        if let Some(pull) = &self.pull {
            for (confirm, waiting) in &self.confirms {
                pull.outbox
                    .ack_confirmed(pull.id, Arc::clone(&waiting.ack), *confirm);
            }
        }
    }
}
