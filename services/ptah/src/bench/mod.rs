//! `ptah bench`: what a running cluster does, measured from outside.
//!
//! Every message is answered for individually, and after the run all of them are read back and compared: a fast server
//! that loses, doubles or reorders messages fails the benchmark.

mod args;
mod cpu;
mod drive;
mod latency;
mod ledger;
mod payload;
mod probe;
mod report;
mod scrape;
mod verify;
#[cfg(test)]
mod verify_tests;

pub use args::{BenchArgs, BenchCommand, BenchProduceArgs};

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use ptah_service::Ports;
use ptah_types::ErrorKind;
use tokio::time::Instant;

use self::drive::{Plan, Produced, new_histogram};
use self::ledger::Ledger;
use self::report::{Fsyncs, Latency, Report, ServerCpu};
use self::verify::Verdict;
use crate::args::Global;
use crate::client::{Client, NewStation, Station};
use crate::command::station::station_name;
use crate::failure::Failure;
use crate::output::Output;
use crate::signals::EndSignals;

/// Pause between two looks at a station whose leaders are not there yet.
const LEADER_PAUSE: Duration = Duration::from_millis(20);

/// Runs the command.
pub async fn run(args: BenchArgs, global: &Global, output: &Output) -> Result<(), Failure> {
    let BenchCommand::Produce(args) = args.command;
    args.validate()?;
    let probe = match &args.disk_probe {
        Some(dir) => Some(probe::DiskProbe::prepare(dir, args.size as usize)?),
        None => None,
    };
    let random = Ports::system().random;
    let run = random.next_u64();
    let name = match &args.station {
        Some(name) => station_name(name)?.display().to_owned(),
        None => format!("bench-{run:016x}"),
    };
    let client = Client::from_options(global).await?;
    let (station, _) = client
        .create_station(&NewStation {
            name,
            partitions: args.partitions,
            replicas: args.replicas,
            max_message_bytes: args.size.max(ptah_types::limits::DEFAULT_MESSAGE_BYTES),
        })
        .await?;
    let mut signals = EndSignals::listen()?;
    let result = tokio::select! {
        result = measure(&args, &client, &station, run, probe) => result,
        signal = signals.next() => Err(Failure::failed(format!("ended by {signal} before it was over"))),
    };
    if args.station.is_none() {
        client.delete_station(&station.name).await?;
    }
    let report = result?;
    let failure = failure_of(&report);
    output.result(&report, Report::text)?;
    failure.map_or(Ok(()), Err)
}

fn failure_of(report: &Report) -> Option<Failure> {
    if !report.verified.is_good() {
        return Some(Failure::partial(
            ErrorKind::DataDamaged,
            "the server did not keep its word; see the violations",
        ));
    }
    let open = report.refused + report.unknown;
    (open > 0).then(|| {
        let kind = match report.unknown {
            0 => ErrorKind::Unavailable,
            _ => ErrorKind::OutcomeUnknown,
        };
        let message = format!("{open} of {} messages were not acknowledged", report.messages);
        Failure::partial(kind, message)
    })
}

/// What was done, before it is verified.
struct Run {
    window: u32,
    connections: u32,
    produced: Vec<Produced>,
    disk_ns: Option<Histogram<u64>>,
}

async fn measure(
    args: &BenchProduceArgs,
    client: &Client,
    station: &Station,
    run: u64,
    probe: Option<probe::DiskProbe>,
) -> Result<Report, Failure> {
    let begins = begins(client, &station.name).await?;
    let plan = plan(args, station, run);
    let clients = connect(client, args.connections).await?;
    let fsyncs_before = scrape::sum(&args.metrics, &args.fsync_counters).await?;
    let servers_before = args
        .pids
        .iter()
        .map(|pid| cpu::read(*pid))
        .collect::<Result<Vec<_>, _>>()?;
    let client_before = cpu::read_own()?;
    let done = produce(args, &plan, &clients, probe).await?;
    let client_after = cpu::read_own()?;
    let servers_after = args
        .pids
        .iter()
        .map(|pid| cpu::read(*pid))
        .collect::<Result<Vec<_>, _>>()?;
    let fsyncs_after = scrape::sum(&args.metrics, &args.fsync_counters).await?;

    let used = servers_before.iter().zip(&servers_after);
    let server_cpu = used
        .map(|(before, after)| after.since(before, args.messages))
        .collect();
    let fsyncs = fsyncs_after - fsyncs_before;
    let costs = Costs {
        client: client_after.since(&client_before, args.messages),
        servers: (!args.pids.is_empty()).then(|| ServerCpu::of(server_cpu)),
        fsyncs: (!args.metrics.is_empty()).then(|| Fsyncs {
            count: fsyncs,
            messages_per_fsync: args.messages as f64 / fsyncs.max(1.0),
        }),
    };
    let begun = Instant::now();
    let summary = Summary::of(done);
    let verdict = verify::verify(
        client,
        &station.name,
        &begins,
        run,
        plan.size_bytes,
        &summary.ledgers,
    )
    .await?;
    Ok(report(args, station, summary, costs, verdict, begun.elapsed()))
}

fn plan(args: &BenchProduceArgs, station: &Station, run: u64) -> Plan {
    let window = if args.latency { 1 } else { args.window };
    Plan {
        station: station.name.clone(),
        run,
        size_bytes: args.size as usize,
        window,
        batch: args
            .batch
            .unwrap_or(window.div_ceil(4))
            .min(ptah_types::limits::MAX_BATCH_MESSAGES as u32),
        rate: args.rate.map(|rate| rate as f64 / f64::from(args.connections)),
        keys: (0..args.keys.unwrap_or(0))
            .map(|key| format!("key-{key}").into_bytes())
            .collect(),
    }
}

/// One connection per producer; the first one is there already.
async fn connect(client: &Client, connections: u32) -> Result<Vec<Client>, Failure> {
    let mut clients = vec![client.clone()];
    for _ in 1..connections {
        clients.push(client.another().await?);
    }
    Ok(clients)
}

async fn produce(
    args: &BenchProduceArgs,
    plan: &Plan,
    clients: &[Client],
    probe: Option<probe::DiskProbe>,
) -> Result<Run, Failure> {
    if args.latency {
        let (produced, disk_ns) =
            latency::produce_one_by_one(plan, args.messages, &clients[0], probe).await?;
        return Ok(Run {
            window: 1,
            connections: 1,
            produced: vec![produced],
            disk_ns,
        });
    }
    let producers = (0..).zip(clients).map(|(producer, client)| {
        let (count, rest) = (
            args.messages / clients.len() as u64,
            args.messages % clients.len() as u64,
        );
        let total = count + u64::from(u64::from(producer) < rest);
        Box::pin(drive::produce(plan, producer, total, client))
    });
    let produced = try_join_all(producers).await?;
    Ok(Run {
        window: plan.window,
        connections: args.connections,
        produced,
        disk_ns: None,
    })
}

/// Where each partition ends before the run. Waits for leaders: the station may be a moment old.
async fn begins(client: &Client, station: &str) -> Result<BTreeMap<u32, u64>, Failure> {
    let until = Instant::now() + client.timeout();
    loop {
        let (_, partitions) = client.station(station).await?;
        if partitions.iter().all(|partition| partition.next_sequence > 0) {
            return Ok(partitions
                .iter()
                .map(|p| (p.partition, p.next_sequence))
                .collect());
        }
        if Instant::now() > until {
            return Err(Failure::of_kind(
                ErrorKind::Unavailable,
                format!(
                    "station `{station}` has partitions without a leader; look with `ptah cluster status`"
                ),
            ));
        }
        tokio::time::sleep(LEADER_PAUSE).await;
    }
}

/// All producers together.
struct Summary {
    window: u32,
    connections: u32,
    ledgers: Vec<Ledger>,
    latency_ns: Histogram<u64>,
    disk_ns: Option<Histogram<u64>>,
    batches: u64,
    elapsed: Duration,
    errors: BTreeMap<String, u64>,
}

impl Summary {
    fn of(run: Run) -> Self {
        let started = run.produced.iter().map(|produced| produced.started).min();
        let ended = run.produced.iter().map(|produced| produced.ended).max();
        let mut summary = Self {
            window: run.window,
            connections: run.connections,
            ledgers: Vec::new(),
            latency_ns: new_histogram(),
            disk_ns: run.disk_ns,
            batches: 0,
            elapsed: started
                .zip(ended)
                .map_or(Duration::ZERO, |(started, ended)| ended - started),
            errors: BTreeMap::new(),
        };
        for produced in run.produced {
            summary.batches += produced.batches;
            // All have the same bounds, so that nothing falls outside.
            let _ = summary.latency_ns.add(&produced.latency_ns);
            for (text, count) in produced.ledger.errors() {
                *summary.errors.entry(text.clone()).or_default() += count;
            }
            if let Some(error) = produced.broke {
                *summary.errors.entry(error.message).or_default() += produced.ledger.unknown_count();
            }
            summary.ledgers.push(produced.ledger);
        }
        summary
    }
}

/// What the run took besides time.
struct Costs {
    client: cpu::Used,
    servers: Option<ServerCpu>,
    fsyncs: Option<Fsyncs>,
}

fn report(
    args: &BenchProduceArgs,
    station: &Station,
    summary: Summary,
    costs: Costs,
    verified: Verdict,
    verifying: Duration,
) -> Report {
    let seconds = summary.elapsed.as_secs_f64().max(1e-9);
    let stored: u64 = summary.ledgers.iter().map(Ledger::stored_count).sum();
    Report {
        station: station.name.clone(),
        partitions: station.partitions,
        replicas: station.replicas,
        messages: args.messages,
        size_bytes: args.size,
        connections: summary.connections,
        window: summary.window,
        keys: args.keys,
        stored,
        refused: summary.ledgers.iter().map(Ledger::refused_count).sum(),
        unknown: summary.ledgers.iter().map(Ledger::unknown_count).sum(),
        errors: summary.errors,
        seconds,
        messages_per_second: stored as f64 / seconds,
        megabytes_per_second: (stored * args.size) as f64 / seconds / 1e6,
        latency: Latency::of(&summary.latency_ns),
        disk: summary.disk_ns.as_ref().map(Latency::of),
        batches: summary.batches,
        client_cpu: costs.client,
        server_cpu: costs.servers,
        fsyncs: costs.fsyncs,
        verify_messages_per_second: verified.read as f64 / verifying.as_secs_f64().max(1e-9),
        verify_seconds: verifying.as_secs_f64(),
        verified,
    }
}
