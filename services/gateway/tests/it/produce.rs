//! Produce: choice of partitions, results, limits.

use ptah_proto::api::v1 as api;
use ptah_proto::common::v1::ErrorKind;

use crate::support::{cluster, keyed, message, stored};

fn error(result: &api::ProduceResult) -> (ErrorKind, String) {
    match &result.outcome {
        Some(api::produce_result::Outcome::Error(error)) => (error.kind(), error.message.clone()),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn messages_of_one_request_without_keys_go_to_one_partition_in_a_row() {
    let cluster = cluster().start().await;
    let groups = cluster.station("orders", 1).await;
    let results = cluster
        .produce("orders", (0..5).map(|n| message(format!("m{n}"))).collect())
        .await;
    assert_eq!(results.len(), 1, "one run: {results:?}");
    assert_eq!((results[0].first, results[0].count), (0, 5));
    assert_eq!(stored(&results[0]), (1, 1));
    let payloads = cluster.world.payloads(groups[0]);
    assert_eq!(
        payloads,
        (0..5).map(|n| format!("m{n}").into_bytes()).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn keys_choose_partitions_as_other_clients_do_and_keep_their_order() {
    let cluster = cluster().start().await;
    let groups = cluster.station("orders", 3).await;
    let messages = (0..300)
        .map(|n| keyed(["a", "key", "partition_key"][n % 3], format!("{n}")))
        .collect();
    cluster.produce("orders", messages).await;
    let numbers = |group: u64| -> Vec<usize> {
        let payloads = cluster.world.payloads(group);
        payloads
            .iter()
            .map(|p| String::from_utf8(p.clone()).unwrap().parse().unwrap())
            .collect()
    };
    let mut all = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        let numbers = numbers(*group);
        assert!(numbers.is_sorted(), "partition {} is out of order", index + 1);
        for number in numbers {
            let hash: u32 = [3_387_765_255, 2_580_712_894, 383_570_016][number % 3];
            assert_eq!(hash as usize % 3, index);
            all.push(number);
        }
    }
    assert_eq!(all.len(), 300);
}

#[tokio::test]
async fn wrong_messages_are_refused_each_for_itself() {
    let cluster = cluster().start().await;
    cluster.station("orders", 2).await;
    let wrong_partition = api::NewMessage {
        partition: 3,
        ..message("x")
    };
    let too_large = message(vec![0; (8 << 20) + 1]);
    let too_much_meta = api::NewMessage {
        headers: vec![ptah_proto::common::v1::Header {
            name: b"n".to_vec().into(),
            value: vec![0; 64 << 10].into(),
        }],
        ..message("x")
    };
    let results = cluster
        .produce(
            "orders",
            vec![
                message("a"),
                wrong_partition,
                too_large,
                too_much_meta,
                message("b"),
            ],
        )
        .await;
    assert_eq!(results.len(), 5);
    assert_eq!(stored(&results[0]).1, 1);
    assert_eq!(stored(&results[4]).1, 2, "the good ones follow each other");
    assert_eq!(
        error(&results[1]),
        (
            ErrorKind::NotFound,
            "partition 3 not found: station `orders` has partitions 1 to 2".to_owned()
        )
    );
    assert_eq!(error(&results[2]).0, ErrorKind::TooLarge);
    assert!(
        error(&results[2]).1.contains("8388608"),
        "{}",
        error(&results[2]).1
    );
    assert_eq!(error(&results[3]).0, ErrorKind::TooLarge);
}

#[tokio::test]
async fn a_large_message_travels_alone_and_in_fragments() {
    let cluster = cluster().window_bytes(1 << 20).start().await;
    let groups = cluster.station("orders", 1).await;
    let large = vec![7; 5 << 20];
    let results = cluster
        .produce("orders", vec![message("a"), message(large.clone()), message("b")])
        .await;
    assert_eq!(stored(&results[0]), (1, 1));
    assert_eq!(
        cluster.world.payloads(groups[0]),
        [b"a".to_vec(), large, b"b".to_vec()]
    );
    let batches = cluster.world.with(|state| state.groups[&groups[0]].log.len());
    assert_eq!(batches, 3);
}

#[tokio::test]
async fn a_stream_answers_every_message_once_in_few_responses() {
    let cluster = cluster().start().await;
    cluster.station("orders", 3).await;
    let stream = cluster.produce_stream("orders").await;
    for batch in 0..20 {
        stream
            .send(
                (0..100)
                    .map(|n| keyed(&format!("k{n}"), format!("{batch}-{n}")))
                    .collect(),
            )
            .await;
    }
    let results = stream.finish().await;
    assert_eq!(results.len(), 2_000);
    let mut places: Vec<_> = results.values().map(stored).collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), 2_000, "every message has a place of its own");
}

#[tokio::test]
async fn a_station_that_is_not_there_is_told_by_name() {
    let cluster = cluster().start().await;
    let mut stream = cluster.produce_stream("nothing").await;
    let refused = stream.responses.message().await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::NotFound);
    assert_eq!(
        refused.message(),
        "station `nothing` not found in tenant `default`; create it first"
    );
}

#[tokio::test]
async fn producers_beyond_the_memory_budget_are_held_back_and_all_get_through() {
    let cluster = cluster()
        .config(|config| config.produce.budget_bytes = 66 << 20)
        .start()
        .await;
    cluster.station("orders", 3).await;
    let body = bytes::Bytes::from(vec![9; 8 << 20]);
    let producers = (0..20).map(|n| {
        let client = cluster.on_own_connection();
        let message = api::NewMessage {
            payload: body.clone(),
            partition: n % 3 + 1,
            ..api::NewMessage::default()
        };
        async move { client.produce("orders", vec![message]).await }
    });
    let results = futures_util::future::join_all(producers).await;
    let mut places: Vec<_> = results.iter().map(|results| stored(&results[0])).collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), 20);
}
