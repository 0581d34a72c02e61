//! What is measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ptah_integration_tests::cluster::Cluster;

use crate::bench::{Run, median, middle};

/// Rounds of alternating runs.
const ROUNDS: usize = 3;
/// Messages a second when the cost of a rate is measured.
const RATE: u32 = 100_000;

/// 128 B, window 1,000, one connection: as fast as it goes.
pub(crate) async fn throughput() -> anyhow::Result<()> {
    let forms = [(1, 1), (1, 16), (3, 1), (3, 16)];
    let cluster = Cluster::start(3).await?;
    let mut runs = vec![Vec::new(); forms.len()];
    for _ in 0..ROUNDS {
        for ((replicas, partitions), runs) in forms.iter().zip(&mut runs) {
            let args = format!("--messages 1M --window 1000 --replicas {replicas} --partitions {partitions}");
            runs.push(Run::produce(&cluster, &args).await?);
        }
    }
    println!(
        "\n| replicas | partitions | messages/s | p50 ms | p99 ms | server CPU us/message (gateway + storage) | messages per fsync |"
    );
    println!("|---|---|---|---|---|---|---|");
    for ((replicas, partitions), runs) in forms.iter().zip(&runs) {
        println!(
            "| {replicas} | {partitions} | {:.0} | {:.1} | {:.1} | {:.2} ({:.2} + {:.2}) | {:.0} |",
            middle(runs, |run| run.number("/messages_per_second"))?,
            middle(runs, |run| run.number("/latency/p50_us"))? / 1e3,
            middle(runs, |run| run.number("/latency/p99_us"))? / 1e3,
            middle(runs, |run| run.number("/server_cpu/us_per_message"))?,
            middle(runs, |run| run.cpu_us("gateway"))?,
            middle(runs, |run| run.cpu_us("storage"))?,
            middle(runs, |run| run.number("/fsyncs/messages_per_fsync"))?,
        );
    }
    cluster.finish().await
}

/// The same rate on 1 and on 256 partitions: fsyncs a second of all storage nodes. One replica is measured on one node, so
/// that both forms have the same disks to sync.
pub(crate) async fn fsyncs() -> anyhow::Result<()> {
    println!(
        "\n| replicas and nodes | partitions | messages/s | fsyncs/s | p50 ms | p99 ms | server CPU us/message |"
    );
    println!("|---|---|---|---|---|---|---|");
    for replicas in [1, 3] {
        let cluster = Cluster::start(replicas).await?;
        let mut runs = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for (partitions, runs) in [1, 256].into_iter().zip(&mut runs) {
                let args = format!(
                    "--messages {} --rate {RATE} --window 1000 --replicas {replicas} --partitions {partitions}",
                    RATE * 5
                );
                runs.push(Run::produce(&cluster, &args).await?);
            }
        }
        for (partitions, runs) in [1, 256].into_iter().zip(&runs) {
            println!(
                "| {replicas} | {partitions} | {:.0} | {:.0} | {:.1} | {:.1} | {:.1} |",
                middle(runs, |run| run.number("/messages_per_second"))?,
                middle(runs, fsyncs_per_second)?,
                middle(runs, |run| run.number("/latency/p50_us"))? / 1e3,
                middle(runs, |run| run.number("/latency/p99_us"))? / 1e3,
                middle(runs, |run| run.number("/server_cpu/us_per_message"))?,
            );
        }
        cluster.finish().await?;
    }
    Ok(())
}

fn fsyncs_per_second(run: &Run) -> anyhow::Result<f64> {
    Ok(run.number("/fsyncs/count")? / run.number("/seconds")?)
}

/// One message at a time, beside what the disk alone takes in the same moments.
pub(crate) async fn latency() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let probe = cluster.path().join("probe");
    std::fs::create_dir_all(&probe)?;
    let probe = probe.display();
    let mut runs = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (replicas, runs) in [1, 3].into_iter().zip(&mut runs) {
            let args = format!("--latency --messages 3k --replicas {replicas} --disk-probe {probe}");
            runs.push(Run::produce(&cluster, &args).await?);
        }
    }
    println!(
        "\n| replicas | p50 us | p90 us | p99 us | disk alone p50 us | disk alone p99 us | server CPU us/message |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (replicas, runs) in [1, 3].into_iter().zip(&runs) {
        println!(
            "| {replicas} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} |",
            middle(runs, |run| run.number("/latency/p50_us"))?,
            middle(runs, |run| run.number("/latency/p90_us"))?,
            middle(runs, |run| run.number("/latency/p99_us"))?,
            middle(runs, |run| run.number("/disk/p50_us"))?,
            middle(runs, |run| run.number("/disk/p99_us"))?,
            middle(runs, |run| run.number("/server_cpu/us_per_message"))?,
        );
    }
    cluster.finish().await
}

/// Messages of 128 B at 3 replicas, alone and while messages of 64 MiB pass on another partition.
pub(crate) async fn large() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let (mut idle, mut beside, mut films) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        idle.push(small(&cluster).await?);
        let over = Arc::new(AtomicBool::new(false));
        let (passed, run) = tokio::join!(pass_films(&cluster, Arc::clone(&over)), async {
            let run = small(&cluster).await;
            over.store(true, Ordering::SeqCst);
            run
        });
        films += passed?;
        beside.push(run?);
    }
    println!("\n| 128 B, 200 a second, 3 replicas | p50 ms | p99 ms | worst ms |\n|---|---|---|---|");
    for (name, runs) in [("alone", &idle), ("beside 64 MiB messages", &beside)] {
        println!(
            "| {name} | {:.2} | {:.2} | {:.2} |",
            middle(runs, |run| run.number("/latency/p50_us"))? / 1e3,
            middle(runs, |run| run.number("/latency/p99_us"))? / 1e3,
            middle(runs, |run| run.number("/latency/max_us"))? / 1e3,
        );
    }
    let p99 = |runs: &[Run]| middle(runs, |run| run.number("/latency/p99_us"));
    println!(
        "\np99 beside {films} messages of 64 MiB: {:.1} times p99 alone",
        p99(&beside)? / p99(&idle)?
    );
    cluster.finish().await
}

async fn small(cluster: &Cluster) -> anyhow::Result<Run> {
    Run::produce(
        cluster,
        "--station small --replicas 3 --latency --rate 200 --messages 2000",
    )
    .await
}

/// One message of 64 MiB after the other until the small ones are over; how many.
async fn pass_films(cluster: &Cluster, over: Arc<AtomicBool>) -> anyhow::Result<u64> {
    let mut films = 0;
    let mut seconds = Vec::new();
    while !over.load(Ordering::SeqCst) {
        let args = "--station films --replicas 3 --size 64M --latency --messages 1";
        let run = Run::produce(cluster, args).await?;
        seconds.push(run.number("/seconds")?);
        films += 1;
    }
    println!("\na message of 64 MiB took {:.2} s", median(seconds));
    Ok(films)
}
