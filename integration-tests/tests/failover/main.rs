//! A leader dies with batches in flight; a producer that never retries itself goes on.
#![allow(clippy::disallowed_methods)] // the test owns its tasks and waits for them

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ptah_integration_tests::check;
use ptah_integration_tests::cluster::Cluster;
use ptah_integration_tests::load::{Progress, produce_until_stopped};

const KILLS: usize = 20;
/// Next acknowledgement after a leader's death.
const NEXT_ACK: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_leader_twenty_times_loses_doubles_and_reorders_nothing() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let client = cluster.client().await?;
    client.create_station("orders", 1, 3).await?;
    let progress = Arc::new(Progress::default());
    let producing = produce_until_stopped(
        client.clone(),
        "orders".into(),
        "p".into(),
        1,
        128,
        progress.clone(),
    );
    let producing = tokio::spawn(producing);

    let mut waits = Vec::new();
    for _ in 0..KILLS {
        progress
            .beyond(progress.acknowledged() + 500, Duration::from_secs(30))
            .await?;
        let leader = cluster.leader(&client, "orders", 1).await?;
        cluster.nodes[leader].kill().await?;
        // Whatever was under way at the kill may still be answered: the next one counts that is sent to a new leader.
        let before = progress.acknowledged();
        waits.push(progress.beyond(before + 1_000, Duration::from_secs(30)).await?);
        let next = cluster.leader(&client, "orders", 1).await?;
        assert_ne!(next, leader, "the killed node led, so another one does now");
        cluster.restart_node(leader).await?;
        cluster.ready().await?;
    }
    progress.stop();
    let produced = producing.await.context("producer panicked")??;

    assert!(
        produced.refused.is_empty() && produced.unknown.is_empty(),
        "the gateway retries by itself"
    );
    let stored = client.read_station("orders").await?;
    check::stored_equals_produced(&produced, &stored)?;
    check::in_order_of_production(&stored)?;
    every_counter_is_there(&stored[&1]);
    let received = client.drain("orders", "audit").await?;
    check::received_equals_stored(&received, &stored)?;
    waits.sort_unstable();
    assert!(
        waits[KILLS - 1] < NEXT_ACK,
        "waits for the next thousand acknowledgements: {waits:?}"
    );
    cluster.finish().await
}

/// Nothing was refused or unknown, so every message that the producer made is there.
fn every_counter_is_there(messages: &[(u64, bytes::Bytes)]) {
    let last = messages
        .last()
        .map(|(_, payload)| payload.clone())
        .unwrap_or_default();
    let last = String::from_utf8_lossy(&last).into_owned();
    let counter = last.split(':').nth(1).and_then(|counter| counter.parse().ok());
    assert_eq!(counter, Some(messages.len() as u64 - 1), "{last}");
}
