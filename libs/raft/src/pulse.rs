//! Whether a replica expects and sends heartbeats, and what waits while it begins to again.
//!
//! Invariant: a proposal is offered to openraft only while the replica is awake, in the order of the calls; what comes
//! while its leader wakes up waits here and is offered in the same order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::ReadPolicy;
use parking_lot::Mutex;
use ptah_types::Term;
use tokio::sync::Notify;

use crate::cell::Cell;
use crate::proposal::{Done, ProposeError};
use crate::record::Record;
use crate::types::Raft;

/// How long a leader that wakes up may take to find its majority; what waits is offered then in any case, and refused.
const WAKE_DEADLINE: Duration = Duration::from_secs(2);

/// A proposal that waits for its leader to wake up.
struct Waiting {
    term: Term,
    record: Record,
    done: Done,
}

enum State {
    /// Heartbeats are sent or expected.
    Awake,
    /// The leader has stopped its heartbeats and asks the others whether they agree, or is about to.
    Resting { asked: bool },
    /// No heartbeats.
    Quiet,
    /// The leader makes sure of its majority.
    Waking { waiting: VecDeque<Waiting>, bytes: u64 },
}

/// The pulse of one replica.
pub(crate) struct Pulse {
    /// Whether the state is [`State::Awake`]; read without the lock on the way of every message.
    awake: AtomicBool,
    state: Mutex<State>,
    woke: Notify,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            awake: AtomicBool::new(true),
            state: Mutex::new(State::Awake),
            woke: Notify::new(),
        }
    }
}

impl Pulse {
    pub(crate) fn is_awake(&self) -> bool {
        self.awake.load(Ordering::SeqCst)
    }

    pub(crate) fn is_quiet(&self) -> bool {
        matches!(*self.state.lock(), State::Quiet)
    }

    fn is_resting(&self) -> bool {
        matches!(*self.state.lock(), State::Resting { .. })
    }

    fn set(&self, state: &mut State, new: State) {
        self.awake.store(matches!(new, State::Awake), Ordering::SeqCst);
        *state = new;
        if self.is_awake() {
            self.woke.notify_waiters();
        }
    }
}

impl Cell {
    /// The leader stops its heartbeats for now, to ask the others. False when it is not awake.
    pub(crate) fn begin_rest(&self) -> bool {
        self.fall(State::Resting { asked: false }, |state| {
            matches!(state, State::Awake)
        })
    }

    /// The others are asked now. False when it was woken meanwhile.
    pub(crate) fn asks_for_rest(&self) -> bool {
        self.fall(State::Resting { asked: true }, |state| {
            matches!(state, State::Resting { .. })
        })
    }

    /// A heartbeat from before the rest was answered. It may have come after the question and woken a follower, who
    /// would wait for the next one in vain.
    pub(crate) fn straggler_was_answered(self: &Arc<Self>) {
        let matters = !self.pulse.is_awake()
            && matches!(
                *self.pulse.state.lock(),
                State::Resting { asked: true } | State::Quiet
            );
        if matters {
            self.wake();
        }
    }

    /// Everybody agreed: the leader stays without heartbeats. False when it was woken meanwhile.
    pub(crate) fn rest_is_agreed(&self) -> bool {
        self.fall(State::Quiet, |state| matches!(state, State::Resting { .. }))
    }

    /// A follower expects no heartbeats from now on.
    pub(crate) fn follow_into_rest(&self) -> bool {
        self.fall(State::Quiet, |state| matches!(state, State::Awake | State::Quiet))
    }

    fn fall(&self, into: State, from: impl FnOnce(&State) -> bool) -> bool {
        let fell = self.with_running(|running| {
            let mut state = self.pulse.state.lock();
            let falls = from(&state);
            if falls {
                let was_quiet = matches!(*state, State::Quiet);
                self.pulse.set(&mut state, into);
                let is_quiet = matches!(*state, State::Quiet);
                let change = i64::from(is_quiet) - i64::from(was_quiet);
                self.shared.metrics.quiet.inc_by(change);
                running.raft.runtime_config().tick(false);
            }
            falls
        });
        fell.unwrap_or(false)
    }

    /// Lets openraft's timer run, unless the replica rests: it stood still while the group had one member.
    pub(crate) fn tick_while_awake(&self) {
        self.with_running(|running| {
            let state = self.pulse.state.lock();
            if matches!(*state, State::Awake | State::Waking { .. }) {
                running.raft.runtime_config().tick(true);
            }
        });
    }

    /// Whether the leader still waits for the agreement of the others.
    pub(crate) fn is_resting(&self) -> bool {
        self.pulse.is_resting()
    }

    /// Sends and expects heartbeats again. A leader whose lease is over makes sure of its majority first; what is
    /// proposed meanwhile waits.
    pub(crate) fn wake(self: &Arc<Self>) {
        if self.pulse.is_awake() {
            return;
        }
        let leads = self.leadership().leader_replica == Some(self.replica);
        self.with_running(|running| {
            let mut state = self.pulse.state.lock();
            match *state {
                State::Awake | State::Waking { .. } => return,
                State::Resting { .. } => {}
                State::Quiet => {
                    self.shared.metrics.quiet.dec();
                }
            }
            running.raft.runtime_config().tick(true);
            if !leads {
                self.pulse.set(&mut state, State::Awake);
                return;
            }
            let waiting = VecDeque::new();
            self.pulse.set(&mut state, State::Waking { waiting, bytes: 0 });
            drop(state);
            let (cell, raft) = (Arc::clone(self), running.raft.clone());
            let _runtime = self.shared.runtime.enter();
            let name = format!("waking of group {}", self.group.to_hex());
            self.shared
                .tasks
                .spawn(name, async move { cell.wake_leader(raft).await });
        });
    }

    /// Wakes the replica and waits for it, so that openraft takes what is not a proposal: changes of members, transfers.
    pub(crate) async fn until_awake(self: &Arc<Self>) {
        let mut woke = std::pin::pin!(self.pulse.woke.notified());
        woke.as_mut().enable();
        self.wake();
        if !self.pulse.is_awake() {
            // A leader without a majority cannot do it either way.
            let _ = tokio::time::timeout(WAKE_DEADLINE, woke).await;
        }
    }

    async fn wake_leader(self: Arc<Self>, raft: Raft) {
        let sure = async move { raft.ensure_linearizable(ReadPolicy::ReadIndex).await };
        let (tasks, runtime) = (&self.shared.tasks, &self.shared.runtime);
        let sure = crate::shield::to_the_end(tasks, runtime, "waking", WAKE_DEADLINE, sure).await;
        if !matches!(sure, Ok(Ok(_))) {
            tracing::debug!(group = %self.group.to_hex(), "leader woke without a majority");
        }
        self.shared.metrics.wakes.inc();
        self.offer_waiting();
    }

    /// Offers what waits, in order, until nothing is left; then the replica is awake.
    fn offer_waiting(self: &Arc<Self>) {
        loop {
            let batch = {
                let mut state = self.pulse.state.lock();
                match &mut *state {
                    State::Waking { waiting, bytes } if !waiting.is_empty() => {
                        *bytes = 0;
                        std::mem::take(waiting)
                    }
                    State::Waking { .. } => return self.pulse.set(&mut state, State::Awake),
                    State::Awake | State::Resting { .. } | State::Quiet => return,
                }
            };
            for one in batch {
                self.offer(one);
            }
        }
    }

    fn offer(self: &Arc<Self>, one: Waiting) {
        let done = Arc::new(Mutex::new(Some(one.done)));
        let answer = {
            let done = Arc::clone(&done);
            move |result| {
                let done = done.lock().take();
                if let Some(done) = done {
                    done(result);
                }
            }
        };
        if let Err(error) = self.propose_now(one.term, one.record, Box::new(answer.clone())) {
            answer(Err(error));
        }
    }

    /// Proposes when the replica is awake, and wakes it first otherwise.
    pub(crate) fn propose(
        self: &Arc<Self>,
        term: Term,
        record: Record,
        done: Done,
    ) -> Result<(), ProposeError> {
        if !self.pulse.is_awake() {
            self.wake();
            let mut state = self.pulse.state.lock();
            if let State::Waking { waiting, bytes } = &mut *state {
                let options = &self.shared.options;
                let more = record.payload.len() as u64;
                let is_full = *bytes + more > options.max_in_flight_bytes && *bytes > 0;
                if is_full || waiting.len() as u64 >= options.max_in_flight_entries {
                    return Err(ProposeError::TooMuchInFlight);
                }
                *bytes += more;
                waiting.push_back(Waiting { term, record, done });
                return Ok(());
            }
        }
        let result = self.propose_now(term, record, done);
        // It may have been put to rest since it was looked at; nobody would show the new entry to the others in time.
        if !self.pulse.is_awake() {
            self.wake();
        }
        result
    }

    /// The replica is opened, or ends: it is awake, and what waited is refused.
    pub(crate) fn reset_pulse(self: &Arc<Self>) {
        let old = {
            let mut state = self.pulse.state.lock();
            let old = std::mem::replace(&mut *state, State::Awake);
            self.pulse.awake.store(true, Ordering::SeqCst);
            self.pulse.woke.notify_waiters();
            old
        };
        if matches!(old, State::Quiet) {
            self.shared.metrics.quiet.dec();
        }
        if let State::Waking { waiting, .. } = old {
            for one in waiting {
                (one.done)(Err(ProposeError::Unavailable(
                    "the replica is not running".to_owned(),
                )));
            }
        }
    }
}
