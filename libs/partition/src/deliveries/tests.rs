use proptest::prelude::*;
use ptah_types::StartAt;

use super::*;
use crate::{Applied, BatchHead, BatchStamp, Command, DeliveryCount, GroupSpec, Refusal};

const DEADLINE_MS: u64 = 1_000;
const A: ConsumerId = ConsumerId(1);
const B: ConsumerId = ConsumerId(2);

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn range(first: u64, last: u64) -> SequenceRange {
    SequenceRange::from_numbers(first, last).unwrap()
}

fn group() -> ConsumerGroupId {
    ConsumerGroupId::new(5).unwrap()
}

/// A partition with one group, and its leader.
struct Leader {
    partition: Partition,
    deliveries: Deliveries,
}

impl Leader {
    fn with_messages(messages: u32) -> Self {
        Self::with_group(messages, StartAt::First, 1_000)
    }

    fn with_group(messages: u32, start: StartAt, max_in_flight: u32) -> Self {
        let mut partition = Partition::new();
        append(&mut partition, messages);
        let spec = GroupSpec {
            name: "audit".parse().unwrap(),
            start,
            ack_deadline_ms: DEADLINE_MS,
            max_in_flight,
        };
        partition.apply(&Command::EnsureGroup { group: group(), spec }, at(0));
        let deliveries = Deliveries::new(&partition, group(), at(0)).unwrap();
        Self {
            partition,
            deliveries,
        }
    }

    fn append(&mut self, messages: u32) {
        append(&mut self.partition, messages);
        self.deliveries
            .observe(self.partition.first_sequence(), self.partition.next_sequence());
    }

    /// Leases and sends at once.
    fn send(&mut self, now: u64, most: u32) -> Vec<(u64, u64, u32)> {
        let leases = self.deliveries.lease(at(now), most);
        self.send_leases(leases, now)
    }

    fn send_leases(&mut self, leases: Vec<Lease>, now: u64) -> Vec<(u64, u64, u32)> {
        let mut sent = Vec::new();
        for lease in leases {
            assert_eq!(
                self.deliveries.mark_sent(lease.consumer, lease.range, at(now)),
                [lease.range]
            );
            sent.push((
                lease.range.first().get(),
                lease.range.last().get(),
                lease.delivery_count,
            ));
        }
        self.deliveries.check().unwrap();
        sent
    }

    fn apply(&mut self, replicate: &Replicate) -> Vec<Applied> {
        let applied = replicate
            .commands
            .iter()
            .map(|command| self.partition.apply(command, at(0)))
            .collect();
        self.partition.check().unwrap();
        applied
    }

    /// One round from start to end; sends what it sets free.
    fn round(&mut self, now: u64) -> Vec<(u64, u64, u32)> {
        let Some(replicate) = self.deliveries.to_replicate() else {
            return Vec::new();
        };
        let applied = self.apply(&replicate);
        let confirmed = self.deliveries.confirmed(replicate.round, &applied, at(now));
        self.send_leases(confirmed.leases, now)
    }

    fn ack(&mut self, first: u64, last: u64) -> AckOutcome {
        let outcome = self.deliveries.ack(&[range(first, last)]);
        self.deliveries.check().unwrap();
        outcome
    }

    fn change_leader(&mut self, now: u64) {
        self.deliveries = Deliveries::new(&self.partition, group(), at(now)).unwrap();
        self.deliveries.check().unwrap();
    }

    fn floor(&self) -> u64 {
        self.partition.group(group()).unwrap().first_unacked().get() - 1
    }
}

fn append(partition: &mut Partition, messages: u32) {
    if messages == 0 {
        return;
    }
    let stamp = BatchStamp {
        base_sequence: partition.next_sequence(),
        count: messages,
        timestamp: at(0),
        session: None,
    };
    partition
        .apply_batch(
            &stamp,
            BatchHead {
                count: messages,
                bytes: 100,
            },
        )
        .unwrap();
}

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
fn an_ack_of_messages_that_are_not_stored_is_refused() {
    let mut leader = Leader::with_messages(3);
    leader.deliveries.open(A, 100).unwrap();
    leader.send(0, 100);
    let outcome = leader.ack(2, u64::MAX);
    assert_eq!(outcome.newly, 2);
    assert_eq!(outcome.refused, [range(4, u64::MAX)].into_iter().collect());
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
