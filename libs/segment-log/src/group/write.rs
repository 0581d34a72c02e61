//! Append, vote, committed hint, purge, drop: from a call to a record.

use std::io;
use std::sync::Arc;

use ptah_types::{LogId, Sequence};

use super::GroupLog;
use super::queued::{Op, OpBody};
use super::state::GroupState;
use crate::store::count;
use crate::types::{VoteRecord, Work};
use crate::wal::{Completion, Effect, RECORD_HEADER_LEN, Record, record_room};
use crate::{AppendRefused, FlushDone, Frame, FrameKind, RefusedReason};

/// Bytes that a small record counts for in the queue.
const SMALL_RECORD_BYTES: u64 = 64;

impl GroupLog {
    /// Appends frames: consecutive indexes behind the last one; any first index in an empty, never purged log. They are
    /// readable when this returns; `done` is called once they survive power loss. Never blocks on the disk.
    ///
    /// Payload checksums are trusted here: who takes frames from a peer verifies them with [`Frame::decode`].
    pub fn append(self: &Arc<Self>, frames: Vec<Frame>, done: FlushDone) -> Result<(), AppendRefused> {
        let bytes = frames.iter().map(|frame| frame.encoded_len() as u64).sum();
        let mut state = self.state.lock();
        if let Err(reason) = self.admit(&state, &frames, bytes) {
            drop(state);
            count(&self.shared.counters.refused_appends, 1);
            let checkpoint = matches!(reason, RefusedReason::WouldExceed { .. });
            self.shared
                .wake_all(checkpoint.then(|| self.shared.want_checkpoint()).flatten());
            return Err(AppendRefused { reason, frames, done });
        }
        if frames.is_empty() {
            drop(state);
            done(Ok(()));
            return Ok(());
        }
        let works = self.take_frames(&mut state, frames, done);
        self.account(&mut state);
        drop(state);
        self.shared.wake_all(works.into_iter().flatten());
        self.shared.wake_all(self.shared.want_checkpoint());
        Ok(())
    }

    fn admit(&self, state: &GroupState, frames: &[Frame], bytes: u64) -> Result<(), RefusedReason> {
        if state.dropped {
            return Err(RefusedReason::Failed(format!(
                "group {} was dropped",
                self.spec.group.to_hex()
            )));
        }
        state.check(&self.spec, frames)?;
        if let Some(why) = &state.unwritable {
            self.shared.want_room();
            return Err(RefusedReason::Unwritable { why: why.clone() });
        }
        if state.installing {
            let limit_bytes = self.shared.options.queue_bytes;
            return Err(RefusedReason::WouldExceed {
                queued_bytes: self.shared.queued(),
                limit_bytes,
            });
        }
        self.shared.admit(bytes, self.spared_reserve(frames))
    }

    /// Bytes of the reserve that these frames must leave alone. Messages fill a disk and get nothing of the reserve;
    /// commands, which also free it, get half; entries that elect leaders, change members or have no effect get all.
    fn spared_reserve(&self, frames: &[Frame]) -> u64 {
        let spared = |frame: &Frame| self.shared.spared_reserve(frame.kind, frame.payload.len() as u64);
        frames.iter().map(spared).max().unwrap_or(0)
    }

    /// Whether frames of a kind with so many bytes of payload would find room on the disk now. Takes nothing.
    pub fn has_room(&self, kind: FrameKind, payload_bytes: u64) -> bool {
        let spared = self.shared.spared_reserve(kind, payload_bytes);
        self.shared.has_room(payload_bytes, spared)
    }

    fn take_frames(
        self: &Arc<Self>,
        state: &mut GroupState,
        frames: Vec<Frame>,
        done: FlushDone,
    ) -> [Option<Work>; 2] {
        let mut works = [None, None];
        let mut done = Some(done);
        let mut rest = frames.into_iter().peekable();
        while rest.peek().is_some() {
            let (run, large) = self.next_run(&mut rest);
            let done = if rest.peek().is_none() { done.take() } else { None };
            let number = state.take_number();
            let work = if large {
                self.take_large(state, run, number, done)
            } else {
                self.take_small(state, run, number, done)
            };
            match work {
                Some(Work::Large) => works[1] = work,
                Some(_) => works[0] = work,
                None => {}
            }
        }
        works
    }

    /// Frames that go into one record; a large frame goes alone.
    fn next_run(&self, rest: &mut std::iter::Peekable<std::vec::IntoIter<Frame>>) -> (Vec<Frame>, bool) {
        let is_large = |frame: &Frame| frame.payload.len() >= self.shared.options.large_bytes;
        let mut room = record_room(self.shared.options.unit_bytes);
        let mut run = Vec::new();
        while let Some(frame) = rest.next_if(|frame| {
            let first_large = run.is_empty() && is_large(frame);
            first_large || (!is_large(frame) && (run.is_empty() || frame.encoded_len() <= room))
        }) {
            room = room.saturating_sub(frame.encoded_len());
            let large = is_large(&frame);
            run.push(frame);
            if large {
                return (run, true);
            }
        }
        (run, false)
    }

    fn take_small(
        self: &Arc<Self>,
        state: &mut GroupState,
        run: Vec<Frame>,
        number: u64,
        done: Option<FlushDone>,
    ) -> Option<Work> {
        let len: usize = run.iter().map(Frame::encoded_len).sum();
        let bytes = len as u64;
        let effect = run
            .last()
            .map_or(Effect::Nothing, |last| Effect::Append(last.log_id()));
        let work = if state.large_outstanding {
            let body = OpBody::Frames(run.clone());
            self.enqueue(
                state,
                Op {
                    number,
                    body,
                    effect,
                    bytes,
                    done: done.into(),
                },
            )
        } else {
            // The frames go straight into the unit's buffer: no copy of the list.
            self.shared.add_queued(bytes);
            let completion = Completion {
                group: self.clone(),
                number,
                effect,
                bytes,
                done: done.into(),
            };
            let group = self.spec.group.get();
            let fill = |unit: &mut crate::wal::Unit| unit.push_frames(group, number, &run);
            self.shared
                .queue
                .push(len + RECORD_HEADER_LEN, completion, fill)
                .then_some(Work::Commit)
        };
        for frame in run {
            state.push(frame, number);
        }
        work
    }

    fn take_large(
        self: &Arc<Self>,
        state: &mut GroupState,
        run: Vec<Frame>,
        number: u64,
        done: Option<FlushDone>,
    ) -> Option<Work> {
        let mut work = None;
        let mut done = done;
        for frame in run {
            let bytes = frame.encoded_len() as u64;
            let effect = Effect::Append(frame.log_id());
            state.push(frame.clone(), number);
            let Some(place) = state.tail.iter().next_back().map(|entry| entry.place) else {
                continue;
            };
            count(&self.shared.counters.large_frames, 1);
            let body = OpBody::Large { frame, place };
            work = self.enqueue(
                state,
                Op {
                    number,
                    body,
                    effect,
                    bytes,
                    done: done.take().into(),
                },
            );
        }
        work
    }

    /// Adds a small record; `change` updates the state under the same lock.
    pub(super) fn small(
        self: &Arc<Self>,
        state: &mut GroupState,
        record: Record,
        effect: Effect,
        done: Option<FlushDone>,
    ) -> Option<Work> {
        let number = state.take_number();
        match &record {
            Record::Truncate { .. } => {
                state.barrier = number;
                state.last_truncate = number;
            }
            Record::Purge(_) | Record::DropMessages { .. } => state.dropped_by(number),
            _ => {}
        }
        let body = OpBody::Record(Box::new(record));
        self.enqueue(
            state,
            Op {
                number,
                body,
                effect,
                bytes: SMALL_RECORD_BYTES,
                done: done.into(),
            },
        )
    }

    /// Why no operation is taken any more, if so.
    pub(super) fn refusal(&self, state: &GroupState) -> Option<io::Error> {
        if state.dropped {
            let text = format!("group {} was dropped or given up", self.spec.group.to_hex());
            return Some(io::Error::new(io::ErrorKind::NotFound, text));
        }
        self.shared.check_failed().err()
    }

    /// Saves the vote, in order with all other operations of the group.
    pub fn save_vote(self: &Arc<Self>, vote: VoteRecord, done: FlushDone) {
        let mut state = self.state.lock();
        if let Some(error) = self.refusal(&state) {
            drop(state);
            return done(Err(error));
        }
        state.vote = Some(vote);
        let work = self.small(&mut state, Record::Vote(vote), Effect::Vote(vote), Some(done));
        drop(state);
        self.shared.wake_all(work);
    }

    /// Saves the committed hint; durable some time after the frames before it. A hint that names no entry of the log, or an
    /// older one than before, is passed over.
    pub fn save_committed(self: &Arc<Self>, committed: LogId) {
        let mut state = self.state.lock();
        let newer = state.committed.is_none_or(|known| known < committed);
        let ours = state.log_id_at(committed.index) == Some(committed);
        if !newer || !ours || self.refusal(&state).is_some() {
            return;
        }
        state.committed = Some(committed);
        let effect = Effect::Committed(committed);
        let work = self.small(&mut state, Record::Committed(committed), effect, None);
        drop(state);
        self.shared.wake_all(work);
    }

    /// Removes the entries up to `upto` from the Raft log; messages stay readable. May be above the last entry: the log is
    /// then empty and continues behind `upto`.
    pub fn purge(self: &Arc<Self>, upto: LogId, done: FlushDone) {
        let mut state = self.state.lock();
        if let Some(error) = self.refusal(&state) {
            drop(state);
            return done(Err(error));
        }
        if state.purged.is_some_and(|purged| upto.index <= purged.index) {
            drop(state);
            return done(Ok(()));
        }
        if state.installing {
            drop(state);
            let text = "a snapshot is being installed; purge after it";
            return done(Err(io::Error::new(io::ErrorKind::WouldBlock, text)));
        }
        let dir = super::data_dir(&self.dir, state.dir_number);
        state.purge(upto, &dir);
        let work = self.small(&mut state, Record::Purge(upto), Effect::Purge(upto), Some(done));
        self.account(&mut state);
        drop(state);
        self.shared.wake_all(work);
    }

    /// Drops whole message segments that lie before `first` and are purged from the Raft log; answers the first message
    /// that is kept. The last segment always stays. Files are deleted by the next checkpoint rounds.
    pub fn drop_messages_before(self: &Arc<Self>, first: Sequence) -> Sequence {
        let mut state = self.state.lock();
        let mut work = None;
        if let Some(first_kept) = state.droppable(first.get())
            && !state.installing
            && self.refusal(&state).is_none()
        {
            let dir = super::data_dir(&self.dir, state.dir_number);
            state.drop_before(first_kept, &dir);
            work = self.small(
                &mut state,
                Record::DropMessages { first_kept },
                Effect::Nothing,
                None,
            );
            self.account(&mut state);
        }
        let kept = Sequence::new(state.first_sequence()).unwrap_or(Sequence::FIRST);
        drop(state);
        self.shared.wake_all(work);
        kept
    }
}
