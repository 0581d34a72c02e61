//! Room for acknowledgements that wait: for a leader, for the wire to its node, for their answer.
//!
//! A client may acknowledge whatever it likes, also what was never delivered, and runs of sequences that do not touch do
//! not join. What waits is therefore counted in runs, for each stream and over all streams.

use std::sync::Arc;

use ptah_partition::{RangeSet, SequenceRange};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Runs that wait in one stream. Each takes up to 64 bytes.
const STREAM_RUNS: usize = 32_768;
/// Runs that wait in all streams together.
const ALL_RUNS: usize = 524_288;
/// What an acknowledgement with an answer takes beside its runs.
const CONFIRMED: usize = 4;

/// Room for runs. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct AckRoom {
    all: Arc<Semaphore>,
    stream: Arc<Semaphore>,
}

/// A part of the room; goes back when it is dropped.
#[derive(Debug)]
pub(super) struct AckPermit {
    all: OwnedSemaphorePermit,
    stream: OwnedSemaphorePermit,
}

impl AckRoom {
    /// The room of a process.
    pub(super) fn new() -> Self {
        Self {
            all: Arc::new(Semaphore::new(ALL_RUNS)),
            stream: Arc::new(Semaphore::new(STREAM_RUNS)),
        }
    }

    /// The room of one more stream of the process.
    pub(super) fn of_stream(&self) -> Self {
        Self {
            all: Arc::clone(&self.all),
            stream: Arc::new(Semaphore::new(STREAM_RUNS)),
        }
    }

    fn take(&self, runs: usize) -> Option<AckPermit> {
        let runs = u32::try_from(runs).ok()?;
        Some(AckPermit {
            stream: Arc::clone(&self.stream).try_acquire_many_owned(runs).ok()?,
            all: Arc::clone(&self.all).try_acquire_many_owned(runs).ok()?,
        })
    }
}

impl AckPermit {
    fn join(&mut self, other: Self) {
        self.all.merge(other.all);
        self.stream.merge(other.stream);
    }

    /// Gives back what is beyond so many runs.
    fn shrink(&mut self, runs: usize) {
        let excess = self.all.num_permits().saturating_sub(runs);
        drop((self.all.split(excess), self.stream.split(excess)));
    }
}

/// Acknowledgements of one partition that nobody waits for. They join while they wait.
#[derive(Debug, Default)]
pub(super) struct WaitingAcks {
    ranges: RangeSet,
    room: Option<AckPermit>,
}

impl WaitingAcks {
    /// Acknowledgements of one stream, if there is room for them.
    pub(super) fn new(ranges: &[SequenceRange], room: &AckRoom) -> Option<Self> {
        let mut waiting = Self {
            ranges: RangeSet::new(),
            room: Some(room.take(ranges.len())?),
        };
        waiting.insert(ranges.iter().copied());
        Some(waiting)
    }

    /// Adds those of the same stream that came later.
    pub(super) fn join(&mut self, later: Self) {
        match (&mut self.room, later.room) {
            (Some(room), Some(more)) => room.join(more),
            (None, more) => self.room = more,
            (Some(_), None) => {}
        }
        self.insert(later.ranges.iter());
    }

    /// Takes the first ones out.
    pub(super) fn take(&mut self, most: usize) -> Vec<SequenceRange> {
        let taken: Vec<_> = self.ranges.iter().take(most).collect();
        for range in &taken {
            self.ranges.remove(*range);
        }
        self.shrink();
        taken
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    fn insert(&mut self, ranges: impl Iterator<Item = SequenceRange>) {
        for range in ranges {
            self.ranges.insert(range);
        }
        self.shrink();
    }

    fn shrink(&mut self) {
        let runs = self.ranges.len();
        if let Some(room) = &mut self.room {
            room.shrink(runs);
        }
    }
}

/// An acknowledgement that somebody waits for, as long as anything of it is there.
#[derive(Debug)]
pub(super) struct ConfirmedAck {
    /// Sequences.
    pub(super) ranges: Vec<SequenceRange>,
    _room: AckPermit,
}

impl ConfirmedAck {
    /// The acknowledgement, if there is room for it.
    pub(super) fn new(ranges: Vec<SequenceRange>, room: &AckRoom) -> Option<Arc<Self>> {
        let room = room.take(ranges.len() + CONFIRMED)?;
        Some(Arc::new(Self { ranges, _room: room }))
    }
}

/// Sequences in all ranges, for counters. Nobody has so many messages as a client can claim.
pub(super) fn sequences(ranges: &[SequenceRange]) -> u64 {
    let sum = |sum: u64, range: &SequenceRange| sum.saturating_add(range.count());
    ranges.iter().fold(0, sum).min(u32::MAX.into())
}

#[cfg(test)]
mod tests {
    use ptah_types::Sequence;

    use super::*;

    /// One of many sequences that do not touch.
    fn single(n: usize) -> SequenceRange {
        SequenceRange::single(Sequence::new(2 * n as u64 + 1).unwrap())
    }

    fn singles(range: std::ops::Range<usize>) -> Vec<SequenceRange> {
        range.map(single).collect()
    }

    fn free(room: &AckRoom) -> (usize, usize) {
        let taken = |semaphore: &Semaphore, all: usize| all - semaphore.available_permits();
        (taken(&room.all, ALL_RUNS), taken(&room.stream, STREAM_RUNS))
    }

    #[test]
    fn runs_that_join_and_runs_that_leave_give_their_room_back() {
        let room = AckRoom::new();
        let mut waiting = WaitingAcks::default();
        for n in 0..10 {
            waiting.join(WaitingAcks::new(&[single(n)], &room).unwrap());
        }
        assert_eq!(free(&room), (10, 10));
        let whole = SequenceRange::new(Sequence::new(1).unwrap(), Sequence::new(11).unwrap()).unwrap();
        waiting.join(WaitingAcks::new(&[whole], &room).unwrap());
        assert_eq!(free(&room), (5, 5), "six runs became one");
        assert_eq!(waiting.take(2), [whole, single(6)]);
        assert_eq!(free(&room), (3, 3));
        drop(waiting);
        assert_eq!(free(&room), (0, 0));
    }

    #[test]
    fn one_stream_cannot_take_the_room_of_all_and_all_have_a_bound() {
        let process = AckRoom::new();
        let runs = singles(0..STREAM_RUNS);
        let streams: Vec<_> = (0..ALL_RUNS / STREAM_RUNS).map(|_| process.of_stream()).collect();
        let held: Vec<_> = streams
            .iter()
            .map(|room| WaitingAcks::new(&runs, room).unwrap())
            .collect();
        assert!(WaitingAcks::new(&runs[..1], &streams[0]).is_none());
        let late = process.of_stream();
        assert!(ConfirmedAck::new(Vec::new(), &late).is_none());
        assert_eq!(free(&late), (ALL_RUNS, 0), "what is refused holds nothing");
        drop(held);
        assert!(ConfirmedAck::new(runs[..STREAM_RUNS - CONFIRMED].to_vec(), &late).is_some());
    }

    #[test]
    fn what_a_client_claims_does_not_overflow() {
        let all = SequenceRange::new(Sequence::new(1).unwrap(), Sequence::new(u64::MAX).unwrap()).unwrap();
        assert_eq!(sequences(&[all, all]), u64::from(u32::MAX));
        assert_eq!(sequences(&singles(0..3)), 3);
    }
}
