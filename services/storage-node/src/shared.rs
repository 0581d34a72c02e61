//! What every part of the node uses: ports, limits, metrics, addresses of peers, the state of the disk.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::RwLock;
use ptah_service::Ports;
use ptah_types::{NodeId, RaftGroupId};

use crate::config::Config;
use crate::disk::DiskGuard;
use crate::error::{LeaderHint, PartitionError};
use crate::metrics::NodeMetrics;
use crate::steady::SteadyClock;

/// Bounds and times, from the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Payload bytes of unanswered appends per stream.
    pub(crate) append_window_bytes: u64,
    /// Payload bytes in flight per partition.
    pub(crate) append_partition_bytes: u64,
    /// Longest time until an append is answered.
    pub(crate) append_deadline: Duration,
    /// Bytes of deliveries that wait in memory per stream.
    pub(crate) deliver_in_hand_bytes: u64,
    /// How long acks that nobody waits for are collected.
    pub(crate) ack_collect: Duration,
    /// How long a moved delivered watermark may wait.
    pub(crate) watermark_collect: Duration,
}

/// Shared by all parts of the node.
pub(crate) struct Shared {
    /// Clock and randomness.
    pub(crate) ports: Ports,
    /// Time for ack deadlines.
    pub(crate) steady: SteadyClock,
    /// Bounds and times.
    pub(crate) limits: Limits,
    /// Counters.
    pub(crate) metrics: NodeMetrics,
    /// Whether the disk has room.
    pub(crate) disk: DiskGuard,
    peers: RwLock<BTreeMap<NodeId, String>>,
}

impl Limits {
    /// As configured.
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            append_window_bytes: config.append.window_bytes,
            append_partition_bytes: config.append.partition_bytes,
            append_deadline: Duration::from_millis(config.append.deadline_ms),
            deliver_in_hand_bytes: config.deliver.in_hand_bytes,
            ack_collect: Duration::from_millis(config.deliver.ack_collect_ms),
            watermark_collect: Duration::from_millis(config.deliver.watermark_collect_ms),
        }
    }
}

impl Shared {
    /// The shared parts.
    pub(crate) fn new(ports: Ports, limits: Limits, metrics: NodeMetrics, disk: DiskGuard) -> Self {
        Self {
            steady: SteadyClock::new(ports.clock.now()),
            ports,
            limits,
            metrics,
            disk,
            peers: RwLock::default(),
        }
    }

    /// Replaces the addresses of the storage nodes.
    pub(crate) fn set_peers(&self, peers: BTreeMap<NodeId, String>) {
        *self.peers.write() = peers;
    }

    /// The refusal of a call that came to the wrong node.
    pub(crate) fn not_leader(&self, group: RaftGroupId, leader: Option<NodeId>) -> PartitionError {
        let peers = self.peers.read();
        let leader = leader.and_then(|node| {
            let address = peers.get(&node)?.clone();
            Some(LeaderHint { node, address })
        });
        PartitionError::NotLeader { group, leader }
    }
}
