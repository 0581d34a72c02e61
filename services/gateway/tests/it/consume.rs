//! Consume: credit, order, acknowledgements, leader changes, memory.

use std::collections::BTreeSet;
use std::time::Duration;

use ptah_proto::api::v1 as api;
use ptah_proto::api::v1::consume_response::Response;

use crate::support::{Cluster, LIMIT, ROOT, cluster, message, signed, until};

fn payloads(messages: &[api::Message]) -> Vec<String> {
    messages
        .iter()
        .map(|m| String::from_utf8(m.payload.to_vec()).unwrap())
        .collect()
}

fn in_partition(partition: u32, payload: &str) -> api::NewMessage {
    api::NewMessage {
        partition,
        ..message(payload)
    }
}

async fn fill(cluster: &Cluster, partition: u32, count: u32) {
    let messages = (0..count)
        .map(|n| in_partition(partition, &format!("{partition}-{n}")))
        .collect();
    cluster.produce("orders", messages).await;
}

#[tokio::test]
async fn messages_come_in_order_with_everything_that_was_produced() {
    let cluster = cluster().start().await;
    cluster.station("orders", 1).await;
    let sent = api::NewMessage {
        headers: vec![header("b", "1"), header("A", "2"), header("b", "3")],
        key: Some(b"key".to_vec().into()),
        message_id: "id-1".to_owned(),
        subject: "orders.new".to_owned(),
        ..message("body")
    };
    cluster
        .produce("orders", vec![sent.clone(), message("second")])
        .await;
    let mut stream = cluster.consume("orders", "readers", 10).await;
    let Response::Opened(opened) = stream.next().await else {
        panic!("the first answer is the opening")
    };
    assert_eq!(opened.partitions, [1]);
    let (messages, unacknowledged) = stream.until_idle().await;
    assert_eq!(unacknowledged, 2);
    assert_eq!(messages.iter().map(|m| m.sequence).collect::<Vec<_>>(), [1, 2]);
    let first = &messages[0];
    assert_eq!(
        (first.payload.as_ref(), &first.headers),
        (&b"body"[..], &sent.headers)
    );
    assert_eq!(
        (first.key.as_deref(), first.message_id.as_str()),
        (Some(&b"key"[..]), "id-1")
    );
    assert_eq!(
        (
            first.subject.as_str(),
            first.producer.as_str(),
            first.delivery_count
        ),
        ("orders.new", "test", 1)
    );
    assert_eq!(messages[1].subject, "orders");
}

fn header(name: &str, value: &str) -> ptah_proto::common::v1::Header {
    ptah_proto::common::v1::Header {
        name: name.as_bytes().to_vec().into(),
        value: value.as_bytes().to_vec().into(),
    }
}

#[tokio::test]
async fn never_more_than_the_credit_is_sent_and_no_partition_starves() {
    let cluster = cluster().start().await;
    cluster.station("orders", 3).await;
    for partition in 1..=3 {
        fill(&cluster, partition, 100).await;
    }
    let mut stream = cluster.consume("orders", "readers", 30).await;
    let mut seen = stream.take(30).await;
    // More does not come without credit.
    let silence = tokio::time::timeout(Duration::from_millis(100), stream.responses.message()).await;
    assert!(silence.is_err(), "{silence:?}");
    while seen.len() < 300 {
        stream.credit(10, 1_000).await;
        seen.extend(stream.take(10).await);
    }
    for partition in 1..=3 {
        let sequences: Vec<_> = seen
            .iter()
            .filter(|m| m.partition == partition)
            .map(|m| m.sequence)
            .collect();
        assert_eq!(sequences, (1..=100).collect::<Vec<_>>(), "partition {partition}");
    }
}

#[tokio::test]
async fn a_single_credit_reaches_whichever_partition_has_a_message() {
    let cluster = cluster().start().await;
    cluster.station("orders", 8).await;
    let mut stream = cluster.consume("orders", "readers", 1).await;
    let (none, _) = stream.until_idle().await;
    assert!(none.is_empty());
    for partition in [5, 2, 8] {
        fill(&cluster, partition, 1).await;
        assert_eq!(payloads(&stream.take(1).await), [format!("{partition}-0")]);
        stream.credit(1, 100).await;
    }
}

#[tokio::test]
async fn a_message_larger_than_the_byte_credit_is_sent_and_then_the_credit_is_used_up() {
    let cluster = cluster().start().await;
    cluster.station("orders", 1).await;
    let large = vec![1; 3 << 20];
    cluster
        .produce("orders", vec![message(large.clone()), message("next")])
        .await;
    let mut stream = cluster.consume_with("orders", "readers", 10, 100, 30_000).await;
    let messages = stream.take(1).await;
    assert_eq!(messages[0].payload, large);
    let silence = tokio::time::timeout(Duration::from_millis(100), stream.responses.message()).await;
    assert!(silence.is_err(), "{silence:?}");
    stream.credit(0, 100).await;
    assert_eq!(payloads(&stream.take(1).await), ["next"]);
}

#[tokio::test]
async fn what_was_not_sent_goes_to_the_next_consumer_at_once() {
    let cluster = cluster().start().await;
    cluster.station("orders", 1).await;
    fill(&cluster, 1, 100).await;
    // The byte credit lets one message through; the others wait in the gateway or at the node.
    let mut first = cluster.consume_with("orders", "readers", 100, 1, 30_000).await;
    let taken = first.take(1).await;
    drop(first);
    let mut second = cluster.consume("orders", "readers", 1_000).await;
    let rest = second.take(99).await;
    let sequences: BTreeSet<_> = taken.iter().chain(&rest).map(|m| m.sequence).collect();
    assert_eq!(sequences.len(), 100);
    assert!(
        rest.iter().all(|m| m.delivery_count == 1),
        "what nobody saw was not delivered"
    );
}

#[tokio::test]
async fn acknowledged_messages_do_not_come_again() {
    let cluster = cluster().start().await;
    cluster.station("orders", 2).await;
    fill(&cluster, 1, 10).await;
    fill(&cluster, 2, 10).await;
    let mut stream = cluster.consume("orders", "readers", 100).await;
    let messages = stream.take(20).await;
    for (place, message) in messages.iter().enumerate() {
        stream.ack(message, if place == 19 { 77 } else { 0 }).await;
    }
    loop {
        if let Response::Acked(acked) = stream.next().await {
            assert_eq!((acked.confirm_id, acked.error), (77, None));
            break;
        }
    }
    drop(stream);
    let mut again = cluster.consume("orders", "readers", 100).await;
    let (none, unacknowledged) = again.until_idle().await;
    assert_eq!((none.len(), unacknowledged), (0, 0));
}

#[tokio::test]
async fn a_stream_goes_on_at_the_new_leader_and_acknowledgements_arrive_there() {
    let cluster = cluster().start().await;
    let group = cluster.station("orders", 1).await[0];
    fill(&cluster, 1, 10).await;
    let mut stream = cluster.consume("orders", "readers", 100).await;
    let before = stream.take(10).await;
    cluster.world.move_leader(group, 2, 0);
    cluster.world.break_streams(1);
    for message in &before {
        stream.ack(message, message.sequence).await;
    }
    fill(&cluster, 1, 5).await;
    let mut confirmed = BTreeSet::new();
    let mut after = Vec::new();
    while confirmed.len() < 10 || after.len() < 5 {
        match stream.next().await {
            Response::Acked(acked) => {
                assert_eq!(acked.error, None);
                confirmed.insert(acked.confirm_id);
            }
            Response::Batch(batch) => after.extend(batch.messages),
            _ => {}
        }
    }
    assert_eq!(
        after.iter().map(|m| m.sequence).collect::<Vec<_>>(),
        (11..=15).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn leader_changes_under_load_lose_nothing() {
    let cluster = cluster().start().await;
    let groups = cluster.station("orders", 3).await;
    let mut stream = cluster.consume_with("orders", "readers", 50, 0, 200).await;
    let mut seen = BTreeSet::new();
    for round in 0..10_u64 {
        for partition in 1..=3 {
            fill(&cluster, partition, 20).await;
        }
        let group = groups[(round % 3) as usize];
        cluster.world.move_leader(group, 1 + round % 3, 0);
        cluster.world.break_streams(1 + round % 2);
    }
    let deadline = tokio::time::Instant::now() + LIMIT;
    while seen.len() < 600 {
        assert!(
            tokio::time::Instant::now() < deadline,
            "only {} of 600 came",
            seen.len()
        );
        for group in &groups {
            // Leases of old leaders end by time; nothing else wakes the fake.
            cluster.world.on_group(*group, |_, _| {});
        }
        let next = tokio::time::timeout(Duration::from_millis(50), stream.responses.message()).await;
        let Ok(next) = next else { continue };
        if let Some(Response::Batch(batch)) = next.unwrap().unwrap().response {
            stream.credit(batch.messages.len() as u32, 100_000).await;
            for message in batch.messages {
                stream.ack(&message, 0).await;
                seen.insert((message.partition, message.sequence));
            }
        }
    }
}

#[tokio::test]
async fn a_pull_takes_what_is_there_and_waits_for_the_first_message() {
    let cluster = cluster().start().await;
    let groups = cluster.station("orders", 3).await;
    let pull = |max_messages, wait_ms| {
        let request = api::PullRequest {
            station: "orders".to_owned(),
            group: "readers".to_owned(),
            max_messages,
            wait_ms,
            ..api::PullRequest::default()
        };
        let mut client = cluster.messages();
        async move {
            client
                .pull(signed(ROOT, request))
                .await
                .unwrap()
                .into_inner()
                .messages
        }
    };
    assert!(pull(10, 0).await.is_empty());
    for partition in 1..=3 {
        fill(&cluster, partition, 4).await;
    }
    let first = pull(5, 0).await;
    assert_eq!(first.len(), 5);
    let second = pull(100, 0).await;
    assert_eq!(second.len(), 7, "what a pull did not take is there for the next");
    // Pulls of earlier calls are closed behind their answers.
    let idle_pulls = || {
        cluster.world.with(|state| {
            let pulls = groups.iter().flat_map(|group| state.groups[group].pulls.values());
            pulls.map(|pull| pull.idle_told).collect::<Vec<_>>()
        })
    };
    until("earlier pulls are closed", || idle_pulls().is_empty()).await;
    let (late, ()) = tokio::join!(pull(1, 10_000), async {
        until("the pull waits at every partition", || idle_pulls() == [true; 3]).await;
        fill(&cluster, 2, 1).await;
    });
    assert_eq!(late.len(), 1);
    let acks = late.iter().chain(&first).chain(&second);
    let acks = acks.map(|m| api::PartitionAck {
        partition: m.partition,
        ranges: vec![api::SequenceRange {
            first: m.sequence,
            last: m.sequence,
        }],
    });
    let request = api::AckRequest {
        tenant: String::new(),
        station: "orders".to_owned(),
        group: "readers".to_owned(),
        acks: acks.collect(),
    };
    cluster.messages().ack(signed(ROOT, request)).await.unwrap();
    let mut stream = cluster.consume("orders", "readers", 10).await;
    assert_eq!(stream.until_idle().await.1, 0, "all are acknowledged");
}

#[tokio::test]
async fn messages_are_read_by_sequence() {
    let cluster = cluster().start().await;
    cluster.station("orders", 1).await;
    fill(&cluster, 1, 10).await;
    fill(&cluster, 1, 10).await;
    let request = api::ReadRequest {
        station: "orders".to_owned(),
        partition: 1,
        from_sequence: 8,
        max_messages: 5,
        ..api::ReadRequest::default()
    };
    let read = cluster
        .messages()
        .read(signed(ROOT, request))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        read.messages.iter().map(|m| m.sequence).collect::<Vec<_>>(),
        (8..=12).collect::<Vec<_>>()
    );
    assert_eq!((read.first_sequence, read.next_sequence), (1, 21));
}

#[tokio::test]
async fn slow_readers_are_bounded_together_and_the_others_go_on() {
    let cluster = cluster()
        .config(|config| {
            config.consume.budget_bytes = 4 << 20;
            config.consume.answer_bytes = 1 << 20;
            config.consume.stall_timeout_ms = 300;
        })
        .start()
        .await;
    cluster.station("orders", 1).await;
    for _ in 0..10 {
        cluster.produce("orders", vec![message(vec![5; 1 << 20])]).await;
    }
    // Each would have 10 MiB waiting; they do not read, each on a connection of its own.
    let mut slow = Vec::new();
    for n in 0..20 {
        let reader = cluster.on_own_connection();
        slow.push(
            reader
                .consume_with("orders", &format!("slow-{n}"), 1_000, 1 << 30, 30_000)
                .await,
        );
    }
    until("deliveries are given back", || {
        cluster.counter("ptah_gateway_consume_parked_total") > 0
    })
    .await;
    let reader = cluster.on_own_connection();
    let mut quick = reader
        .consume_with("orders", "quick", 1_000, 1 << 30, 30_000)
        .await;
    let messages = quick.take(10).await;
    assert_eq!(messages.len(), 10);
    assert!(cluster.counter("ptah_gateway_consume_clients_cut_total") > 0);
    drop(slow);
}
