//! What a consume stream knows: its credit, and per partition what came and was not sent.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use ptah_partition::SequenceRange;

use super::acks::ConfirmedAck;
use super::credit::{Amount, CreditBook};
use super::slot::{DeliveredRun, Slot};
use crate::error::GatewayError;

/// A response carries at most this many messages and bytes, so that partitions and streams share the wire.
const BATCH_MESSAGES: usize = 1_024;
const BATCH_BYTES: u64 = 512 << 10;

pub(super) struct State {
    pub(super) book: CreditBook,
    pub(super) slots: Vec<Slot>,
    /// Slot that is sent from next.
    pub(super) turn: usize,
    pub(super) idle_told: bool,
    /// The client took nothing for long: no new pulls until it does.
    pub(super) stalled: bool,
    pub(super) answers: VecDeque<Answer>,
    pub(super) last_confirm: u64,
    pub(super) failed: Option<GatewayError>,
    pub(super) closed: bool,
    pub(super) waker: Option<Waker>,
}

/// What became of an acknowledgement.
pub(super) struct Answer {
    /// Id that the client gave.
    pub(super) confirm_id: u64,
    /// Why it is not stored.
    pub(super) error: Option<GatewayError>,
    /// Holds its room until the answer has left.
    #[expect(dead_code, reason = "held until it is dropped")]
    pub(super) ack: Option<Arc<ConfirmedAck>>,
}

impl State {
    /// A stream without credit and pulls.
    pub(super) fn new(book: CreditBook, slots: Vec<Slot>) -> Self {
        Self {
            book,
            slots,
            turn: 0,
            idle_told: false,
            stalled: false,
            answers: VecDeque::new(),
            last_confirm: 0,
            failed: None,
            closed: false,
            waker: None,
        }
    }

    pub(super) fn wake_output(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Sends the credit that the partitions should have now.
    pub(super) fn distribute(&mut self) {
        for grant in self.book.distribute() {
            if let Some(pull) = self.slots.get(grant.slot).and_then(|slot| slot.pull.as_ref()) {
                pull.outbox.credit(pull.id, grant.amount);
            }
        }
    }

    /// Ends the pull of a slot, giving back what was not sent.
    pub(super) fn close_pull(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        let ((messages, bytes), unsent) = slot.give_back();
        if let Some(pull) = slot.pull.take() {
            pull.link.forget(pull.id);
            pull.outbox.close_pull(pull.id, unsent);
        }
        slot.pull_is_over();
        self.book.unbuffered(Amount { messages, bytes });
        self.book.unbound(index);
    }

    pub(super) fn next_batch(&mut self) -> Vec<DeliveredRun> {
        let mut runs = Vec::new();
        let (mut messages, mut bytes) = (0, 0);
        let slots = self.slots.len();
        for _ in 0..slots {
            let index = self.turn;
            while self.book.may_send()
                && messages < BATCH_MESSAGES
                && bytes < BATCH_BYTES
                && let Some(run) = self.take_from(index, BATCH_MESSAGES - messages, BATCH_BYTES - bytes)
            {
                messages += run.0.range.len();
                bytes += run.1;
                runs.push(run.0);
            }
            if messages >= BATCH_MESSAGES || bytes >= BATCH_BYTES || !self.book.may_send() {
                break;
            }
            self.turn = (index + 1) % slots;
        }
        runs
    }

    /// Takes messages off the first delivery of a slot: at least one, and more while they fit.
    fn take_from(&mut self, index: usize, most: usize, most_bytes: u64) -> Option<(DeliveredRun, u64)> {
        let front = self.slots.get_mut(index)?.buffer.front_mut()?;
        let start = front.run.range.start;
        let mut taken = 0;
        let mut bytes = 0;
        while taken < most
            && start + taken < front.run.range.end
            && (taken == 0 || bytes < most_bytes)
            && self.book.may_send()
        {
            let message = front.run.view.message(start + taken);
            let payload = message.map_or(0, |message| message.payload().len() as u64);
            if taken > 0 && bytes + payload > most_bytes {
                break;
            }
            self.book.sent(payload);
            bytes += payload;
            taken += 1;
        }
        if taken == 0 {
            return None;
        }
        let mut run = front.run.clone();
        run.range = start..start + taken;
        front.run.range.start += taken;
        let whole = front.run.range.is_empty().then_some(front.bytes);
        self.book.unbuffered(Amount {
            messages: taken as u64,
            bytes: whole.unwrap_or(0),
        });
        if whole.is_some() {
            self.slots[index].buffer.pop_front();
        }
        Some((run, bytes))
    }

    /// Ends a pull for want of memory; what is buffered stays and is sent.
    pub(super) fn park(&mut self, index: usize, refused: Option<SequenceRange>) {
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        let buffered = std::mem::take(&mut slot.buffer);
        let (_, mut unsent) = slot.give_back();
        slot.buffer = buffered;
        unsent.extend(refused);
        if let Some(pull) = slot.pull.take() {
            pull.link.forget(pull.id);
            pull.outbox.close_pull(pull.id, unsent);
        }
        slot.pull_is_over();
        self.book.unbound(index);
    }
}
