//! Settings of a host, all with defaults that fit a storage node.

use std::time::Duration;

use ptah_segment_log::Options as StoreOptions;

/// Settings of a [`crate::RaftHost`].
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Settings of the store.
    pub store: StoreOptions,
    /// How often a leader shows that it lives (200 ms).
    pub heartbeat_interval: Duration,
    /// Shortest time without a leader before a replica campaigns (500 ms); beyond the lease of the old leader, which
    /// is the longest one.
    pub election_timeout_min: Duration,
    /// Longest such time, and the leader's lease (900 ms): an unplanned loss that nobody can be sure of is healed
    /// after one to two times this.
    pub election_timeout_max: Duration,
    /// Heartbeats of all groups to one node are collected this long (5 ms).
    pub heartbeat_coalesce: Duration,
    /// How often a node sends a sign of life to every other one (100 ms).
    pub ping_interval: Duration,
    /// Silence after which a node that is punctual otherwise is suspected to be dead or cut off (400 ms).
    pub suspect_after: Duration,
    /// Silence after which any node is suspected, however often it is late (700 ms).
    pub suspect_after_max: Duration,
    /// A group that had nothing to do for this long, and whose replicas all have everything, stops its heartbeats until
    /// something comes (10 s).
    pub quiesce_after: Duration,
    /// When a leader's node is suspected by a majority of a group's voters, or its process is certainly gone, survivors
    /// take over at once instead of waiting for the lease (true).
    pub takeover: bool,
    /// Proposals of one partition that may wait for their commit (1,024).
    pub max_in_flight_entries: u64,
    /// Bytes of proposals of one partition that may wait for their commit (32 MiB); a larger entry passes alone.
    pub max_in_flight_bytes: u64,
    /// Append requests that may be under way to one follower of one partition (4).
    pub append_window: usize,
    /// Bytes of append requests that may wait in memory for one node (64 MiB).
    pub peer_queue_bytes: usize,
    /// How often checkpoints and purges are considered (250 ms).
    pub maintenance_interval: Duration,
    /// A checkpoint is taken when this much was applied since the last one; `None` is a quarter of the segment size.
    pub checkpoint_bytes: Option<u64>,
    /// A checkpoint is taken when this many entries were applied since the last one (50,000).
    pub checkpoint_entries: u64,
    /// A checkpoint is taken when anything was applied and the last one is older than this (60 s).
    pub checkpoint_every: Duration,
    /// The log keeps this many bytes behind what is applied, for followers that lag; `None` is half the segment size, so
    /// that together with what is not yet behind a checkpoint it stays under one segment.
    pub keep_log_bytes: Option<u64>,
    /// A follower that lags more than this many bytes does not hold the log back; `None` is four times the segment size.
    pub hold_log_bytes: Option<u64>,
    /// A round that makes dirty groups durable in their own files runs at least this often (30 s).
    pub round_every: Duration,
    /// First pause before a replica whose core died is opened again (100 ms); doubles up to `restart_pause_max`,
    /// for as long as it takes.
    pub restart_pause: Duration,
    /// Longest pause before a replica is opened again (10 s).
    pub restart_pause_max: Duration,
    /// How long a graceful stop waits for leadership to move (2 s).
    pub handover_timeout: Duration,
    /// Run drivers as tasks and blocking work inline: for simulations, whose disk is memory and whose runtime has one
    /// thread.
    pub simulation: bool,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            store: StoreOptions::default(),
            heartbeat_interval: Duration::from_millis(200),
            election_timeout_min: Duration::from_millis(500),
            election_timeout_max: Duration::from_millis(900),
            heartbeat_coalesce: Duration::from_millis(5),
            ping_interval: Duration::from_millis(100),
            suspect_after: Duration::from_millis(400),
            suspect_after_max: Duration::from_millis(700),
            quiesce_after: Duration::from_secs(10),
            takeover: true,
            max_in_flight_entries: 1024,
            max_in_flight_bytes: 32 << 20,
            append_window: 4,
            peer_queue_bytes: 64 << 20,
            maintenance_interval: Duration::from_millis(250),
            checkpoint_bytes: None,
            checkpoint_entries: 50_000,
            checkpoint_every: Duration::from_secs(60),
            keep_log_bytes: None,
            hold_log_bytes: None,
            round_every: Duration::from_secs(30),
            restart_pause: Duration::from_millis(100),
            restart_pause_max: Duration::from_secs(10),
            handover_timeout: Duration::from_secs(2),
            simulation: false,
        }
    }
}

impl HostOptions {
    /// Small files, early checkpoints and quick restarts.
    pub fn for_tests() -> Self {
        Self {
            store: StoreOptions::small(),
            maintenance_interval: Duration::from_millis(20),
            checkpoint_every: Duration::from_secs(1),
            restart_pause: Duration::from_millis(20),
            quiesce_after: Duration::from_secs(1),
            restart_pause_max: Duration::from_millis(200),
            ..Self::default()
        }
    }

    pub(crate) fn checkpoint_bytes(&self, segment_bytes: u64) -> u64 {
        self.checkpoint_bytes.unwrap_or(segment_bytes / 4).max(1)
    }

    pub(crate) fn keep_log_bytes(&self, segment_bytes: u64) -> u64 {
        self.keep_log_bytes.unwrap_or(segment_bytes / 2)
    }

    pub(crate) fn hold_log_bytes(&self, segment_bytes: u64) -> u64 {
        self.hold_log_bytes.unwrap_or(segment_bytes.saturating_mul(4))
    }

    /// openraft's settings, the same for every group.
    pub(crate) fn raft_config(&self) -> Result<openraft::Config, openraft::ConfigError> {
        let millis = |duration: Duration| duration.as_millis() as u64;
        let heartbeat = millis(self.heartbeat_interval);
        let (min, max) = (
            millis(self.election_timeout_min),
            millis(self.election_timeout_max),
        );
        let tick = heartbeat * 13 / 64;
        openraft::Config {
            cluster_name: "ptah".to_owned(),
            heartbeat_interval: heartbeat,
            // A beat is skipped when traffic proved that the follower lives, as long as its timer cannot run out.
            heartbeat_min_interval: Some(
                min.saturating_sub(heartbeat + tick)
                    .min(heartbeat)
                    .saturating_sub(1),
            ),
            election_timeout_min: min,
            election_timeout_max: max,
            enable_pre_vote: Some(true),
            // A restored leader would go on in its old term, in which it has entries that are not applied yet.
            enable_leader_restore: Some(false),
            snapshot_policy: openraft::SnapshotPolicy::Never,
            // The host purges; openraft must not do it by itself behind every checkpoint.
            max_in_snapshot_log_to_keep: u64::MAX,
            install_snapshot_timeout: 30_000,
            // A leader without a majority is silenced by the detector; openraft's own way would keep a group that
            // rested from waking.
            quorum_loss_probe_interval: None,
            // Bytes bound a request, see the log store.
            max_payload_entries: 16_384,
            api_channel_size: Some(4096),
            notification_channel_size: Some(4096),
            backoff: "100ms".to_owned(),
            ..openraft::Config::default()
        }
        .validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_settings_that_openraft_takes() {
        assert!(HostOptions::default().raft_config().is_ok());
        assert!(HostOptions::for_tests().raft_config().is_ok());
    }
}
