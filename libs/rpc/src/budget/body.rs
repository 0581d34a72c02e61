//! A request body that hands out one message at a time, each when the budget has room for it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use ptah_service::BoxFuture;
use ptah_types::ErrorKind;
use tokio::sync::{AcquireError, OwnedSemaphorePermit};
use tokio::time::{Instant, Sleep};
use tonic::Status;

use super::scan::Scan;
use super::{CurrentMessage, MessageBudget, RequestShape, WaitingPlaces};
use crate::RpcError;

/// Compression flag and length, before every gRPC message.
pub(super) const PREFIX_BYTES: usize = 5;
/// A client that sends its message more slowly than this is cut off: 64 KiB per second.
const SLOWEST_BYTES_PER_SECOND: u64 = 64 << 10;

const NO_ROOM: &str = "no room for the message, too many are under way; retry later";

/// Limits of a metered body.
#[derive(Clone)]
pub(crate) struct MeterSettings {
    /// Largest message.
    pub(crate) max_message_bytes: usize,
    /// How long a message that was begun may pause. A client that stops half way costs others time and nothing else.
    pub(crate) stall_timeout: Duration,
    /// How long a message may wait for the budget.
    pub(crate) wait_timeout: Duration,
    /// Whether the method takes one message. Its reader asks for more only to see that there is none, so that
    /// asking does not mean that the message is no longer needed.
    pub(crate) single: bool,
    /// Places of the connection for messages that wait for the budget.
    pub(crate) places: WaitingPlaces,
    /// What the messages look like; `None` when nothing is known of the method, so that nobody decodes them.
    pub(crate) request: Option<RequestShape>,
}

/// See the module above.
pub(crate) struct MeteredBody<B> {
    inner: B,
    budget: MessageBudget,
    current: CurrentMessage,
    settings: MeterSettings,
    /// Bytes that were received and not handed out.
    received: Bytes,
    /// Whether a message was begun.
    begun: bool,
    scan: Option<Scan>,
    state: State,
}

enum State {
    /// Between messages, or inside the next one's prefix, of which these bytes are known.
    Prefix(BytesMut),
    /// The length is known, the budget is not yet granted.
    Waiting(Waiting),
    /// Inside a message.
    Message(Message),
    /// The message is there but for its last bytes, and waits for the memory that it takes decoded.
    Decoding(Decoding),
    /// Over, by an error or by the end of the stream.
    Over,
}

struct Waiting {
    prefix: Bytes,
    message_bytes: usize,
    permit: BoxFuture<'static, Result<OwnedSemaphorePermit, AcquireError>>,
    give_up: Pin<Box<Sleep>>,
    /// Places among all messages that wait, and among those of the connection.
    _places: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

struct Decoding {
    last: Bytes,
    permit: BoxFuture<'static, Result<OwnedSemaphorePermit, AcquireError>>,
    give_up: Pin<Box<Sleep>>,
}

struct Message {
    /// The prefix, until it is handed out.
    prefix: Option<Bytes>,
    remaining: usize,
    /// When the message must be complete: a client that dribbles is cut off as well.
    deadline: Instant,
    /// When bytes of it came last.
    progress: Instant,
    /// Made when the message has to be waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Message {
    /// When it is cut off unless more of it comes.
    fn end(&self, stall_timeout: Duration) -> Instant {
        self.deadline.min(self.progress + stall_timeout)
    }
}

/// What the body gives to its reader.
type Polled = Poll<Option<Result<Frame<Bytes>, Status>>>;

/// What one step gives: something for the reader, or a new state to go on with.
enum Step {
    Give(Polled),
    GoOn,
}

impl<B> MeteredBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    pub(crate) fn new(
        inner: B,
        budget: MessageBudget,
        current: CurrentMessage,
        settings: MeterSettings,
    ) -> Self {
        Self {
            inner,
            budget,
            current,
            scan: settings.request.clone().map(Scan::new),
            settings,
            received: Bytes::new(),
            begun: false,
            state: State::Prefix(BytesMut::new()),
        }
    }

    /// Gets more bytes from the client.
    fn receive(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        Poll::Ready(match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    self.received = data;
                    Step::GoOn
                }
                Err(trailers) => Step::Give(Poll::Ready(Some(Ok(trailers)))),
            },
            Some(Err(error)) => self.fail(Status::from_error(error.into())),
            None => self.end(),
        })
    }

    fn end(&mut self) -> Step {
        let between_messages = matches!(&self.state, State::Prefix(prefix) if prefix.is_empty());
        if between_messages {
            self.state = State::Over;
            return Step::Give(Poll::Ready(None));
        }
        self.refuse(ErrorKind::InvalidArgument, "the message was cut off".to_owned())
    }

    fn refuse(&mut self, kind: ErrorKind, message: String) -> Step {
        self.fail(RpcError::new(kind, message).into())
    }

    fn fail(&mut self, status: Status) -> Step {
        self.state = State::Over;
        self.received = Bytes::new();
        drop(self.current.take());
        Step::Give(Poll::Ready(Some(Err(status))))
    }

    fn poll_prefix(&mut self, cx: &mut Context<'_>) -> Step {
        let State::Prefix(known) = &mut self.state else {
            return Step::GoOn;
        };
        if known.is_empty() && !self.settings.single {
            // The next message is asked for: the last one has been dealt with.
            drop(self.current.take());
        }
        let prefix = if known.is_empty() && self.received.len() >= PREFIX_BYTES {
            self.received.split_to(PREFIX_BYTES)
        } else {
            let missing = PREFIX_BYTES - known.len();
            known.extend_from_slice(&self.received.split_to(self.received.len().min(missing)));
            if known.len() < PREFIX_BYTES {
                return match self.receive(cx) {
                    Poll::Ready(step) => step,
                    Poll::Pending => Step::Give(Poll::Pending),
                };
            }
            known.split().freeze()
        };
        let message_bytes = (&prefix[1..]).get_u32() as usize;
        self.begin(prefix, message_bytes)
    }

    fn begin(&mut self, prefix: Bytes, message_bytes: usize) -> Step {
        if self.settings.single && std::mem::replace(&mut self.begun, true) {
            let message = "the method takes one message and the call sent another".to_owned();
            return self.refuse(ErrorKind::InvalidArgument, message);
        }
        let limit = self.settings.max_message_bytes.min(self.budget.total_bytes());
        if message_bytes > limit {
            let message = format!("message of {message_bytes} bytes exceeds the limit of {limit} bytes");
            return self.refuse(ErrorKind::TooLarge, message);
        }
        if let Some(scan) = &mut self.scan {
            if prefix[0] != 0 {
                let message = "the message is compressed, which was not agreed on".to_owned();
                return self.refuse(ErrorKind::InvalidArgument, message);
            }
            scan.begin(message_bytes);
        }
        // At most the budget, and that fits.
        let permits = u32::try_from(message_bytes).unwrap_or(u32::MAX);
        let free = Arc::clone(&self.budget.free);
        if let Ok(permit) = Arc::clone(&free).try_acquire_many_owned(permits) {
            self.granted(prefix, message_bytes, permit);
            return Step::GoOn;
        }
        let Some(places) = self.settings.places.take().zip(self.budget.queue.take()) else {
            let message = "no room for the message, and too many wait for room; retry later".to_owned();
            return self.refuse(ErrorKind::Exhausted, message);
        };
        self.state = State::Waiting(Waiting {
            prefix,
            message_bytes,
            permit: Box::pin(free.acquire_many_owned(permits)),
            give_up: Box::pin(tokio::time::sleep(self.settings.wait_timeout)),
            _places: places,
        });
        Step::GoOn
    }

    fn granted(&mut self, prefix: Bytes, message_bytes: usize, permit: OwnedSemaphorePermit) {
        self.current.set(permit);
        let transfer = Duration::from_secs(message_bytes as u64 / SLOWEST_BYTES_PER_SECOND);
        let now = Instant::now();
        self.state = State::Message(Message {
            prefix: Some(prefix),
            remaining: message_bytes,
            deadline: now + self.settings.stall_timeout + transfer,
            progress: now,
            timer: None,
        });
    }

    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Step {
        let State::Waiting(waiting) = &mut self.state else {
            return Step::GoOn;
        };
        match waiting.permit.as_mut().poll(cx) {
            Poll::Ready(Ok(permit)) => {
                let (prefix, message_bytes) = (waiting.prefix.clone(), waiting.message_bytes);
                self.granted(prefix, message_bytes, permit);
                return Step::GoOn;
            }
            // Nobody closes a budget.
            Poll::Ready(Err(_)) => return self.refuse(ErrorKind::Unavailable, "stopping".to_owned()),
            Poll::Pending => {}
        }
        if waiting.give_up.as_mut().poll(cx).is_pending() {
            return Step::Give(Poll::Pending);
        }
        self.refuse(ErrorKind::Exhausted, NO_ROOM.to_owned())
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Step {
        let State::Message(message) = &mut self.state else {
            return Step::GoOn;
        };
        if let Some(prefix) = message.prefix.take() {
            return give(prefix);
        }
        if message.remaining == 0 {
            self.state = State::Prefix(BytesMut::new());
            return Step::GoOn;
        }
        if !self.received.is_empty() {
            let part = self.received.split_to(self.received.len().min(message.remaining));
            message.remaining -= part.len();
            let last = message.remaining == 0;
            return self.counted(part, last);
        }
        match self.receive(cx) {
            Poll::Ready(step) => {
                if let State::Message(message) = &mut self.state {
                    message.progress = Instant::now();
                }
                step
            }
            Poll::Pending => self.poll_stalled(cx),
        }
    }

    /// Hands out a part of the message, unless there is too much in it. The last part waits until there is memory for
    /// the whole message as it will be decoded.
    fn counted(&mut self, part: Bytes, last: bool) -> Step {
        let Some(scan) = &mut self.scan else {
            return give(part);
        };
        if let Err(refusal) = scan.feed(&part) {
            return self.refuse(refusal.kind, refusal.why);
        }
        let memory = scan.memory();
        if !last || memory == 0 {
            return give(part);
        }
        let permits = self.budget.decoded_permits(memory);
        let free = Arc::clone(&self.budget.decoded);
        if let Ok(permit) = Arc::clone(&free).try_acquire_many_owned(permits) {
            self.current.add_decoded(permit);
            return give(part);
        }
        self.state = State::Decoding(Decoding {
            last: part,
            permit: Box::pin(free.acquire_many_owned(permits)),
            give_up: Box::pin(tokio::time::sleep(self.settings.wait_timeout)),
        });
        Step::GoOn
    }

    fn poll_decoding(&mut self, cx: &mut Context<'_>) -> Step {
        let State::Decoding(decoding) = &mut self.state else {
            return Step::GoOn;
        };
        match decoding.permit.as_mut().poll(cx) {
            Poll::Ready(Ok(permit)) => {
                let last = std::mem::take(&mut decoding.last);
                self.current.add_decoded(permit);
                self.state = State::Prefix(BytesMut::new());
                return give(last);
            }
            // Nobody closes a budget.
            Poll::Ready(Err(_)) => return self.refuse(ErrorKind::Unavailable, "stopping".to_owned()),
            Poll::Pending => {}
        }
        if decoding.give_up.as_mut().poll(cx).is_pending() {
            return Step::Give(Poll::Pending);
        }
        self.refuse(ErrorKind::Exhausted, NO_ROOM.to_owned())
    }

    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Step {
        if let State::Message(message) = &mut self.state {
            let end = message.end(self.settings.stall_timeout);
            let timer = message
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
            if timer.deadline() != end {
                timer.as_mut().reset(end);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Step::Give(Poll::Pending);
            }
        }
        let message = "the message was begun and not finished in time; send it faster".to_owned();
        self.refuse(ErrorKind::DeadlineExceeded, message)
    }
}

fn give(data: Bytes) -> Step {
    Step::Give(Poll::Ready(Some(Ok(Frame::data(data)))))
}

impl<B> Body for MeteredBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let body = self.get_mut();
        loop {
            let step = match &body.state {
                State::Prefix(_) => body.poll_prefix(cx),
                State::Waiting(_) => body.poll_waiting(cx),
                State::Message(_) => body.poll_message(cx),
                State::Decoding(_) => body.poll_decoding(cx),
                State::Over => return Poll::Ready(None),
            };
            if let Step::Give(polled) = step {
                return polled;
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Over)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests;
