//! One consume stream of a client: shares its credit between partitions, buffers what they deliver, keeps order within
//! each, and gives back what cannot be sent.
//!
//! Not here: finding leaders and opening pulls again ([`super::drive`]), the wire ([`crate::grpc`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use ptah_partition::SequenceRange;
use ptah_rpc::RpcError;
use ptah_types::{Boundary, ErrorKind, PartitionNumber, StationId};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::ConsumeShared;
use super::credit::{Amount, CreditBook};
use super::link::{DeliveryPart, Pull};
use super::outbox::GroupOnPartition;
use super::slot::{Confirm, DeliveredRun, Received, Slot};
use crate::error::GatewayError;

/// A response carries at most this many messages and bytes, so that partitions and streams share the wire.
const BATCH_MESSAGES: usize = 1_024;
const BATCH_BYTES: u64 = 512 << 10;
/// Confirmed acknowledgements of one stream that wait for their answers.
const MAX_CONFIRMS: usize = 16_384;
/// Runs of acknowledgements of one partition that wait for a leader.
const MAX_WAITING_ACKS: usize = 16_384;
/// Credit beyond this is as good as no limit.
const MAX_CREDIT_MESSAGES: u64 = 1 << 30;

/// What a consume stream is for.
#[derive(Debug, Clone)]
pub struct SessionSpec {
    /// Station's name, for messages to people.
    pub station: Arc<str>,
    /// Station.
    pub station_id: StationId,
    /// Partitions in order, with the consumer group.
    pub partitions: Vec<GroupOnPartition>,
    /// How long a delivery may wait here for the client before it goes back to its partition.
    pub hold_limit: Duration,
}

/// What a consume stream says.
#[derive(Debug)]
pub enum ConsumeEvent {
    /// Messages; of each partition in order.
    Batch(Vec<DeliveredRun>),
    /// An acknowledgement is stored, or not.
    Acked {
        /// Id that the client gave.
        confirm_id: u64,
        /// Why it is not stored.
        error: Option<GatewayError>,
    },
    /// Every message so far was delivered.
    Idle {
        /// Delivered and unacknowledged messages of the group.
        unacknowledged: u64,
    },
}

/// One consume stream.
pub struct Session {
    pub(super) spec: SessionSpec,
    pub(super) shared: Arc<ConsumeShared>,
    pub(super) state: Mutex<State>,
    pub(super) wake: Notify,
}

pub(super) struct State {
    pub(super) book: CreditBook,
    pub(super) slots: Vec<Slot>,
    /// Slot that is sent from next.
    turn: usize,
    idle_told: bool,
    /// The client took nothing for long: no new pulls until it does.
    pub(super) stalled: bool,
    acked: VecDeque<(u64, Option<GatewayError>)>,
    confirms: usize,
    last_confirm: u64,
    pub(super) failed: Option<GatewayError>,
    pub(super) closed: bool,
    waker: Option<Waker>,
}

impl State {
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

    fn next_batch(&mut self) -> Vec<DeliveredRun> {
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
}

impl Session {
    /// A stream without credit and pulls.
    pub(super) fn new(spec: SessionSpec, shared: Arc<ConsumeShared>) -> Arc<Self> {
        let partitions = spec.partitions.iter();
        let slots: Vec<_> = partitions
            .map(|group| Slot::new(group.partition.partition, group.clone()))
            .collect();
        let state = State {
            book: CreditBook::new(slots.len(), shared.settings.stream_bytes),
            slots,
            turn: 0,
            idle_told: false,
            stalled: false,
            acked: VecDeque::new(),
            confirms: 0,
            last_confirm: 0,
            failed: None,
            closed: false,
            waker: None,
        };
        Arc::new(Self {
            spec,
            shared,
            state: Mutex::new(state),
            wake: Notify::new(),
        })
    }

    /// The client takes so much more.
    pub fn add_credit(&self, amount: Amount) {
        let mut state = self.state.lock();
        state.book.add(Amount {
            messages: amount.messages.min(MAX_CREDIT_MESSAGES),
            bytes: amount.bytes,
        });
        state.stalled = false;
        state.distribute();
        state.wake_output();
        drop(state);
        self.wake.notify_one();
    }

    /// The client acknowledges. With a confirm id the answer comes as an event.
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
        self.shared
            .metrics
            .acks
            .inc_by(ranges.iter().map(|range| range.count()).sum());
        if confirm_id != 0 {
            if state.confirms >= MAX_CONFIRMS {
                let what = "too many acknowledgements of this stream wait for their answers";
                state
                    .acked
                    .push_back((confirm_id, Some(GatewayError::Exhausted { what })));
                state.wake_output();
                return Ok(());
            }
            state.confirms += 1;
            state.last_confirm += 1;
            if let Some(pull) = &slot.pull {
                pull.outbox
                    .ack_confirmed(pull.id, ranges.clone(), state.last_confirm);
            }
            let confirm = Confirm {
                client_id: confirm_id,
                ranges,
                deadline: Instant::now() + self.shared.settings.ack_deadline,
            };
            slot.confirms.insert(state.last_confirm, confirm);
        } else if let Some(pull) = &slot.pull {
            pull.outbox.ack(pull.id, ranges);
        } else if slot.acks.len() < MAX_WAITING_ACKS {
            for range in ranges {
                slot.acks.insert(range);
            }
        }
        Ok(())
    }

    /// Next thing to say to the client. `None` at the end.
    pub fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Option<Result<ConsumeEvent, GatewayError>>> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if let Some((confirm_id, error)) = state.acked.pop_front() {
            return Poll::Ready(Some(Ok(ConsumeEvent::Acked { confirm_id, error })));
        }
        if state.closed {
            return Poll::Ready(None);
        }
        if state.stalled && state.book.may_send() {
            state.stalled = false;
            self.wake.notify_one();
        }
        let runs = state.next_batch();
        if !runs.is_empty() {
            state.distribute();
            self.shared
                .metrics
                .messages
                .inc_by(runs.iter().map(|run| run.range.len() as u64).sum());
            return Poll::Ready(Some(Ok(ConsumeEvent::Batch(runs))));
        }
        if let Some(error) = state.failed.take() {
            state.closed = true;
            self.wake.notify_one();
            return Poll::Ready(Some(Err(error)));
        }
        if !state.idle_told && state.book.all_idle() && state.book.buffered().messages == 0 {
            state.idle_told = true;
            let unacknowledged = state.slots.iter().map(|slot| slot.unacknowledged).sum();
            return Poll::Ready(Some(Ok(ConsumeEvent::Idle { unacknowledged })));
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Next thing to say to the client.
    pub async fn next_event(&self) -> Option<Result<ConsumeEvent, GatewayError>> {
        std::future::poll_fn(|cx| self.poll_event(cx)).await
    }

    /// Ends the stream with an error, after what is ready.
    pub fn fail(&self, error: GatewayError) {
        let mut state = self.state.lock();
        state.failed.get_or_insert(error);
        state.wake_output();
    }

    /// The client is gone: everything unsent goes back to the partitions.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        for index in 0..state.slots.len() {
            state.close_pull(index);
        }
        state.wake_output();
        drop(state);
        self.wake.notify_one();
    }

    /// A pull of this stream delivered.
    pub(super) fn delivered(&self, index: usize, pull: u64, part: DeliveryPart) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let Some(slot) = state.slots.get_mut(index).filter(|slot| slot.is_pull(pull)) else {
            return;
        };
        let reserve = |bytes: usize| self.shared.budget.try_reserve(bytes);
        match slot.receive(part, reserve, Instant::now()) {
            Received::Partly => {}
            Received::Whole { came, dropped } => {
                slot.failures = 0;
                state.idle_told = false;
                state.book.received(index, amount(came));
                state.book.unbuffered(amount(dropped));
                state.wake_output();
            }
            Received::NoMemory(bytes, refused) => {
                slot.parked = Some(bytes);
                self.shared.metrics.parked.inc();
                state.park(index, refused);
                drop(guard);
                self.wake.notify_one();
            }
            Received::Damaged(why) => {
                self.shared.metrics.damaged.inc();
                let partition = slot.partition;
                let station = &self.spec.station;
                tracing::error!(%station, %partition, why, "delivery is damaged");
                let message =
                    format!("partition {partition} of station `{station}` delivered damaged bytes: {why}");
                state.failed.get_or_insert(GatewayError::Damaged(message.into()));
                state.close_pull(index);
                state.wake_output();
            }
        }
    }

    /// Everything of a partition was delivered.
    pub(super) fn idle(&self, index: usize, pull: u64, unacknowledged: u64) {
        let mut state = self.state.lock();
        let Some(slot) = state.slots.get_mut(index).filter(|slot| slot.is_pull(pull)) else {
            return;
        };
        slot.unacknowledged = unacknowledged;
        slot.failures = 0;
        slot.prepaid = None;
        state.book.idle(index);
        state.distribute();
        state.wake_output();
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
            state.confirms -= 1;
            state
                .acked
                .push_back((confirm.client_id, error.map(GatewayError::from)));
            state.wake_output();
        }
    }

    /// A pull ended on the node's side, or its link is lost. What it delivered is still sent.
    pub(super) fn pull_ended(&self, index: usize, pull: u64, why: Option<RpcError>) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let Some(slot) = state.slots.get_mut(index).filter(|slot| slot.is_pull(pull)) else {
            return;
        };
        let node = slot.pull.as_ref().map(|pull| pull.link.node);
        slot.pull_is_over();
        slot.not_before = Some(Instant::now() + self.shared.backoff(slot.failures));
        slot.failures = slot.failures.saturating_add(1);
        let hint = why
            .as_ref()
            .and_then(|error| error.leader.as_ref())
            .map(|(leader, _)| *leader);
        if let (Some(node), Some(leader)) = (node, hint) {
            self.shared.routing.hinted(slot.group.raft_group, node, leader);
        }
        if let Some(error) = why.filter(|error| !may_come_back(error.kind(), slot.failures)) {
            state.failed.get_or_insert(error.into());
            state.wake_output();
        }
        state.book.unbound(index);
        state.distribute();
        drop(guard);
        self.wake.notify_one();
    }

    /// A pull was opened: what waited for it goes out.
    pub(super) fn pull_opened(&self, state: &mut State, index: usize, pull: Pull) {
        self.shared.metrics.pulls.inc();
        let Some(slot) = state.slots.get_mut(index) else {
            return;
        };
        let acks = std::mem::take(&mut slot.acks);
        if !acks.is_empty() {
            pull.outbox.ack(pull.id, acks.iter());
        }
        for (confirm, waiting) in &slot.confirms {
            pull.outbox
                .ack_confirmed(pull.id, waiting.ranges.clone(), *confirm);
        }
        slot.resend_confirms_at = None;
        slot.not_before = None;
        slot.pull = Some(pull);
        state.book.bound(index);
        state.distribute();
    }

    /// Answers confirmed acknowledgements that are out of time, and sends others again.
    pub(super) fn tend_confirms(&self, state: &mut State, index: usize, now: Instant) {
        let Some(slot) = state.slots.get_mut(index) else {
            return;
        };
        while let Some(first) = slot.confirms.first_entry()
            && first.get().deadline <= now
        {
            let confirm = first.remove();
            let message = format!(
                "partition {} of station `{}` did not say in time whether the acknowledgement is stored; send it again",
                slot.partition, self.spec.station
            );
            state.confirms -= 1;
            state.acked.push_back((
                confirm.client_id,
                Some(GatewayError::OutcomeUnknown(message.into())),
            ));
        }
        if slot.resend_confirms_at.is_some_and(|at| at <= now) {
            slot.resend_confirms_at = None;
            if let Some(pull) = &slot.pull {
                for (confirm, waiting) in &slot.confirms {
                    pull.outbox
                        .ack_confirmed(pull.id, waiting.ranges.clone(), *confirm);
                }
            }
        }
        if !state.acked.is_empty() {
            state.wake_output();
        }
    }
}

impl State {
    /// Ends a pull for want of memory; what is buffered stays and is sent.
    fn park(&mut self, index: usize, refused: Option<SequenceRange>) {
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

fn amount((messages, bytes): (u64, u64)) -> Amount {
    Amount { messages, bytes }
}

/// Whether opening the pull again can help.
fn may_come_back(kind: ErrorKind, failures: u32) -> bool {
    match kind {
        // A node that was just made leader, or just got the replica, may not know the group yet.
        ErrorKind::NotFound | ErrorKind::Conflict => failures < 20,
        ErrorKind::DataDamaged
        | ErrorKind::InvalidArgument
        | ErrorKind::TooLarge
        | ErrorKind::PermissionDenied => false,
        _ => true,
    }
}
