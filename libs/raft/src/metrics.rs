//! What a host counts. Built by [`crate::RaftHost`] under the registry that it is given.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Handles of all metrics.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) proposals: Counter,
    pub(crate) proposals_refused: Counter,
    pub(crate) disagreements: Counter,
    pub(crate) entries_without_room: Counter,
    pub(crate) restarts: Counter,
    pub(crate) damaged: Gauge,
    pub(crate) leading: Gauge,
    pub(crate) checkpoints: Counter,
    pub(crate) checkpoints_failed: Counter,
    pub(crate) rounds: Counter,
    pub(crate) rounds_failed: Counter,
    pub(crate) snapshots_installed: Counter,
    pub(crate) snapshots_refused: Counter,
    pub(crate) snapshot_bytes: Counter,
    pub(crate) takeovers: Counter,
    pub(crate) suspicions: Counter,
    pub(crate) nodes_heard: Gauge,
    pub(crate) quiet: Gauge,
    pub(crate) wakes: Counter,
    pub(crate) suspicions_withdrawn: Counter,
    pub(crate) streams_broken: Counter,
    pub(crate) greetings_refused: Counter,
    pub(crate) routes_refused: Counter,
    pub(crate) bad_messages: Counter,
    pub(crate) bad_entries: Counter,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let counters: [(&str, &str, &Counter); 21] = [
            ("proposals", "entries proposed to openraft", &metrics.proposals),
            (
                "proposals_refused",
                "proposals refused at once",
                &metrics.proposals_refused,
            ),
            (
                "disagreements",
                "entries that the partition's own checks refused",
                &metrics.disagreements,
            ),
            (
                "replica_restarts",
                "replicas opened again after their core died",
                &metrics.restarts,
            ),
            (
                "entries_without_room",
                "entries that were not taken because the disk was full",
                &metrics.entries_without_room,
            ),
            ("checkpoints", "state checkpoints written", &metrics.checkpoints),
            (
                "checkpoints_failed",
                "state checkpoints that could not be written",
                &metrics.checkpoints_failed,
            ),
            (
                "rounds",
                "rounds that made dirty groups durable in their own files",
                &metrics.rounds,
            ),
            ("rounds_failed", "such rounds that failed", &metrics.rounds_failed),
            (
                "snapshots_installed",
                "snapshots installed",
                &metrics.snapshots_installed,
            ),
            (
                "snapshots_refused",
                "snapshots offered and not installed",
                &metrics.snapshots_refused,
            ),
            (
                "snapshot_bytes",
                "bytes of segments copied for snapshots",
                &metrics.snapshot_bytes,
            ),
            (
                "takeovers",
                "campaigns because the leader's node was suspected to be dead or cut off",
                &metrics.takeovers,
            ),
            (
                "wakes",
                "idle groups that this node leads and woke",
                &metrics.wakes,
            ),
            (
                "suspicions",
                "nodes that were suspected to be dead or cut off",
                &metrics.suspicions,
            ),
            (
                "suspicions_withdrawn",
                "nodes that were suspected, and heard again from the same process",
                &metrics.suspicions_withdrawn,
            ),
            (
                "streams_broken",
                "streams to other nodes that broke or could not be made",
                &metrics.streams_broken,
            ),
            (
                "greetings_refused",
                "callers of another cluster, node or version",
                &metrics.greetings_refused,
            ),
            (
                "routes_refused",
                "messages for a replica that is not here",
                &metrics.routes_refused,
            ),
            (
                "bad_messages",
                "transport messages that make no sense",
                &metrics.bad_messages,
            ),
            (
                "bad_entries",
                "append requests refused because entries did not verify",
                &metrics.bad_entries,
            ),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        registry.register(
            "damaged_replicas",
            "replicas that do not vote because of damage",
            metrics.damaged.clone(),
        );
        registry.register(
            "quiet",
            "replicas that rest, without heartbeats, because their group is idle",
            metrics.quiet.clone(),
        );
        registry.register(
            "nodes_heard",
            "other nodes whose signs of life are heard",
            metrics.nodes_heard.clone(),
        );
        registry.register(
            "leading",
            "partitions that this node leads and takes writes for",
            metrics.leading.clone(),
        );
        metrics
    }
}
