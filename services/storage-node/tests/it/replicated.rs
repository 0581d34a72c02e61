//! Three nodes: leadership moves, nothing answered is lost.

use ptah_proto::common::v1::ErrorKind;
use ptah_proto::storage::v1::append_result::Outcome;
use ptah_storage_node::Config;

use crate::harness::{
    ACK_DEADLINE_MS, Appender, ControlPlane, TestNode, batch, group_id, numbered, order, soon, until,
};

const PLENTY: u64 = 64 << 20;

async fn three() -> (ControlPlane, Vec<TestNode>) {
    three_with(|_| {}).await
}

async fn three_with(change: impl Fn(&mut Config)) -> (ControlPlane, Vec<TestNode>) {
    let control = ControlPlane::start().await;
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let mut node = TestNode::new(id, &control);
        change(&mut node.config);
        node.start().await.unwrap();
        nodes.push(node);
    }
    let all: Vec<&TestNode> = nodes.iter().collect();
    for node in &nodes {
        node.place(&order(1, &all, node)).await.unwrap();
    }
    (control, nodes)
}

/// Place of the node that leads.
async fn leading(nodes: &[TestNode], but_not: Option<usize>) -> usize {
    until("a leader", || async {
        for (place, node) in nodes
            .iter()
            .enumerate()
            .filter(|(place, _)| Some(*place) != but_not)
        {
            let described = node.client().describe_partitions(&[group_id(1)]).await;
            if described.is_ok_and(|described| !described.is_empty()) {
                return Some(place);
            }
        }
        None
    })
    .await
}

#[tokio::test]
async fn a_follower_refuses_and_names_the_leader() {
    let (_control, nodes) = three().await;
    let leader = leading(&nodes, None).await;
    let follower = (leader + 1) % 3;
    let hint = until("a hint", || async {
        let mut appender = nodes[follower].appender().await;
        appender.channel(1, group_id(1)).await;
        appender.send(1, 1, &batch(&["x"])).await;
        let refused = appender.refused().await;
        assert_eq!((refused.kind, refused.expected_number), (ErrorKind::NotLeader, 0));
        refused.error.leader
    })
    .await;
    assert_eq!(
        (hint.node_id, hint.address),
        (nodes[leader].id.get(), nodes[leader].address())
    );
}

#[tokio::test]
async fn a_retry_at_the_next_leader_is_stored_once_and_pulls_are_told_to_move() {
    let (_control, mut nodes) = three().await;
    let leader = leading(&nodes, None).await;
    let mut appender = Appender::open(&nodes[leader].client(), 5).await;
    appender.channel(1, group_id(1)).await;
    appender.send(1, 1, &batch(&numbered(1, 3))).await;
    appender.stored().await;
    nodes[leader].ensure(1, 200, 1000).await;
    let mut deliverer = nodes[leader].deliverer().await;
    deliverer.pull(1, 1, 2, PLENTY).await;
    deliverer.collect(2).await;
    deliverer.ack(1, 1, 1, 1).await;
    assert_eq!(deliverer.acked().await.error, None);
    nodes[leader].stop().await;
    let next = leading(&nodes, Some(leader)).await;
    let mut appender = Appender::open(&nodes[next].client(), 5).await;
    appender.channel(1, group_id(1)).await;
    appender.send(1, 1, &batch(&numbered(1, 3))).await;
    appender.send(1, 2, &batch(&numbered(4, 1))).await;
    let (_, first) = appender.stored().await;
    assert_eq!((first.base_sequence, first.duplicate), (1, true));
    assert_eq!(appender.stored().await.1.base_sequence, 4);
    assert_eq!(nodes[next].everything().await, numbered(1, 4));
    let mut deliverer = nodes[next].deliverer().await;
    deliverer.pull(1, 1, 100, PLENTY).await;
    let mut sequences = Vec::new();
    while sequences.len() < 3 {
        let received = deliverer.messages().await;
        sequences.extend(received.first..received.first + received.payloads.len() as u64);
    }
    sequences.sort_unstable();
    assert_eq!(
        sequences,
        [2, 3, 4],
        "the confirmed ack holds, everything else is delivered"
    );
}

#[tokio::test]
async fn pulls_at_a_node_that_stops_are_closed() {
    let (_control, mut nodes) = three().await;
    let leader = leading(&nodes, None).await;
    nodes[leader].ensure(1, ACK_DEADLINE_MS, 1000).await;
    let mut deliverer = nodes[leader].deliverer().await;
    deliverer.pull(1, 1, 2, PLENTY).await;
    deliverer.idle().await;
    let ended = async {
        let message = deliverer.try_next().await;
        match message {
            Ok(crate::harness::Said::Closed(closed)) => {
                let kind = closed.error.unwrap().kind();
                assert!(
                    matches!(kind, ErrorKind::NotLeader | ErrorKind::Unavailable),
                    "{kind:?}"
                );
            }
            Ok(other) => panic!("{other:?}"),
            Err(status) => assert_eq!(status.code(), tonic::Code::Unavailable, "{status}"),
        }
    };
    let stopping = nodes[leader].stop();
    soon("both", async { tokio::join!(ended, stopping) }).await;
}

#[tokio::test]
async fn answered_appends_survive_a_leader_that_loses_power_under_load() {
    let (_control, mut nodes) = three().await;
    let leader = leading(&nodes, None).await;
    let mut appender = Appender::open(&nodes[leader].client(), 5).await;
    appender.channel(1, group_id(1)).await;
    // A session may have 64 appends in flight.
    for number in 1..=64 {
        appender.send(1, number, &batch(&numbered(number, 1))).await;
    }
    let mut answered = 0;
    while answered < 150 {
        answered = appender.stored().await.0;
        appender
            .send(1, answered + 64, &batch(&numbered(answered + 64, 1)))
            .await;
    }
    nodes[leader].lose_power().await;
    let next = leading(&nodes, Some(leader)).await;
    let mut appender = Appender::open(&nodes[next].client(), 5).await;
    appender.channel(1, group_id(1)).await;
    for number in answered + 1..=200 {
        appender.send(1, number, &batch(&numbered(number, 1))).await;
        let (stored_number, stored) = appender.stored().await;
        assert_eq!((stored_number, stored.base_sequence), (number, number));
    }
    assert_eq!(nodes[next].everything().await, numbered(1, 200));
    nodes[leader].start().await.unwrap();
}

#[tokio::test]
async fn without_a_majority_nothing_is_answered_as_stored_and_with_one_it_heals() {
    let (_control, mut nodes) = three_with(|config| config.append.deadline_ms = 300).await;
    let leader = leading(&nodes, None).await;
    let mut appender = Appender::open(&nodes[leader].client(), 5).await;
    appender.channel(1, group_id(1)).await;
    appender.send(1, 1, &batch(&numbered(1, 1))).await;
    appender.stored().await;
    let others: Vec<usize> = (0..3).filter(|place| *place != leader).collect();
    for other in &others {
        nodes[*other].lose_power().await;
    }
    appender.send(1, 2, &batch(&numbered(2, 1))).await;
    let refused = appender.refused().await;
    let honest = matches!(
        refused.kind,
        ErrorKind::OutcomeUnknown | ErrorKind::Unavailable | ErrorKind::NotLeader
    );
    assert!(honest, "{refused:?}");
    for other in &others {
        nodes[*other].start().await.unwrap();
    }
    // The gateway's part: the same number again, at whoever leads.
    let stored = until("the retry to be stored", || async {
        let leader = leading(&nodes, None).await;
        let mut appender = Appender::open(&nodes[leader].client(), 5).await;
        appender.channel(1, group_id(1)).await;
        appender.send(1, 2, &batch(&numbered(2, 1))).await;
        match appender.result().await.outcome {
            Some(Outcome::Stored(stored)) => Some(stored),
            _ => None,
        }
    })
    .await;
    assert_eq!(stored.base_sequence, 2);
    let leader = leading(&nodes, None).await;
    assert_eq!(nodes[leader].everything().await, numbered(1, 2));
}
