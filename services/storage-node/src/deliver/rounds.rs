//! Acks and rounds of replication: what a group must have in the log before it acts or answers.
//!
//! One round per group is in flight at a time. Acks that nobody waits for are collected for a few milliseconds; an ack
//! with an answer goes at once, or with the next round when one is in flight.

use std::sync::Arc;
use std::time::Duration;

use ptah_partition::{Replicate, Round, SequenceRange, Urgency, encode_commands};
use ptah_raft::{Committed, Outcome, ProposeError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::group::{GroupDelivery, GroupState};
use super::outbox::{DeliverEvent, Outbox};
use crate::error::PartitionError;

/// Acks with an answer that may wait at a time, per group and partition.
const MAX_WAITING: usize = 65_536;
/// Time before a round that could not be proposed is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// Who waits for an acknowledgement to be stored.
#[derive(Debug)]
pub(crate) enum AckReply {
    /// A delivery stream.
    Stream {
        /// The stream.
        outbox: Outbox,
        /// The pull.
        pull_id: u64,
        /// Id from the acknowledgement.
        confirm_id: u64,
    },
    /// A call.
    Call(oneshot::Sender<Result<(), PartitionError>>),
}

/// An ack that waits for its round.
pub(super) struct Waiting {
    settled_by: Round,
    ranges: Vec<SequenceRange>,
    pub(super) reply: AckReply,
}

impl AckReply {
    /// Answers.
    pub(crate) fn answer(self, result: Result<(), PartitionError>) {
        match self {
            Self::Stream {
                outbox,
                pull_id,
                confirm_id,
            } => outbox.push(DeliverEvent::Acked {
                pull_id,
                confirm_id,
                error: result.err().map(Box::new),
            }),
            // A caller that has gone does not need the answer.
            Self::Call(sender) => drop(sender.send(result)),
        }
    }
}

impl GroupDelivery {
    /// Acknowledges, whoever holds the messages. With a reply it is answered once it is stored.
    pub(crate) fn ack(self: &Arc<Self>, ranges: Vec<SequenceRange>, reply: Option<AckReply>) {
        let mut state = self.state.lock();
        if let Some(ended) = state.ended.clone() {
            drop(state);
            if let Some(reply) = reply {
                reply.answer(Err(ended));
            }
            return;
        }
        if !self.has_pulls() {
            self.look_at_partition(&mut state);
        }
        let outcome = state.deliveries.ack(&ranges);
        self.core.shared.metrics.acked_messages.inc_by(outcome.newly);
        let confirmed = reply.is_some();
        let answer = reply.and_then(|reply| {
            if let Some(sequence) = GroupState::first_refused(&outcome.refused, &ranges) {
                return Some((reply, Err(PartitionError::NotDelivered(sequence))));
            }
            let Some(settled_by) = outcome.settled_by else {
                return Some((reply, Ok(())));
            };
            if state.waiting.len() >= MAX_WAITING {
                return Some((reply, Err(too_many_waiting())));
            }
            state.waiting.push_back(Waiting {
                settled_by,
                ranges,
                reply,
            });
            None
        });
        if confirmed {
            self.replicate(&mut state);
        }
        self.hand_out(&mut state);
        self.replicate_when_due(&mut state);
        self.set_alarm(&state);
        drop(state);
        if let Some((reply, result)) = answer {
            reply.answer(result);
        }
    }

    /// Proposes a round when it is due: at once if a redelivery waits for it, soon for acks, later for the watermark.
    pub(super) fn replicate_when_due(self: &Arc<Self>, state: &mut GroupState) {
        if state.ended.is_some() {
            return;
        }
        let limits = &self.core.shared.limits;
        let wait = match state.deliveries.urgency() {
            Urgency::Nothing => return,
            Urgency::Lazy => limits.watermark_collect,
            Urgency::Now if state.deliveries.has_redeliveries_to_count() => Duration::ZERO,
            Urgency::Now => limits.ack_collect,
        };
        if wait.is_zero() {
            return self.replicate(state);
        }
        let at = Instant::now() + wait;
        if state.flush_at.is_none_or(|flush_at| at < flush_at) {
            state.flush_at = Some(at);
            self.core.alarm.set(at);
        }
    }

    /// Proposes the next round, unless one is in flight.
    pub(super) fn replicate(self: &Arc<Self>, state: &mut GroupState) {
        let Some(Replicate { round, commands }) = state.deliveries.to_replicate() else {
            return;
        };
        state.flush_at = None;
        let commands = match encode_commands(&commands) {
            Ok(commands) => commands,
            Err(error) => {
                tracing::error!(group = %self.id, %error, "round of acks cannot be encoded");
                state.deliveries.failed(round);
                state.flush_at = Some(Instant::now() + RETRY);
                return;
            }
        };
        let group = Arc::clone(self);
        let done = Box::new(move |result| group.round_decided(round, result));
        let now = self.core.shared.ports.clock.now();
        if self
            .core
            .replica
            .propose_commands(self.core.term, commands, now, done)
            .is_err()
        {
            state.deliveries.failed(round);
            state.flush_at = Some(Instant::now() + RETRY);
            self.set_alarm(state);
        }
    }

    fn round_decided(self: Arc<Self>, round: Round, result: Result<Committed, ProposeError>) {
        let now = self.core.shared.steady.now();
        let mut state = self.state.lock();
        if state.ended.is_some() {
            return;
        }
        let applied = match result {
            Ok(Committed {
                outcome: Outcome::Commands(applied),
                ..
            }) => applied,
            Ok(_) | Err(_) => {
                state.deliveries.failed(round);
                state.flush_at = Some(Instant::now() + RETRY);
                self.set_alarm(&state);
                return;
            }
        };
        let confirmed = state.deliveries.confirmed(round, &applied, now);
        if confirmed.group_is_gone {
            drop(state);
            return self.end(&PartitionError::UnknownGroup(self.id));
        }
        state.route(confirmed.leases);
        let mut answers = Vec::new();
        while let Some(waiting) = state.waiting.pop_front_if(|waiting| waiting.settled_by <= round) {
            let refused = GroupState::first_refused(&confirmed.refused_acks, &waiting.ranges);
            answers.push((waiting.reply, refused.map_or(Ok(()), |_| Err(too_many_ranges()))));
        }
        self.hand_out(&mut state);
        if state.waiting.is_empty() {
            self.replicate_when_due(&mut state);
        } else {
            self.replicate(&mut state);
        }
        self.set_alarm(&state);
        drop(state);
        answers
            .into_iter()
            .for_each(|(reply, result)| reply.answer(result));
    }
}

fn too_many_waiting() -> PartitionError {
    PartitionError::Exhausted {
        what: "too many acknowledgements wait for their answer",
        retry_after: Duration::from_millis(50),
    }
}

fn too_many_ranges() -> PartitionError {
    PartitionError::Exhausted {
        what: "the consumer group has too many separate ranges of acknowledged messages; acknowledge older ones first",
        retry_after: Duration::from_secs(1),
    }
}
