//! Results on their way back to one client call, and the bound on what it has in flight.
//!
//! A message counts as in flight until its result was taken by the call, so that a client that does not read results stops
//! being read itself.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::message::Run;
use crate::error::GatewayError;

/// What became of messages in a row.
#[derive(Debug, Clone)]
pub struct ProduceResult {
    /// Number of the first.
    pub first: u64,
    /// How many.
    pub count: u32,
    /// What happened.
    pub outcome: ProduceOutcome,
}

/// What became of a message.
#[derive(Debug, Clone)]
pub enum ProduceOutcome {
    /// Stored on a majority.
    Stored(StoredRun),
    /// Not stored, or not known: the kind says which.
    Failed(Arc<GatewayError>),
}

/// Where messages in a row are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredRun {
    /// Partition.
    pub partition: u32,
    /// Sequence of the first.
    pub first_sequence: u64,
    /// Time of the messages in nanoseconds.
    pub timestamp_ns: u64,
    /// They had been stored before.
    pub duplicate: bool,
}

impl ProduceResult {
    /// Joins the following result to this one if it says the same of the next messages.
    fn join(&mut self, next: &Self) -> bool {
        if self.first + u64::from(self.count) != next.first {
            return false;
        }
        let same = match (&self.outcome, &next.outcome) {
            (ProduceOutcome::Stored(ours), ProduceOutcome::Stored(theirs)) => {
                let expected = StoredRun {
                    first_sequence: ours.first_sequence + u64::from(self.count),
                    ..*ours
                };
                expected == *theirs
            }
            (ProduceOutcome::Failed(ours), ProduceOutcome::Failed(theirs)) => Arc::ptr_eq(ours, theirs),
            _ => false,
        };
        if same {
            self.count += next.count;
        }
        same
    }
}

/// Puts results in order of their numbers and joins what says the same.
fn in_order(mut results: Vec<ProduceResult>) -> Vec<ProduceResult> {
    results.sort_by_key(|result| result.first);
    let mut joined: Vec<ProduceResult> = Vec::with_capacity(results.len());
    for result in results {
        if !joined.last_mut().is_some_and(|last| last.join(&result)) {
            joined.push(result);
        }
    }
    joined
}

#[derive(Debug, Default)]
struct State {
    ready: Vec<ProduceResult>,
    /// Messages without a result that was taken, and their bytes.
    messages: u64,
    bytes: u64,
    /// Bytes of each admitted request, released as its messages are taken.
    requests: VecDeque<Admitted>,
    finished: bool,
    failed: Option<GatewayError>,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Admitted {
    left: u64,
    bytes: u64,
}

/// Results of one call.
#[derive(Debug, Default)]
pub struct Replies {
    state: Mutex<State>,
    room: Notify,
}

/// How much a call may have in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InFlightLimit {
    /// Messages.
    pub messages: u64,
    /// Bytes. One request may be larger when nothing else is in flight.
    pub bytes: u64,
}

impl Replies {
    /// Nothing in flight.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Waits until a request of that size may be in flight too, and counts it.
    pub async fn admit(&self, messages: u64, bytes: u64, limit: InFlightLimit) {
        loop {
            let room = self.room.notified();
            if self.try_admit(messages, bytes, limit) {
                return;
            }
            room.await;
        }
    }

    fn try_admit(&self, messages: u64, bytes: u64, limit: InFlightLimit) -> bool {
        let mut state = self.state.lock();
        let fits = state.messages + messages <= limit.messages && state.bytes + bytes <= limit.bytes;
        if !fits && state.messages > 0 {
            return false;
        }
        state.messages += messages;
        state.bytes += bytes;
        state.requests.push_back(Admitted {
            left: messages,
            bytes,
        });
        true
    }

    /// Results of messages of one partition: `outcome` is of the first message of `runs`.
    pub fn complete(&self, runs: impl IntoIterator<Item = Run>, outcome: &ProduceOutcome) {
        let mut state = self.state.lock();
        let mut before = 0;
        for run in runs {
            let outcome = match outcome {
                ProduceOutcome::Stored(stored) => ProduceOutcome::Stored(StoredRun {
                    first_sequence: stored.first_sequence + before,
                    ..*stored
                }),
                ProduceOutcome::Failed(error) => ProduceOutcome::Failed(Arc::clone(error)),
            };
            before += u64::from(run.count);
            let result = ProduceResult {
                first: run.first,
                count: run.count,
                outcome,
            };
            if !state.ready.last_mut().is_some_and(|last| last.join(&result)) {
                state.ready.push(result);
            }
        }
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// No more messages will come.
    pub fn finish(&self) {
        let mut state = self.state.lock();
        state.finished = true;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// No more messages will come, because of this; told after the results of what came.
    pub fn fail(&self, error: GatewayError) {
        self.state.lock().failed.get_or_insert(error);
        self.finish();
    }

    /// Takes what is ready; `None` when everything is answered and nothing more will come.
    pub fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Vec<ProduceResult>, GatewayError>>> {
        let mut state = self.state.lock();
        if !state.ready.is_empty() {
            let taken = std::mem::take(&mut state.ready);
            let count = taken.iter().map(|result| u64::from(result.count)).sum();
            state.release(count);
            drop(state);
            self.room.notify_one();
            return Poll::Ready(Some(Ok(taken)));
        }
        if state.finished && state.messages == 0 {
            return Poll::Ready(state.failed.take().map(Err));
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Waits for the results of everything in flight.
    pub async fn all(&self) -> Vec<ProduceResult> {
        let mut results = Vec::new();
        while let Some(Ok(taken)) = std::future::poll_fn(|cx| self.poll_take(cx)).await {
            results.extend(taken);
        }
        in_order(results)
    }
}

impl State {
    /// Gives room back for results that were taken. Requests are released in order, which is exact when all are taken.
    fn release(&mut self, mut count: u64) {
        self.messages -= count;
        while count > 0 {
            let Some(front) = self.requests.front_mut() else {
                break;
            };
            let part = front.left.min(count);
            front.left -= part;
            count -= part;
            if front.left == 0 {
                self.bytes -= front.bytes;
                self.requests.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(first: u64, count: u32, sequence: u64) -> ProduceResult {
        let run = StoredRun {
            partition: 1,
            first_sequence: sequence,
            timestamp_ns: 5,
            duplicate: false,
        };
        ProduceResult {
            first,
            count,
            outcome: ProduceOutcome::Stored(run),
        }
    }

    fn shape(results: &[ProduceResult]) -> Vec<(u64, u32)> {
        results
            .iter()
            .map(|result| (result.first, result.count))
            .collect()
    }

    #[test]
    fn results_of_a_row_with_sequences_in_a_row_are_joined() {
        let joined = in_order(vec![stored(3, 2, 13), stored(0, 3, 10), stored(5, 1, 20)]);
        assert_eq!(shape(&joined), [(0, 5), (5, 1)]);
    }

    #[test]
    fn one_failure_of_many_messages_is_one_result() {
        let error = Arc::new(GatewayError::Stopping);
        let replies = Replies::new();
        let runs = [Run { first: 0, count: 4 }, Run { first: 4, count: 4 }];
        replies.complete(runs, &ProduceOutcome::Failed(error));
        assert_eq!(shape(&replies.state.lock().ready), [(0, 8)]);
    }

    #[tokio::test]
    async fn a_call_that_does_not_take_results_is_not_admitted_further() {
        let replies = Replies::new();
        let limit = InFlightLimit {
            messages: 10,
            bytes: 1_000,
        };
        assert!(replies.try_admit(10, 100, limit));
        replies.complete([Run { first: 0, count: 10 }], &stored(0, 10, 1).outcome);
        assert!(!replies.try_admit(1, 1, limit), "results are not taken yet");
        let taken = std::future::poll_fn(|cx| replies.poll_take(cx)).await;
        assert!(taken.is_some_and(|taken| taken.is_ok()));
        assert!(replies.try_admit(1, 1, limit));
    }

    #[test]
    fn a_request_over_the_byte_limit_is_admitted_alone() {
        let replies = Replies::new();
        let limit = InFlightLimit {
            messages: 10,
            bytes: 1_000,
        };
        assert!(replies.try_admit(1, 5_000, limit));
        assert!(!replies.try_admit(1, 1, limit));
    }
}
