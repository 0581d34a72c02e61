//! The way of one partition's messages: backlog, pipeline, the channel in use, and the task that finds the leader.
//!
//! The hot path is function calls: [`PartitionAppender::submit`] encodes and sends in the caller's task, and an answer
//! sends the next batch in the link's task. What collects while the window is full becomes the next batch. The partition's
//! own task only acts when something is wrong or out of time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use ptah_service::long_step;
use ptah_types::limits::TARGET_BATCH_BYTES;
use ptah_types::{NodeId, PartitionKey, RaftGroupId, SessionId};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::AppendShared;
use super::answer::{Answers, Reason, effect_of, fail_submissions};
use super::build::{Ticket, encode, take_parts};
use super::link::{AppendAnswer, AppendLink, AppendRefusal, Channel};
use super::pipeline::{BindingId, Consequence, Pipeline};
use crate::error::GatewayError;
use crate::produce::Submission;

/// Batches under way that hide the storage's commit; more are only sent when they are full.
const EAGER_BATCHES: usize = 2;

/// How long a partition without a leader may have more waiting than its share.
const PATIENCE: Duration = Duration::from_secs(5);

/// What an appender is for.
#[derive(Debug, Clone)]
pub struct AppendTarget {
    /// Station, for messages to people.
    pub station: Arc<str>,
    /// Partition.
    pub partition: PartitionKey,
    /// Its Raft group.
    pub group: RaftGroupId,
}

/// Sends the messages of one partition in order.
pub struct PartitionAppender {
    target: AppendTarget,
    /// Newest generation of the partition count that messages were routed by.
    generation: AtomicU64,
    pub(super) shared: Arc<AppendShared>,
    pub(super) state: Mutex<State>,
    pub(super) wake: Notify,
}

pub(super) struct State {
    pub(super) backlog: VecDeque<Submission>,
    backlog_bytes: usize,
    pub(super) pipeline: Pipeline<Ticket>,
    pub(super) bound: Option<(Arc<AppendLink>, Channel)>,
    bindings: u64,
    building: bool,
    pub(super) session: SessionId,
    /// Refusals and lost links since the last stored batch.
    pub(super) failures: u32,
    pub(super) not_before: Option<Instant>,
    /// Since when there is no leader to send to although there is something to send.
    unbound_since: Option<Instant>,
    pub(super) failed_in_term: u64,
    pub(super) reason: Reason,
    retired: Option<Arc<GatewayError>>,
}

impl PartitionAppender {
    /// An appender without a leader yet.
    pub fn new(target: AppendTarget, shared: Arc<AppendShared>) -> Arc<Self> {
        let session = shared.sessions.current();
        let state = State {
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            pipeline: Pipeline::new(shared.settings.window_batches),
            bound: None,
            bindings: 0,
            building: false,
            session,
            failures: 0,
            not_before: None,
            unbound_since: None,
            failed_in_term: 0,
            reason: Reason::unavailable("no leader is known"),
            retired: None,
        };
        Arc::new(Self {
            target,
            generation: AtomicU64::new(0),
            shared,
            state: Mutex::new(state),
            wake: Notify::new(),
        })
    }

    /// What it is for.
    pub fn target(&self) -> &AppendTarget {
        &self.target
    }

    /// Generation of the partition count to tell the partition.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Messages are routed by that generation of the partition count.
    pub fn routed_by(&self, generation: u64) {
        self.generation.fetch_max(generation, Ordering::Relaxed);
    }

    /// Takes messages to send after those submitted before. They are answered in any case.
    pub fn submit(self: &Arc<Self>, submission: Submission) {
        let mut state = self.state.lock();
        if let Some(error) = state.retired.clone().or_else(|| self.overrun(&state)) {
            drop(state);
            fail_submissions([submission], &error);
            return;
        }
        let idle = state.bound.is_none();
        if idle && state.unbound_since.is_none() {
            state.unbound_since = Some(Instant::now());
        }
        state.backlog_bytes += submission.bytes;
        state.backlog.push_back(submission);
        drop(state);
        if idle {
            self.wake.notify_one();
        } else {
            self.pump();
        }
    }

    /// One partition without a leader must not take the memory of all the others: after a while without one, what is over
    /// its share is refused instead of waiting.
    fn overrun(&self, state: &State) -> Option<Arc<GatewayError>> {
        let without_leader = state.unbound_since.filter(|since| since.elapsed() >= PATIENCE)?;
        (state.backlog_bytes >= self.shared.settings.backlog_bytes).then(|| {
            let message = format!(
                "partition {} of station `{}` has no leader for {} ms and {} bytes wait for one; nothing is stored, retry later",
                self.target.partition.partition,
                self.target.station,
                without_leader.elapsed().as_millis(),
                state.backlog_bytes
            );
            Arc::new(GatewayError::Unavailable(message.into()))
        })
    }

    /// Sends what may be sent. Encodes outside of the lock; one caller at a time does it, the others leave their messages
    /// in the backlog for its next turn.
    pub(super) fn pump(&self) {
        loop {
            let parts = {
                let mut state = self.state.lock();
                state.send_ready();
                if !state.may_build() {
                    return;
                }
                state.building = true;
                let parts = take_parts(&mut state.backlog);
                state.backlog_bytes -= parts.iter().map(|part| part.bytes).sum::<usize>();
                parts
            };
            let bytes = parts.iter().map(|part| part.bytes).sum();
            let built = long_step(bytes, || encode(parts));
            let mut state = self.state.lock();
            state.building = false;
            for submission in built.rest.into_iter().rev() {
                state.backlog_bytes += submission.bytes;
                state.backlog.push_front(submission);
            }
            if let Some((batch, ticket, deadline)) = built.batch {
                self.shared.metrics.batches.inc();
                self.shared.metrics.batch_messages.observe(f64::from(batch.count));
                state.pipeline.push(batch, ticket, deadline);
            }
            if let Some(error) = state.retired.clone() {
                let mut answers = Answers::new();
                state.pipeline.abandon(&mut answers);
                drop(state);
                self.give(answers, &Reason::unavailable(&error.to_string()));
            }
        }
    }

    /// An answer of the node came on the channel of that binding.
    pub(super) fn answered(self: &Arc<Self>, binding: BindingId, answer: AppendAnswer) {
        let mut answers = Answers::new();
        let mut state = self.state.lock();
        if state.pipeline.binding() != Some(binding) {
            return;
        }
        match answer.outcome {
            Ok(at) => {
                if let Some(stored) = state.pipeline.stored(answer.number, at) {
                    state.failures = 0;
                    answers.push(stored);
                    drop(state);
                } else {
                    self.shared.metrics.out_of_order.inc();
                    state.reason = Reason::unavailable("the node answered out of order");
                    state.pipeline.unbind();
                    self.unbound(state, None);
                }
            }
            Err(refusal) => self.refused(state, answer.number, refusal, &mut answers),
        }
        self.give_out(answers);
        self.pump();
    }

    fn refused(
        &self,
        mut state: parking_lot::MutexGuard<'_, State>,
        number: u64,
        refusal: AppendRefusal,
        answers: &mut Answers,
    ) {
        self.shared.metrics.refusals.inc();
        state.reason = Reason {
            kind: refusal.kind,
            text: refusal.message.as_str().into(),
        };
        let node = state.bound.as_ref().map(|(link, _)| link.node);
        let consequence = if number == 0 {
            state.pipeline.opening_refused();
            Consequence::default()
        } else {
            state
                .pipeline
                .refused(number, effect_of(&refusal, number), answers)
        };
        if consequence.new_session {
            state.session = self.shared.sessions.renew(state.session);
        }
        if let (Some(node), Some(leader)) = (node, refusal.leader) {
            self.shared.routing.hinted(self.target.group, node, leader);
        }
        self.unbound(state, refusal.retry_after);
    }

    /// The stream of that binding is lost.
    pub(super) fn link_lost(&self, binding: BindingId, why: &str) {
        let mut state = self.state.lock();
        if state.pipeline.binding() == Some(binding) {
            state.reason = Reason::unavailable(why);
            state.pipeline.unbind();
            self.unbound(state, None);
        }
    }

    /// After the pipeline's binding ended: gives the channel back and lets the task look for the leader.
    pub(super) fn unbound(
        &self,
        mut state: parking_lot::MutexGuard<'_, State>,
        retry_after: Option<Duration>,
    ) {
        state.failed_in_term = self.shared.routing.route(self.target.group).term;
        let wait = retry_after.unwrap_or_else(|| self.shared.backoff(state.failures));
        state.failures = state.failures.saturating_add(1);
        state.not_before = Some(Instant::now() + wait);
        let bound = state.bound.take();
        if bound.is_some() && !(state.backlog.is_empty() && state.pipeline.is_empty()) {
            state.unbound_since = Some(Instant::now());
        }
        drop(state);
        if let Some((link, channel)) = bound {
            link.close_channel(&channel);
        }
        self.wake.notify_one();
    }

    /// Uses the link from now on, if it is open.
    pub(super) fn bind(self: &Arc<Self>, link: &Arc<AppendLink>) -> bool {
        let mut state = self.state.lock();
        if state.session != link.session || state.retired.is_some() {
            return false;
        }
        state.bindings += 1;
        let binding = BindingId(state.bindings);
        let Some(channel) = link.open_channel(self, binding) else {
            return false;
        };
        state.pipeline.bind(binding);
        state.bound = Some((Arc::clone(link), channel));
        state.not_before = None;
        state.unbound_since = None;
        drop(state);
        self.pump();
        true
    }

    /// Node in use.
    pub(super) fn bound_node(&self) -> Option<NodeId> {
        self.state.lock().bound.as_ref().map(|(link, _)| link.node)
    }

    /// Gives up what is out of time.
    pub(super) fn expire(&self, now: Instant) {
        let mut answers = Answers::new();
        let mut late = Vec::new();
        let mut state = self.state.lock();
        let consequence = state.pipeline.expire(now, &mut answers);
        while state.backlog.front().is_some_and(|front| front.deadline <= now) {
            let submission = state.backlog.pop_front();
            state.backlog_bytes -= submission.as_ref().map_or(0, |submission| submission.bytes);
            late.extend(submission);
        }
        if consequence.new_session {
            state.session = self.shared.sessions.renew(state.session);
        }
        let reason = state.reason.clone();
        if consequence.unbound {
            self.unbound(state, None);
        } else {
            drop(state);
        }
        if !late.is_empty() {
            fail_submissions(late, &Arc::new(self.unavailable(&reason)));
        }
        self.give(answers, &reason);
    }

    /// When [`PartitionAppender::expire`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let state = self.state.lock();
        let waiting = state.backlog.front().map(|front| front.deadline);
        [waiting, state.pipeline.deadline()].into_iter().flatten().min()
    }

    /// Ends it: the station is gone or the process stops.
    pub fn retire(&self, error: GatewayError) {
        let error = Arc::new(error);
        let mut answers = Answers::new();
        let mut state = self.state.lock();
        state.retired = Some(Arc::clone(&error));
        state.pipeline.abandon(&mut answers);
        state.backlog_bytes = 0;
        let waiting = std::mem::take(&mut state.backlog);
        self.unbound(state, None);
        fail_submissions(waiting, &error);
        self.give(answers, &Reason::unavailable(&error.to_string()));
    }

    /// Whether nothing waits or is under way.
    pub fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.backlog.is_empty() && state.pipeline.is_empty() && !state.building
    }

    /// Whether it was ended.
    pub fn is_retired(&self) -> bool {
        self.state.lock().retired.is_some()
    }
}

impl State {
    /// Puts numbered batches on the channel.
    fn send_ready(&mut self) {
        let Some((_, channel)) = &self.bound else { return };
        while let Some(sending) = self.pipeline.next_sending() {
            channel.send(sending.number, sending.batch);
        }
    }

    fn may_build(&self) -> bool {
        let eager = self.pipeline.len() < EAGER_BATCHES || self.backlog_bytes >= TARGET_BATCH_BYTES;
        self.bound.is_some()
            && !self.building
            && !self.backlog.is_empty()
            && self.pipeline.has_room()
            && eager
    }
}
