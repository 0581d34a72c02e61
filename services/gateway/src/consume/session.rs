//! One consume stream of a client: shares its credit between partitions, buffers what they deliver, keeps order within
//! each, and gives back what cannot be sent.
//!
//! Not here: acknowledgements ([`super::acknowledge`]), finding leaders and opening pulls again ([`super::drive`]), the wire ([`crate::grpc`]).

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use ptah_rpc::RpcError;
use ptah_types::{Boundary, ErrorKind, StationId};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::ConsumeShared;
use super::acks::AckRoom;
use super::credit::{Amount, CreditBook};
use super::link::{DeliveryPart, Pull};
use super::outbox::GroupOnPartition;
use super::slot::{DeliveredRun, Received, Slot};
use super::state::State;
use crate::error::GatewayError;

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
    pub(super) ack_room: AckRoom,
    /// An answer to an acknowledgement has left.
    pub(super) answer_taken: Notify,
}

impl Session {
    /// A stream without credit and pulls.
    pub(super) fn new(spec: SessionSpec, shared: Arc<ConsumeShared>) -> Arc<Self> {
        let partitions = spec.partitions.iter();
        let slots: Vec<_> = partitions
            .map(|group| Slot::new(group.partition.partition, group.clone()))
            .collect();
        let book = CreditBook::new(slots.len(), shared.settings.stream_bytes);
        let state = State::new(book, slots);
        let ack_room = shared.ack_room.of_stream();
        Arc::new(Self {
            spec,
            shared,
            state: Mutex::new(state),
            wake: Notify::new(),
            ack_room,
            answer_taken: Notify::new(),
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

    /// Next thing to say to the client. `None` at the end.
    pub fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Option<Result<ConsumeEvent, GatewayError>>> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if let Some(answer) = self.next_answer(state) {
            let (confirm_id, error) = (answer.confirm_id, answer.error);
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
            pull.outbox.ack(pull.id, acks);
        }
        slot.not_before = None;
        slot.pull = Some(pull);
        slot.send_confirms();
        state.book.bound(index);
        state.distribute();
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
        ErrorKind::InvalidArgument | ErrorKind::TooLarge | ErrorKind::PermissionDenied => false,
        // Also damage: its node tells it, another replica may take over, and other partitions must not suffer.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_at_one_partition_ends_no_stream_and_a_wrong_request_does() {
        for kind in [
            ErrorKind::DataDamaged,
            ErrorKind::NotLeader,
            ErrorKind::Unavailable,
        ] {
            assert!(may_come_back(kind, u32::MAX), "{kind:?}");
        }
        for kind in [ErrorKind::InvalidArgument, ErrorKind::PermissionDenied] {
            assert!(!may_come_back(kind, 1), "{kind:?}");
        }
        assert!(may_come_back(ErrorKind::NotFound, 19) && !may_come_back(ErrorKind::NotFound, 20));
    }
}
