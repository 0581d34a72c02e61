//! Seeded runs of all services under power loss, partitions and clock differences.
//!
//! `PTAH_SIMULATION_SEED=<n> cargo test one_seed` replays a single seed; its trace is printed when it fails.

use ptah_simulation::run;

/// Seeds that run every time.
const SEEDS: std::ops::Range<u64> = 1..6;

#[test]
fn nothing_acknowledged_is_lost_doubled_or_reordered() {
    for seed in SEEDS {
        let outcome = run(seed).unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
        assert!(
            outcome.acknowledged > 500,
            "seed {seed}: only {} messages were acknowledged",
            outcome.acknowledged
        );
        assert!(outcome.faults > 0, "seed {seed}: nothing happened");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let first = run(7).expect("the run goes well").trace;
    let second = run(7).expect("the run goes well").trace;
    let differing = first.iter().zip(&second).position(|(a, b)| a != b);
    if let Some(line) = differing {
        panic!("line {line} differs:\n{}\n{}", first[line], second[line]);
    }
    assert_eq!(first.len(), second.len());
    assert!(
        first.len() > 100,
        "a trace of {} lines shows nothing",
        first.len()
    );
}

#[test]
fn another_seed_gives_another_trace() {
    assert_ne!(
        run(8).expect("the run goes well").trace,
        run(9).expect("the run goes well").trace
    );
}

#[test]
fn one_seed() {
    let Ok(seed) = std::env::var("PTAH_SIMULATION_SEED") else {
        return;
    };
    let seed = seed.parse().expect("the seed is a number");
    if let Err(error) = run(seed) {
        panic!("seed {seed}: {error:#}");
    }
}
