//! Appending: order, retries, refusals, bounds.

use ptah_proto::common::v1::ErrorKind;
use ptah_proto::storage::v1 as pb;
use ptah_proto::storage::v1::append_request::Request;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ptah_segment_log::SimOp;

use crate::harness::{
    Appender, ControlPlane, MAX_MESSAGE_BYTES, TestNode, batch, group_id, leader, numbered, order,
};

#[tokio::test]
async fn batches_are_stored_in_order_without_a_gap() {
    let (_control, node) = leader().await;
    let mut appender = node.appender().await;
    appender.channel(1, group_id(1)).await;
    for number in 1..=20 {
        appender
            .send(1, number, &batch(&numbered(number * 3 - 2, 3)))
            .await;
    }
    for number in 1..=20 {
        let (answered, stored) = appender.stored().await;
        assert_eq!((answered, stored.base_sequence), (number, number * 3 - 2));
        assert!(!stored.duplicate && stored.timestamp_ns > 0);
    }
    assert_eq!(node.everything().await, numbered(1, 60));
}

#[tokio::test]
async fn a_retried_number_is_answered_with_its_first_result() {
    let (_control, node) = leader().await;
    let mut appender = node.appender().await;
    appender.channel(1, group_id(1)).await;
    appender.send(1, 1, &batch(&["once"])).await;
    let first = appender.stored().await.1;
    appender.send(1, 1, &batch(&["once"])).await;
    let (number, stored) = appender.stored().await;
    assert_eq!((number, stored.base_sequence, stored.duplicate), (1, 1, true));
    assert_eq!(stored.timestamp_ns, first.timestamp_ns);
    assert_eq!(node.everything().await, ["once"]);
}

#[tokio::test]
async fn a_retry_on_another_stream_of_the_session_is_stored_once() {
    let (_control, node) = leader().await;
    let mut first = Appender::open(&node.client(), 5).await;
    let mut second = Appender::open(&node.client(), 5).await;
    first.channel(1, group_id(1)).await;
    second.channel(9, group_id(1)).await;
    first.send(1, 1, &batch(&["once"])).await;
    second.send(9, 1, &batch(&["once"])).await;
    let (one, other) = (first.stored().await.1, second.stored().await.1);
    assert_eq!((one.base_sequence, other.base_sequence), (1, 1));
    assert!(one.duplicate != other.duplicate, "one of them is the duplicate");
    assert_eq!(node.everything().await, ["once"]);
}

#[tokio::test]
async fn the_same_number_twice_in_flight_is_answered_twice_and_stored_once() {
    let (_control, node) = leader().await;
    let mut appender = node.appender().await;
    appender.channel(1, group_id(1)).await;
    appender.send(1, 1, &batch(&["once"])).await;
    appender.send(1, 1, &batch(&["once"])).await;
    let results = [appender.stored().await.1, appender.stored().await.1];
    assert_eq!(results.map(|stored| stored.base_sequence), [1, 1]);
    assert_eq!(node.everything().await, ["once"]);
}

#[tokio::test]
async fn a_gap_is_refused_with_the_number_that_is_expected_after_earlier_answers() {
    let (_control, node) = leader().await;
    let mut appender = node.appender().await;
    appender.channel(1, group_id(1)).await;
    appender.send(1, 1, &batch(&["a"])).await;
    appender.send(1, 3, &batch(&["c"])).await;
    appender.send(1, 2, &batch(&["b"])).await;
    assert_eq!(appender.stored().await.0, 1);
    let refused = appender.refused().await;
    assert_eq!(
        (refused.number, refused.kind, refused.expected_number),
        (3, ErrorKind::Conflict, 2)
    );
    assert_eq!(appender.stored().await.0, 2);
    assert_eq!(node.everything().await, ["a", "b"]);
}

#[tokio::test]
async fn an_unknown_session_must_begin_with_number_one() {
    let (_control, node) = leader().await;
    let mut appender = node.appender().await;
    appender.channel(1, group_id(1)).await;
    appender.send(1, 4, &batch(&["late"])).await;
    let refused = appender.refused().await;
    assert_eq!(
        (refused.kind, refused.expected_number),
        (ErrorKind::OutcomeUnknown, 1)
    );
}

#[tokio::test]
async fn a_batch_in_parts_is_stored_whole_and_parts_of_two_channels_may_mix() {
    let (_control, node) = leader().await;
    let mut appender = node.appender().await;
    appender.channel(1, group_id(1)).await;
    let large = batch(&["x".repeat(900_000)]);
    appender.send_in_parts(1, 1, &large, 256 << 10).await;
    assert_eq!(appender.stored().await.1.base_sequence, 1);
    assert_eq!(node.everything().await, ["x".repeat(900_000)]);
}

#[tokio::test]
async fn damaged_miscounted_and_oversized_batches_are_refused_and_leave_the_number_free() {
    let (_control, node) = leader().await;
    let mut appender = node.appender().await;
    appender.channel(1, group_id(1)).await;
    let good = batch(&["good"]);
    let mut damaged = crate::harness::whole(1, 1, &good);
    damaged.crc32c ^= 1;
    appender.say(Request::Batch(damaged)).await;
    let mut miscounted = crate::harness::whole(1, 1, &good);
    miscounted.count = 2;
    appender.say(Request::Batch(miscounted)).await;
    let too_large = "x".repeat(MAX_MESSAGE_BYTES as usize + 1);
    appender.send(1, 1, &batch(&[too_large])).await;
    appender.send(1, 0, &good).await;
    let kinds = [
        appender.refused().await.kind,
        appender.refused().await.kind,
        appender.refused().await.kind,
        appender.refused().await.kind,
    ];
    let invalid = ErrorKind::InvalidArgument;
    assert_eq!(kinds, [invalid, invalid, ErrorKind::TooLarge, invalid]);
    appender.send(1, 1, &good).await;
    assert_eq!(appender.stored().await.1.base_sequence, 1);
}

#[tokio::test]
async fn bytes_that_are_no_batch_are_refused() {
    let (_control, node) = leader().await;
    let mut appender = node.appender().await;
    appender.channel(1, group_id(1)).await;
    let payload = bytes::Bytes::from_static(b"this is not a batch");
    let garbage = pb::AppendBatch {
        channel: 1,
        number: 1,
        count: 1,
        crc32c: ptah_partition::crc32c(&payload),
        total_bytes: payload.len() as u32,
        payload,
    };
    appender.say(Request::Batch(garbage)).await;
    assert_eq!(appender.refused().await.kind, ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn openings_of_unknown_groups_and_older_generations_are_refused() {
    let (_control, node) = leader().await;
    let mut appender = node.appender().await;
    appender.channel(1, group_id(99)).await;
    let unknown = appender.refused().await;
    assert_eq!((unknown.number, unknown.kind), (0, ErrorKind::NotFound));
    appender.channel_of(2, group_id(1), 0).await;
    let stale = appender.refused().await;
    assert_eq!(
        (stale.number, stale.kind, stale.expected_number),
        (0, ErrorKind::Conflict, 0)
    );
}

#[tokio::test]
async fn a_stream_that_breaks_the_protocol_ends_with_a_reason() {
    let (_control, node) = leader().await;
    let mut appender = node.appender().await;
    appender.channel(1, group_id(1)).await;
    let fragment = pb::AppendFragment {
        channel: 1,
        payload: bytes::Bytes::from_static(b"stray"),
    };
    appender.say(Request::Fragment(fragment)).await;
    let status = appender.try_result().await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
    assert!(status.message().contains("fragment without a batch"), "{status}");
}

#[tokio::test]
async fn more_than_the_window_in_flight_slows_the_stream_and_loses_nothing() {
    let (_control, node) = leader().await;
    let mut appender = node.appender().await;
    appender.channel(1, group_id(1)).await;
    let megabyte = batch(&["x".repeat(1_000_000)]);
    let batches = appender.window_bytes / 1_000_000 + 16;
    for number in 1..=batches {
        appender.send(1, number, &megabyte).await;
    }
    for number in 1..=batches {
        assert_eq!(appender.stored().await.0, number);
    }
}

#[tokio::test]
async fn a_partition_whose_disk_hangs_refuses_more_than_it_may_hold_and_goes_on_afterwards() {
    let control = ControlPlane::start().await;
    let mut node = TestNode::new(1, &control);
    node.config.append.partition_bytes = 1 << 20;
    node.start().await.unwrap();
    node.place(&order(1, &[&node], &node)).await.unwrap();
    node.until_led(group_id(1)).await;
    let hangs = Arc::new(AtomicBool::new(true));
    let gate = Arc::clone(&hangs);
    node.disk.set_hook(Some(Arc::new(move |op, _| {
        while op == SimOp::Sync && gate.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
    })));
    let mut appender = node.appender().await;
    appender.channel(1, group_id(1)).await;
    appender.channel(2, group_id(1)).await;
    let half = batch(&["x".repeat(600_000)]);
    appender.send(1, 1, &half).await;
    appender.send(1, 2, &half).await;
    appender.send(2, 3, &half).await;
    let refused = appender.refused().await;
    assert_eq!((refused.number, refused.kind), (3, ErrorKind::Exhausted));
    hangs.store(false, Ordering::Release);
    assert_eq!((appender.stored().await.0, appender.stored().await.0), (1, 2));
    appender.send(2, 3, &half).await;
    assert_eq!(appender.stored().await.1.base_sequence, 3);
}
