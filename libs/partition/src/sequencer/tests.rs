use ptah_types::SessionId;

use super::*;
use crate::BatchHead;
use crate::sessions::{MAX_SESSIONS, SESSION_WINDOW};

fn from(session: u64, number: u64, count: u32) -> AppendHead {
    AppendHead {
        session: SessionNumber::new(SessionId::new(session).unwrap(), number),
        count,
    }
}

fn anonymous(count: u32) -> AppendHead {
    AppendHead { session: None, count }
}

fn at(base: u64, count: u32) -> Appended {
    Appended {
        base_sequence: Sequence::new(base).unwrap(),
        count,
        timestamp: NOW,
    }
}

fn apply(partition: &mut Partition, stamp: &BatchStamp) {
    let head = BatchHead {
        count: stamp.count,
        bytes: 100,
    };
    partition.apply_batch(stamp, head).unwrap();
    partition.check().unwrap();
}

fn proposed(decision: Decision) -> BatchStamp {
    match decision {
        Decision::Propose(stamp) => stamp,
        other => panic!("not proposed: {other:?}"),
    }
}

const NOW: Timestamp = Timestamp::from_millis(1_000);

#[test]
fn appends_in_flight_get_dense_sequences() {
    let mut sequencer = Sequencer::new(&Partition::new());
    let bases: Vec<_> = [3, 1, 2]
        .map(|count| {
            proposed(sequencer.accept(&anonymous(count), NOW))
                .base_sequence
                .get()
        })
        .into();
    assert_eq!(bases, [1, 4, 5]);
    assert_eq!(sequencer.next_sequence().get(), 7);
}

#[test]
fn a_repeated_append_waits_for_the_original_and_is_answered_like_it() {
    let mut partition = Partition::new();
    let mut sequencer = Sequencer::new(&partition);
    let stamp = proposed(sequencer.accept(&from(7, 1, 3), NOW));
    assert_eq!(
        sequencer.accept(&from(7, 1, 3), NOW),
        Decision::InFlight(at(1, 3))
    );
    apply(&mut partition, &stamp);
    sequencer.committed(partition.next_sequence());
    assert_eq!(
        sequencer.accept(&from(7, 1, 3), NOW),
        Decision::Duplicate(at(1, 3))
    );
    assert_eq!(sequencer.in_flight(), 0);
}

#[test]
fn the_next_leader_knows_what_was_stored_and_not_what_was_lost() {
    let mut partition = Partition::new();
    let mut old = Sequencer::new(&partition);
    let stored = proposed(old.accept(&from(7, 1, 3), NOW));
    let _lost = proposed(old.accept(&from(7, 2, 1), NOW));
    apply(&mut partition, &stored);
    let mut new = Sequencer::new(&Partition::decode(&partition.encode()).unwrap());
    assert_eq!(new.accept(&from(7, 1, 3), NOW), Decision::Duplicate(at(1, 3)));
    assert_eq!(proposed(new.accept(&from(7, 2, 1), NOW)).base_sequence.get(), 4);
}

#[test]
fn a_gap_is_refused_with_the_number_that_is_expected() {
    let mut sequencer = Sequencer::new(&Partition::new());
    let _ = proposed(sequencer.accept(&from(7, 1, 1), NOW));
    let refusal = Decision::Refused(AppendRefusal::Gap { expected: 2 });
    assert_eq!(sequencer.accept(&from(7, 3, 1), NOW), refusal);
    assert_eq!(sequencer.next_sequence().get(), 2);
}

#[test]
fn a_session_that_is_not_known_can_only_start_at_1() {
    let mut sequencer = Sequencer::new(&Partition::new());
    let refusal = sequencer.accept(&from(7, 2, 1), NOW);
    assert_eq!(refusal, Decision::Refused(AppendRefusal::SessionExpired));
    assert_eq!(AppendRefusal::SessionExpired.kind(), ErrorKind::OutcomeUnknown);
}

#[test]
fn a_number_used_for_a_batch_of_another_size_is_a_conflict() {
    let mut sequencer = Sequencer::new(&Partition::new());
    let _ = proposed(sequencer.accept(&from(7, 1, 3), NOW));
    let refusal = Decision::Refused(AppendRefusal::Conflict { stored: 3, sent: 4 });
    assert_eq!(sequencer.accept(&from(7, 1, 4), NOW), refusal);
}

#[test]
fn an_append_is_not_forgotten_while_it_is_in_flight() {
    let mut partition = Partition::new();
    let mut sequencer = Sequencer::new(&partition);
    let stamps: Vec<_> = (1..=SESSION_WINDOW as u64)
        .map(|number| proposed(sequencer.accept(&from(7, number, 1), NOW)))
        .collect();
    let next = from(7, SESSION_WINDOW as u64 + 1, 1);
    assert_eq!(
        sequencer.accept(&next, NOW),
        Decision::Refused(AppendRefusal::Busy)
    );
    apply(&mut partition, &stamps[0]);
    sequencer.committed(partition.next_sequence());
    let _ = proposed(sequencer.accept(&next, NOW));
    let forgotten = Decision::Refused(AppendRefusal::Forgotten { last: 65 });
    assert_eq!(sequencer.accept(&from(7, 1, 1), NOW), forgotten);
}

#[test]
fn appends_in_flight_are_bounded() {
    let mut sequencer = Sequencer::new(&Partition::new());
    for _ in 0..MAX_IN_FLIGHT_APPENDS {
        let _ = proposed(sequencer.accept(&anonymous(1), NOW));
    }
    assert_eq!(
        sequencer.accept(&anonymous(1), NOW),
        Decision::Refused(AppendRefusal::Busy)
    );
}

#[test]
fn message_time_does_not_run_backwards_with_the_clock() {
    let mut sequencer = Sequencer::new(&Partition::new());
    let times = [5_000, 1_000, 6_000].map(|now| {
        proposed(sequencer.accept(&anonymous(1), Timestamp::from_millis(now)))
            .timestamp
            .as_millis()
    });
    assert_eq!(times, [5_000, 5_000, 6_000]);
}

#[test]
fn a_poisoned_sequencer_refuses_everything() {
    let mut sequencer = Sequencer::new(&Partition::new());
    sequencer.poison();
    assert_eq!(
        sequencer.accept(&anonymous(1), NOW),
        Decision::Refused(AppendRefusal::Poisoned)
    );
}

#[test]
fn a_batch_that_it_did_not_stamp_poisons_it() {
    for applied in [2, 9] {
        let mut sequencer = Sequencer::new(&Partition::new());
        let _ = proposed(sequencer.accept(&anonymous(3), NOW));
        sequencer.committed(Sequence::new(applied).unwrap());
        assert!(sequencer.is_poisoned(), "{applied}");
    }
}

#[test]
fn counts_outside_the_limits_are_refused() {
    let mut sequencer = Sequencer::new(&Partition::new());
    for count in [0, 16_385] {
        let refusal = Decision::Refused(AppendRefusal::BadCount { count });
        assert_eq!(sequencer.accept(&anonymous(count), NOW), refusal);
    }
}

#[test]
fn the_end_of_numbers_is_a_refusal() {
    let partition = Partition {
        first: Sequence::new(u64::MAX - 2).unwrap(),
        next: Sequence::new(u64::MAX - 2).unwrap(),
        ..Partition::new()
    };
    let mut sequencer = Sequencer::new(&partition);
    let refusal = Decision::Refused(AppendRefusal::NumbersExhausted);
    assert_eq!(sequencer.accept(&anonymous(3), NOW), refusal);
    let _ = proposed(sequencer.accept(&anonymous(2), NOW));
}

#[test]
fn it_evicts_the_sessions_that_the_partition_will_evict() {
    let mut partition = Partition::new();
    let mut sequencer = Sequencer::new(&partition);
    let mut waiting = Vec::new();
    for session in 1..=MAX_SESSIONS as u64 + 10 {
        waiting.push(proposed(sequencer.accept(&from(session, 1, 1), NOW)));
        if waiting.len() == 100 || session == MAX_SESSIONS as u64 + 10 {
            waiting.drain(..).for_each(|stamp| apply(&mut partition, &stamp));
            sequencer.committed(partition.next_sequence());
        }
    }
    assert_eq!(sequencer.sessions, partition.sessions);
    let refusal = Decision::Refused(AppendRefusal::SessionExpired);
    assert_eq!(sequencer.accept(&from(3, 1, 1), NOW), refusal);
    assert_eq!(sequencer.accept(&from(3, 2, 1), NOW), refusal);
}
