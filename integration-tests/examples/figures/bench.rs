//! One run of `ptah bench` against a cluster.

use std::time::Duration;

use anyhow::Context;
use ptah_integration_tests::cluster::Cluster;
use ptah_integration_tests::process;
use serde_json::Value;
use tokio::process::Command;

/// Longest time of one run.
const LIMIT: Duration = Duration::from_secs(300);

/// Runs `ptah` with `args` against the cluster's gateway; its JSON.
async fn ptah(cluster: &Cluster, args: &[&str]) -> anyhow::Result<Value> {
    let mut command = Command::new(process::programs()?.join("ptah"));
    command
        .args(args)
        .arg("--json")
        .env("PTAH_SERVER", cluster.gateway_address()?)
        .env("PTAH_USER", "root")
        .env("PTAH_PASSWORD", "memphis");
    let output = process::output(command, LIMIT).await?;
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().last().context("ptah said nothing")?;
    serde_json::from_str(line).with_context(|| format!("ptah {args:?} said {line:?}"))
}

/// What a run found.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    report: Value,
}

impl Run {
    /// `ptah bench produce` with `args`, with the CPU time of all services and the fsyncs of all storage nodes.
    pub(crate) async fn produce(cluster: &Cluster, args: &str) -> anyhow::Result<Self> {
        let pids = cluster
            .all()
            .map(|process| Ok(process.pid()?.to_string()))
            .collect::<anyhow::Result<Vec<_>>>()?
            .join(",");
        let metrics = cluster
            .nodes
            .iter()
            .map(|node| Ok(format!("http://{}/metrics", node.address("metrics")?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let mut all = vec!["bench", "produce", "--pids", &pids, "--metrics"];
        all.extend(metrics.iter().map(String::as_str));
        all.extend(args.split_whitespace());
        let report = ptah(cluster, &all).await?;
        let run = Self { report };
        anyhow::ensure!(
            run.number("/stored")? == run.number("/messages")?,
            "bench {args}: not everything was stored: {}",
            run.report
        );
        Ok(run)
    }

    /// A number of the report, by JSON pointer.
    pub(crate) fn number(&self, pointer: &str) -> anyhow::Result<f64> {
        let value = self.report.pointer(pointer).and_then(Value::as_f64);
        value.with_context(|| format!("the report has no {pointer}: {}", self.report))
    }

    /// CPU time per message in microseconds of the services whose name contains `name`.
    pub(crate) fn cpu_us(&self, name: &str) -> anyhow::Result<f64> {
        let processes = self
            .report
            .pointer("/server_cpu/processes")
            .and_then(Value::as_array);
        let processes = processes.context("the report has no CPU times")?;
        let of_name = processes
            .iter()
            .filter(|process| process["name"].as_str().is_some_and(|full| full.contains(name)));
        Ok(of_name
            .filter_map(|process| process["us_per_message"].as_f64())
            .sum())
    }
}

/// The middle one of some figures; 0 of none.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(0.0)
}

/// The median of a number over some runs.
pub(crate) fn middle(runs: &[Run], number: impl Fn(&Run) -> anyhow::Result<f64>) -> anyhow::Result<f64> {
    Ok(median(runs.iter().map(number).collect::<anyhow::Result<_>>()?))
}
