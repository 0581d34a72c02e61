//! Requests that are small on the wire and large in memory.

use ptah_proto::api::v1 as api;
use ptah_proto::common::v1 as common;
use ptah_types::ErrorKind;
use tonic::Status;

use crate::support::{ROOT, cluster, message, signed};

fn told(status: Status) -> (ErrorKind, String) {
    let error = ptah_rpc::RpcError::from(status);
    (error.kind, error.message)
}

fn too_many(limit: u32, list: &str) -> (ErrorKind, String) {
    let why = format!("the request has more than {limit} elements in `{list}`; send less at a time");
    (ErrorKind::TooLarge, why)
}

/// Ranges that do not touch, from that number on.
pub(crate) fn ranges(from: u64, count: u64) -> Vec<api::SequenceRange> {
    (from..from + count)
        .map(|n| api::SequenceRange {
            first: 2 * n + 1,
            last: 2 * n + 1,
        })
        .collect()
}

fn request(messages: Vec<api::NewMessage>) -> api::ProduceRequest {
    api::ProduceRequest {
        station: "orders".to_owned(),
        messages,
        ..api::ProduceRequest::default()
    }
}

#[tokio::test]
async fn messages_and_headers_are_counted_before_they_are_decoded() {
    let cluster = cluster().start().await;
    let group = cluster.station("orders", 1).await[0];
    let produce = async |messages| {
        let request = signed(ROOT, request(messages));
        cluster.messages().produce(request).await.map_err(told)
    };
    let empty = api::NewMessage::default();
    let refused = produce(vec![empty.clone(); 16_385]).await.unwrap_err();
    assert_eq!(refused, too_many(16_384, "ProduceRequest.messages"));
    let headers = vec![common::Header::default(); 16 * 16_384 + 1];
    let hollow = api::NewMessage {
        headers,
        ..empty.clone()
    };
    let refused = produce(vec![hollow]).await.unwrap_err();
    assert_eq!(refused, too_many(16 * 16_384, "NewMessage.headers"));
    produce(vec![empty; 16_384]).await.unwrap();
    assert_eq!(cluster.world.payloads(group).len(), 16_384);
}

#[tokio::test]
async fn a_produce_stream_with_a_batch_that_is_too_long_ends_by_saying_so() {
    let cluster = cluster().start().await;
    cluster.station("orders", 1).await;
    let batches = [
        api::produce_stream_request::Request::Open(api::ProduceStreamOpen {
            station: "orders".to_owned(),
            ..api::ProduceStreamOpen::default()
        }),
        api::produce_stream_request::Request::Batch(api::ProduceStreamBatch {
            messages: vec![message(""); 16_385],
        }),
    ];
    let requests = batches.map(|request| api::ProduceStreamRequest {
        request: Some(request),
    });
    let stream = signed(ROOT, tokio_stream::iter(requests));
    let mut answers = cluster
        .messages()
        .produce_stream(stream)
        .await
        .unwrap()
        .into_inner();
    answers.message().await.unwrap();
    let refused = told(answers.message().await.unwrap_err());
    assert_eq!(refused, too_many(16_384, "ProduceStreamBatch.messages"));
}

#[tokio::test]
async fn one_request_acknowledges_so_many_ranges_and_no_more() {
    let cluster = cluster().start().await;
    cluster.station("orders", 1).await;
    let ack = async |acks| {
        let request = api::AckRequest {
            station: "orders".to_owned(),
            group: "readers".to_owned(),
            acks,
            ..api::AckRequest::default()
        };
        cluster.messages().ack(signed(ROOT, request)).await.map_err(told)
    };
    let of_partition = |count| api::PartitionAck {
        partition: 1,
        ranges: ranges(0, count),
    };
    let refused = ack(vec![of_partition(4_000), of_partition(97)])
        .await
        .unwrap_err();
    assert_eq!(refused, too_many(4_096, "PartitionAck.ranges"));
    let refused = ack(vec![api::PartitionAck::default(); 1_025]).await.unwrap_err();
    assert_eq!(refused, too_many(1_024, "AckRequest.acks"));

    let mut stream = cluster.consume("orders", "readers", 10).await;
    stream.ack_ranges(1, ranges(0, 4_097), 1).await;
    let refused = told(stream.refused().await);
    assert_eq!(refused, too_many(4_096, "ConsumeAck.ranges"));
}

#[tokio::test]
async fn a_request_without_messages_has_no_reason_to_be_large() {
    let cluster = cluster().start().await;
    let request = api::ListStationsRequest {
        page_token: "x".repeat(2 << 20),
        ..api::ListStationsRequest::default()
    };
    let refused = cluster.stations().list_stations(signed(ROOT, request)).await;
    let (kind, why) = told(refused.unwrap_err());
    assert_eq!(kind, ErrorKind::TooLarge);
    assert!(why.contains("exceeds the limit of 1048576 bytes"), "{why}");
}
