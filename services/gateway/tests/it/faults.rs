//! Appends under faults: nothing is lost, doubled or out of order, whatever happens between gateway and leader.

use std::collections::BTreeMap;
use std::time::Duration;

use ptah_proto::api::v1 as api;
use ptah_proto::common::v1::ErrorKind;
use ptah_service::{Random, SeededRandom};

use crate::support::world::Fault;
use crate::support::{Cluster, LIMIT, cluster, message, stored, until};

/// Sends numbered messages on one stream, a few per request.
async fn send_numbered(cluster: &Cluster, count: u64, per_request: u64) -> BTreeMap<u64, api::ProduceResult> {
    let stream = cluster.produce_stream("orders").await;
    for first in (0..count).step_by(per_request as usize) {
        let last = count.min(first + per_request);
        stream
            .send((first..last).map(|n| partition_1(&n.to_string())).collect())
            .await;
    }
    stream.finish().await
}

fn partition_1(payload: &str) -> api::NewMessage {
    api::NewMessage {
        partition: 1,
        ..message(payload)
    }
}

fn numbers_in_log(cluster: &Cluster, group: u64) -> Vec<u64> {
    let payloads = cluster.world.payloads(group);
    payloads
        .into_iter()
        .map(|p| String::from_utf8(p).unwrap().parse().unwrap())
        .collect()
}

fn kind(result: &api::ProduceResult) -> Option<ErrorKind> {
    match result.outcome.as_ref().unwrap() {
        api::produce_result::Outcome::Stored(_) => None,
        api::produce_result::Outcome::Error(error) => Some(error.kind()),
    }
}

/// Every answer is true, and the log has each message at most once and in order.
fn check(cluster: &Cluster, group: u64, results: &BTreeMap<u64, api::ProduceResult>, count: u64) {
    let log = numbers_in_log(cluster, group);
    assert!(
        log.windows(2).all(|pair| pair[0] < pair[1]),
        "doubled or out of order: {log:?}"
    );
    assert_eq!(results.len() as u64, count, "every message is answered");
    for (number, result) in results {
        match kind(result) {
            None => {
                let (partition, sequence) = stored(result);
                assert_eq!(partition, 1);
                assert_eq!(
                    log.get(sequence as usize - 1),
                    Some(number),
                    "message {number} is not where it was told"
                );
            }
            Some(ErrorKind::OutcomeUnknown) => {}
            Some(certain) => assert!(
                !log.contains(number),
                "message {number} is stored though told {certain:?}"
            ),
        }
    }
}

fn all_stored(results: &BTreeMap<u64, api::ProduceResult>) -> bool {
    results.values().all(|result| kind(result).is_none())
}

#[tokio::test]
async fn each_fault_costs_a_delay_and_nothing_else() {
    let faults = [
        Fault::Refuse(ErrorKind::Exhausted),
        Fault::Refuse(ErrorKind::Unavailable),
        Fault::Refuse(ErrorKind::NotFound),
        Fault::StoredButUnknown,
        Fault::StoredThenBroken,
        Fault::LostThenBroken,
    ];
    for fault in faults {
        let cluster = cluster().start().await;
        let group = cluster.station("orders", 1).await[0];
        cluster.world.fault(group, fault);
        let results = send_numbered(&cluster, 200, 10).await;
        check(&cluster, group, &results, 200);
        assert!(all_stored(&results), "{fault:?}");
    }
}

#[tokio::test]
async fn a_leader_that_dies_with_batches_in_flight_costs_a_delay_and_nothing_else() {
    for surviving in [0, 1, 8] {
        let cluster = cluster().start().await;
        let group = cluster.station("orders", 1).await[0];
        let stream = cluster.produce_stream("orders").await;
        stream.send(vec![partition_1("0")]).await;
        until("the way is open", || cluster.world.payloads(group).len() == 1).await;
        cluster
            .world
            .with(|state| state.groups.get_mut(&group).unwrap().hold = true);
        for number in 1..100 {
            stream.send(vec![partition_1(&number.to_string())]).await;
        }
        until("two batches are in flight", || {
            cluster.world.with(|state| state.groups[&group].appends_seen) >= 3
        })
        .await;
        cluster.world.break_streams(1);
        cluster.world.move_leader(group, 2, surviving);
        let results = stream.finish().await;
        check(&cluster, group, &results, 100);
        assert!(all_stored(&results), "{surviving} batches survived");
    }
}

#[tokio::test]
async fn an_old_leader_that_still_answers_is_left_by_its_hint() {
    let cluster = cluster().start().await;
    let group = cluster.station("orders", 1).await[0];
    assert!(all_stored(&send_numbered(&cluster, 10, 10).await));
    cluster.world.move_leader(group, 3, 0);
    let stream = cluster.produce_stream("orders").await;
    stream
        .send((10..20).map(|n| partition_1(&n.to_string())).collect())
        .await;
    assert!(all_stored(&stream.finish().await));
    assert_eq!(numbers_in_log(&cluster, group), (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_session_that_was_forgotten_while_nothing_was_in_flight_is_replaced_unseen() {
    let cluster = cluster().start().await;
    let group = cluster.station("orders", 1).await[0];
    assert!(all_stored(&send_numbered(&cluster, 10, 10).await));
    cluster.world.fault(group, Fault::SessionForgotten);
    let stream = cluster.produce_stream("orders").await;
    stream
        .send((10..20).map(|n| partition_1(&n.to_string())).collect())
        .await;
    assert!(all_stored(&stream.finish().await));
    assert_eq!(numbers_in_log(&cluster, group), (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_session_that_was_forgotten_with_a_batch_in_doubt_is_told_as_unknown() {
    let cluster = cluster().start().await;
    let group = cluster.station("orders", 1).await[0];
    assert!(all_stored(&send_numbered(&cluster, 10, 10).await));
    cluster.world.fault(group, Fault::StoredThenBroken);
    cluster.world.fault(group, Fault::SessionForgotten);
    let stream = cluster.produce_stream("orders").await;
    stream
        .send((10..20).map(|n| partition_1(&n.to_string())).collect())
        .await;
    let results = stream.finish().await;
    assert!(
        results
            .values()
            .all(|result| kind(result) == Some(ErrorKind::OutcomeUnknown)),
        "{results:?}"
    );
    let stream = cluster.produce_stream("orders").await;
    stream.send(vec![partition_1("20")]).await;
    assert!(all_stored(&stream.finish().await), "a new session goes on");
    assert_eq!(numbers_in_log(&cluster, group), (0..21).collect::<Vec<_>>());
}

#[tokio::test]
async fn without_a_leader_messages_are_refused_after_the_deadline_and_certainly_not_stored() {
    let cluster = cluster()
        .config(|config| config.produce.append_deadline_ms = 200)
        .start()
        .await;
    let group = cluster.station("orders", 1).await[0];
    cluster
        .world
        .with(|state| state.nodes.values_mut().for_each(|node| node.up = false));
    (1..=3).for_each(|node| cluster.world.break_streams(node));
    let results = send_numbered(&cluster, 20, 5).await;
    check(&cluster, group, &results, 20);
    assert!(
        results
            .values()
            .all(|result| kind(result) == Some(ErrorKind::Unavailable)),
        "{results:?}"
    );
}

#[tokio::test]
async fn what_a_silent_leader_was_sent_is_unknown_after_the_deadline_and_what_waits_is_not_stored() {
    let cluster = cluster()
        .config(|config| config.produce.append_deadline_ms = 300)
        .start()
        .await;
    let group = cluster.station("orders", 1).await[0];
    cluster
        .world
        .with(|state| state.groups.get_mut(&group).unwrap().hold = true);
    let results = send_numbered(&cluster, 30, 5).await;
    let unknown = results
        .values()
        .filter(|result| kind(result) == Some(ErrorKind::OutcomeUnknown))
        .count();
    let refused = results
        .values()
        .filter(|result| kind(result) == Some(ErrorKind::Unavailable))
        .count();
    assert_eq!(unknown + refused, 30);
    assert!(unknown >= 5, "the first batch was sent");
    cluster.world.release(group);
    check(&cluster, group, &results, 30);
    assert!(
        all_stored(&send_later(&cluster, 100).await),
        "the partition goes on"
    );
}

async fn send_later(cluster: &Cluster, number: u64) -> BTreeMap<u64, api::ProduceResult> {
    let stream = cluster.produce_stream("orders").await;
    stream.send(vec![partition_1(&number.to_string())]).await;
    stream.finish().await
}

#[tokio::test]
async fn a_batch_that_is_refused_for_good_does_not_hold_up_the_next() {
    let cluster = cluster().start().await;
    let group = cluster.station("orders", 1).await[0];
    let stream = cluster.produce_stream("orders").await;
    stream.send(vec![partition_1("0")]).await;
    until("the way is open", || cluster.world.payloads(group).len() == 1).await;
    cluster
        .world
        .fault(group, Fault::Refuse(ErrorKind::InvalidArgument));
    for number in 1..50 {
        stream.send(vec![partition_1(&number.to_string())]).await;
    }
    let results = stream.finish().await;
    check(&cluster, group, &results, 50);
    assert_eq!(kind(&results[&1]), Some(ErrorKind::InvalidArgument));
    assert!(kind(&results[&49]).is_none(), "the last batch is stored");
}

#[tokio::test]
async fn random_faults_lose_double_and_reorder_nothing() {
    for seed in 0..12 {
        random_faults(seed).await;
    }
}

async fn random_faults(seed: u64) {
    let random = SeededRandom::new(seed);
    let cluster = cluster().start().await;
    let group = cluster.station("orders", 1).await[0];
    let world = cluster.world.clone();
    let faults = async {
        for _ in 0..25 {
            match random.below(8) {
                0 => world.fault(group, Fault::StoredThenBroken),
                1 => world.fault(group, Fault::LostThenBroken),
                2 => world.fault(group, Fault::StoredButUnknown),
                3 => world.fault(group, Fault::Refuse(ErrorKind::Unavailable)),
                4 => world.break_streams(1 + random.below(3)),
                5 => world.with(|state| state.groups.get_mut(&group).unwrap().hold = true),
                6 => world.release(group),
                _ => world.move_leader(group, 1 + random.below(3), random.below(4) as usize),
            }
            tokio::time::sleep(Duration::from_millis(random.below(15))).await;
        }
        world.release(group);
    };
    let produce = async {
        let stream = cluster.produce_stream("orders").await;
        for request in 0..100_u64 {
            stream
                .send(
                    (request * 7..request * 7 + 7)
                        .map(|n| partition_1(&n.to_string()))
                        .collect(),
                )
                .await;
            tokio::time::sleep(Duration::from_millis(request % 5)).await;
        }
        stream.finish().await
    };
    let (results, ()) = tokio::time::timeout(LIMIT, async { tokio::join!(produce, faults) })
        .await
        .unwrap_or_else(|_| panic!("seed {seed} hangs"));
    check(&cluster, group, &results, 700);
    assert!(all_stored(&results), "seed {seed}: {results:?}");
}

#[tokio::test]
async fn a_gateway_that_stops_stores_what_it_accepted_and_says_so() {
    let mut cluster = cluster().start().await;
    let group = cluster.station("orders", 1).await[0];
    let stream = cluster.produce_stream("orders").await;
    stream.send(vec![partition_1("0")]).await;
    until("the way is open", || cluster.world.payloads(group).len() == 1).await;
    cluster
        .world
        .with(|state| state.groups.get_mut(&group).unwrap().hold = true);
    stream
        .send((1..50).map(|n| partition_1(&n.to_string())).collect())
        .await;
    until("the batch is in flight", || {
        cluster.world.with(|state| state.groups[&group].appends_seen) >= 2
    })
    .await;
    let (world, closed) = (cluster.world.clone(), cluster.closed_for_connections());
    let release = async {
        closed.await;
        world.release(group);
    };
    let mut results = BTreeMap::new();
    let mut responses = stream.responses;
    let read = async {
        // The stream ends by itself, without its client having said that it ends.
        while let Ok(Some(response)) = responses.message().await {
            if let Some(api::produce_stream_response::Response::Results(told)) = response.response {
                for result in told.results {
                    for offset in 0..u64::from(result.count) {
                        let single = crate::support::single(&result, offset);
                        results.insert(single.first, single);
                    }
                }
            }
        }
    };
    let requests = stream.requests;
    tokio::join!(cluster.stop_gateway(LIMIT), release, read);
    drop(requests);
    check(&cluster, group, &results, 50);
    assert!(all_stored(&results));
}
