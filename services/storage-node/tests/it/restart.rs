//! Restarts, power loss, full disks: what was answered is there afterwards.

use ptah_proto::common::v1::ErrorKind;
use ptah_proto::storage::v1::append_result::Outcome;

use crate::harness::{ACK_DEADLINE_MS, Appender, TestNode, batch, group_id, leader, numbered, until};

const PLENTY: u64 = 64 << 20;

async fn again(node: &mut TestNode) {
    node.start().await.unwrap();
    node.until_led(group_id(1)).await;
}

#[tokio::test]
async fn a_restart_needs_no_control_plane_and_keeps_messages_groups_and_positions() {
    let (control, mut node) = leader().await;
    node.store(1, &[numbered(1, 10)]).await;
    node.ensure(1, ACK_DEADLINE_MS, 1000).await;
    let mut deliverer = node.deliverer().await;
    deliverer.pull(1, 1, 4, PLENTY).await;
    deliverer.collect(4).await;
    deliverer.ack(1, 1, 4, 1).await;
    assert_eq!(deliverer.acked().await.error, None);
    node.stop().await;
    drop(control);
    node.config.control_plane_addresses = ptah_service::List(vec!["127.0.0.1:1".to_owned()]);
    again(&mut node).await;
    assert_eq!(node.everything().await, numbered(1, 10));
    let mut deliverer = node.deliverer().await;
    deliverer.pull(1, 1, 100, PLENTY).await;
    let received = deliverer.messages().await;
    assert_eq!((received.first, received.delivery_count), (5, 1));
}

#[tokio::test]
async fn an_append_that_is_retried_after_a_restart_is_stored_once() {
    let (_control, mut node) = leader().await;
    node.store(5, &[numbered(1, 2)]).await;
    node.stop().await;
    again(&mut node).await;
    let mut appender = Appender::open(&node.client(), 5).await;
    appender.channel(1, group_id(1)).await;
    appender.send(1, 1, &batch(&numbered(1, 2))).await;
    appender.send(1, 2, &batch(&numbered(3, 1))).await;
    let (_, first) = appender.stored().await;
    assert_eq!((first.base_sequence, first.duplicate), (1, true));
    assert!(first.timestamp_ns > 0, "the time of the first answer");
    assert_eq!(appender.stored().await.1.base_sequence, 3);
    assert_eq!(node.everything().await, numbered(1, 3));
}

#[tokio::test]
async fn what_was_answered_survives_the_loss_of_power() {
    let (_control, mut node) = leader().await;
    for round in 0..3_u64 {
        node.store(round + 1, &[numbered(round * 10 + 1, 10)]).await;
        node.lose_power().await;
        again(&mut node).await;
        let everything = node.everything().await;
        assert_eq!(everything, numbered(1, round * 10 + 10));
    }
}

#[tokio::test]
async fn confirmed_acks_survive_the_loss_of_power() {
    let (_control, mut node) = leader().await;
    node.store(1, &[numbered(1, 6)]).await;
    node.ensure(1, 200, 1000).await;
    let mut deliverer = node.deliverer().await;
    deliverer.pull(1, 1, 6, PLENTY).await;
    deliverer.collect(6).await;
    deliverer.ack(1, 2, 4, 1).await;
    assert_eq!(deliverer.acked().await.error, None);
    node.lose_power().await;
    again(&mut node).await;
    let mut deliverer = node.deliverer().await;
    deliverer.pull(1, 1, 100, PLENTY).await;
    let mut sequences = Vec::new();
    while sequences.len() < 3 {
        let received = deliverer.messages().await;
        sequences.extend(received.first..received.first + received.payloads.len() as u64);
    }
    sequences.sort_unstable();
    assert_eq!(sequences, [1, 5, 6]);
}

#[tokio::test]
async fn a_nearly_full_disk_refuses_messages_takes_acks_and_recovers() {
    let (control, mut node) = leader().await;
    node.store(1, &[numbered(1, 2)]).await;
    node.ensure(1, ACK_DEADLINE_MS, 1000).await;
    node.stop().await;
    node.config.disk.reserve_bytes = 64 << 20;
    node.disk.set_capacity(1 << 30);
    again(&mut node).await;
    node.disk.set_capacity(used_bytes(&node) + (32 << 20));
    let refused = until("a refusal", || async {
        let mut appender = Appender::open(&node.client(), 3).await;
        appender.channel(1, group_id(1)).await;
        appender.send(1, 1, &batch(&["more"])).await;
        let result = appender.result().await;
        match result.outcome {
            Some(Outcome::Refused(refused)) => refused.error,
            _ => None,
        }
    })
    .await;
    assert_eq!(refused.kind(), ErrorKind::Exhausted);
    assert!(refused.retry_after_ms >= 1000, "{refused:?}");
    assert!(refused.message.contains("the data disk of node 1"), "{refused:?}");
    let report = control
        .report("a report of the full disk", |report| report.refuses_messages)
        .await;
    assert!(report.disk_needed_bytes >= 64 << 20, "{report:?}");
    assert!(report.disk_free_bytes < report.disk_needed_bytes, "{report:?}");
    let mut deliverer = node.deliverer().await;
    deliverer.pull(1, 1, 2, PLENTY).await;
    deliverer.collect(2).await;
    deliverer.ack(1, 1, 2, 1).await;
    assert_eq!(deliverer.acked().await.error, None);
    node.disk.set_capacity(1 << 30);
    until("messages to be taken again", || async {
        let mut appender = Appender::open(&node.client(), 9).await;
        appender.channel(1, group_id(1)).await;
        appender.send(1, 1, &batch(&["room again"])).await;
        matches!(appender.result().await.outcome, Some(Outcome::Stored(_))).then_some(())
    })
    .await;
}

fn used_bytes(node: &TestNode) -> u64 {
    let files = node.disk.files();
    files
        .iter()
        .filter_map(|path| node.disk.contents(path))
        .map(|contents| contents.len() as u64)
        .sum()
}

#[tokio::test]
async fn a_failed_sync_stops_the_node_and_nothing_is_answered() {
    let (_control, mut node) = leader().await;
    node.store(1, &[numbered(1, 2)]).await;
    node.disk.inject(ptah_segment_log::SimFault {
        op: ptah_segment_log::SimOp::Sync,
        path_contains: "wal".to_owned(),
        after: 0,
        times: u64::MAX,
        error: std::io::ErrorKind::Other,
    });
    let mut appender = Appender::open(&node.client(), 2).await;
    appender.channel(1, group_id(1)).await;
    appender.send(1, 1, &batch(&["never answered as stored"])).await;
    let failure = node.failed().await;
    assert!(failure.contains("storage failed"), "{failure}");
    if let Ok(result) = appender.try_result().await {
        let refused = matches!(result.outcome, Some(Outcome::Refused(_)));
        assert!(refused, "{result:?}");
    }
    node.disk.clear_faults();
    node.lose_power().await;
    again(&mut node).await;
    assert_eq!(node.everything().await[..2], numbered(1, 2)[..]);
}
