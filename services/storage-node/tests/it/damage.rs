//! Messages that became damaged on the only disk that has them.

use crate::harness::{ACK_DEADLINE_MS, TestNode, group_id, leader, numbered};

const PLENTY: u64 = 64 << 20;
/// Messages that push earlier ones out of memory.
const BULK: u64 = 40;

/// Stores messages 1 to 12 in three batches, pushes them out of memory, and damages the second batch.
async fn damaged() -> (crate::harness::ControlPlane, TestNode) {
    let (control, node) = leader().await;
    node.store(1, &[numbered(1, 4), numbered(5, 4), numbered(9, 4)])
        .await;
    let bulk: Vec<_> = (0..BULK).map(|_| vec!["x".repeat(50_000)]).collect();
    node.store(2, &bulk).await;
    let hex = group_id(1).to_hex();
    let needle = b"message 6";
    let (path, place) = node
        .disk
        .files()
        .into_iter()
        .filter(|path| path.iter().any(|part| *part == *hex))
        .find_map(|path| {
            let contents = node.disk.contents(&path)?;
            let place = contents.windows(needle.len()).position(|bytes| bytes == needle)?;
            Some((path, place as u64))
        })
        .expect("the message is in a segment");
    assert!(node.disk.flip_bit(&path, place * 8));
    (control, node)
}

fn set_aside(node: &TestNode) -> serde_json::Value {
    node.health.status()["details"]["storage"]["set_aside"].clone()
}

#[tokio::test]
async fn damaged_messages_are_set_aside_and_everything_else_is_delivered() {
    let (_control, node) = damaged().await;
    node.ensure(1, ACK_DEADLINE_MS, 1000).await;
    let mut deliverer = node.deliverer().await;
    deliverer.pull(1, 1, 1000, PLENTY).await;
    let received = deliverer.collect(8 + BULK as usize).await;
    let firsts: Vec<_> = received.iter().map(|delivery| delivery.first).collect();
    assert_eq!(firsts[..3], [1, 9, 13], "in order, without the damaged batch");
    assert_eq!(received[1].payloads, numbered(9, 4));
    deliverer.idle().await;
    let told = serde_json::json!([{ "partition": "default/1/1", "consumer_group": 1, "messages": 4 }]);
    assert_eq!(set_aside(&node), told);
    // Neither delivered nor acknowledged: the group still has them before it.
    deliverer.ack(1, 1, 4, 1).await;
    deliverer.ack(1, 9, 12 + BULK, 2).await;
    for _ in 0..2 {
        assert_eq!(deliverer.acked().await.error, None);
    }
    let described = node.client().describe_partitions(&[group_id(1)]).await.unwrap();
    assert_eq!(described[0].consumer_groups[0].pending, 4);
    // Somebody who knows gives them up.
    deliverer.ack(1, 5, 8, 3).await;
    assert_eq!(deliverer.acked().await.error, None);
    let described = node.client().describe_partitions(&[group_id(1)]).await.unwrap();
    assert_eq!(described[0].consumer_groups[0].pending, 0);
    assert_eq!(set_aside(&node), serde_json::json!([]));
}

#[tokio::test]
async fn a_small_bound_on_messages_in_flight_is_not_used_up_by_damaged_ones() {
    let (_control, node) = damaged().await;
    node.ensure(1, ACK_DEADLINE_MS, 2).await;
    let mut deliverer = node.deliverer().await;
    deliverer.pull(1, 1, 1000, PLENTY).await;
    let mut sequences = Vec::new();
    while sequences.len() < 8 {
        let received = deliverer.messages().await;
        let last = received.first + received.payloads.len() as u64 - 1;
        sequences.extend(received.first..=last);
        deliverer.ack(1, received.first, last, 0).await;
    }
    assert_eq!(sequences, [1, 2, 3, 4, 9, 10, 11, 12]);
}
