//! What the metadata service counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use ptah_service::Metrics as Registry;

/// How a commit ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Durable.
    Committed,
    /// A precondition or the lease did not hold.
    Conflict,
    /// Refused or not possible.
    Failed,
    /// Not known.
    Unknown,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByOutcome {
    outcome: &'static str,
}

/// Why a watch ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WatchEnd {
    /// The watcher left.
    Left,
    /// The watcher did not keep up.
    TooSlow,
    /// History or database failed it, or the service stops.
    Failed,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByEnd {
    reason: &'static str,
}

/// Handles of all metrics.
#[derive(Clone)]
pub struct Metrics {
    commits: Family<ByOutcome, Counter>,
    commit_seconds: Histogram,
    watches: Gauge,
    watch_ends: Family<ByEnd, Counter>,
}

impl Metrics {
    /// Registers everything under the service's prefix.
    pub fn new(registry: &Registry) -> Self {
        // From a commit on a good disk to the deadline of its callers.
        let buckets = [
            0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
        ];
        let this = Self {
            commits: Family::default(),
            commit_seconds: Histogram::new(buckets),
            watches: Gauge::default(),
            watch_ends: Family::default(),
        };
        registry.prefixed("ptah_metadata").register(|registry| {
            registry.register("commits", "Commits by outcome", this.commits.clone());
            let help = "Time from a commit's arrival to its answer";
            registry.register("commit_duration_seconds", help, this.commit_seconds.clone());
            registry.register("watches", "Watches that are open", this.watches.clone());
            registry.register(
                "watch_ends",
                "Watches that ended, by reason",
                this.watch_ends.clone(),
            );
        });
        this
    }

    /// Counts a commit.
    pub fn committed(&self, outcome: Outcome, took: std::time::Duration) {
        let outcome = match outcome {
            Outcome::Committed => "committed",
            Outcome::Conflict => "conflict",
            Outcome::Failed => "failed",
            Outcome::Unknown => "unknown",
        };
        self.commits.get_or_create(&ByOutcome { outcome }).inc();
        self.commit_seconds.observe(took.as_secs_f64());
    }

    /// Counts a watch that begins.
    pub fn watch_began(&self) {
        self.watches.inc();
    }

    /// Counts a watch that ends.
    pub fn watch_ended(&self, reason: WatchEnd) {
        self.watches.dec();
        let reason = match reason {
            WatchEnd::Left => "left",
            WatchEnd::TooSlow => "too_slow",
            WatchEnd::Failed => "failed",
        };
        self.watch_ends.get_or_create(&ByEnd { reason }).inc();
    }
}
