//! What waits to be sent to one node: append requests of many sessions, cut into pieces that take turns.
//!
//! A session is one run of openraft's replication to one follower. Invariants: pieces of one session leave in order;
//! between sessions they take turns, so that a big entry of one group does not delay the others by more than a piece;
//! a session ends when its owner drops it, when the receiver says so, or when the connection breaks, and its owner
//! notices each of these.

use std::collections::{BTreeMap, VecDeque};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;
use ptah_types::{LogId, RaftGroupId, ReplicaId};
use tokio::sync::{Notify, mpsc};

use crate::types::{RaftLogId, Vote};

/// One message to the node carries about this many bytes.
const MESSAGE_BYTES: usize = 256 << 10;
/// Most pieces in one message.
const MESSAGE_PARTS: usize = 1024;

/// The two replicas that talk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Route {
    pub(crate) group: RaftGroupId,
    pub(crate) from: ReplicaId,
    pub(crate) to: ReplicaId,
}

/// What an append request says besides its entries.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct AppendHead {
    pub(crate) vote: Vote,
    pub(crate) previous: Option<RaftLogId>,
    pub(crate) committed: Option<RaftLogId>,
}

/// A piece of an append request, or the end of a session.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct AppendPart {
    pub(crate) session: u64,
    /// On the first piece of a session.
    pub(crate) route: Option<Route>,
    /// On the first piece of a request; `None` with `close` is the end of the session.
    pub(crate) head: Option<AppendHead>,
    pub(crate) close: bool,
    /// Number of the request in its session, from 1.
    pub(crate) number: u64,
    pub(crate) frames: Bytes,
    /// Bytes of frames that follow in later pieces of the same request.
    pub(crate) remaining: u64,
}

/// What became of an append request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum AppendOutcome {
    /// Flushed up to here.
    Flushed(Option<LogId>),
    /// The entry before the first one does not fit.
    Conflict(LogId),
    /// The receiver knows a higher vote.
    HigherVote(Vote),
    /// The receiver ended the session.
    Closed(String),
}

impl AppendOutcome {
    fn ends_session(&self) -> bool {
        !matches!(self, Self::Flushed(_))
    }
}

struct Session {
    route: Route,
    opened: bool,
    parts: VecDeque<AppendPart>,
    results: mpsc::Sender<AppendOutcome>,
}

#[derive(Default)]
struct State {
    connected: bool,
    next_session: u64,
    sessions: BTreeMap<u64, Session>,
    /// Sessions with pieces to send, in the order of their turns.
    ready: VecDeque<u64>,
    /// Sessions whose end the receiver must hear of.
    closes: VecDeque<u64>,
    queued_bytes: usize,
    waiting_for_room: Vec<Waker>,
    waiting_for_connection: Vec<Waker>,
}

/// Queue to one node.
pub(crate) struct Outbox {
    state: Mutex<State>,
    wake: Notify,
    limit_bytes: usize,
}

impl Outbox {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self {
            state: Mutex::new(State::default()),
            wake: Notify::new(),
            limit_bytes,
        }
    }

    /// Starts a session as soon as there is a connection.
    pub(crate) fn poll_open(
        &self,
        route: Route,
        window: usize,
        context: &mut Context<'_>,
    ) -> Poll<(u64, mpsc::Receiver<AppendOutcome>)> {
        let mut state = self.state.lock();
        if !state.connected {
            state.wait_for_connection(context.waker());
            return Poll::Pending;
        }
        state.next_session += 1;
        let session = state.next_session;
        // One result per request in flight, and the end of the session.
        let (results, receiver) = mpsc::channel(window + 2);
        state.sessions.insert(
            session,
            Session {
                route,
                opened: false,
                parts: VecDeque::new(),
                results,
            },
        );
        Poll::Ready((session, receiver))
    }

    /// Queues the pieces of one request. Ignored when the session is gone, which its owner notices by itself.
    pub(crate) fn submit(&self, session: u64, parts: Vec<AppendPart>) {
        {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            let Some(entry) = state.sessions.get_mut(&session) else {
                return;
            };
            let was_idle = entry.parts.is_empty();
            state.queued_bytes += parts.iter().map(|part| part.frames.len()).sum::<usize>();
            entry.parts.extend(parts);
            if was_idle {
                state.ready.push_back(session);
            }
        }
        self.wake.notify_one();
    }

    /// Ready when another request may be queued.
    pub(crate) fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.queued_bytes < self.limit_bytes {
            return Poll::Ready(());
        }
        state.waiting_for_room.push(context.waker().clone());
        Poll::Pending
    }

    /// Ends a session from the sending side.
    pub(crate) fn close(&self, session: u64) {
        let wakers = {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            let Some(entry) = state.sessions.remove(&session) else {
                return;
            };
            state.queued_bytes -= entry.parts.iter().map(|part| part.frames.len()).sum::<usize>();
            state.ready.retain(|ready| *ready != session);
            if entry.opened {
                state.closes.push_back(session);
            }
            std::mem::take(&mut state.waiting_for_room)
        };
        wakers.into_iter().for_each(Waker::wake);
        self.wake.notify_one();
    }

    /// Gives a result to the owner of a session.
    pub(crate) fn deliver(&self, session: u64, outcome: AppendOutcome) {
        let ends = outcome.ends_session();
        let full = {
            let state = self.state.lock();
            let Some(entry) = state.sessions.get(&session) else {
                return;
            };
            // More results than requests: the receiver is broken, the session ends.
            entry.results.try_send(outcome).is_err()
        };
        if ends || full {
            self.close(session);
        }
    }

    pub(crate) fn connect(&self) {
        let wakers = {
            let mut state = self.state.lock();
            state.connected = true;
            std::mem::take(&mut state.waiting_for_connection)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Ends all sessions: the connection is gone.
    pub(crate) fn disconnect(&self) {
        let old = {
            let mut state = self.state.lock();
            let kept = State {
                next_session: state.next_session,
                waiting_for_connection: std::mem::take(&mut state.waiting_for_connection),
                ..State::default()
            };
            std::mem::replace(&mut *state, kept)
        };
        old.waiting_for_room.into_iter().for_each(Waker::wake);
    }

    /// Waits until there is something to send.
    pub(crate) async fn until_ready(&self) {
        loop {
            let woken = self.wake.notified();
            {
                let state = self.state.lock();
                if !state.ready.is_empty() || !state.closes.is_empty() {
                    return;
                }
            }
            woken.await;
        }
    }

    /// The next message: one piece of each session in turn, until it is full.
    pub(crate) fn take_message(&self) -> Vec<AppendPart> {
        let (message, wakers) = {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            let mut message = Vec::new();
            while let Some(session) = state.closes.pop_front() {
                message.push(end_of(session));
            }
            let mut bytes = 0;
            while bytes < MESSAGE_BYTES && message.len() < MESSAGE_PARTS {
                let Some(part) = state.next_part(bytes) else { break };
                bytes += part.frames.len();
                message.push(part);
            }
            let room = state.queued_bytes < self.limit_bytes;
            let wakers = if room {
                std::mem::take(&mut state.waiting_for_room)
            } else {
                Vec::new()
            };
            (message, wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
        message
    }
}

impl State {
    fn wait_for_connection(&mut self, waker: &Waker) {
        // A task asks again and again; its newest waker is enough.
        if !self
            .waiting_for_connection
            .iter()
            .any(|known| known.will_wake(waker))
        {
            self.waiting_for_connection.push(waker.clone());
        }
    }

    fn next_part(&mut self, bytes: usize) -> Option<AppendPart> {
        let session = *self.ready.front()?;
        let entry = self.sessions.get_mut(&session)?;
        let next_bytes = entry.parts.front()?.frames.len();
        if bytes > 0 && bytes + next_bytes > MESSAGE_BYTES {
            return None;
        }
        self.ready.pop_front();
        let mut part = entry.parts.pop_front()?;
        if !entry.opened {
            entry.opened = true;
            part.route = Some(entry.route);
        }
        if !entry.parts.is_empty() {
            self.ready.push_back(session);
        }
        self.queued_bytes -= part.frames.len();
        Some(part)
    }
}

fn end_of(session: u64) -> AppendPart {
    AppendPart {
        session,
        route: None,
        head: None,
        close: true,
        number: 0,
        frames: Bytes::new(),
        remaining: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(group: u64) -> Route {
        Route {
            group: RaftGroupId::new(group).unwrap(),
            from: ReplicaId::new(1).unwrap(),
            to: ReplicaId::new(2).unwrap(),
        }
    }

    fn open(outbox: &Outbox, group: u64) -> Option<(u64, mpsc::Receiver<AppendOutcome>)> {
        match outbox.poll_open(route(group), 4, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(session) => Some(session),
            Poll::Pending => None,
        }
    }

    fn part(session: u64, bytes: usize) -> AppendPart {
        AppendPart {
            close: false,
            number: 1,
            frames: Bytes::from(vec![0; bytes]),
            ..end_of(session)
        }
    }

    #[test]
    fn pieces_of_a_big_request_let_other_groups_pass() {
        let outbox = Outbox::new(usize::MAX);
        outbox.connect();
        let (big, _big_results) = open(&outbox, 1).unwrap();
        let (small, _small_results) = open(&outbox, 2).unwrap();
        outbox.submit(big, vec![part(big, MESSAGE_BYTES); 10]);
        outbox.submit(small, vec![part(small, 10)]);
        let first = outbox.take_message();
        assert_eq!(first.iter().map(|p| p.session).collect::<Vec<_>>(), [big]);
        assert_eq!(first[0].route, Some(route(1)));
        let second = outbox.take_message();
        assert_eq!(second[0].session, small, "the small one waits for one piece only");
    }

    #[test]
    fn a_session_that_was_opened_is_closed_at_the_receiver_too() {
        let outbox = Outbox::new(usize::MAX);
        outbox.connect();
        let (unheard, _a) = open(&outbox, 1).unwrap();
        let (heard, _b) = open(&outbox, 2).unwrap();
        outbox.submit(heard, vec![part(heard, 10)]);
        outbox.take_message();
        outbox.close(unheard);
        outbox.close(heard);
        let message = outbox.take_message();
        assert_eq!(message, vec![end_of(heard)]);
    }

    #[test]
    fn owners_notice_that_the_connection_is_gone() {
        let outbox = Outbox::new(usize::MAX);
        assert!(open(&outbox, 1).is_none());
        outbox.connect();
        let (_, mut results) = open(&outbox, 1).unwrap();
        outbox.disconnect();
        assert_eq!(results.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
        assert!(open(&outbox, 1).is_none());
    }

    #[test]
    fn bytes_that_wait_are_bounded() {
        let outbox = Outbox::new(100);
        outbox.connect();
        let mut context = Context::from_waker(Waker::noop());
        let (session, _results) = open(&outbox, 1).unwrap();
        assert!(outbox.poll_room(&mut context).is_ready());
        outbox.submit(session, vec![part(session, 100)]);
        assert!(outbox.poll_room(&mut context).is_pending());
        outbox.take_message();
        assert!(outbox.poll_room(&mut context).is_ready());
    }
}
