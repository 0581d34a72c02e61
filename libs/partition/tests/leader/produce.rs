//! Producers, and what must be true of what is stored for them.

use std::collections::{BTreeMap, VecDeque};

use ptah_partition::{
    AppendHead, AppendRefusal, Appended, BatchStamp, Decision, Partition, Sequencer, SessionNumber,
};
use ptah_types::{SessionId, Timestamp};

use crate::world::Entry;

pub(crate) struct Producers {
    pub(crate) sequencer: Sequencer,
    /// Per session the size of each append, by number. Session 0 does not number its appends.
    sizes: BTreeMap<u64, Vec<u32>>,
    /// What is stored, by session.
    stored: BTreeMap<u64, Vec<Appended>>,
}

fn number(session: u64, number: u64) -> SessionNumber {
    SessionNumber::new(SessionId::new(session).unwrap(), number).unwrap()
}

impl Producers {
    pub(crate) fn new(partition: &Partition) -> Self {
        Self {
            sequencer: Sequencer::new(partition),
            sizes: BTreeMap::new(),
            stored: BTreeMap::new(),
        }
    }

    pub(crate) fn rebuild(&mut self, partition: &Partition) {
        self.sequencer = Sequencer::new(partition);
    }

    pub(crate) fn poison(&mut self, now: Timestamp) {
        self.sequencer.poison();
        let refused = self.sequencer.accept(
            &AppendHead {
                session: None,
                count: 1,
            },
            now,
        );
        assert_eq!(refused, Decision::Refused(AppendRefusal::Poisoned));
    }

    fn stored(&self, session: u64) -> &[Appended] {
        self.stored.get(&session).map_or(&[], Vec::as_slice)
    }

    /// Sends the append `back` before the next one of the session, or the next one, of `count` messages.
    pub(crate) fn append(
        &mut self,
        session: u64,
        back: usize,
        count: u32,
        now: Timestamp,
        in_flight: &VecDeque<Entry>,
    ) -> Option<BatchStamp> {
        if session == 0 {
            let Decision::Propose(stamp) = self.sequencer.accept(
                &AppendHead {
                    session: None,
                    count: count.max(1),
                },
                now,
            ) else {
                panic!("an append without session is refused");
            };
            return Some(stamp);
        }
        let sizes = self.sizes.entry(session).or_default();
        if back == 0 {
            sizes.push(count);
        }
        let index = sizes.len().checked_sub(back.max(1))?;
        let count = sizes[index];
        let append = AppendHead {
            session: Some(number(session, index as u64 + 1)),
            count,
        };
        let decision = self.sequencer.accept(&append, now);
        let flying: Vec<_> = in_flight
            .iter()
            .filter_map(|entry| of_session(entry, session))
            .collect();
        self.judge(session, index, count, &flying, decision)
    }

    /// Whether the decision is right for append `index` (from 0) of the session.
    fn judge(
        &mut self,
        session: u64,
        index: usize,
        count: u32,
        flying: &[BatchStamp],
        decision: Decision,
    ) -> Option<BatchStamp> {
        let stored = self.stored(session);
        let known = stored.len() + flying.len();
        match decision {
            Decision::Propose(stamp) => {
                assert_eq!((index, stamp.count), (known, count), "proposed out of order");
                return Some(stamp);
            }
            Decision::Duplicate(appended) => assert_eq!(stored.get(index), Some(&appended)),
            Decision::InFlight(appended) => {
                let flight = index
                    .checked_sub(stored.len())
                    .and_then(|place| flying.get(place));
                assert_eq!(flight.map(BatchStamp::appended), Some(appended));
            }
            Decision::Refused(AppendRefusal::Gap { expected }) => {
                assert_eq!(expected as usize, known + 1);
                assert!(index > known, "no number is missing");
                // The producer goes back to what the leader expects.
                self.sizes.entry(session).or_default().truncate(known);
            }
            Decision::Refused(AppendRefusal::SessionExpired) => {
                assert_eq!(known, 0, "a session that has stored something is not known");
                assert!(index > 0, "a first append is refused");
                self.sizes.entry(session).or_default().clear();
            }
            Decision::Refused(refusal) => panic!("append {index} of session {session} is refused: {refusal}"),
        }
        None
    }

    pub(crate) fn skip(&mut self, session: u64, now: Timestamp) {
        let Some(sizes) = self.sizes.get(&session).filter(|_| session > 0) else {
            return;
        };
        let append = AppendHead {
            session: Some(number(session, sizes.len() as u64 + 2)),
            count: 1,
        };
        let decision = self.sequencer.accept(&append, now);
        let refused = matches!(
            decision,
            Decision::Refused(AppendRefusal::Gap { .. } | AppendRefusal::SessionExpired)
        );
        assert!(refused, "a gap is not refused: {decision:?}");
    }

    /// The batch is about to be applied.
    pub(crate) fn applied(&mut self, stamp: &BatchStamp, partition: &Partition) {
        assert_eq!(
            stamp.base_sequence,
            partition.next_sequence(),
            "sequences have a gap"
        );
        if let Some(append) = stamp.session {
            let stored = self.stored.entry(append.session.get()).or_default();
            stored.push(stamp.appended());
            assert_eq!(
                stored.len() as u64,
                append.number.get(),
                "an append is stored twice or skipped"
            );
        }
    }
}

fn of_session(entry: &Entry, session: u64) -> Option<BatchStamp> {
    match entry {
        Entry::Batch(stamp) if stamp.session.is_some_and(|s| s.session.get() == session) => Some(*stamp),
        _ => None,
    }
}
