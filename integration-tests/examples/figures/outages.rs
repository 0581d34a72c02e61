//! What a producer sees when nodes die, freeze or stop, and what a cluster costs that has nothing to do.
#![allow(clippy::disallowed_methods)] // the program owns its tasks and waits for them

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use ptah_integration_tests::client::{Client, message};
use ptah_integration_tests::cluster::Cluster;
use ptah_integration_tests::process::{Process, http_get};
use ptah_proto::api::v1 as api;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

const KILLS: usize = 50;
const FREEZES: usize = 10;
/// Messages a second of the steady producer.
const RATE: u32 = 500;
/// Longest time that anything may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a cluster is left alone before and while its idle cost is measured.
const IDLE: Duration = Duration::from_secs(60);

/// A message that was acknowledged.
#[derive(Debug, Clone, Copy)]
struct Acknowledged {
    sent: Instant,
    took: Duration,
}

/// A producer that sends at a steady rate, whatever is answered.
struct Steady {
    stop: Arc<AtomicBool>,
    acknowledged: watch::Receiver<Vec<Acknowledged>>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Steady {
    /// Produces to the partitions in turn.
    fn start(client: Client, station: &str, partitions: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (tell, acknowledged) = watch::channel(Vec::new());
        let (station, stopping) = (station.to_owned(), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            let mut stream = client.produce_stream(&station, "steady").await?;
            let mut due = Instant::now();
            let mut unanswered = BTreeMap::new();
            let mut count = 0;
            while !(stopping.load(Ordering::SeqCst) && unanswered.is_empty()) {
                if due <= Instant::now() && !stopping.load(Ordering::SeqCst) {
                    due += Duration::from_secs(1) / RATE;
                    let next = api::NewMessage {
                        partition: 1 + count % partitions,
                        ..message(vec![b'x'; 128])
                    };
                    count += 1;
                    let number = stream.send(vec![next]).await?;
                    unanswered.insert(number, Instant::now());
                    continue;
                }
                let wait = due.max(Instant::now() + Duration::from_millis(1));
                let Ok(results) = timeout_at(wait, stream.results()).await else {
                    continue;
                };
                let now = Instant::now();
                for (number, outcome) in results?.context("the produce stream ended")? {
                    let sent = unanswered.remove(&number).context("answered twice")?;
                    outcome.map_err(|error| anyhow::anyhow!("message {number}: {error:?}"))?;
                    let took = now - sent;
                    tell.send_modify(|all| all.push(Acknowledged { sent, took }));
                }
            }
            Ok(())
        });
        Self {
            stop,
            acknowledged,
            task,
        }
    }

    /// When the first message that was sent after `moment` was acknowledged.
    async fn first_after(&mut self, moment: Instant) -> anyhow::Result<Instant> {
        let find = |all: &Vec<Acknowledged>| {
            let later = all.iter().rev().take_while(|one| one.sent + LIMIT > moment);
            let later = later.filter(|one| one.sent > moment);
            later.map(|one| one.sent + one.took).min()
        };
        let found = self.acknowledged.wait_for(|all| find(all).is_some());
        let all = timeout(LIMIT, found).await.context("no acknowledgement")??;
        find(&all).context("it was there")
    }

    /// Waits until messages flow again for a while.
    async fn flow(&mut self) -> anyhow::Result<()> {
        let before = self.acknowledged.borrow().len();
        let enough = self.acknowledged.wait_for(|all| all.len() > before + 300);
        timeout(LIMIT, enough).await.context("messages do not flow")??;
        Ok(())
    }

    /// Ends it after everything is answered; the times of what was sent from `moment` on.
    async fn finish(self, moment: Instant) -> anyhow::Result<Vec<Duration>> {
        self.stop.store(true, Ordering::SeqCst);
        timeout(LIMIT, self.task)
            .await
            .context("not everything was answered")???;
        let all = self.acknowledged.borrow();
        let from = all.iter().filter(|one| one.sent >= moment);
        Ok(from.map(|one| one.took).collect())
    }
}

/// Prints a distribution as a row of a table.
fn row(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: usize| {
        let place = (times.len() * part).div_ceil(100).max(1) - 1;
        times.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    println!(
        "| {name} | {} | {:.1} | {:.1} | {:.1} | {:.1} |",
        times.len(),
        at(50),
        at(90),
        at(99),
        at(100)
    );
}

fn head(what: &str) {
    println!("\n| {what} | count | p50 ms | p90 ms | p99 ms | max ms |\n|---|---|---|---|---|---|");
}

/// The leader of a partition is killed or frozen under a steady producer: time from the signal to the first
/// acknowledgement of a message that was sent after it.
pub(crate) async fn failover() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let client = cluster.client().await?;
    client.create_station("orders", 1, 3).await?;
    let mut steady = Steady::start(client.clone(), "orders", 1);
    let (mut killed, mut frozen) = (Vec::new(), Vec::new());
    for _ in 0..KILLS {
        steady.flow().await?;
        let leader = cluster.leader(&client, "orders", 1).await?;
        let moment = Instant::now();
        cluster.nodes[leader].kill().await?;
        killed.push(steady.first_after(moment).await? - moment);
        cluster.restart_node(leader).await?;
        cluster.ready().await?;
    }
    for _ in 0..FREEZES {
        steady.flow().await?;
        let leader = cluster.leader(&client, "orders", 1).await?;
        cluster.nodes[leader].signal("STOP").await?;
        let moment = Instant::now();
        frozen.push(steady.first_after(moment).await? - moment);
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.nodes[leader].signal("CONT").await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    steady.finish(Instant::now()).await?;
    head("time to the next acknowledgement");
    row("leader's process killed", killed);
    row("leader's process frozen", frozen);
    takeovers(&cluster).await?;
    cluster.finish().await
}

/// What the nodes counted.
async fn takeovers(cluster: &Cluster) -> anyhow::Result<()> {
    for node in &cluster.nodes {
        let text = http_get(node.address("metrics")?, "/metrics").await?;
        let counts: Vec<&str> = text
            .lines()
            .filter(|line| {
                line.starts_with("ptah_raft_takeovers") || line.starts_with("ptah_raft_suspicions")
            })
            .collect();
        println!("{}: {}", node.name(), counts.join(", "));
    }
    Ok(())
}

/// A node that leads a third of 600 partitions is stopped in order: how long any produce took from then on.
pub(crate) async fn planned() -> anyhow::Result<()> {
    const PARTITIONS: u32 = 600;
    let mut cluster = Cluster::start(3).await?;
    let client = cluster.client().await?;
    client.create_station("wide", PARTITIONS, 3).await?;
    let mut steady = Steady::start(client.clone(), "wide", PARTITIONS);
    steady.first_after(Instant::now()).await?;
    for _ in 0..10 {
        steady.flow().await?;
    }
    let status = client
        .station("wide")
        .await
        .map_err(|status| anyhow::anyhow!("{status}"))?;
    let led = status
        .partitions
        .iter()
        .filter(|one| one.leader_node_id == 1)
        .count();
    let moment = Instant::now();
    cluster.nodes[0].stop().await?;
    let stopped = moment.elapsed();
    for _ in 0..5 {
        steady.flow().await?;
    }
    let times = steady.finish(moment).await?;
    head(&format!(
        "planned stop of a node that leads {led} partitions, {RATE} messages/s over {PARTITIONS}"
    ));
    row("one message to its acknowledgement", times);
    println!("\nthe node was gone after {:.2} s", stopped.as_secs_f64());
    cluster.restart_node(0).await?;
    cluster.ready().await?;
    cluster.finish().await
}

/// 1,000 partitions of 3 replicas that nobody uses: CPU time of every process; then the first message to each of some.
pub(crate) async fn idle() -> anyhow::Result<()> {
    const STATIONS: u32 = 10;
    const PARTITIONS: u32 = 100;
    let cluster = Cluster::start(3).await?;
    let client = cluster.client().await?;
    for number in 0..STATIONS {
        client
            .create_station(&format!("idle-{number}"), PARTITIONS, 3)
            .await?;
    }
    tokio::time::sleep(IDLE).await;
    let before: Vec<Duration> = cluster.all().map(cpu_time).collect::<anyhow::Result<_>>()?;
    let began = Instant::now();
    tokio::time::sleep(IDLE).await;
    let passed = began.elapsed().as_secs_f64();
    println!("\n| process | CPU in {passed:.0} s | percent of one core |\n|---|---|---|");
    let mut all = Duration::ZERO;
    for (process, before) in cluster.all().zip(before) {
        let used = cpu_time(process)? - before;
        all += used;
        println!(
            "| {} | {used:?} | {:.2} |",
            process.name(),
            used.as_secs_f64() / passed * 100.0
        );
    }
    println!("| all | {all:?} | {:.2} |", all.as_secs_f64() / passed * 100.0);

    let (mut first, mut second) = (Vec::new(), Vec::new());
    for partition in 1..=PARTITIONS {
        for times in [&mut first, &mut second] {
            let one = api::NewMessage {
                partition,
                ..message(vec![b'x'; 128])
            };
            let began = Instant::now();
            let outcomes = client.produce("idle-0", vec![one]).await;
            let outcomes = outcomes.map_err(|status| anyhow::anyhow!("{status}"))?;
            times.push(began.elapsed());
            for outcome in outcomes {
                outcome.map_err(|error| anyhow::anyhow!("partition {partition}: {error:?}"))?;
            }
        }
    }
    head("produce to an idle partition");
    row("first message", first);
    row("second message", second);
    cluster.finish().await
}

/// CPU time that a process has used.
fn cpu_time(process: &Process) -> anyhow::Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", process.pid()?)).context("read CPU time")?;
    // The name in parentheses may hold anything; user and system time are fields 14 and 15 of all.
    let fields: Vec<&str> = text
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks: u64 = [11, 12]
        .into_iter()
        .map(|place| {
            fields
                .get(place)
                .and_then(|field| field.parse::<u64>().ok())
                .unwrap_or(0)
        })
        .sum();
    // Linux counts in hundredths of a second on all machines that this runs on.
    Ok(Duration::from_millis(ticks * 10))
}
