//! Seeded runs of all services under power loss, dying processes, network partitions and clock differences.
//!
//! `PTAH_SIMULATION_SEEDS=<n>` or `<from>..<to>` with `cargo test chosen_seeds` runs other seeds; see the README.

use std::fmt::Write as _;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;

use ptah_simulation::{Disks, Trace, run, run_on};

/// A run of `seed` that must go well; its trace.
fn run_well(seed: u64) -> Vec<String> {
    let trace = Trace::default();
    match run(seed, &trace) {
        Ok(outcome) => {
            let acknowledged = outcome.acknowledged;
            assert!(
                acknowledged > 500,
                "seed {seed}: only {acknowledged} messages were acknowledged"
            );
            assert!(outcome.faults > 0, "seed {seed}: nothing happened");
            // No fault lasts as long as the gateway tries.
            assert_eq!(outcome.unknown, 0, "seed {seed}: the gateway gave up");
        }
        Err(error) => panic!("seed {seed}: {error:#}\nThe README says how to replay it."),
    }
    trace.lines()
}

#[test]
fn nothing_acknowledged_is_lost_doubled_or_reordered() {
    for seed in 1..4 {
        run_well(seed);
    }
}

/// The run itself is under test here: on disks that only say that they sync, power loss must come to light.
#[test]
fn disks_that_lie_about_syncs_are_noticed() {
    let is_noticed = |seed: &u64| {
        let trace = Trace::default();
        // A node that finds its acknowledged log gone may also say so by a panic of the simulated client.
        let ended = catch_unwind(AssertUnwindSafe(|| run_on(*seed, &trace, Disks::Lying)));
        !matches!(ended, Ok(Ok(_)))
    };
    let noticed = (1..7_u64).find(is_noticed);
    assert!(noticed.is_some(), "six runs went well on disks that do not sync");
}

fn compare(first: &[String], second: &[String]) {
    let differing = first.iter().zip(second).position(|(a, b)| a != b);
    if let Some(line) = differing {
        panic!("line {line} differs:\n{}\n{}", first[line], second[line]);
    }
    assert_eq!(first.len(), second.len());
}

fn trace_of_another_process(seed: u64) -> String {
    let directory = tempfile::tempdir().expect("a directory for the trace");
    let ended = Command::new(std::env::current_exe().expect("this test has a path"))
        .args(["--exact", "chosen_seeds"])
        .env("PTAH_SIMULATION_SEEDS", seed.to_string())
        .env("PTAH_SIMULATION_TRACES", directory.path())
        .output()
        .expect("the other process ends");
    assert!(
        ended.status.success(),
        "{}",
        String::from_utf8_lossy(&ended.stdout)
    );
    std::fs::read_to_string(directory.path().join(format!("seed-{seed}.log")))
        .expect("it has written a trace")
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_one_another() {
    let other = std::thread::spawn(|| trace_of_another_process(7));
    let first = run_well(7);
    // What a run leaves behind in the process must not change the next one of the same seed.
    assert_ne!(first, run_well(8));
    compare(&first, &run_well(7));
    let elsewhere = other.join().expect("the thread ends");
    compare(&first, &elsewhere.lines().map(str::to_owned).collect::<Vec<_>>());
    assert!(
        first.len() > 100,
        "a trace of {} lines shows nothing",
        first.len()
    );
}

/// The seeds that the environment names: a number, or a range whose end is not part of it.
fn chosen() -> Option<Range<u64>> {
    let text = std::env::var("PTAH_SIMULATION_SEEDS").ok()?;
    let number = |text: &str| -> u64 {
        text.parse()
            .unwrap_or_else(|_| panic!("PTAH_SIMULATION_SEEDS: `{text}` is no number; use 7 or 7..20"))
    };
    Some(match text.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => number(&text)..number(&text) + 1,
    })
}

/// Runs a seed, writes its trace where the environment wants it, and says how it went.
fn replay(seed: u64) -> Result<String, String> {
    let trace = Trace::default();
    let ended = catch_unwind(AssertUnwindSafe(|| run(seed, &trace)));
    if let Ok(directory) = std::env::var("PTAH_SIMULATION_TRACES") {
        let path = Path::new(&directory).join(format!("seed-{seed}.log"));
        std::fs::write(&path, trace.lines().join("\n")).expect("the directory of traces can be written");
    }
    match ended {
        Ok(Ok(outcome)) => Ok(format!("seed {seed}: {outcome:?}")),
        Ok(Err(error)) => Err(format!("seed {seed}: {error:#}")),
        Err(_) => Err(format!("seed {seed}: panicked")),
    }
}

#[test]
fn chosen_seeds() {
    let mut failures = String::new();
    for seed in chosen().into_iter().flatten() {
        match replay(seed) {
            Ok(line) => println!("{line}"),
            Err(line) => {
                println!("{line}");
                let _ = writeln!(failures, "{line}");
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
}
