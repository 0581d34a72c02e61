//! Heartbeats of many groups to one node, collected into few messages.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::outbox::{AppendHead, AppendOutcome, Route};

/// Most messages that may wait for an answer; a node that answers none of them gets no more.
const MAX_WAITING_MESSAGES: usize = 256;

/// The queue is searched for beats that nobody waits for any more from this length on.
const PRUNE_FROM: usize = 1024;

/// One heartbeat.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Beat {
    pub(crate) route: Route,
    pub(crate) head: AppendHead,
    /// The last one before the group rests.
    pub(crate) quiesce: bool,
}

/// Answer to one heartbeat.
#[derive(Debug)]
pub(crate) struct BeatAnswer {
    pub(crate) outcome: AppendOutcome,
    /// The receiver agreed to rest.
    pub(crate) quiesced: bool,
}

type Answer = oneshot::Sender<BeatAnswer>;

#[derive(Default)]
struct State {
    connected: bool,
    queue: Vec<(Beat, Answer)>,
    prune_at: usize,
    next_number: u64,
    waiting: BTreeMap<u64, Vec<Answer>>,
}

/// Heartbeats to one node.
#[derive(Default)]
pub(crate) struct Beats {
    state: Mutex<State>,
    wake: Notify,
}

impl Beats {
    /// Queues a heartbeat; `None` while there is no connection. Bounded: a group has one beat under way.
    pub(crate) fn submit(&self, beat: Beat) -> Option<oneshot::Receiver<BeatAnswer>> {
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.state.lock();
            if !state.connected {
                return None;
            }
            if state.queue.len() >= state.prune_at {
                // A beat whose sender gave up is of no use any more; what stays is one per group.
                state.queue.retain(|(_, answer)| !answer.is_closed());
                state.prune_at = PRUNE_FROM.max(2 * state.queue.len());
            }
            state.queue.push((beat, answer));
        }
        self.wake.notify_one();
        Some(answered)
    }

    pub(crate) async fn until_ready(&self) {
        loop {
            let woken = self.wake.notified();
            if !self.state.lock().queue.is_empty() {
                return;
            }
            woken.await;
        }
    }

    /// Number and beats of the next message; `None` when there is nothing, or too much is unanswered.
    pub(crate) fn take_message(&self) -> Option<(u64, Vec<Beat>)> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let queue = std::mem::take(&mut state.queue);
        state
            .waiting
            .retain(|_, answers| answers.iter().any(|answer| !answer.is_closed()));
        if queue.is_empty() || state.waiting.len() >= MAX_WAITING_MESSAGES {
            return None;
        }
        state.next_number += 1;
        let (beats, answers) = queue.into_iter().unzip();
        state.waiting.insert(state.next_number, answers);
        Some((state.next_number, beats))
    }

    /// Gives the answers of one message to those that wait.
    pub(crate) fn deliver(&self, number: u64, outcomes: Vec<BeatAnswer>) {
        let answers = self.state.lock().waiting.remove(&number);
        for (answer, outcome) in answers.into_iter().flatten().zip(outcomes) {
            // Who gave up does not hear it.
            let _ = answer.send(outcome);
        }
    }

    pub(crate) fn connect(&self) {
        self.state.lock().connected = true;
    }

    pub(crate) fn disconnect(&self) {
        let _old = std::mem::take(&mut *self.state.lock());
    }
}
