//! Delivering: credit, acks, redelivery, what happens when clients go.

use ptah_proto::common::v1::ErrorKind;

use crate::harness::{
    ACK_DEADLINE_MS, Deliverer, Received, Said, TestNode, consumer_group, group_id, leader, numbered, soon,
    until,
};

const PLENTY: u64 = 64 << 20;

fn all_payloads(received: &[Received]) -> Vec<String> {
    received
        .iter()
        .flat_map(|delivery| delivery.payloads.clone())
        .collect()
}

async fn progress(node: &TestNode, group: u64) -> ptah_rpc::clients::ConsumerGroupProgress {
    let described = node.client().describe_partitions(&[group_id(1)]).await.unwrap();
    let wanted = consumer_group(group).consumer_group;
    described[0]
        .consumer_groups
        .iter()
        .find(|progress| progress.consumer_group == wanted)
        .copied()
        .unwrap()
}

#[tokio::test]
async fn stored_messages_are_delivered_in_order_and_then_the_pull_is_idle() {
    let (_control, node) = leader().await;
    node.store(1, &[numbered(1, 5), numbered(6, 5)]).await;
    node.ensure(1, ACK_DEADLINE_MS, 1000).await;
    let mut deliverer = node.deliverer().await;
    deliverer.pull(1, 1, 100, PLENTY).await;
    let received = deliverer.collect(10).await;
    assert_eq!(all_payloads(&received), numbered(1, 10));
    assert_eq!(
        received
            .iter()
            .map(|r| (r.first, r.delivery_count))
            .collect::<Vec<_>>(),
        [(1, 1), (6, 1)]
    );
    let idle = deliverer.idle().await;
    assert_eq!(
        (idle.pull_id, idle.unacknowledged, idle.next_sequence),
        (1, 10, 11)
    );
}

#[tokio::test]
async fn a_pull_that_waits_gets_what_is_stored_later() {
    let (_control, node) = leader().await;
    node.ensure(1, ACK_DEADLINE_MS, 1000).await;
    let mut deliverer = node.deliverer().await;
    deliverer.pull(1, 1, 100, PLENTY).await;
    assert_eq!(deliverer.idle().await.next_sequence, 1);
    node.store(1, &[numbered(1, 3)]).await;
    assert_eq!(deliverer.messages().await.payloads, numbered(1, 3));
    assert_eq!(deliverer.idle().await.next_sequence, 4);
}

#[tokio::test]
async fn no_more_messages_come_than_the_credit_allows() {
    let (_control, node) = leader().await;
    node.store(1, &[numbered(1, 10)]).await;
    node.ensure(1, ACK_DEADLINE_MS, 1000).await;
    let mut deliverer = node.deliverer().await;
    deliverer.pull(1, 1, 4, PLENTY).await;
    assert_eq!(all_payloads(&deliverer.collect(4).await), numbered(1, 4));
    deliverer.credit(1, 3, 0).await;
    assert_eq!(all_payloads(&deliverer.collect(3).await), numbered(5, 3));
    deliverer.credit(1, 100, 0).await;
    assert_eq!(all_payloads(&deliverer.collect(3).await), numbered(8, 3));
}

#[tokio::test]
async fn credit_in_bytes_bounds_deliveries_and_what_it_cannot_take_goes_to_others() {
    let (_control, node) = leader().await;
    let thousand = |from: u64, n: u64| (from..from + n).map(|i| format!("{i:01000}")).collect::<Vec<_>>();
    node.store(1, &[thousand(1, 20)]).await;
    node.ensure(1, ACK_DEADLINE_MS, 1000).await;
    let mut poor = node.deliverer().await;
    poor.pull(1, 1, 1000, 3_500).await;
    let first = poor.messages().await;
    assert_eq!(first.payloads, thousand(1, 3));
    let mut rich = node.deliverer().await;
    rich.pull(1, 1, 1000, PLENTY).await;
    let mut sequences: Vec<_> = Vec::new();
    while sequences.len() < 16 {
        let received = rich.messages().await;
        sequences.extend(received.first..received.first + received.payloads.len() as u64);
    }
    poor.credit(1, 0, PLENTY).await;
    assert!(sequences.iter().all(|sequence| *sequence > 3));
}

#[tokio::test]
async fn a_message_larger_than_the_credit_is_delivered_alone_and_in_parts() {
    let (_control, node) = leader().await;
    let large = "x".repeat(900_000);
    node.store(1, &[vec![large.clone()], numbered(1, 1)]).await;
    node.ensure(1, ACK_DEADLINE_MS, 1000).await;
    let mut deliverer = node.deliverer().await;
    deliverer.pull(1, 1, 10, 1).await;
    let received = deliverer.messages().await;
    assert_eq!((received.first, received.payloads), (1, vec![large]));
    deliverer.credit(1, 0, 100).await;
    assert_eq!(deliverer.messages().await.first, 2);
}

#[tokio::test]
async fn a_confirmed_ack_is_answered_once_it_is_stored() {
    let (_control, node) = leader().await;
    node.store(1, &[numbered(1, 5)]).await;
    node.ensure(1, ACK_DEADLINE_MS, 1000).await;
    let mut deliverer = node.deliverer().await;
    deliverer.pull(1, 1, 100, PLENTY).await;
    deliverer.collect(5).await;
    deliverer.ack(1, 1, 3, 42).await;
    let acked = deliverer.acked().await;
    assert_eq!((acked.pull_id, acked.confirm_id, acked.error), (1, 42, None));
    let progress = progress(&node, 1).await;
    assert_eq!((progress.ack_floor.get(), progress.pending), (4, 2));
}

#[tokio::test]
async fn acks_that_nobody_waits_for_are_stored_as_well() {
    let (_control, node) = leader().await;
    node.store(1, &[numbered(1, 5)]).await;
    node.ensure(1, ACK_DEADLINE_MS, 1000).await;
    let mut deliverer = node.deliverer().await;
    deliverer.pull(1, 1, 100, PLENTY).await;
    deliverer.collect(5).await;
    for sequence in 1..=5 {
        deliverer.ack(1, sequence, sequence, 0).await;
    }
    until("acks to be stored", || async {
        (progress(&node, 1).await.pending == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_message_that_is_not_acknowledged_in_time_comes_again_with_its_count() {
    let (_control, node) = leader().await;
    node.store(1, &[numbered(1, 2)]).await;
    node.ensure(1, 100, 1000).await;
    let mut deliverer = node.deliverer().await;
    deliverer.pull(1, 1, 100, PLENTY).await;
    let first = deliverer.messages().await;
    assert_eq!((first.first, first.delivery_count), (1, 1));
    deliverer.ack(1, 1, 1, 0).await;
    let again = deliverer.messages().await;
    assert_eq!(
        (again.first, again.payloads, again.delivery_count),
        (2, numbered(2, 1), 2)
    );
    let once_more = deliverer.messages().await;
    assert_eq!((once_more.first, once_more.delivery_count), (2, 3));
}

#[tokio::test]
async fn messages_that_are_out_are_bounded_and_acks_make_room() {
    let (_control, node) = leader().await;
    node.store(1, &[numbered(1, 6)]).await;
    node.ensure(1, ACK_DEADLINE_MS, 2).await;
    let mut deliverer = node.deliverer().await;
    deliverer.pull(1, 1, 100, PLENTY).await;
    assert_eq!(all_payloads(&deliverer.collect(2).await), numbered(1, 2));
    deliverer.ack(1, 1, 2, 0).await;
    assert_eq!(all_payloads(&deliverer.collect(2).await), numbered(3, 2));
    deliverer.ack(1, 3, 4, 0).await;
    assert_eq!(all_payloads(&deliverer.collect(2).await), numbered(5, 2));
}

#[tokio::test]
async fn a_closed_pull_gives_back_what_no_client_got_and_keeps_the_rest() {
    let (_control, node) = leader().await;
    node.store(1, &[numbered(1, 4)]).await;
    node.ensure(1, ACK_DEADLINE_MS, 1000).await;
    let mut deliverer = node.deliverer().await;
    deliverer.pull(1, 1, 4, PLENTY).await;
    deliverer.collect(4).await;
    deliverer.close(1, &[(3, u64::MAX - 1)]).await;
    assert_eq!(deliverer.closed().await, (1, None));
    deliverer.pull(2, 1, 100, PLENTY).await;
    let received = deliverer.messages().await;
    assert_eq!(
        (received.first, received.payloads, received.delivery_count),
        (3, numbered(3, 2), 1)
    );
    assert_eq!(deliverer.idle().await.unacknowledged, 4);
}

#[tokio::test]
async fn acks_of_a_closed_pull_still_count() {
    let (_control, node) = leader().await;
    node.store(1, &[numbered(1, 2)]).await;
    node.ensure(1, ACK_DEADLINE_MS, 1000).await;
    let mut deliverer = node.deliverer().await;
    deliverer.pull(1, 1, 4, PLENTY).await;
    deliverer.collect(2).await;
    deliverer.close(1, &[]).await;
    deliverer.closed().await;
    deliverer.ack(1, 1, 2, 7).await;
    assert_eq!(deliverer.acked().await.error, None);
    assert_eq!(progress(&node, 1).await.pending, 0);
}

#[tokio::test]
async fn what_a_lost_gateway_held_goes_to_another_with_its_count() {
    let (_control, node) = leader().await;
    node.store(1, &[numbered(1, 3)]).await;
    node.ensure(1, ACK_DEADLINE_MS, 1000).await;
    let mut lost = node.deliverer().await;
    lost.pull(1, 1, 100, PLENTY).await;
    lost.collect(3).await;
    drop(lost);
    let mut other = node.deliverer().await;
    other.pull(1, 1, 100, PLENTY).await;
    let received = other.collect(3).await;
    assert_eq!(all_payloads(&received), numbered(1, 3));
    assert!(
        received.iter().all(|delivery| delivery.delivery_count == 2),
        "{received:?}"
    );
}

#[tokio::test]
async fn two_pulls_of_a_group_share_its_messages_and_two_groups_get_all() {
    let (_control, node) = leader().await;
    node.store(
        1,
        &(0..50)
            .map(|batch| numbered(batch * 20 + 1, 20))
            .collect::<Vec<_>>(),
    )
    .await;
    node.ensure(1, ACK_DEADLINE_MS, 10_000).await;
    node.ensure(2, ACK_DEADLINE_MS, 10_000).await;
    let mut deliverer = node.deliverer().await;
    deliverer.pull(1, 1, 2_000, PLENTY).await;
    deliverer.pull(2, 1, 2_000, PLENTY).await;
    deliverer.pull(3, 2, 2_000, PLENTY).await;
    let received = deliverer.collect(2_000).await;
    let of = |pulls: &[u64]| {
        let mut sequences: Vec<u64> = received
            .iter()
            .filter(|delivery| pulls.contains(&delivery.pull_id))
            .flat_map(|delivery| delivery.first..delivery.first + delivery.payloads.len() as u64)
            .collect();
        sequences.sort_unstable();
        sequences
    };
    assert_eq!(of(&[1, 2]), (1..=1_000).collect::<Vec<_>>());
    assert_eq!(of(&[3]), (1..=1_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_pull_of_an_unknown_group_is_closed_with_the_reason() {
    let (_control, node) = leader().await;
    let mut deliverer = node.deliverer().await;
    deliverer.pull(1, 9, 1, PLENTY).await;
    let (pull, error) = deliverer.closed().await;
    assert_eq!((pull, error.unwrap().kind()), (1, ErrorKind::NotFound));
}

#[tokio::test]
async fn a_call_acknowledges_without_a_stream_and_refuses_what_is_not_stored() {
    let (_control, node) = leader().await;
    node.store(1, &[numbered(1, 3)]).await;
    node.ensure(1, ACK_DEADLINE_MS, 1000).await;
    let range = |first, last| ptah_rpc::clients::SequenceRange {
        first: ptah_types::Sequence::new(first).unwrap(),
        last: ptah_types::Sequence::new(last).unwrap(),
    };
    let client = node.client();
    client
        .ack_messages(&consumer_group(1), &[range(1, 2)])
        .await
        .unwrap();
    assert_eq!(progress(&node, 1).await.ack_floor.get(), 3);
    let refused = client
        .ack_messages(&consumer_group(1), &[range(9, 9)])
        .await
        .unwrap_err();
    assert_eq!(refused.kind, ptah_types::ErrorKind::InvalidArgument, "{refused}");
    let mut deliverer = node.deliverer().await;
    deliverer.pull(1, 1, 10, PLENTY).await;
    assert_eq!(deliverer.messages().await.first, 3);
}

#[tokio::test]
async fn a_slow_reader_holds_up_nobody_and_gets_everything_in_the_end() {
    let (_control, node) = leader().await;
    let large: Vec<Vec<String>> = (10..34)
        .map(|i: u32| vec![i.to_string().repeat(450_000)])
        .collect();
    node.store(1, &large).await;
    node.ensure(1, ACK_DEADLINE_MS, 10_000).await;
    node.ensure(2, ACK_DEADLINE_MS, 10_000).await;
    // Has asked for everything and reads nothing yet.
    let mut slow = node.deliverer().await;
    slow.pull(1, 1, 1_000, 1 << 30).await;
    let mut quick = node.deliverer().await;
    quick.pull(1, 2, 1_000, 1 << 30).await;
    assert_eq!(all_payloads(&quick.collect(24).await), large.concat());
    assert_eq!(all_payloads(&slow.collect(24).await), large.concat());
}

#[tokio::test]
async fn a_stream_says_nothing_more_of_a_closed_pull() {
    let (_control, node) = leader().await;
    node.ensure(1, ACK_DEADLINE_MS, 1000).await;
    let mut deliverer = Deliverer::open(&node.client()).await;
    deliverer.pull(1, 1, 10, PLENTY).await;
    deliverer.close(1, &[]).await;
    deliverer.closed().await;
    node.store(1, &[numbered(1, 1)]).await;
    deliverer.pull(2, 1, 10, PLENTY).await;
    match soon("the first thing said", deliverer.next()).await {
        Said::Messages(received) => assert_eq!((received.pull_id, received.first), (2, 1)),
        other => panic!("{other:?}"),
    }
}
