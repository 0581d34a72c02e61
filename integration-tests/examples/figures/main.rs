//! Measures a cluster of separate processes with `ptah bench` and prints what belongs into `docs/benchmarks.md`.
//!
//! `cargo build --release --workspace && cargo run --release -p ptah-integration-tests --example figures [PART ..]`
//!
//! Parts: `throughput`, `fsyncs`, `latency`, `large` (a 64 MiB message beside small ones), `failover` (kills
//! and freezes), `planned` (a stop in order), `idle` (1,000 idle partitions); all of them unless given.
//! Every part has a fresh cluster. The runs of the first four read back and verify what they stored, and alternate, so
//! that a foreign load falls on all alike; each figure is the median of its rounds. The others run once.
#![allow(clippy::print_stdout)] // printing is what it does

mod bench;
mod outages;
mod parts;

use anyhow::Context;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut wanted: Vec<String> = std::env::args().skip(1).collect();
    if wanted.is_empty() {
        wanted = [
            "throughput",
            "fsyncs",
            "latency",
            "large",
            "failover",
            "planned",
            "idle",
        ]
        .map(str::to_owned)
        .to_vec();
    }
    anyhow::ensure!(
        !cfg!(debug_assertions),
        "figures of a debug build say nothing: use --release"
    );
    println!("load before: {}", load()?);
    for part in &wanted {
        match part.as_str() {
            "throughput" => parts::throughput().await?,
            "fsyncs" => parts::fsyncs().await?,
            "latency" => parts::latency().await?,
            "large" => parts::large().await?,
            "failover" => outages::failover().await?,
            "planned" => outages::planned().await?,
            "idle" => outages::idle().await?,
            other => anyhow::bail!("there is no part `{other}`; see the beginning of this program"),
        }
    }
    println!("\nload after: {}", load()?);
    Ok(())
}

/// What else the machine is doing.
fn load() -> anyhow::Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg").context("read load")?;
    Ok(text.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
}
