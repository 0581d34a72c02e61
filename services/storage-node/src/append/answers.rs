//! Answers of one append stream, put into the order of each channel's batches.
//!
//! A batch takes a [`Reply`] when it comes in; whoever decides about it answers through that, from any thread and in any
//! order. What is answered early waits behind the earlier batches of its channel.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use ptah_types::{Sequence, Timestamp};

use crate::error::PartitionError;

/// A stored batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stored {
    /// Sequence of its first message.
    pub(crate) base_sequence: Sequence,
    /// Time of its messages.
    pub(crate) timestamp: Timestamp,
    /// Whether an earlier append had stored it.
    pub(crate) duplicate: bool,
}

/// What became of a batch.
pub(crate) type Outcome = Result<Stored, Box<PartitionError>>;

/// What became of the batch `number` of `channel`; number 0 is the opening of the channel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Answer {
    /// Channel.
    pub(crate) channel: u32,
    /// The batch's number.
    pub(crate) number: u64,
    /// What happened.
    pub(crate) outcome: Outcome,
}

/// Place of a channel in its stream's [`Answers`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lane(usize);

/// Answers of one stream. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answers(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    lanes: Vec<LaneState>,
    ready: Vec<Answer>,
    unanswered_bytes: u64,
    unanswered: usize,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct LaneState {
    channel: u32,
    /// Ticket of the front of `waiting`.
    first_ticket: u64,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    bytes: u64,
    outcome: Option<Outcome>,
}

/// The duty to answer one batch. Dropped without an answer it tells that the outcome is not known.
#[derive(Debug)]
#[must_use = "an accepted batch must be answered"]
pub(crate) struct Reply {
    answers: Answers,
    lane: Lane,
    ticket: u64,
    abandoned: Option<PartitionError>,
}

impl Answers {
    /// Adds a channel.
    pub(crate) fn open_lane(&self, channel: u32) -> Lane {
        let mut state = self.0.lock();
        state.lanes.push(LaneState {
            channel,
            first_ticket: 0,
            waiting: VecDeque::new(),
        });
        Lane(state.lanes.len() - 1)
    }

    /// Notes a batch of `bytes` that has to be answered. `abandoned` is the answer if the reply is dropped.
    pub(crate) fn expect(&self, lane: Lane, number: u64, bytes: u64, abandoned: PartitionError) -> Reply {
        let mut state = self.0.lock();
        state.unanswered_bytes += bytes;
        state.unanswered += 1;
        let lane_state = &mut state.lanes[lane.0];
        lane_state.waiting.push_back(Waiting {
            number,
            bytes,
            outcome: None,
        });
        Reply {
            answers: self.clone(),
            lane,
            ticket: lane_state.first_ticket + lane_state.waiting.len() as u64 - 1,
            abandoned: Some(abandoned),
        }
    }

    /// Refuses an opening, or answers for a channel that does not exist.
    pub(crate) fn refuse(&self, channel: u32, number: u64, error: PartitionError) {
        let mut state = self.0.lock();
        let outcome = Err(Box::new(error));
        state.ready.push(Answer {
            channel,
            number,
            outcome,
        });
        state.wake();
    }

    /// Payload bytes of batches without an answer.
    pub(crate) fn unanswered_bytes(&self) -> u64 {
        self.0.lock().unanswered_bytes
    }

    /// Batches without an answer and answers that were not taken yet.
    pub(crate) fn held(&self) -> usize {
        let state = self.0.lock();
        state.unanswered + state.ready.len()
    }

    /// Takes all answers that may leave into `taken`, which is empty; pending when there are none.
    pub(crate) fn poll_take(&self, cx: &Context<'_>, taken: &mut Vec<Answer>) -> Poll<()> {
        let mut state = self.0.lock();
        if !state.ready.is_empty() {
            std::mem::swap(&mut state.ready, taken);
            return Poll::Ready(());
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    fn answer(&self, lane: Lane, ticket: u64, outcome: Outcome) {
        let mut state = self.0.lock();
        let state = &mut *state;
        let lane = &mut state.lanes[lane.0];
        let place = usize::try_from(ticket - lane.first_ticket).unwrap_or(usize::MAX);
        let Some(waiting) = lane.waiting.get_mut(place) else {
            return;
        };
        waiting.outcome = Some(outcome);
        state.unanswered_bytes -= waiting.bytes;
        state.unanswered -= 1;
        let mut released = false;
        while let Some(Waiting { outcome: Some(_), .. }) = lane.waiting.front() {
            let Some(Waiting {
                number,
                outcome: Some(outcome),
                ..
            }) = lane.waiting.pop_front()
            else {
                break;
            };
            lane.first_ticket += 1;
            released = true;
            state.ready.push(Answer {
                channel: lane.channel,
                number,
                outcome,
            });
        }
        if released {
            state.wake();
        }
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Reply {
    /// Answers.
    pub(crate) fn answer(mut self, outcome: Outcome) {
        self.abandoned = None;
        self.answers.answer(self.lane, self.ticket, outcome);
    }

    /// Answers with an error.
    pub(crate) fn refuse(self, error: PartitionError) {
        self.answer(Err(Box::new(error)));
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(error) = self.abandoned.take() {
            self.answers.answer(self.lane, self.ticket, Err(Box::new(error)));
        }
    }
}

#[cfg(test)]
mod tests {
    use ptah_types::RaftGroupId;

    use super::*;

    fn lost() -> PartitionError {
        PartitionError::OutcomeUnknown {
            group: RaftGroupId::new(1).unwrap(),
        }
    }

    fn stored(sequence: u64) -> Outcome {
        Ok(Stored {
            base_sequence: Sequence::new(sequence).unwrap(),
            timestamp: Timestamp(7),
            duplicate: false,
        })
    }

    fn numbers(answers: &Answers) -> Vec<(u32, u64)> {
        let mut taken = Vec::new();
        let _ = answers.poll_take(&Context::from_waker(Waker::noop()), &mut taken);
        taken
            .iter()
            .map(|answer| (answer.channel, answer.number))
            .collect()
    }

    #[test]
    fn answers_of_a_channel_leave_in_the_order_of_its_batches() {
        let answers = Answers::default();
        let (a, b) = (answers.open_lane(1), answers.open_lane(2));
        let first = answers.expect(a, 1, 10, lost());
        let second = answers.expect(a, 2, 10, lost());
        let other = answers.expect(b, 1, 10, lost());
        second.refuse(lost());
        other.answer(stored(1));
        assert_eq!(numbers(&answers), [(2, 1)]);
        first.answer(stored(1));
        assert_eq!(numbers(&answers), [(1, 1), (1, 2)]);
    }

    #[test]
    fn a_reply_that_is_dropped_is_answered_as_unknown() {
        let answers = Answers::default();
        let lane = answers.open_lane(1);
        drop(answers.expect(lane, 1, 10, lost()));
        let mut taken = Vec::new();
        assert!(
            answers
                .poll_take(&Context::from_waker(Waker::noop()), &mut taken)
                .is_ready()
        );
        assert_eq!(taken[0].outcome, Err(Box::new(lost())));
    }

    #[test]
    fn bytes_are_free_again_once_a_batch_is_answered() {
        let answers = Answers::default();
        let lane = answers.open_lane(1);
        let first = answers.expect(lane, 1, 10, lost());
        let second = answers.expect(lane, 2, 5, lost());
        assert_eq!((answers.unanswered_bytes(), answers.held()), (15, 2));
        second.answer(stored(2));
        assert_eq!(answers.unanswered_bytes(), 10);
        first.answer(stored(1));
        assert_eq!((answers.unanswered_bytes(), answers.held()), (0, 2));
        numbers(&answers);
        assert_eq!(answers.held(), 0);
    }
}
