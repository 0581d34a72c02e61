//! One replication session on the sending side: openraft's requests in, the follower's answers out.
//!
//! The stream is driven by its own polling: reading answers and feeding requests happen in the same task, without a
//! task in between. openraft's input holds a lock for as long as it lives; it lives inside this stream, so that
//! dropping the stream drops it, and the next session finds the lock free.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use openraft::error::{RPCError, Unreachable};
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use super::fragments::encode_entries;
use super::outbox::{AppendHead, AppendOutcome, AppendPart, Outbox, Route};
use crate::types::{TypeConfig, raft_log_id};

/// A session whose requests get no answer for this long is ended; a follower's disk may be slow, but not that slow.
const STALL: Duration = Duration::from_secs(30);
/// A session waits this long for a connection. openraft keeps the log that an open session may still send, so an
/// absent follower must let go of it now and then.
const CONNECT: Duration = Duration::from_secs(2);

pub(crate) type AppendItem = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

/// A session; dropping it ends it.
pub(crate) struct AppendStream<S> {
    outbox: Arc<Outbox>,
    route: Route,
    input: Option<S>,
    /// `None` until there is a connection.
    session: Option<(u64, mpsc::Receiver<AppendOutcome>)>,
    window: usize,
    in_flight: usize,
    next_number: u64,
    /// Runs out when there is no connection, or no answer, for too long.
    stall: Pin<Box<Sleep>>,
    finished: bool,
}

impl<S> AppendStream<S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    /// A session that opens when there is a connection. openraft does not pause after an error that comes before it is
    /// asked for a request, so waiting here is what keeps an absent node from costing anything.
    pub(crate) fn new(outbox: Arc<Outbox>, route: Route, input: S, window: usize) -> Self {
        Self {
            outbox,
            route,
            input: Some(input),
            session: None,
            window,
            in_flight: 0,
            next_number: 0,
            stall: Box::pin(tokio::time::sleep(CONNECT)),
            finished: false,
        }
    }

    fn submit(&mut self, session: u64, request: AppendEntriesRequest<TypeConfig>) {
        self.next_number += 1;
        let mut head = Some(AppendHead {
            vote: request.vote,
            previous: request.prev_log_id,
            committed: request.leader_commit,
        });
        let mut pieces = encode_entries(request.entries, self.route.group);
        if pieces.is_empty() {
            pieces.push(bytes::Bytes::new());
        }
        let mut remaining: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        let parts = pieces
            .into_iter()
            .map(|frames| {
                remaining -= frames.len() as u64;
                AppendPart {
                    session,
                    route: None,
                    head: head.take(),
                    close: false,
                    number: self.next_number,
                    frames,
                    remaining,
                }
            })
            .collect();
        if self.in_flight == 0 {
            self.stall.as_mut().reset(Instant::now() + STALL);
        }
        self.in_flight += 1;
        self.outbox.submit(session, parts);
    }

    /// Takes requests from openraft as long as there are credits.
    fn feed(&mut self, session: u64, context: &mut Context<'_>) {
        while self.in_flight < self.window {
            let Some(input) = &mut self.input else { return };
            if self.outbox.poll_room(context).is_pending() {
                return;
            }
            match input.poll_next_unpin(context) {
                Poll::Pending => return,
                Poll::Ready(None) => self.input = None,
                Poll::Ready(Some(request)) => self.submit(session, request),
            }
        }
    }

    /// Ends the stream with an error when it stands still for too long.
    fn poll_stall(&mut self, context: &mut Context<'_>, why: &'static str) -> Poll<Option<AppendItem>> {
        if self.stall.as_mut().poll(context).is_ready() {
            self.finished = true;
            return Poll::Ready(Some(Err(unreachable(why))));
        }
        Poll::Pending
    }

    /// The session, opened when there is a connection, and what it has to tell.
    fn poll_session(&mut self, context: &mut Context<'_>) -> Poll<(u64, Poll<Option<AppendOutcome>>)> {
        if self.session.is_none() {
            match self.outbox.poll_open(self.route, self.window, context) {
                Poll::Ready(session) => self.session = Some(session),
                Poll::Pending => return Poll::Pending,
            }
        }
        match &mut self.session {
            Some((session, results)) => Poll::Ready((*session, results.poll_recv(context))),
            None => Poll::Pending,
        }
    }

    fn answered(&mut self, outcome: AppendOutcome) -> AppendItem {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.stall.as_mut().reset(Instant::now() + STALL);
        self.finished = !matches!(outcome, AppendOutcome::Flushed(_));
        append_item(outcome)
    }
}

/// What openraft wants to hear.
pub(crate) fn append_item(outcome: AppendOutcome) -> AppendItem {
    match outcome {
        AppendOutcome::Flushed(id) => Ok(Ok(id.map(raft_log_id))),
        AppendOutcome::Conflict(id) => Ok(Err(StreamAppendError::Conflict(raft_log_id(id)))),
        AppendOutcome::HigherVote(vote) => Ok(Err(StreamAppendError::HigherVote(vote))),
        AppendOutcome::Closed(why) => Err(unreachable(why)),
    }
}

/// A failure after which openraft waits before it tries again.
pub(crate) fn unreachable(why: impl ToString) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(why))
}

impl<S> Stream for AppendStream<S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    type Item = AppendItem;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<AppendItem>> {
        if self.finished {
            return Poll::Ready(None);
        }
        let Poll::Ready((session, news)) = self.poll_session(context) else {
            return self.poll_stall(context, "there is no connection to the node");
        };
        match news {
            Poll::Ready(Some(outcome)) => return Poll::Ready(Some(self.answered(outcome))),
            Poll::Ready(None) => {
                self.finished = true;
                return Poll::Ready(Some(Err(unreachable("the connection to the node broke"))));
            }
            Poll::Pending => {}
        }
        self.feed(session, context);
        if self.in_flight > 0 {
            return self.poll_stall(context, "the follower does not answer");
        }
        if self.input.is_none() {
            Poll::Ready(None)
        } else {
            Poll::Pending
        }
    }
}

impl<S> Drop for AppendStream<S> {
    fn drop(&mut self) {
        if let Some((session, _)) = &self.session {
            self.outbox.close(*session);
        }
    }
}
