//! What waits to be written to one append stream, shared fairly between partitions.
//!
//! Channels take turns; a turn is at most one fragment, so that a partition with big batches does not hold up the others.
//! A batch leaves only while the bytes under way are within the peer's window, or when nothing else is under way.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::Stream;
use parking_lot::Mutex;
use ptah_partition::Batch;
use ptah_types::limits::FRAGMENT_BYTES;
use ptah_types::{PartitionKey, RaftGroupId};

/// What is written to an append stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppendFrame {
    /// Binds a channel.
    Open(AppendOpening),
    /// A batch or its first part.
    Batch {
        /// Channel.
        channel: u32,
        /// Number within session and partition.
        number: u64,
        /// Messages in the batch.
        count: u32,
        /// CRC32C of the whole payload.
        crc: u32,
        /// Whole payload or its first part.
        payload: Bytes,
        /// Length of the whole payload.
        total_bytes: u32,
    },
    /// A further part of the batch under way on the channel.
    Fragment {
        /// Channel.
        channel: u32,
        /// Next bytes.
        payload: Bytes,
    },
}

/// What a channel stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppendOpening {
    /// Channel.
    pub channel: u32,
    /// Partition.
    pub partition: PartitionKey,
    /// Its Raft group.
    pub group: RaftGroupId,
    /// Generation of the partition count.
    pub generation: u64,
}

/// A batch that waits on a channel, perhaps partly written.
#[derive(Debug)]
struct Waiting {
    number: u64,
    batch: Batch,
    written: usize,
}

#[derive(Debug, Default)]
struct Channel {
    opening: Option<AppendOpening>,
    waiting: VecDeque<Waiting>,
    /// Lengths of batches that were written whole or in part and have no answer.
    under_way: VecDeque<usize>,
    in_turn: bool,
    /// Goes away when its half-written batch is written.
    closing: bool,
}

#[derive(Debug)]
struct State {
    channels: BTreeMap<u32, Channel>,
    turns: VecDeque<u32>,
    window_bytes: usize,
    under_way_bytes: usize,
    closed: bool,
    waker: Option<Waker>,
}

/// Handle on the queue of one stream.
#[derive(Debug, Clone)]
pub struct SendQueue {
    state: Arc<Mutex<State>>,
}

impl SendQueue {
    /// An empty queue.
    pub fn new(window_bytes: usize) -> Self {
        let state = State {
            channels: BTreeMap::new(),
            turns: VecDeque::new(),
            window_bytes,
            under_way_bytes: 0,
            closed: false,
            waker: None,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The peer's window.
    pub fn set_window(&self, bytes: usize) {
        let mut state = self.state.lock();
        state.window_bytes = bytes;
        state.wake();
    }

    /// Opens a channel. Its opening is written before its first batch.
    pub fn open(&self, opening: AppendOpening) {
        let mut state = self.state.lock();
        let number = opening.channel;
        state.channels.entry(number).or_default().opening = Some(opening);
        state.take_turn(number);
        state.wake();
    }

    /// Adds a batch at the end of its channel. Without effect on a channel that is closed.
    pub fn push(&self, channel: u32, number: u64, batch: Batch) {
        let mut state = self.state.lock();
        let waiting = Waiting {
            number,
            batch,
            written: 0,
        };
        let Some(open) = state.channels.get_mut(&channel) else {
            return;
        };
        open.waiting.push_back(waiting);
        state.take_turn(channel);
        state.wake();
    }

    /// An answer to the oldest batch of a channel came.
    pub fn answered(&self, channel: u32) {
        let mut state = self.state.lock();
        let Some(open) = state.channels.get_mut(&channel) else {
            return;
        };
        let bytes = open.under_way.pop_front().unwrap_or(0);
        state.under_way_bytes -= bytes;
        state.wake();
    }

    /// Drops a channel with what waits on it. A batch that is half written is still written to its end, because the peer
    /// counts on it; then the channel is gone.
    pub fn close_channel(&self, channel: u32) {
        let mut state = self.state.lock();
        let Some(open) = state.channels.get_mut(&channel) else {
            return;
        };
        let half_written = open.waiting.front().is_some_and(|front| front.written > 0);
        open.waiting.truncate(usize::from(half_written));
        let bytes: usize = open.under_way.drain(..).sum();
        open.closing = true;
        if !half_written {
            state.channels.remove(&channel);
        }
        state.under_way_bytes -= bytes;
        state.wake();
    }

    /// Ends the stream after what is being polled now.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.channels.clear();
        state.turns.clear();
        state.wake();
    }
}

impl State {
    fn take_turn(&mut self, number: u32) {
        if let Some(channel) = self.channels.get_mut(&number)
            && !channel.in_turn
        {
            channel.in_turn = true;
            self.turns.push_back(number);
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Next frame of the channel whose turn it is. When a batch has to wait for the window no other batch may begin before
    /// it, or a big one would wait for ever; batches that are half written go on.
    fn next_frame(&mut self) -> Option<AppendFrame> {
        let mut blocked = false;
        let mut place = 0;
        while let Some(number) = self.turns.get(place).copied() {
            let Some(channel) = self.channels.get_mut(&number) else {
                self.turns.remove(place);
                continue;
            };
            if let Some(opening) = channel.opening.take() {
                self.turns.remove(place);
                self.finish_turn(number);
                return Some(AppendFrame::Open(opening));
            }
            let Some(front) = channel.waiting.front() else {
                channel.in_turn = false;
                self.turns.remove(place);
                continue;
            };
            let begins = front.written == 0;
            let after = self.under_way_bytes + front.batch.payload.len();
            blocked |= begins && self.under_way_bytes > 0 && after > self.window_bytes;
            if begins && blocked {
                place += 1;
                continue;
            }
            self.turns.remove(place);
            return Some(self.write(number));
        }
        None
    }

    /// Writes a fragment of the channel's first batch, which is there.
    fn write(&mut self, number: u32) -> AppendFrame {
        let channel = self
            .channels
            .get_mut(&number)
            .expect("the caller found the channel");
        let front = channel.waiting.front_mut().expect("the caller found a batch");
        let total = front.batch.payload.len();
        let end = total.min(front.written + FRAGMENT_BYTES);
        let payload = front.batch.payload.slice(front.written..end);
        let first = front.written == 0;
        front.written = end;
        let frame = if first {
            channel.under_way.push_back(total);
            self.under_way_bytes += total;
            AppendFrame::Batch {
                channel: number,
                number: front.number,
                count: front.batch.count,
                crc: front.batch.crc,
                payload,
                total_bytes: u32::try_from(total).unwrap_or(u32::MAX),
            }
        } else {
            AppendFrame::Fragment {
                channel: number,
                payload,
            }
        };
        if end == total {
            channel.waiting.pop_front();
        }
        self.finish_turn(number);
        frame
    }

    /// Puts the channel at the end of the turns if it has more to write.
    fn finish_turn(&mut self, number: u32) {
        if let Some(channel) = self.channels.get_mut(&number) {
            channel.in_turn = !channel.waiting.is_empty();
            if channel.in_turn {
                self.turns.push_back(number);
            } else if channel.closing {
                self.channels.remove(&number);
            }
        }
    }
}

/// The frames as a stream, for the transport. Ends when the queue is closed.
pub struct FrameStream(SendQueue);

impl SendQueue {
    /// The frames as a stream. There must be one reader at a time.
    pub fn frames(&self) -> FrameStream {
        FrameStream(self.clone())
    }
}

impl Stream for FrameStream {
    type Item = AppendFrame;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<AppendFrame>> {
        let mut state = self.0.state.lock();
        if state.closed {
            return Poll::Ready(None);
        }
        if let Some(frame) = state.next_frame() {
            return Poll::Ready(Some(frame));
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
