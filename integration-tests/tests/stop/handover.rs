//! A planned stop of the node that leads many partitions: how long messages wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ptah_integration_tests::client::{Client, ProduceStream, message};
use ptah_integration_tests::cluster::Cluster;
use ptah_integration_tests::load::Progress;
use ptah_integration_tests::{SOON, until};
use ptah_proto::api::v1::NewMessage;
use tokio::time::{Instant, MissedTickBehavior};

const STATION: &str = "many";
/// Three nodes lead a third each: 200 in an optimized build, where the figure counts.
const PARTITIONS: u32 = if cfg!(debug_assertions) { 60 } else { 600 };
/// Every partition gets a message this often.
const TICK: Duration = Duration::from_millis(200);
/// Longest that leaders of all partitions may take at first.
const FIRST_LEADERS: Duration = Duration::from_secs(180);
/// Longest that a message may wait. A build without optimization on a shared machine shows only that messages go on.
const STALL: Duration = Duration::from_millis(if cfg!(debug_assertions) { 20_000 } else { 200 });

/// Time from sending to acknowledgement, of every message, and when it was sent.
type Latencies = Vec<(Instant, Duration)>;

/// Sends one message to every partition at every tick, until told to stop; nothing is sent again.
async fn one_each(client: Client, progress: Arc<Progress>) -> anyhow::Result<Latencies> {
    let mut stream = client.produce_stream(STATION, "p").await?;
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut sent: BTreeMap<u64, Instant> = BTreeMap::new();
    let mut latencies = Vec::new();
    while !progress.is_stopped() || !sent.is_empty() {
        tokio::select! {
            _ = ticks.tick(), if !progress.is_stopped() => {
                let to = |partition| NewMessage { partition, ..message("x") };
                let first = stream.send((1..=PARTITIONS).map(to).collect()).await?;
                let now = Instant::now();
                sent.extend((first..first + u64::from(PARTITIONS)).map(|number| (number, now)));
            }
            answers = answers(&mut stream) => {
                for (number, outcome) in answers? {
                    let at = sent.remove(&number).context("a message was answered twice")?;
                    outcome.map_err(|error| anyhow::anyhow!("refused: {}", error.message))?;
                    latencies.push((at, at.elapsed()));
                    progress.acknowledge();
                }
            }
        }
    }
    Ok(latencies)
}

type Answers = Vec<(
    u64,
    Result<ptah_integration_tests::client::StoredAt, ptah_proto::common::v1::Error>,
)>;

async fn answers(stream: &mut ProduceStream) -> anyhow::Result<Answers> {
    let answers = tokio::time::timeout(SOON, stream.results()).await;
    answers.context("no answer")??.context("the stream ended")
}

/// How many partitions each node leads; an error while some have no leader.
async fn led(client: &Client) -> anyhow::Result<BTreeMap<u64, usize>> {
    let mut led = BTreeMap::new();
    for partition in client.station(STATION).await?.partitions {
        anyhow::ensure!(
            partition.leader_node_id > 0,
            "partition {} has no leader",
            partition.partition
        );
        *led.entry(partition.leader_node_id).or_default() += 1;
    }
    Ok(led)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_stop_of_a_node_that_leads_many_partitions_stalls_nobody() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let client = cluster.client().await?;
    // The answer may come before all have leaders; the station is made all the same.
    let _ = client.create_station(STATION, PARTITIONS, 3).await;
    let before = until("leaders of all partitions", FIRST_LEADERS, || led(&client)).await?;
    let progress = Arc::new(Progress::default());
    let producing = tokio::spawn(one_each(client.clone(), Arc::clone(&progress)));
    let warm = 10 * u64::from(PARTITIONS);
    progress.beyond(warm, SOON).await?;

    let (node, count) = before
        .iter()
        .max_by_key(|(_, count)| **count)
        .context("nobody leads")?;
    let began = Instant::now();
    cluster.nodes[*node as usize - 1].stop().await?;
    let stopped = began.elapsed();
    progress.beyond(progress.acknowledged() + warm, SOON).await?;
    progress.stop();
    let latencies = producing.await.context("producer panicked")??;

    let (calm, during): (Vec<_>, Vec<_>) = latencies
        .into_iter()
        .partition(|(at, latency)| *at + *latency < began);
    let calm = distribution(calm);
    let during = distribution(during);
    #[allow(clippy::print_stderr)] // the figure is what the test is for
    {
        eprintln!(
            "node {node} led {count} of {PARTITIONS}, stopped in {stopped:?}; before: {calm:?}; during and after: {during:?}"
        );
    }
    let worst = during.last().context("no messages during the stop")?.1;
    assert!(worst < STALL, "{during:?}");
    cluster.restart_node(*node as usize - 1).await?;
    cluster.ready().await?;
    cluster.finish().await
}

/// Median, p99, p99.9 and the worst.
fn distribution(latencies: Vec<(Instant, Duration)>) -> Vec<(&'static str, Duration)> {
    let mut times: Vec<Duration> = latencies.into_iter().map(|(_, latency)| latency).collect();
    times.sort_unstable();
    let at =
        |share: f64| times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1)));
    let named = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("worst", 1.0)];
    named
        .into_iter()
        .filter_map(|(name, share)| Some((name, *at(share)?)))
        .collect()
}
