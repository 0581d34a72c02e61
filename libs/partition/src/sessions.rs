//! Produce sessions: the same append, sent again, is stored once.
//!
//! A session numbers its appends from 1 without a gap. The state keeps, per session, the results of its last
//! appends. The same table serves twice: replicated, inside the partition, and in the leader's sequencer as it
//! will be once everything in flight is applied. Both decide with [`Sessions::look`], so they cannot differ.
//!
//! Bounds: the session that appended longest ago in the log gives way to a new one. Its id is remembered for a
//! while longer, so that a late retry of its first append is refused and not stored again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ptah_types::{Sequence, SessionId, Timestamp};

use crate::applied::Broken;
use crate::codec::{Malformed, Reader, Writer};
use crate::{Appended, SessionNumber};

/// Most sessions that a partition knows at a time.
pub const MAX_SESSIONS: usize = 1_024;
/// How many of its last appends a session can ask for again.
pub const SESSION_WINDOW: usize = 64;
/// How many ids of sessions that gave way are remembered.
pub(crate) const MAX_EVICTED: usize = 4_096;

/// What the table says to an append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Look {
    /// Next one of its session.
    Next,
    /// Was accepted, as these messages.
    Known(Appended),
    /// Was accepted, too long ago to know as what.
    Forgotten { last: u64 },
    /// Skips numbers.
    Gap { expected: u64 },
    /// The session gave way to others; what became of its appends is not known any more.
    Expired,
}

/// One session. The result at place `i` of `recent` belongs to number `last - recent.len() + 1 + i`.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Session {
    last: u64,
    recent: VecDeque<Appended>,
}

/// All sessions of a partition.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Sessions {
    sessions: BTreeMap<SessionId, Session>,
    /// Base sequence of a session's last append -> session: log order is age.
    by_age: BTreeMap<Sequence, SessionId>,
    evicted: VecDeque<SessionId>,
    evicted_ids: BTreeSet<SessionId>,
}

impl Sessions {
    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    pub(crate) fn look(&self, append: SessionNumber) -> Look {
        let number = append.number.get();
        let Some(session) = self.sessions.get(&append.session) else {
            let fresh = number == 1 && !self.evicted_ids.contains(&append.session);
            return if fresh { Look::Next } else { Look::Expired };
        };
        if number > session.last {
            let expected = session.last.saturating_add(1);
            return if number == expected {
                Look::Next
            } else {
                Look::Gap { expected }
            };
        }
        let back = usize::try_from(session.last - number).unwrap_or(usize::MAX);
        let known = session
            .recent
            .len()
            .checked_sub(1)
            .and_then(|newest| newest.checked_sub(back));
        match known.and_then(|index| session.recent.get(index)) {
            Some(appended) => Look::Known(*appended),
            None => Look::Forgotten { last: session.last },
        }
    }

    /// Oldest append of the session that can still be answered; sequences before it are settled for the session.
    pub(crate) fn window_start(&self, session: SessionId) -> Option<Appended> {
        let session = self.sessions.get(&session)?;
        if session.recent.len() < SESSION_WINDOW {
            return None;
        }
        session.recent.front().copied()
    }

    /// Records an append that [`Sessions::look`] called the next one.
    pub(crate) fn record(&mut self, append: SessionNumber, appended: Appended) {
        if !self.sessions.contains_key(&append.session) {
            self.make_room();
        }
        let session = self.sessions.entry(append.session).or_insert_with(|| Session {
            last: 0,
            recent: VecDeque::new(),
        });
        if let Some(newest) = session.recent.back() {
            self.by_age.remove(&newest.base_sequence);
        }
        if session.recent.len() == SESSION_WINDOW {
            session.recent.pop_front();
        }
        session.recent.push_back(appended);
        session.last = append.number.get();
        self.by_age.insert(appended.base_sequence, append.session);
    }

    fn make_room(&mut self) {
        if self.sessions.len() < MAX_SESSIONS {
            return;
        }
        let Some((_, idle)) = self.by_age.pop_first() else {
            return;
        };
        self.sessions.remove(&idle);
        self.evicted.push_back(idle);
        self.evicted_ids.insert(idle);
        if self.evicted.len() > MAX_EVICTED
            && let Some(forgotten) = self.evicted.pop_front()
        {
            self.evicted_ids.remove(&forgotten);
        }
    }

    pub(crate) fn check(&self, next: Sequence) -> Result<(), Broken> {
        Broken::unless(self.sessions.len() <= MAX_SESSIONS, || "too many sessions".into())?;
        Broken::unless(self.evicted.len() <= MAX_EVICTED, || {
            "too many evicted sessions".into()
        })?;
        Broken::unless(self.evicted.len() == self.evicted_ids.len(), || {
            "evicted sessions are listed twice".into()
        })?;
        Broken::unless(self.by_age.len() == self.sessions.len(), || {
            "two sessions share an append".into()
        })?;
        for (id, session) in &self.sessions {
            let held = session.recent.len();
            let plausible = (1..=SESSION_WINDOW).contains(&held) && session.last >= held as u64;
            Broken::unless(plausible, || {
                format!("session {id} holds {held} appends up to {}", session.last)
            })?;
            Broken::unless(!self.evicted_ids.contains(id), || {
                format!("session {id} lives and is evicted")
            })?;
            let ascending = session.recent.iter().zip(session.recent.iter().skip(1));
            for (earlier, later) in ascending {
                let apart = earlier.next().is_some_and(|end| end <= later.base_sequence)
                    && earlier.timestamp <= later.timestamp;
                Broken::unless(apart, || format!("session {id} has appends out of order"))?;
            }
            let stored = session
                .recent
                .back()
                .and_then(Appended::next)
                .is_some_and(|end| end <= next);
            Broken::unless(stored, || {
                format!("session {id} has an append that is not stored")
            })?;
        }
        Ok(())
    }

    pub(crate) fn encode(&self, writer: &mut Writer) {
        writer.varint(self.sessions.len() as u64);
        for (id, session) in &self.sessions {
            writer.varint(id.get());
            writer.varint(session.last);
            writer.varint(session.recent.len() as u64);
            let (mut place, mut time) = (0, 0);
            for appended in &session.recent {
                writer.varint(appended.base_sequence.get() - place);
                writer.varint(u64::from(appended.count));
                writer.varint(appended.timestamp.0 - time);
                (place, time) = (appended.base_sequence.get(), appended.timestamp.0);
            }
        }
        writer.varint(self.evicted.len() as u64);
        for id in &self.evicted {
            writer.varint(id.get());
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut table = Self::default();
        for _ in 0..reader.count(MAX_SESSIONS, 6, "number of sessions")? {
            let id = session_id(reader)?;
            let last = reader.varint("session number")?;
            let recent = decode_recent(reader)?;
            if let Some(newest) = recent.back() {
                table.by_age.insert(newest.base_sequence, id);
            }
            if table.sessions.insert(id, Session { last, recent }).is_some() {
                return Err(reader.malformed("session twice"));
            }
        }
        for _ in 0..reader.count(MAX_EVICTED, 1, "number of evicted sessions")? {
            let id = session_id(reader)?;
            table.evicted.push_back(id);
            table.evicted_ids.insert(id);
        }
        Ok(table)
    }
}

fn session_id(reader: &mut Reader<'_>) -> Result<SessionId, Malformed> {
    let id = reader.varint("session id")?;
    SessionId::new(id).map_err(|_| reader.malformed("session id is zero"))
}

fn decode_recent(reader: &mut Reader<'_>) -> Result<VecDeque<Appended>, Malformed> {
    let mut recent = VecDeque::new();
    let (mut place, mut time) = (0_u64, 0_u64);
    for _ in 0..reader.count(SESSION_WINDOW, 3, "number of appends")? {
        let gap = reader.varint("sequence of an append")?;
        let count = reader.varint_u32("messages of an append")?;
        let later = reader.varint("time of an append")?;
        let base_sequence = place.checked_add(gap).and_then(Sequence::new);
        let base_sequence = base_sequence.ok_or(reader.malformed("sequence of an append"))?;
        time = time
            .checked_add(later)
            .ok_or(reader.malformed("time of an append"))?;
        place = base_sequence.get();
        recent.push_back(Appended {
            base_sequence,
            count,
            timestamp: Timestamp(time),
        });
    }
    Ok(recent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(session: u64, number: u64) -> SessionNumber {
        SessionNumber::new(SessionId::new(session).unwrap(), number).unwrap()
    }

    fn one_at(base: u64) -> Appended {
        Appended {
            base_sequence: Sequence::new(base).unwrap(),
            count: 1,
            timestamp: Timestamp(base),
        }
    }

    #[test]
    fn a_session_starts_at_1_and_goes_on_without_a_gap() {
        let mut table = Sessions::default();
        assert_eq!(table.look(append(7, 2)), Look::Expired);
        assert_eq!(table.look(append(7, 1)), Look::Next);
        table.record(append(7, 1), one_at(1));
        assert_eq!(table.look(append(7, 1)), Look::Known(one_at(1)));
        assert_eq!(table.look(append(7, 2)), Look::Next);
        assert_eq!(table.look(append(7, 3)), Look::Gap { expected: 2 });
    }

    #[test]
    fn the_last_64_appends_are_known_and_older_ones_forgotten() {
        let mut table = Sessions::default();
        for number in 1..=65 {
            table.record(append(7, number), one_at(number));
        }
        assert_eq!(table.look(append(7, 1)), Look::Forgotten { last: 65 });
        assert_eq!(table.look(append(7, 2)), Look::Known(one_at(2)));
        assert_eq!(table.look(append(7, 65)), Look::Known(one_at(65)));
    }

    #[test]
    fn the_session_that_was_idle_longest_gives_way_and_its_first_append_is_not_stored_again() {
        let mut table = Sessions::default();
        for session in 1..=MAX_SESSIONS as u64 {
            table.record(append(session, 1), one_at(session));
        }
        table.record(append(1, 2), one_at(5_000));
        table.record(append(9_999, 1), one_at(5_001));
        assert_eq!(table.look(append(1, 3)), Look::Next);
        assert_eq!(table.look(append(2, 2)), Look::Expired);
        assert_eq!(table.look(append(2, 1)), Look::Expired);
        assert_eq!(table.len(), MAX_SESSIONS);
        table.check(Sequence::new(6_000).unwrap()).unwrap();
    }

    #[test]
    fn memory_of_evicted_sessions_is_bounded() {
        let mut table = Sessions::default();
        let sessions = (MAX_SESSIONS + MAX_EVICTED + 10) as u64;
        for session in 1..=sessions {
            table.record(append(session, 1), one_at(session));
        }
        assert_eq!(table.evicted.len(), MAX_EVICTED);
        table.check(Sequence::new(sessions + 1).unwrap()).unwrap();
    }
}
