//! Processes that are asked to stop: what was accepted is finished, clients go on elsewhere, and nobody waits for ever.
#![allow(clippy::disallowed_methods)] // the tests own their tasks and wait for them

mod handover;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ptah_integration_tests::client::{Client, message};
use ptah_integration_tests::cluster::{Cluster, Layout, Service};
use ptah_integration_tests::load::Progress;
use ptah_integration_tests::process::{Process, http_get};
use ptah_integration_tests::traffic::{self, Gateways};
use ptah_integration_tests::{SOON, check, records, until};
use tokio::time::{Instant, timeout};
use tonic::Code;

/// A stop with nothing in its way takes less than this, on a busy machine.
const QUICK: Duration = Duration::from_secs(10);
/// Messages that pass after every stop.
const MESSAGES: u64 = 300;
const STATION: &str = "records";

/// Asks a process to stop, and tells exit code and time.
async fn stop(process: &mut Process) -> anyhow::Result<(Option<i32>, Duration)> {
    let began = Instant::now();
    process.signal("TERM").await?;
    let code = process.end(SOON).await?;
    Ok((code, began.elapsed()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_service_stops_in_order_under_load_and_nothing_is_lost() -> anyhow::Result<()> {
    let layout = Layout {
        controls: 2,
        nodes: 3,
        gateways: 2,
        ..Layout::default()
    };
    let mut cluster = Cluster::of(layout).await?;
    let client = cluster.client().await?;
    client.create_station(STATION, 6, 3).await?;
    let (sent, got) = (Arc::new(Progress::default()), Arc::new(Progress::default()));
    let doors = Gateways::new(cluster.gateway_doors()?);
    let producing = tokio::spawn(traffic::produce(
        doors.clone(),
        STATION.to_owned(),
        "p".to_owned(),
        records::load()?,
        Arc::clone(&sent),
    ));
    let consuming = tokio::spawn(traffic::consume(
        doors,
        STATION.to_owned(),
        "all".to_owned(),
        Arc::clone(&got),
    ));
    sent.beyond(MESSAGES, SOON).await?;
    for (service, count) in [
        (Service::Storage, 3),
        (Service::Gateway, 2),
        (Service::Control, 2),
        (Service::Metadata, 1),
    ] {
        for index in 0..count {
            let (code, took) = stop(cluster.process(service, index)).await?;
            let log = cluster.process(service, index).log_tail();
            assert_eq!(code, Some(0), "{service:?} {index}:\n{log}");
            assert!(took < QUICK, "{service:?} {index} took {took:?}:\n{log}");
            let passed = sent.beyond(sent.acknowledged() + MESSAGES, SOON).await;
            passed.with_context(|| format!("without {service:?} {index}"))?;
            cluster.restart(service, index).await?;
            cluster.ready().await?;
        }
    }
    sent.stop();
    let produced = producing.await.context("producer panicked")??;
    got.stop();
    let consumed = consuming.await.context("consumer panicked")??;
    let client = cluster.client().await?;
    let stored = client.read_station(STATION).await?;
    check::stored_equals_produced(&produced, &stored)?;
    check::in_order_of_production(&stored)?;
    let count: usize = stored.values().map(Vec::len).sum();
    assert_eq!(consumed.messages.len(), count, "the group has what is stored");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_gateway_that_stops_end_with_a_status_that_may_be_retried() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(1).await?;
    let client = cluster.client().await?;
    client.create_station(STATION, 1, 1).await?;
    let mut producing = client.produce_stream(STATION, "p").await?;
    let first = producing.send(vec![message("one")]).await?;
    let answered = producing.results().await?.context("the stream ended")?;
    assert!(
        answered
            .iter()
            .any(|(number, outcome)| *number == first && outcome.is_ok())
    );
    let mut consuming = client.consume_stream(STATION, "group", 100).await?;
    consuming.next().await?.context("the stream ended")?;

    let (code, took) = stop(&mut cluster.gateways[0]).await?;
    assert_eq!(code, Some(0), "{}", cluster.gateways[0].log_tail());
    assert!(took < QUICK, "{took:?}");
    let told = timeout(SOON, producing.results()).await?;
    assert_eq!(
        told.expect_err("the stream ended without a reason").code(),
        Code::Unavailable
    );
    let told = timeout(SOON, async {
        loop {
            if let Err(told) = consuming.next().await {
                return told;
            }
        }
    });
    assert_eq!(told.await?.code(), Code::Unavailable);
    // A client that comes again finds the gateway that was started again.
    cluster.restart(Service::Gateway, 0).await?;
    cluster.ready().await?;
    cluster
        .client()
        .await?
        .produce(STATION, vec![message("two")])
        .await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_serves_on_for_the_drain_time_and_says_that_it_is_not_ready() -> anyhow::Result<()> {
    let mut cluster = Cluster::of(Layout {
        gateway_config: "[shutdown]\ndrain_ms = 3000\n".to_owned(),
        ..Layout::default()
    })
    .await?;
    let client = cluster.client().await?;
    client.create_station(STATION, 1, 1).await?;
    let began = Instant::now();
    cluster.gateways[0].signal("TERM").await?;
    until_stopping(&cluster.gateways[0]).await?;
    // New connections and calls are served all the same.
    let late = cluster.client().await?;
    let stored = late.produce(STATION, vec![message("late")]).await?;
    assert!(stored[0].is_ok(), "{stored:?}");
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "the machine is too slow for this test"
    );
    assert_eq!(cluster.gateways[0].end(SOON).await?, Some(0));
    assert!(began.elapsed() >= Duration::from_secs(3), "it did not serve on");
    cluster.restart(Service::Gateway, 0).await?;
    cluster.finish().await
}

/// Waits until a process says that it is not ready because it stops.
async fn until_stopping(process: &Process) -> anyhow::Result<()> {
    let monitor = process.address("monitor")?.to_owned();
    until("the process says that it stops", SOON, || async {
        match http_get(&monitor, "/readyz").await {
            Err(said) if said.to_string().contains("stopping") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

/// A cluster whose only storage node is frozen while the gateway has a message for it.
async fn with_a_message_that_finds_no_end(layout: Layout) -> anyhow::Result<(Cluster, Client)> {
    let cluster = Cluster::of(layout).await?;
    let client = cluster.client().await?;
    client.create_station(STATION, 1, 1).await?;
    let mut stream = client.produce_stream(STATION, "p").await?;
    stream.send(vec![message("one")]).await?;
    stream.results().await?;
    cluster.nodes[0].signal("STOP").await?;
    stream.send(vec![message("two")]).await?;
    // Nothing tells that a message is under way but that it is not answered.
    let answered = timeout(Duration::from_millis(500), stream.results()).await;
    anyhow::ensure!(answered.is_err(), "a frozen node answered: {answered:?}");
    // The stream must live on: a client that went would be waited for no longer.
    tokio::spawn(async move { while let Ok(Some(_)) = stream.results().await {} });
    Ok((cluster, client))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_at_its_deadline_and_says_what_is_unfinished() -> anyhow::Result<()> {
    let layout = Layout {
        gateway_config: "[shutdown]\ntimeout_ms = 2000\n".to_owned(),
        ..Layout::default()
    };
    let (mut cluster, _client) = with_a_message_that_finds_no_end(layout).await?;
    let (code, took) = stop(&mut cluster.gateways[0]).await?;
    let log = cluster.gateways[0].log_tail();
    assert_eq!(code, Some(3), "{log}");
    assert!(took < QUICK, "{took:?}");
    assert!(
        log.contains("accepted work unfinished") && log.contains("1 partitions"),
        "{log}"
    );
    cluster.nodes[0].signal("CONT").await?;
    cluster.restart(Service::Gateway, 0).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_at_once_and_says_what_is_unfinished() -> anyhow::Result<()> {
    let (mut cluster, _client) = with_a_message_that_finds_no_end(Layout::default()).await?;
    cluster.gateways[0].signal("INT").await?;
    until_stopping(&cluster.gateways[0]).await?;
    let (code, took) = stop(&mut cluster.gateways[0]).await?;
    let log = cluster.gateways[0].log_tail();
    assert_eq!(code, Some(130), "{log}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    let line = log
        .lines()
        .find(|line| line.contains("second signal, ending at once"));
    assert!(
        line.is_some_and(|line| line.contains("unfinished=gateway")),
        "{log}"
    );
    cluster.nodes[0].signal("CONT").await?;
    cluster.restart(Service::Gateway, 0).await?;
    cluster.finish().await
}
