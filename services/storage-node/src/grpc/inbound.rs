//! The side of a long stream that gateways write: what is common to appending and delivering.
//!
//! One task per stream takes requests in and hands answers out, so nothing here waits.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream as _;
use ptah_service::Stopping;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Status, Streaming};

/// Requests that are taken in before answers are handed out.
pub(super) const REQUESTS_AT_ONCE: usize = 64;

/// Requests of one stream, until it is over.
pub(super) struct Inbound<T> {
    /// `None` once nothing more is read.
    requests: Option<Streaming<T>>,
    /// Why, if not because the gateway ended it.
    failure: Option<Status>,
    stopping: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<T> Inbound<T> {
    pub(super) fn new(requests: Streaming<T>, stopping: Stopping) -> Self {
        Self {
            requests: Some(requests),
            failure: None,
            stopping: Box::pin(stopping.cancelled_owned()),
        }
    }

    /// The next request that has arrived; nothing when there is none now, or never again.
    pub(super) fn next(&mut self, cx: &mut Context<'_>) -> Option<T> {
        match Pin::new(self.requests.as_mut()?).poll_next(cx) {
            Poll::Ready(Some(Ok(request))) => Some(request),
            Poll::Ready(None | Some(Err(_))) => {
                self.requests = None;
                None
            }
            Poll::Pending => None,
        }
    }

    /// Whether nothing more is read.
    pub(super) fn is_over(&self) -> bool {
        self.requests.is_none()
    }

    /// Reads no more, and ends the stream with `status`.
    pub(super) fn fail(&mut self, status: Status) {
        self.requests = None;
        self.failure.get_or_insert(status);
    }

    /// Fails when the node stops; whether that is new.
    pub(super) fn poll_stop(&mut self, cx: &mut Context<'_>) -> bool {
        if self.is_over() || self.stopping.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.fail(Status::unavailable("storage node stops"));
        true
    }

    /// How the stream ends.
    pub(super) fn take_failure(&mut self) -> Option<Status> {
        self.failure.take()
    }
}
