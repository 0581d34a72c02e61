//! Proposals: from a call of the partition's leader to the answer after the entry is applied.
//!
//! Invariants: a refusal that is returned at once means that nothing was stored and the callback is dropped uncalled;
//! otherwise the callback is called exactly once, also when openraft's core dies with the proposal in its queue.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::ThreadId;

use openraft::error::{ClientWriteError, ForwardToLeader};
use openraft::raft::responder::Responder;
use parking_lot::Mutex;
use ptah_types::{Boundary, ErrorKind, LogId, NodeId};

use crate::types::{Answer, TypeConfig, WriteResult, log_id};

/// Called once with the outcome of a proposal; from any thread, so it must be short.
pub type Done = Box<dyn FnOnce(Result<Committed, ProposeError>) + Send>;

/// An entry that is committed and applied here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Committed {
    /// Its place in the log.
    pub log_id: LogId,
    /// What applying it gave.
    pub outcome: Outcome,
}

/// What applying an entry gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Messages were appended.
    Batch(ptah_partition::Appended),
    /// Commands were carried out or refused, one result for each.
    Commands(Vec<ptah_partition::Applied>),
    /// A barrier: everything proposed before is applied or never will be.
    Barrier,
}

/// Why a proposal has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Another replica leads, or another term began. Certainly not stored.
    #[error("this replica does not lead the partition in that term; follow the leader")]
    NotLeader {
        /// Where the leader is, if known.
        leader: Option<NodeId>,
    },
    /// Too many proposals or bytes wait for their commit. Certainly not stored.
    #[error("too many proposals wait for their commit; wait for earlier ones")]
    TooMuchInFlight,
    /// The disk has no room for more. Certainly not stored.
    #[error("the disk of this node is full; free space or add nodes")]
    DiskFull,
    /// A batch before it was refused, so that its sequence does not continue the log. Certainly not stored.
    #[error("a batch before this one was not stored; make a new sequencer behind a barrier")]
    Superseded,
    /// The replica does not take proposals now. Certainly not stored.
    #[error("partition takes no writes now: {0}")]
    Unavailable(String),
    /// Leadership or the replica was lost while the entry was on its way. It may or may not be stored.
    #[error("leadership was lost while the entry was on its way; it may or may not be stored")]
    OutcomeUnknown,
}

impl Boundary for ProposeError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotLeader { .. } => ErrorKind::NotLeader,
            Self::TooMuchInFlight | Self::DiskFull => ErrorKind::Exhausted,
            Self::Superseded | Self::Unavailable(_) => ErrorKind::Unavailable,
            Self::OutcomeUnknown => ErrorKind::OutcomeUnknown,
        }
    }
}

/// Bound on what waits for its commit, of one replica.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    entries: AtomicU64,
    bytes: AtomicU64,
}

impl InFlight {
    /// Takes room for one entry; `None` when there is none. A single entry larger than the bound passes when alone.
    pub(crate) fn enter(
        self: &Arc<Self>,
        bytes: u64,
        max_entries: u64,
        max_bytes: u64,
    ) -> Option<InFlightGuard> {
        let entries = self.entries.fetch_add(1, Ordering::AcqRel);
        let before = self.bytes.fetch_add(bytes, Ordering::AcqRel);
        let guard = InFlightGuard {
            owner: Arc::clone(self),
            bytes,
        };
        let fits = entries < max_entries && (entries == 0 || before.saturating_add(bytes) <= max_bytes);
        fits.then_some(guard)
    }

    /// How many wait now.
    pub(crate) fn entries(&self) -> u64 {
        self.entries.load(Ordering::Acquire)
    }
}

/// Room taken by one entry.
#[derive(Debug)]
pub(crate) struct InFlightGuard {
    owner: Arc<InFlight>,
    bytes: u64,
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.owner.entries.fetch_sub(1, Ordering::AcqRel);
        self.owner.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// A callback that is called once, or taken back.
///
/// While the proposal is being handed to the core, an answer on the same thread can only be openraft dropping a message
/// that the core did not take: calling back then would run the caller's callback inside the caller's own call, under
/// the caller's locks. Such an answer takes the callback back instead, and [`Pending::offered`] tells.
pub(crate) struct Pending {
    waiting: Mutex<Option<(Done, InFlightGuard)>>,
    offering: Mutex<Offering>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Offering {
    By(ThreadId),
    Refused,
    Over,
}

impl Pending {
    pub(crate) fn new(done: Done, guard: InFlightGuard) -> Arc<Self> {
        Arc::new(Self {
            waiting: Mutex::new(Some((done, guard))),
            offering: Mutex::new(Offering::By(std::thread::current().id())),
        })
    }

    /// Handing over has ended. The error says that the message was not taken and the callback was taken back.
    pub(crate) fn offered(&self) -> Result<(), String> {
        match std::mem::replace(&mut *self.offering.lock(), Offering::Over) {
            Offering::By(_) | Offering::Over => Ok(()),
            Offering::Refused => Err("the replica does not take entries".to_owned()),
        }
    }

    fn is_inside_the_call(&self) -> bool {
        *self.offering.lock() == Offering::By(std::thread::current().id())
    }

    /// Takes the callback back: it will not be called.
    pub(crate) fn disarm(&self) {
        *self.offering.lock() = Offering::Refused;
        drop(self.waiting.lock().take());
    }

    fn answer(&self, result: Result<Committed, ProposeError>) {
        if self.is_inside_the_call() {
            return self.disarm();
        }
        let waiting = self.waiting.lock().take();
        if let Some((done, guard)) = waiting {
            drop(guard);
            done(result);
        }
    }
}

/// What openraft keeps until an entry is applied. Dropping it unanswered means that the core stopped.
pub(crate) struct ProposalResponder<T> {
    on_complete: Option<Box<dyn FnOnce(Option<T>) + Send>>,
}

impl ProposalResponder<WriteResult> {
    pub(crate) fn new(pending: Arc<Pending>) -> Self {
        Self {
            on_complete: Some(Box::new(move |result| pending.answer(outcome(result)))),
        }
    }
}

impl<T> Drop for ProposalResponder<T> {
    fn drop(&mut self) {
        if let Some(on_complete) = self.on_complete.take() {
            on_complete(None);
        }
    }
}

impl<T> Responder<TypeConfig, T> for ProposalResponder<T>
where
    T: openraft::OptionalSend + 'static,
{
    fn on_complete(mut self, result: T) {
        if let Some(on_complete) = self.on_complete.take() {
            on_complete(Some(result));
        }
    }
}

impl<T> fmt::Debug for ProposalResponder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProposalResponder")
    }
}

fn outcome(result: Option<WriteResult>) -> Result<Committed, ProposeError> {
    let response = match result {
        None => return Err(ProposeError::OutcomeUnknown),
        Some(Err(error)) => return Err(refusal(error)),
        Some(Ok(response)) => response,
    };
    let outcome = match response.data {
        Answer::Batch(appended) => Outcome::Batch(appended),
        Answer::Commands(applied) => Outcome::Commands(applied),
        Answer::Nothing => Outcome::Barrier,
        Answer::Superseded => return Err(ProposeError::Superseded),
        Answer::Refused { stored: true, .. } => return Err(ProposeError::OutcomeUnknown),
        Answer::Refused { stored: false, why } => return Err(ProposeError::Unavailable(why)),
        Answer::NoRoom => return Err(ProposeError::DiskFull),
    };
    Ok(Committed {
        log_id: log_id(&response.log_id),
        outcome,
    })
}

fn refusal(error: ClientWriteError<TypeConfig>) -> ProposeError {
    match error {
        ClientWriteError::ForwardToLeader(forward) => forwarded(&forward),
        // The entry was in the log and is gone, but another leader may have it.
        ClientWriteError::LogEntryDiscarded(_) => ProposeError::OutcomeUnknown,
        // Both concern membership entries, which are not proposed this way.
        ClientWriteError::ChangeMembershipError(error) => ProposeError::Unavailable(error.to_string()),
        ClientWriteError::PreconditionFailed(error) => ProposeError::Unavailable(error.to_string()),
    }
}

/// Rejected before it was appended.
fn forwarded(forward: &ForwardToLeader<TypeConfig>) -> ProposeError {
    use openraft::error::ForwardReason;
    match forward.reason {
        ForwardReason::LeaseExpired => {
            ProposeError::Unavailable("the leader waits for a majority of the replicas".to_owned())
        }
        ForwardReason::NotLeader | ForwardReason::LeadershipTransfer => ProposeError::NotLeader {
            leader: forward.leader_node.and_then(|home| home.node()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn counting() -> (Arc<AtomicUsize>, Done) {
        let calls = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&calls);
        let done: Done = Box::new(move |_| {
            seen.fetch_add(1, Ordering::SeqCst);
        });
        (calls, done)
    }

    #[test]
    fn a_proposal_that_dies_with_the_core_is_answered_once_as_unknown() {
        let in_flight = Arc::new(InFlight::default());
        let (calls, done) = counting();
        let pending = Pending::new(done, in_flight.enter(10, 4, 100).unwrap());
        assert!(pending.offered().is_ok());
        drop(ProposalResponder::new(pending));
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        assert_eq!(in_flight.entries(), 0);
    }

    #[test]
    fn a_proposal_that_is_dropped_while_it_is_handed_over_is_refused_and_not_answered() {
        let in_flight = Arc::new(InFlight::default());
        let (calls, done) = counting();
        let pending = Pending::new(done, in_flight.enter(10, 4, 100).unwrap());
        drop(ProposalResponder::new(Arc::clone(&pending)));
        assert!(pending.offered().is_err());
        assert_eq!((calls.load(Ordering::SeqCst), in_flight.entries()), (0, 0));
    }

    #[test]
    fn a_proposal_that_was_taken_back_is_never_answered() {
        let in_flight = Arc::new(InFlight::default());
        let (calls, done) = counting();
        let pending = Pending::new(done, in_flight.enter(10, 4, 100).unwrap());
        let responder = ProposalResponder::new(Arc::clone(&pending));
        pending.disarm();
        drop(responder);
        assert_eq!(calls.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_big_entry_passes_only_when_it_is_alone() {
        let in_flight = Arc::new(InFlight::default());
        let first = in_flight.enter(1000, 4, 100).unwrap();
        assert!(in_flight.enter(1, 4, 100).is_none());
        drop(first);
        assert!(in_flight.enter(1, 4, 100).is_some());
        assert_eq!(in_flight.entries(), 0);
    }
}
