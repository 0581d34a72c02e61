//! Who gets what, and how much.

use proptest::prelude::*;

use super::*;

#[test]
fn messages_go_out_in_order_up_to_the_credit() {
    let mut leader = Leader::with_messages(10);
    leader.deliveries.open(A, 4).unwrap();
    assert_eq!(leader.send(0, 100), [(1, 4, 1)]);
    assert_eq!(leader.send(0, 100), []);
    leader.deliveries.add_credit(A, 3);
    assert_eq!(leader.send(0, 2), [(5, 6, 1)]);
    assert_eq!(leader.send(0, 100), [(7, 7, 1)]);
    leader.deliveries.add_credit(A, 100);
    assert_eq!(leader.send(0, 100), [(8, 10, 1)]);
    leader.append(5);
    assert_eq!(leader.send(0, 100), [(11, 15, 1)]);
}

#[test]
fn consumers_take_turns() {
    let mut leader = Leader::with_messages(2_000);
    leader.deliveries.configure(DEADLINE_MS, 10_000);
    leader.deliveries.open(A, 600).unwrap();
    leader.deliveries.open(B, 300).unwrap();
    let leases = leader.deliveries.lease(at(0), 10_000);
    let turns: Vec<_> = leases
        .iter()
        .map(|lease| (lease.consumer, lease.range.count()))
        .collect();
    assert_eq!(turns, [(A, 256), (B, 256), (A, 256), (B, 44), (A, 88)]);
}

#[test]
fn a_group_that_starts_at_the_end_gets_only_newer_messages() {
    let mut leader = Leader::with_group(10, StartAt::End, 1_000);
    leader.deliveries.open(A, 100).unwrap();
    assert!(!leader.deliveries.available());
    assert_eq!(leader.send(0, 100), []);
    leader.append(2);
    assert!(leader.deliveries.available());
    assert_eq!(leader.send(0, 100), [(11, 12, 1)]);
}

#[test]
fn messages_in_flight_are_bounded_until_they_are_acked() {
    let mut leader = Leader::with_group(100, StartAt::First, 10);
    leader.deliveries.open(A, 100).unwrap();
    assert_eq!(leader.send(0, 100), [(1, 10, 1)]);
    assert_eq!(leader.send(0, 100), []);
    let _ = leader.ack(3, 5);
    assert_eq!(leader.send(0, 100), [(11, 13, 1)]);
    assert_eq!(leader.deliveries.outstanding(), 10);
}

#[test]
fn messages_to_go_out_again_go_before_new_ones() {
    let mut leader = Leader::with_messages(10);
    leader.deliveries.open(A, 3).unwrap();
    leader.send(0, 100);
    leader.deliveries.nack(A, &[range(2, 2)]);
    leader.deliveries.add_credit(A, 2);
    assert_eq!(
        leader.send(0, 100),
        [(4, 4, 1)],
        "one credit is kept for the redelivery"
    );
    assert_eq!(leader.round(0), [(2, 2, 2)]);
}

#[test]
fn retracted_credit_leases_nothing() {
    let mut leader = Leader::with_messages(4);
    leader.deliveries.open(A, 3).unwrap();
    assert_eq!(leader.deliveries.retract_credit(A, 2), 2);
    assert_eq!(leader.send(0, 9), [(1, 1, 1)]);
    assert_eq!(leader.deliveries.retract_credit(A, 2), 0);
}

#[test]
fn a_group_is_drained_when_nothing_is_left_to_hand_out() {
    let mut leader = Leader::with_group(2, StartAt::First, 1);
    leader.deliveries.open(A, 9).unwrap();
    assert_eq!(leader.send(0, 9), [(1, 1, 1)]);
    assert!(
        !leader.deliveries.is_drained(),
        "the bound on what is out keeps one back"
    );
    let _ = leader.deliveries.ack(&[range(1, 1)]);
    assert_eq!(leader.send(0, 9), [(2, 2, 1)]);
    assert!(leader.deliveries.is_drained());
    leader.deliveries.expire(at(DEADLINE_MS));
    assert!(!leader.deliveries.is_drained());
}

#[test]
fn trimmed_messages_are_not_delivered() {
    let mut leader = Leader::with_messages(10);
    leader.deliveries.open(A, 3).unwrap();
    leader.send(0, 100);
    leader.partition.apply(
        &Command::TrimTo {
            first: Sequence::new(6).unwrap(),
        },
        at(0),
    );
    leader.deliveries.observe(
        leader.partition.first_sequence(),
        leader.partition.next_sequence(),
    );
    leader.deliveries.check().unwrap();
    leader.deliveries.add_credit(A, 100);
    assert_eq!(leader.deliveries.outstanding(), 0);
    assert_eq!(leader.send(0, 100), [(6, 10, 1)]);
}

#[test]
fn acks_with_too_many_holes_stop_new_leases_and_never_the_old_ones() {
    let mut leader = Leader::with_group(0, StartAt::First, crate::MAX_IN_FLIGHT);
    for _ in 0..4 {
        leader.append(16_384);
    }
    leader.deliveries.open(A, u32::MAX).unwrap();
    let in_flight = u64::from(crate::MAX_IN_FLIGHT) / 2;
    leader.send(0, in_flight as u32);
    let holes: Vec<_> = (1..=in_flight / 2).map(|i| range(2 * i, 2 * i)).collect();
    let _ = leader.deliveries.ack(&holes);
    leader.round(0);
    assert_eq!(
        leader.partition.group(group()).unwrap().acked_above_floor().len(),
        MAX_ACK_RANGES
    );
    assert_eq!(
        leader.send(0, 10),
        [],
        "nothing new while there are so many holes"
    );
    leader.deliveries.expire(at(1_000));
    assert!(leader.deliveries.available(), "what is out goes out again");
    let _ = leader.ack(1, in_flight);
    leader.round(1_000);
    assert_eq!(leader.floor(), in_flight);
    assert_eq!(leader.send(1_000, 10), [(in_flight + 1, in_flight + 10, 1)]);
}

#[test]
fn consumers_are_bounded() {
    let mut leader = Leader::with_messages(0);
    for id in 0..MAX_CONSUMERS as u64 {
        leader.deliveries.open(ConsumerId(id), 1).unwrap();
    }
    assert_eq!(
        leader.deliveries.open(ConsumerId(u64::MAX), 1),
        Err(TooManyConsumers)
    );
    leader.deliveries.release(ConsumerId(3));
    assert_eq!(leader.deliveries.open(ConsumerId(u64::MAX), 1), Ok(()));
}

proptest! {
    #[test]
    fn taking_parts_out_of_runs_leaves_exactly_the_rest(
        takes in prop::collection::vec((1_u64..120, 0_u64..40, any::<bool>()), 1..20)
    ) {
        let mut spans = Spans::default();
        for start in 0..10 {
            let state = if start % 2 == 0 { State::Ready } else { State::Held { deadline: at(start) } };
            spans.insert(start * 12 + 10, Span { first: start * 12 + 1, deliveries: 0, recorded: 1, state });
        }
        let mut model: Vec<(u64, bool)> =
            (0..10).flat_map(|s| (s * 12 + 1..=s * 12 + 10).map(move |place| (place, s % 2 == 0))).collect();
        for (first, len, ready) in takes {
            let taken = spans.take_parts(range(first, first + len), |span| span.is_held() != ready);
            let taken: Vec<_> = taken.iter().flat_map(|(last, span)| span.first..=*last).collect();
            let wanted = |place: &(u64, bool)| place.1 == ready && (first..=first + len).contains(&place.0);
            let expected: Vec<_> = model.iter().filter(|place| wanted(place)).map(|place| place.0).collect();
            model.retain(|place| !wanted(place));
            prop_assert_eq!(taken, expected);
            prop_assert_eq!(spans.messages(), model.len() as u64);
            prop_assert_eq!(spans.check(1_000), Ok(()));
        }
    }
}

#[test]
fn a_lease_that_expired_is_not_sent_with_the_delivery_count_of_before() {
    let mut leader = Leader::with_messages(1);
    leader.deliveries.open(A, 1).unwrap();
    let outdated = leader.deliveries.lease(at(0), 1)[0];
    leader.deliveries.expire(at(1_000));
    leader.send(1_000, 1);
    leader.deliveries.nack(A, &[range(1, 1)]);
    leader.deliveries.add_credit(A, 1);
    leader.deliveries.lease(at(1_000), 1);
    let replicate = leader.deliveries.to_replicate().unwrap();
    let applied = leader.apply(&replicate);
    let current = leader
        .deliveries
        .confirmed(replicate.round, &applied, at(1_000))
        .leases[0];
    assert_eq!(leader.deliveries.mark_lease_sent(&outdated, at(1_000)), []);
    assert_eq!(
        leader.deliveries.mark_lease_sent(&current, at(1_000)),
        [range(1, 1)]
    );
}
