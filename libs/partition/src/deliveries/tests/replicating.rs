//! Rounds, and what a new leader makes of them.

use super::*;

#[test]
fn an_ack_is_settled_by_its_round_and_moves_the_floor() {
    let mut leader = Leader::with_messages(10);
    leader.deliveries.open(A, 100).unwrap();
    leader.send(0, 100);
    let outcome = leader.ack(1, 4);
    assert_eq!(
        (outcome.newly, outcome.settled_by, outcome.refused),
        (4, Some(Round(1)), RangeSet::new())
    );
    assert_eq!(leader.deliveries.urgency(), Urgency::Now);
    leader.round(0);
    assert_eq!(leader.floor(), 4);
    let again = leader.ack(1, 4);
    assert_eq!((again.newly, again.settled_by), (0, None));
}

#[test]
fn a_repeated_ack_waits_for_the_round_of_the_first() {
    let mut leader = Leader::with_messages(10);
    leader.deliveries.open(A, 100).unwrap();
    leader.send(0, 100);
    let _ = leader.ack(1, 1);
    let first = leader.deliveries.to_replicate().unwrap();
    assert_eq!(leader.ack(1, 1).settled_by, Some(first.round));
    let second = leader.ack(2, 2).settled_by;
    assert!(second > Some(first.round));
    assert_eq!(leader.ack(1, 1).settled_by, second);
    let applied = leader.apply(&first);
    leader.deliveries.confirmed(first.round, &applied, at(0));
    leader.round(0);
    assert_eq!(leader.ack(1, 2).settled_by, None);
}

#[test]
fn an_expired_message_goes_out_again_after_its_count_is_replicated() {
    let mut leader = Leader::with_messages(3);
    leader.deliveries.open(A, 100).unwrap();
    leader.send(0, 100);
    let _ = leader.ack(2, 2);
    assert_eq!(leader.deliveries.next_deadline(), Some(at(1_000)));
    leader.deliveries.expire(at(999));
    assert_eq!(leader.send(999, 100), []);
    leader.deliveries.expire(at(1_000));
    assert_eq!(leader.send(1_000, 100), [], "the count is not replicated yet");
    let replicate = leader.deliveries.to_replicate().unwrap();
    let counts = [1, 3].map(|place| DeliveryCount {
        range: range(place, place),
        count: 2,
    });
    let watermark = Sequence::new(3).unwrap();
    let delivered = Command::Delivered {
        group: group(),
        watermark,
        counts: counts.to_vec(),
    };
    assert_eq!(replicate.commands.last(), Some(&delivered));
    let applied = leader.apply(&replicate);
    let confirmed = leader.deliveries.confirmed(replicate.round, &applied, at(1_100));
    assert_eq!(
        leader.send_leases(confirmed.leases, 1_100),
        [(1, 1, 2), (3, 3, 2)]
    );
    assert_eq!(leader.deliveries.next_deadline(), Some(at(2_100)));
}

#[test]
fn after_a_change_of_leader_what_may_be_out_waits_one_deadline_and_the_rest_goes_at_once() {
    let mut leader = Leader::with_messages(6);
    leader.deliveries.open(A, 4).unwrap();
    leader.send(0, 100);
    let _ = leader.ack(2, 2);
    leader.round(0);
    leader.change_leader(5_000);
    leader.deliveries.open(B, 100).unwrap();
    assert_eq!(leader.send(5_500, 100), [(5, 6, 1)]);
    assert_eq!(leader.ack(4, 4).newly, 1, "the old lease still counts");
    leader.deliveries.expire(at(5_999));
    assert!(!leader.deliveries.available());
    leader.deliveries.expire(at(6_000));
    leader.send(6_000, 100);
    assert_eq!(leader.round(6_000), [(1, 1, 2), (3, 3, 2)]);
}

#[test]
fn delivery_counts_outlive_the_leader() {
    let mut leader = Leader::with_messages(1);
    let mut now = 0;
    for expected in 1..=5 {
        leader.deliveries.open(A, 1).unwrap();
        let mut sent = leader.send(now, 1);
        sent.extend(leader.round(now));
        assert_eq!(sent, [(1, 1, expected)]);
        leader.round(now);
        leader.change_leader(now);
        now += DEADLINE_MS;
        leader.deliveries.expire(at(now));
    }
}

#[test]
fn an_ack_of_what_the_old_leader_delivered_unrecorded_is_not_lost() {
    let mut leader = Leader::with_messages(6);
    leader.deliveries.open(A, 6).unwrap();
    leader.send(0, 100);
    leader.change_leader(0);
    assert_eq!(leader.ack(2, 3).newly, 2);
    leader.deliveries.open(B, 6).unwrap();
    assert_eq!(leader.send(0, 100), [(1, 1, 1), (4, 6, 1)]);
    leader.round(0);
    leader.change_leader(0);
    assert_eq!(leader.deliveries.outstanding(), 4);
}

#[test]
fn the_watermark_is_lazy_and_goes_along_with_acks() {
    let mut leader = Leader::with_messages(6);
    leader.deliveries.open(A, 6).unwrap();
    assert_eq!(
        (leader.deliveries.urgency(), leader.deliveries.to_replicate()),
        (Urgency::Nothing, None)
    );
    leader.deliveries.lease(at(0), 4);
    assert_eq!(leader.deliveries.urgency(), Urgency::Nothing, "not sent");
    leader.deliveries.mark_sent(A, range(1, 4), at(0));
    assert_eq!(leader.deliveries.urgency(), Urgency::Lazy);
    leader.round(0);
    assert_eq!(leader.deliveries.urgency(), Urgency::Nothing);
    assert_eq!(
        leader.partition.group(group()).unwrap().next_undelivered().get(),
        5
    );
}

#[test]
fn one_round_is_in_flight_at_a_time_and_a_failed_one_is_repeated() {
    let mut leader = Leader::with_messages(6);
    leader.deliveries.open(A, 6).unwrap();
    leader.send(0, 100);
    let _ = leader.ack(1, 1);
    let first = leader.deliveries.to_replicate().unwrap();
    let _ = leader.ack(3, 3);
    assert_eq!(leader.deliveries.to_replicate(), None);
    leader.deliveries.failed(first.round);
    let second = leader.deliveries.to_replicate().unwrap();
    let ranges = [range(1, 1), range(3, 3)].into_iter().collect();
    assert_eq!(
        second.commands.first(),
        Some(&Command::Ack {
            group: group(),
            ranges
        })
    );
    let stale = leader.deliveries.confirmed(first.round, &[], at(0));
    assert_eq!(
        (stale, leader.deliveries.to_replicate()),
        (Confirmed::default(), None)
    );
}

#[test]
fn a_redelivery_whose_round_failed_goes_into_the_next() {
    let mut leader = Leader::with_messages(1);
    leader.deliveries.open(A, 2).unwrap();
    leader.send(0, 1);
    leader.deliveries.nack(A, &[range(1, 1)]);
    leader.send(0, 1);
    let first = leader.deliveries.to_replicate().unwrap();
    leader.deliveries.failed(first.round);
    assert_eq!(leader.round(0), [(1, 1, 2)]);
}

#[test]
fn acks_that_the_partition_refuses_lead_to_a_redelivery() {
    let mut leader = Leader::with_messages(4);
    leader.deliveries.open(A, 10).unwrap();
    leader.send(0, 100);
    let _ = leader.ack(3, 3);
    let replicate = leader.deliveries.to_replicate().unwrap();
    let refused = Applied::Acked {
        newly: 0,
        refused: [range(3, 3)].into_iter().collect(),
    };
    let confirmed = leader.deliveries.confirmed(replicate.round, &[refused], at(0));
    assert!(confirmed.refused_acks.contains(Sequence::new(3).unwrap()));
    leader.deliveries.check().unwrap();
    leader.deliveries.expire(at(1_000));
    leader.send(1_000, 100);
    assert_eq!(leader.round(1_000), [(1, 4, 2)]);
}

#[test]
fn a_group_that_is_gone_is_told() {
    let mut leader = Leader::with_messages(1);
    leader.deliveries.open(A, 1).unwrap();
    leader.send(0, 1);
    let _ = leader.ack(1, 1);
    leader
        .partition
        .apply(&Command::DropGroup { group: group() }, at(0));
    let replicate = leader.deliveries.to_replicate().unwrap();
    let applied = leader.apply(&replicate);
    assert_eq!(applied[0], Applied::Refused(Refusal::UnknownGroup(group())));
    assert!(
        leader
            .deliveries
            .confirmed(replicate.round, &applied, at(0))
            .group_is_gone
    );
    assert!(Deliveries::new(&leader.partition, group(), at(0)).is_none());
}
