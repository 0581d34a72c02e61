//! How a lease ends.

use super::*;

#[test]
fn an_ack_of_messages_that_are_not_stored_is_refused() {
    let mut leader = Leader::with_messages(3);
    leader.deliveries.open(A, 100).unwrap();
    leader.send(0, 100);
    let outcome = leader.ack(2, u64::MAX);
    assert_eq!(outcome.newly, 2);
    assert_eq!(outcome.refused, [range(4, u64::MAX)].into_iter().collect());
}

#[test]
fn an_ack_of_an_expired_lease_counts_and_stops_the_redelivery() {
    let mut leader = Leader::with_messages(2);
    leader.deliveries.open(A, 100).unwrap();
    leader.deliveries.open(B, 0).unwrap();
    leader.send(0, 100);
    leader.deliveries.expire(at(1_000));
    leader.send(1_000, 100);
    assert_eq!(leader.ack(1, 1).newly, 1);
    assert_eq!(leader.round(1_000), [(2, 2, 2)]);
    assert_eq!(leader.ack(2, 2).newly, 1);
    leader.round(1_000);
    assert_eq!((leader.floor(), leader.deliveries.outstanding()), (2, 0));
}

#[test]
fn a_released_consumer_gives_back_what_it_holds_and_unsent_messages_count_no_delivery() {
    let mut leader = Leader::with_messages(6);
    leader.deliveries.open(A, 6).unwrap();
    let leases = leader.deliveries.lease(at(0), 6);
    assert_eq!(leases.len(), 1);
    leader.deliveries.mark_sent(A, range(1, 3), at(0));
    leader.deliveries.release(A);
    assert_eq!(
        leader.deliveries.mark_sent(A, range(4, 6), at(0)),
        [],
        "nothing is left to send"
    );
    leader.deliveries.open(B, 6).unwrap();
    assert_eq!(leader.send(1, 6), [(4, 6, 1)]);
    assert_eq!(leader.round(1), [(1, 3, 2)]);
}

#[test]
fn what_is_given_back_unsent_returns_the_credit() {
    let mut leader = Leader::with_messages(6);
    leader.deliveries.open(A, 6).unwrap();
    leader.deliveries.lease(at(0), 6);
    leader.deliveries.mark_sent(A, range(1, 2), at(0));
    leader.deliveries.give_back(A, range(1, 6));
    assert_eq!(leader.deliveries.credit(A), Some(4));
    assert_eq!(leader.send(0, 6), [(3, 6, 1)]);
}

#[test]
fn what_is_recalled_counts_no_delivery_even_if_it_was_marked_as_sent() {
    let mut leader = Leader::with_messages(6);
    leader.deliveries.open(A, 6).unwrap();
    leader.send(0, 4);
    leader.deliveries.lease(at(0), 2);
    leader.deliveries.recall(A, range(3, 6));
    leader.deliveries.check().unwrap();
    leader.deliveries.open(B, 6).unwrap();
    assert_eq!(leader.deliveries.retract_credit(A, 9), 2);
    assert_eq!(leader.send(0, 6), [(3, 6, 1)]);
}

#[test]
fn a_detached_consumer_keeps_what_it_was_sent_and_gives_back_the_rest() {
    let mut leader = Leader::with_messages(4);
    leader.deliveries.open(A, 4).unwrap();
    let leases = leader.deliveries.lease(at(0), 4);
    leader.deliveries.mark_sent(A, range(1, 2), at(0));
    leader.deliveries.detach(A);
    leader.deliveries.check().unwrap();
    assert_eq!((leases.len(), leader.deliveries.consumers()), (1, 0));
    leader.deliveries.open(B, 9).unwrap();
    assert_eq!(leader.send(0, 9), [(3, 4, 1)]);
    leader.deliveries.expire(at(DEADLINE_MS));
    leader.deliveries.lease(at(DEADLINE_MS), 9);
    assert_eq!(leader.round(DEADLINE_MS), [(1, 4, 2)]);
}

#[test]
fn a_lease_that_expires_before_it_is_sent_returns_the_credit_and_counts_no_delivery() {
    let mut leader = Leader::with_messages(3);
    leader.deliveries.open(A, 3).unwrap();
    leader.deliveries.lease(at(0), 3);
    leader.deliveries.expire(at(1_000));
    assert_eq!(leader.deliveries.credit(A), Some(3));
    assert_eq!(leader.deliveries.mark_sent(A, range(1, 3), at(1_000)), []);
    assert_eq!(leader.send(1_000, 3), [(1, 3, 1)]);
}

#[test]
fn a_nack_of_somebody_elses_message_changes_nothing() {
    let mut leader = Leader::with_messages(3);
    leader.deliveries.open(A, 3).unwrap();
    leader.send(0, 3);
    leader.deliveries.nack(B, &[range(1, 3)]);
    assert!(!leader.deliveries.available());
    leader.deliveries.nack(A, &[range(1, 3)]);
    assert!(leader.deliveries.available());
}

#[test]
fn an_extended_lease_lives_one_deadline_longer() {
    let mut leader = Leader::with_messages(3);
    leader.deliveries.open(A, 3).unwrap();
    leader.send(0, 3);
    leader.deliveries.extend(A, &[range(2, 2)], at(600));
    leader.deliveries.extend(B, &[range(3, 3)], at(600));
    leader.deliveries.expire(at(1_000));
    assert_eq!(leader.deliveries.next_deadline(), Some(at(1_600)));
    leader.deliveries.open(B, 3).unwrap();
    leader.send(1_000, 3);
    assert_eq!(leader.round(1_000), [(1, 1, 2), (3, 3, 2)]);
}

#[test]
fn sequential_acks_of_a_long_lease_need_one_run() {
    let mut leader = Leader::with_messages(1_000);
    leader.deliveries.open(A, 1_000).unwrap();
    leader.send(0, 1_000);
    for place in 1..=999 {
        let _ = leader.ack(place, place);
        assert_eq!(leader.deliveries.spans.len(), 1);
    }
}

#[test]
fn what_is_set_aside_goes_to_nobody_holds_nothing_back_and_is_not_acknowledged() {
    let mut leader = Leader::with_group(10, StartAt::First, 4);
    leader.deliveries.open(A, 10).unwrap();
    leader.deliveries.lease(at(0), 10);
    assert_eq!(leader.deliveries.set_aside(B, range(1, 4)), 0, "not B's");
    assert_eq!(leader.deliveries.set_aside(A, range(1, 3)), 3);
    leader.deliveries.check().unwrap();
    assert_eq!(leader.deliveries.mark_sent(A, range(1, 4), at(0)), [range(4, 4)]);
    // Neither the bound on messages in flight nor the consumer's credit is used up by them.
    assert_eq!(leader.send(0, 10), [(5, 7, 1)]);
    let _ = leader.ack(4, 7);
    leader.round(0);
    assert_eq!((leader.floor(), leader.deliveries.messages_set_aside()), (0, 3));
    assert_eq!(leader.send(0, 10), [(8, 10, 1)]);
    leader.deliveries.expire(at(DEADLINE_MS));
    assert_eq!(
        leader.deliveries.messages_set_aside(),
        3,
        "a deadline does not bring them back"
    );
    let _ = leader.ack(8, 10);
    assert!(leader.deliveries.is_drained());
}

#[test]
fn whoever_acknowledges_what_is_set_aside_gives_it_up() {
    let mut leader = Leader::with_messages(3);
    leader.deliveries.open(A, 10).unwrap();
    leader.deliveries.lease(at(0), 10);
    leader.deliveries.set_aside(A, range(1, 2));
    leader.deliveries.mark_sent(A, range(3, 3), at(0));
    assert_eq!(leader.ack(2, 3).newly, 2);
    leader.round(0);
    assert_eq!((leader.floor(), leader.deliveries.messages_set_aside()), (0, 1));
    assert_eq!(leader.ack(1, 1).newly, 1);
    leader.round(0);
    assert_eq!((leader.floor(), leader.deliveries.messages_set_aside()), (3, 0));
}

#[test]
fn the_next_leader_tries_what_was_set_aside() {
    let mut leader = Leader::with_messages(3);
    leader.deliveries.open(A, 10).unwrap();
    leader.deliveries.lease(at(0), 10);
    leader.deliveries.set_aside(A, range(1, 2));
    leader.deliveries.mark_sent(A, range(3, 3), at(0));
    let _ = leader.ack(3, 3);
    leader.round(0);
    leader.change_leader(0);
    leader.deliveries.open(A, 10).unwrap();
    leader.deliveries.expire(at(DEADLINE_MS));
    leader.deliveries.lease(at(DEADLINE_MS), 10);
    assert_eq!(leader.round(DEADLINE_MS), [(1, 2, 2)]);
}
