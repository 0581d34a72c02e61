//! What waits to be said on one delivery stream, and the way to wake it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Waker};

use bytes::Bytes;
use parking_lot::Mutex;
use ptah_types::{Sequence, Timestamp};

use crate::error::PartitionError;

/// One message of a delivery stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum DeliverEvent {
    /// Messages, or a part of them.
    Part(Part),
    /// A confirmed acknowledgement.
    Acked {
        /// The pull.
        pull_id: u64,
        /// Id from the acknowledgement.
        confirm_id: u64,
        /// Why it is not stored.
        error: Option<Box<PartitionError>>,
    },
    /// Everything there is was handed out.
    Idle {
        /// The pull.
        pull_id: u64,
        /// Delivered and unacknowledged messages of the group on the partition.
        unacknowledged: u64,
        /// Sequence that the next message gets.
        next_sequence: Sequence,
    },
    /// The pull ended.
    Closed {
        /// The pull.
        pull_id: u64,
        /// Why; `None` when the gateway closed it.
        error: Option<Box<PartitionError>>,
    },
}

/// A piece of a delivery, at most as long as a transport fragment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    /// The pull.
    pub(crate) pull_id: u64,
    /// Sequence of the first message of the delivery.
    pub(crate) base_sequence: Sequence,
    /// Messages of the delivery.
    pub(crate) count: u32,
    /// Their time.
    pub(crate) timestamp: Timestamp,
    /// CRC-32C of the whole payload.
    pub(crate) crc: u32,
    /// The piece.
    pub(crate) payload: Bytes,
    /// Bytes of the whole payload.
    pub(crate) total_bytes: u32,
    /// Place of the piece.
    pub(crate) offset: u32,
    /// Which delivery of the messages this is.
    pub(crate) delivery_count: u32,
}

/// Handle of a delivery stream. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outbox(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    events: VecDeque<DeliverEvent>,
    /// Pulls that have something to do, in turn.
    ready: VecDeque<u64>,
    waker: Option<Waker>,
}

impl Outbox {
    /// Adds something to say. Bounded by what the gateway asks for: the stream is not read while much is waiting.
    pub(crate) fn push(&self, event: DeliverEvent) {
        let mut state = self.0.lock();
        state.events.push_back(event);
        state.wake();
    }

    /// Tells the stream that a pull has something to do. The caller tells it once until the stream has looked.
    pub(crate) fn signal(&self, pull_id: u64) {
        let mut state = self.0.lock();
        state.ready.push_back(pull_id);
        state.wake();
    }

    /// Events that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.0.lock().events.len()
    }

    /// Next event; remembers whom to wake when there is none.
    pub(crate) fn take_event(&self, cx: &Context<'_>) -> Option<DeliverEvent> {
        let mut state = self.0.lock();
        let event = state.events.pop_front();
        if event.is_none() {
            match &mut state.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
        }
        event
    }

    /// Takes the pulls that have something to do, behind those already in `ready`.
    pub(crate) fn take_ready(&self, ready: &mut VecDeque<u64>) {
        ready.append(&mut self.0.lock().ready);
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
