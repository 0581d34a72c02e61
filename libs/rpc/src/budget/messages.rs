//! Messages of a streaming call, each read into a buffer of its own size.
//!
//! The generated servers read all messages of a stream through one buffer that keeps the size of the largest of them for
//! as long as the stream lives, outside of the budget. A handler whose callers send large messages takes the body of its
//! call and reads it here instead: nothing of a message stays behind when its bytes are dropped.

use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame};
use parking_lot::Mutex;
use prost::Message;
use ptah_types::ErrorKind;
use tonic::body::Body;
use tonic::{Code, Status};

use super::body::PREFIX_BYTES;
use crate::RpcError;

/// The body of a streaming call. Found in the extensions of its request on a port with a budget.
#[derive(Clone, Default)]
pub struct RequestBody(Arc<Mutex<Option<Body>>>);

/// Reads the messages of a streaming call.
pub struct IncomingMessages<T> {
    body: Body,
    begun: Option<Begun>,
    _message: PhantomData<fn() -> T>,
}

/// A message of which bytes are missing.
struct Begun {
    total: usize,
    bytes: BytesMut,
}

impl RequestBody {
    pub(crate) fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(Some(body))))
    }

    /// What the generated server reads: the body until it is taken, then nothing.
    pub(crate) fn shared(&self) -> Body {
        Body::new(Shared(self.clone()))
    }

    /// Takes the body, before anything of it was read. Without one, as on a port without a budget, nothing comes.
    pub fn take<T>(&self) -> IncomingMessages<T> {
        IncomingMessages {
            body: self.0.lock().take().unwrap_or_default(),
            begun: None,
            _message: PhantomData,
        }
    }
}

struct Shared(RequestBody);

impl HttpBody for Shared {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.0.0.lock().as_mut() {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }
}

impl<T: Message + Default> IncomingMessages<T> {
    /// The next message; `None` when the caller has nothing more to say or is gone. May be dropped while it waits.
    pub async fn message(&mut self) -> Result<Option<T>, Status> {
        std::future::poll_fn(|cx| self.poll_message(cx)).await
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<T>, Status>> {
        loop {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => return Poll::Ready(Ok(None)),
                Some(Err(status)) if status.code() == Code::Cancelled => return Poll::Ready(Ok(None)),
                Some(Err(status)) => return Poll::Ready(Err(status)),
                Some(Ok(frame)) => frame,
            };
            // Trailers of a request say nothing.
            let Ok(data) = frame.into_data() else { continue };
            if let Some(whole) = self.take(data)? {
                let message = T::decode(whole).map_err(|error| unreadable(error.to_string()))?;
                return Poll::Ready(Ok(Some(message)));
            }
        }
    }

    /// Takes a frame in. The metered body never puts two messages, or a prefix and its message, into one.
    fn take(&mut self, mut data: Bytes) -> Result<Option<Bytes>, Status> {
        let mut begun = match self.begun.take() {
            Some(mut begun) => {
                begun.bytes.extend_from_slice(&data);
                begun
            }
            None if data.len() == PREFIX_BYTES => {
                if data.get_u8() != 0 {
                    return Err(unreadable("it is compressed, which was not agreed on".to_owned()));
                }
                let total = data.get_u32() as usize;
                let bytes = BytesMut::with_capacity(total);
                Begun { total, bytes }
            }
            None => return Err(unreadable("it does not begin with its length".to_owned())),
        };
        if begun.bytes.len() < begun.total {
            self.begun = Some(begun);
            return Ok(None);
        }
        Ok(Some(begun.bytes.split().freeze()))
    }
}

fn unreadable(why: String) -> Status {
    let message = format!("the message cannot be read: {why}");
    RpcError::new(ErrorKind::InvalidArgument, message).into()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::time::Duration;

    use bytes::BufMut as _;
    use ptah_proto::storage::v1::AppendFragment;

    use super::super::{CurrentMessage, MessageBudget, MeterSettings, MeteredBody, WaitingPlaces};
    use super::*;

    /// A body that is there already.
    struct Given(VecDeque<Bytes>);

    impl HttpBody for Given {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|data| Ok(Frame::data(data))))
        }
    }

    fn incoming(sent: &[u8], piece: usize) -> RequestBody {
        let given = Given(sent.chunks(piece).map(Bytes::copy_from_slice).collect());
        let settings = MeterSettings {
            max_message_bytes: 1 << 20,
            stall_timeout: Duration::from_secs(30),
            wait_timeout: Duration::from_secs(30),
            single: false,
            places: WaitingPlaces::new(1),
            request: None,
        };
        let budget = MessageBudget::new(1 << 20);
        let current = CurrentMessage::default();
        RequestBody::new(Body::new(MeteredBody::new(given, budget, current, settings)))
    }

    fn fragment(bytes: usize) -> AppendFragment {
        AppendFragment {
            channel: u32::try_from(bytes).unwrap(),
            payload: (0..bytes).map(|i| i as u8).collect::<Vec<_>>().into(),
        }
    }

    fn encoded(flag: u8, message: &AppendFragment) -> Vec<u8> {
        let mut encoded = vec![flag];
        encoded.put_u32(message.encoded_len() as u32);
        encoded.extend(message.encode_to_vec());
        encoded
    }

    #[tokio::test]
    async fn messages_are_the_same_however_they_are_cut_and_keep_nothing_else_in_memory() {
        let sizes = [0, 1, 300, 70_000, 2];
        let sent: Vec<u8> = sizes
            .iter()
            .flat_map(|size| encoded(0, &fragment(*size)))
            .collect();
        for piece in [1, 4, 5, 6, 1_000, sent.len()] {
            let mut incoming = incoming(&sent, piece).take::<AppendFragment>();
            for size in sizes {
                let message = incoming.message().await.unwrap().unwrap();
                assert_eq!(message, fragment(size), "in pieces of {piece}");
                assert!(
                    size == 0 || message.payload.is_unique(),
                    "something else holds the memory of the message"
                );
            }
            assert!(incoming.message().await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn what_is_no_message_is_refused() {
        let compressed = encoded(1, &fragment(3));
        let cut = encoded(0, &fragment(300))[..200].to_vec();
        let broken = vec![0, 0, 0, 0, 2, 0xff, 0xff];
        for sent in [compressed, cut, broken] {
            let refused = incoming(&sent, 1_000).take::<AppendFragment>().message().await;
            assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument, "{sent:?}");
        }
    }

    #[tokio::test]
    async fn a_body_that_was_taken_leaves_nothing_to_the_generated_server() {
        let body = incoming(&encoded(0, &fragment(3)), 1_000);
        let mut shared = body.shared();
        let mut taken = body.take::<AppendFragment>();
        let left = std::future::poll_fn(|cx| Pin::new(&mut shared).poll_frame(cx)).await;
        assert!(left.is_none());
        assert!(taken.message().await.unwrap().is_some());
        assert!(body.take::<AppendFragment>().message().await.unwrap().is_none());
    }
}
