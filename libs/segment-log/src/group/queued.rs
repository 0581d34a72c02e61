//! From a group's operations to the queue, in order: operations behind a large frame wait for it.

use std::sync::Arc;

use super::GroupLog;
use super::state::GroupState;
use crate::Frame;
use crate::segment::Place;
use crate::types::Work;
use crate::wal::{Answer, Completion, Effect, Record};

/// One operation of a group.
pub(crate) struct Op {
    pub(crate) number: u64,
    pub(crate) body: OpBody,
    pub(crate) effect: Effect,
    pub(crate) bytes: u64,
    pub(crate) done: Answer,
}

pub(crate) enum OpBody {
    Frames(Vec<Frame>),
    Record(Box<Record>),
    Large { frame: Frame, place: Place },
}

/// A large frame on its way to its segment.
pub(crate) struct LargeJob {
    pub(crate) group: Arc<GroupLog>,
    pub(crate) number: u64,
    pub(crate) frame: Frame,
    pub(crate) place: Place,
    /// May start when this record is durable.
    pub(crate) after: u64,
    /// Bytes of the frame that are written.
    pub(crate) written: u64,
    /// Failed flushes when the first byte was written.
    pub(crate) failed_flushes: u64,
    pub(crate) effect: Effect,
    pub(crate) bytes: u64,
    pub(crate) done: Answer,
}

impl GroupLog {
    /// Adds an operation behind all earlier ones of the group. What should be woken once the lock is released.
    pub(crate) fn enqueue(self: &Arc<Self>, state: &mut GroupState, op: Op) -> Option<Work> {
        self.shared.add_queued(op.bytes);
        if state.large_outstanding {
            state.blocked.push_back(op);
            return None;
        }
        self.submit(state, op)
    }

    fn submit(self: &Arc<Self>, state: &mut GroupState, op: Op) -> Option<Work> {
        let group = self.spec.group.get();
        let number = op.number;
        let completion = |effect, done| Completion {
            group: self.clone(),
            number,
            effect,
            bytes: op.bytes,
            done,
        };
        let was_empty = match op.body {
            OpBody::Frames(frames) => {
                let len = frames.iter().map(Frame::encoded_len).sum();
                let fill = |unit: &mut crate::wal::Unit| unit.push_frames(group, number, &frames);
                self.shared.queue.push(len, completion(op.effect, op.done), fill)
            }
            OpBody::Record(record) => {
                let fill = |unit: &mut crate::wal::Unit| unit.push_record(group, number, &record);
                // The longest small record is a truncation.
                self.shared.queue.push(256, completion(op.effect, op.done), fill)
            }
            OpBody::Large { frame, place } => {
                state.large_outstanding = true;
                let (group, after) = (self.clone(), state.barrier.min(number - 1));
                let (bytes, effect, done) = (op.bytes, op.effect, op.done);
                let job = LargeJob {
                    group,
                    number,
                    frame,
                    place,
                    after,
                    written: 0,
                    failed_flushes: 0,
                    effect,
                    bytes,
                    done,
                };
                self.shared.large.push(job);
                return Some(Work::Large);
            }
        };
        was_empty.then_some(Work::Commit)
    }

    /// A large frame is in its segment: its reference goes to the write-ahead log, and what waited behind it follows.
    pub(crate) fn large_written(self: &Arc<Self>, job: LargeJob) -> Vec<Work> {
        let mut works = Vec::new();
        let mut state = self.state.lock();
        let number = job.number;
        state.tail.mark(|entry| entry.record == number);
        state.update_written();
        state.large_outstanding = false;
        let record = Record::AppendLarge {
            segment: job.place.segment,
            position: job.place.position,
            header: crate::FrameHeader::of(&job.frame),
        };
        let body = OpBody::Record(Box::new(record));
        let op = Op {
            number,
            body,
            effect: job.effect,
            bytes: job.bytes,
            done: job.done,
        };
        works.extend(self.submit(&mut state, op));
        while !state.large_outstanding {
            let Some(op) = state.blocked.pop_front() else {
                break;
            };
            works.extend(self.submit(&mut state, op));
        }
        self.account(&mut state);
        works
    }
}
