//! Answers that hold memory of the consume budget until their bytes have left.
//!
//! A transport asks a body for more long before it has written what it has, so asking says nothing about the client.
//! Here the memory travels with the bytes themselves: whoever has the last of them gives it back. A large answer goes in
//! pieces, so that a client that reads slowly is seen to read.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::Stream;
use futures_util::stream::Empty;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};
use parking_lot::Mutex;
use prost::Message;
use ptah_service::long_step;
use tonic::body::Body;
use tonic::{Response, Status};

use crate::consume::budget::InTransport;

/// Bytes that leave together.
const PIECE_BYTES: usize = 256 << 10;
/// Small messages of a stream share a frame up to this size.
const FRAME_BYTES: usize = 32 << 10;
/// Compression flag and length, before every gRPC message.
const PREFIX_BYTES: usize = 5;

/// What the next frame of an answer holds. A stream fills it while it is polled.
#[derive(Clone, Default)]
pub(super) struct Held(Arc<Mutex<Vec<InTransport>>>);

impl Held {
    /// The next frame holds this as well.
    pub(super) fn add(&self, memory: InTransport) {
        self.0.lock().push(memory);
    }

    fn take(&self) -> Vec<InTransport> {
        std::mem::take(&mut *self.0.lock())
    }
}

/// Bytes on their way to a client, with the memory that they are part of.
struct Piece {
    data: Bytes,
    memory: Arc<Vec<InTransport>>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        for memory in self.memory.iter() {
            memory.moved();
        }
    }
}

/// A body whose frames hold what was put aside for them.
struct HoldingBody {
    body: Body,
    held: Held,
    pieces: VecDeque<Bytes>,
}

impl HoldingBody {
    fn cut(&mut self, mut data: Bytes, memory: Vec<InTransport>) {
        let memory = Arc::new(memory);
        while !data.is_empty() {
            let piece = Piece {
                data: data.split_to(data.len().min(PIECE_BYTES)),
                memory: Arc::clone(&memory),
            };
            self.pieces.push_back(Bytes::from_owner(piece));
        }
    }
}

impl HttpBody for HoldingBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => frame,
                other => return other,
            };
            let memory = self.held.take();
            match frame.into_data() {
                Ok(data) if memory.is_empty() => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(data) => self.cut(data, memory),
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && self.body.is_end_stream()
    }
}

/// Messages of a stream, each encoded into memory of its own size: a buffer that is used again would keep the size of
/// the largest message for as long as the stream lives.
struct MessageBody<S> {
    messages: S,
    /// How the stream ended.
    ended: Option<Status>,
    done: bool,
}

impl<S, M> HttpBody for MessageBody<S>
where
    S: Stream<Item = Result<M, Status>> + Unpin,
    M: Message,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut data = BytesMut::new();
        while self.ended.is_none() && !self.done && data.len() < FRAME_BYTES {
            match Pin::new(&mut self.messages).poll_next(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(message))) => {
                    if let Err(error) = encode(&message, &mut data) {
                        self.ended = Some(error);
                    }
                }
                Poll::Ready(Some(Err(error))) => self.ended = Some(error),
                Poll::Ready(None) => self.ended = Some(Status::ok("")),
            }
        }
        if !data.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(data.freeze()))));
        }
        if self.done {
            return Poll::Ready(None);
        }
        let Some(status) = self.ended.take() else {
            return Poll::Pending;
        };
        self.done = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(
            status
                .add_header(&mut trailers)
                .map(|()| Frame::trailers(trailers)),
        ))
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }
}

fn encode(message: &impl Message, data: &mut BytesMut) -> Result<(), Status> {
    let bytes = message.encoded_len();
    let length = u32::try_from(bytes)
        .map_err(|_| Status::internal(format!("an answer of {bytes} bytes is no gRPC message")))?;
    data.reserve(PREFIX_BYTES + bytes);
    data.put_u8(0);
    data.put_u32(length);
    long_step(bytes, || message.encode(data))
        .map_err(|error| Status::internal(format!("encode an answer: {error}")))
}

/// A body that takes the place of the one that the generated server made.
#[derive(Clone)]
struct OwnBody(Arc<Mutex<Option<Body>>>);

/// Stands for a stream whose messages the generated server does not see.
pub(super) type Unseen<M> = Empty<Result<M, Status>>;

/// An answer with the messages of the stream; each holds what the stream put into `held` while it was asked for it.
pub(super) fn stream<S, M>(messages: S, held: Held) -> Response<Unseen<M>>
where
    S: Stream<Item = Result<M, Status>> + Send + Unpin + 'static,
    M: Message + 'static,
{
    with_own_body(futures_util::stream::empty(), messages, held)
}

/// An answer of one message, which holds `memory` until it has left.
pub(super) fn single<M: Message + Default + 'static>(message: M, memory: InTransport) -> Response<M> {
    let held = Held::default();
    held.add(memory);
    let messages = futures_util::stream::iter([Ok(message)]);
    with_own_body(M::default(), messages, held)
}

/// The generated server sees `unseen` only.
fn with_own_body<T, S, M>(unseen: T, messages: S, held: Held) -> Response<T>
where
    S: Stream<Item = Result<M, Status>> + Send + Unpin + 'static,
    M: Message + 'static,
{
    let body = Body::new(HoldingBody {
        body: Body::new(MessageBody {
            messages,
            ended: None,
            done: false,
        }),
        held,
        pieces: VecDeque::new(),
    });
    let mut response = Response::new(unseen);
    let own = OwnBody(Arc::new(Mutex::new(Some(body))));
    response.extensions_mut().insert(own);
    response
}

/// Gives an answer the body that its handler made.
pub(super) fn finish(mut response: http::Response<Body>) -> http::Response<Body> {
    let own = response.extensions_mut().remove::<OwnBody>();
    match own.and_then(|own| own.0.lock().take()) {
        Some(body) => response.map(|_unseen| body),
        None => response,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use ptah_proto::api::v1 as pb;
    use ptah_rpc::ConnectionCut;

    use super::*;
    use crate::consume::budget::ConsumeBudget;

    fn batch(bytes: usize) -> pb::ConsumeBatch {
        let message = pb::Message {
            payload: vec![7; bytes].into(),
            ..pb::Message::default()
        };
        pb::ConsumeBatch {
            messages: vec![message],
        }
    }

    fn body<M: Message + 'static>(messages: Vec<Result<M, Status>>, held: Held) -> Body {
        let mut response = super::stream(stream::iter(messages), held);
        let own = response.extensions_mut().remove::<OwnBody>().unwrap();
        own.0.lock().take().unwrap()
    }

    async fn frame(body: &mut Body) -> Option<Frame<Bytes>> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        frame.map(Result::unwrap)
    }

    fn hold(budget: &ConsumeBudget, bytes: usize) -> Held {
        let held = Held::default();
        let reservation = Arc::new(budget.try_reserve(bytes).unwrap());
        held.add(budget.hand_over(vec![reservation], ConnectionCut::default()));
        held
    }

    #[tokio::test]
    async fn memory_is_held_until_the_bytes_are_gone_however_far_the_transport_asks_ahead() {
        let budget = ConsumeBudget::new(1 << 20);
        let held = hold(&budget, 600_000);
        let mut body = body(vec![Ok(batch(600_000))], held);
        let mut sent = Vec::new();
        while let Some(frame) = frame(&mut body).await {
            sent.push(frame);
        }
        drop(body);
        assert!(sent.last().unwrap().is_trailers());
        assert_eq!(sent.len(), 4, "600,000 bytes in pieces of 256 KiB, and the end");
        let last = sent.remove(2);
        drop(sent);
        assert_eq!(budget.in_use(), 600_000, "one piece has not left yet");
        drop(last);
        assert_eq!(budget.in_use(), 0);
    }

    #[tokio::test]
    async fn an_answer_that_nobody_sends_gives_its_memory_back() {
        let budget = ConsumeBudget::new(1 << 20);
        let mut body = body(vec![Ok(batch(600_000))], hold(&budget, 600_000));
        drop(frame(&mut body).await);
        assert_eq!(budget.in_use(), 600_000);
        drop(body);
        assert_eq!(budget.in_use(), 0);
    }

    #[tokio::test]
    async fn messages_come_whole_and_in_order_and_the_end_says_why() {
        let sizes = [10, 0, 40_000, 300_000, 5];
        let messages = sizes.map(|bytes| Ok(batch(bytes)));
        let end = Err(Status::unavailable("later"));
        let mut body = body(messages.into_iter().chain([end]).collect(), Held::default());
        let mut bytes = BytesMut::new();
        let trailers = loop {
            match frame(&mut body).await.unwrap().into_data() {
                Ok(data) => bytes.extend_from_slice(&data),
                Err(frame) => break frame.into_trailers().unwrap(),
            }
        };
        assert_eq!(trailers["grpc-status"], "14");
        assert!(frame(&mut body).await.is_none());
        for size in sizes {
            let prefix = bytes.split_to(PREFIX_BYTES);
            assert_eq!(prefix[0], 0);
            let length = u32::from_be_bytes(prefix[1..].try_into().unwrap());
            let read = pb::ConsumeBatch::decode(bytes.split_to(length as usize)).unwrap();
            assert_eq!(read, batch(size));
        }
        assert!(bytes.is_empty());
    }
}
