//! All services of a cluster in one deterministic simulation: same seed, same run.
//!
//! turmoil gives hosts, time and network; the disk that forgets what was not synced comes from `ptah-segment-log`; each
//! host has a wall clock of its own. Everything random in a run follows from its seed: faults, latencies, elections.

mod clock;
mod faults;
mod follower;
mod network;
mod readers;
mod trace;
mod workload;
mod world;

pub use trace::Trace;
pub use world::{Disks, Outcome, run, run_on};
