//! Fetching, describing, watching leaders.

use ptah_proto::storage::v1 as pb;

use crate::harness::{group_id, key_pb, leader, numbered, payloads, soon};

async fn fetch(
    node: &crate::harness::TestNode,
    from: u64,
    messages: u32,
    bytes: u64,
) -> (Vec<String>, pb::FetchResponse) {
    let request = pb::FetchRequest {
        partition: Some(key_pb()),
        group_id: 1,
        from_sequence: from,
        max_messages: messages,
        max_bytes: bytes,
    };
    let mut stream = node.client().fetch(request).await.unwrap();
    let mut all = Vec::new();
    loop {
        let response = soon("a part", stream.message()).await.unwrap().unwrap();
        if response.count == 0 {
            assert!(
                stream.message().await.unwrap().is_none(),
                "the stream ends with the end"
            );
            return (all, response);
        }
        all.extend(payloads(response.payload));
    }
}

#[tokio::test]
async fn a_fetch_gives_exactly_the_messages_asked_for_and_the_bounds() {
    let (_control, node) = leader().await;
    node.store(1, &[numbered(1, 4), numbered(5, 4), numbered(9, 4)])
        .await;
    let (messages, end) = fetch(&node, 3, 7, 1 << 20).await;
    assert_eq!(messages, numbered(3, 7));
    assert_eq!((end.first_sequence, end.next_sequence), (1, 13));
    assert_eq!(fetch(&node, 0, 100, 1 << 20).await.0, numbered(1, 12));
    assert_eq!(fetch(&node, 12, 1, 1 << 20).await.0, numbered(12, 1));
    assert!(fetch(&node, 13, 5, 1 << 20).await.0.is_empty());
    assert!(fetch(&node, 99, 5, 1 << 20).await.0.is_empty());
}

#[tokio::test]
async fn a_fetch_keeps_to_its_bytes_but_gives_one_message() {
    let (_control, node) = leader().await;
    node.store(1, &[numbered(1, 100)]).await;
    assert_eq!(fetch(&node, 1, 100, 1).await.0, numbered(1, 1));
    let some = fetch(&node, 1, 100, 300).await.0;
    assert!(
        some.len() > 1 && some.len() < 100,
        "{} messages in 300 bytes",
        some.len()
    );
    assert_eq!(some, numbered(1, some.len() as u64));
}

#[tokio::test]
async fn the_leader_table_names_this_node_as_ready() {
    let (_control, node) = leader().await;
    let mut watch = node.client().watch_leaders("test").await.unwrap();
    let first = soon("the table", watch.next()).await.unwrap().unwrap();
    assert!(first.full);
    let row = first.leaders.iter().find(|row| row.group == group_id(1)).unwrap();
    assert_eq!((row.leader, row.ready), (Some(node.id), true));
}

#[tokio::test]
async fn groups_that_are_not_led_here_are_left_out_of_a_description() {
    let (_control, node) = leader().await;
    let described = node
        .client()
        .describe_partitions(&[group_id(1), group_id(2)])
        .await
        .unwrap();
    assert_eq!(
        described
            .iter()
            .map(|partition| partition.group)
            .collect::<Vec<_>>(),
        [group_id(1)]
    );
}

#[tokio::test]
async fn health_and_status_tell_what_the_node_has() {
    let (_control, node) = leader().await;
    soon("readiness", node.health.until_ready()).await;
    node.store(1, &[numbered(1, 3)]).await;
    let status = node.health.status();
    let text = status.to_string();
    for part in [
        "\"leads\":true",
        "\"state\":\"running\"",
        "\"next_sequence\":4",
        "\"partitions_led\":1",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}
