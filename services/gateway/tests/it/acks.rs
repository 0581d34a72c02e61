//! Acknowledgements that have to wait.

use ptah_proto::api::v1::consume_response::Response;
use ptah_proto::common::v1 as common;

use crate::limits::ranges;
use crate::support::cluster;

#[tokio::test]
async fn ranges_that_wait_for_a_leader_are_bounded_whoever_sends_them() {
    let cluster = cluster().start().await;
    cluster.station("orders", 1).await;
    let mut stream = cluster.consume("orders", "readers", 10).await;
    stream.until_idle().await;
    cluster
        .world
        .with(|state| state.nodes.values_mut().for_each(|node| node.up = false));
    (1..=3).for_each(|node| cluster.world.break_streams(node));
    // Never delivered, and no two of them touch. The last ones find no room, and who asks is told so.
    let mut from = 0;
    let refused = loop {
        assert!(from < 1_000 * 4_096, "everything was taken");
        stream.ack_ranges(1, ranges(from, 4_096), 0).await;
        from += 4_096;
        if cluster.counter("ptah_gateway_consume_acks_refused_total") > 0 {
            stream.ack_ranges(1, ranges(from, 4_096), 7).await;
            match stream.next().await {
                Response::Acked(acked) => break acked,
                other => panic!("{other:?}"),
            }
        }
    };
    assert_eq!(refused.confirm_id, 7);
    assert_eq!(refused.error.unwrap().kind(), common::ErrorKind::Exhausted);
}
