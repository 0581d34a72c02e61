//! What the door tells, as the command line shows it. The field names are the JSON output and stay as they are.

use bytes::Bytes;
use ptah_proto::{api::v1 as pb, common::v1 as common};
use serde::Serialize;
use std::time::Duration;

/// A station to make.
#[derive(Debug, Clone)]
pub struct NewStation {
    /// Name.
    pub name: String,
    /// Partitions.
    pub partitions: u32,
    /// Replicas of every partition.
    pub replicas: u32,
    /// Largest payload in bytes.
    pub max_message_bytes: u64,
}

/// A station.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Station {
    /// Name as typed when it was made.
    pub name: String,
    /// Id, never used again.
    pub id: u64,
    /// Name space.
    pub tenant: String,
    /// Partitions.
    pub partitions: u32,
    /// Replicas of every partition.
    pub replicas: u32,
    /// Where messages live: `file`.
    pub storage: &'static str,
    /// Which rules it follows: `station` or `stream`.
    pub kind: &'static str,
    /// Largest payload in bytes.
    pub max_message_bytes: u64,
    /// When it was made, in milliseconds since 1970-01-01 UTC.
    pub created_at_ms: u64,
    /// Revision of its record.
    pub revision: u64,
}

/// One partition of a station.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartitionStatus {
    /// Number, counted from 1.
    pub partition: u32,
    /// Node that leads; 0 when none is known.
    pub leader_node_id: u64,
    /// Nodes that hold a replica.
    pub replica_node_ids: Vec<u64>,
    /// Sequence of the oldest message that is kept; 0 when the leader did not answer.
    pub first_sequence: u64,
    /// Sequence that the next message gets; 0 when the leader did not answer.
    pub next_sequence: u64,
    /// What is not well; empty when all is.
    pub trouble: String,
    /// Replicas that are open on a node that is alive; `None` when not known.
    pub healthy_replicas: Option<u32>,
    /// Replicas that the partition is to have.
    pub wanted_replicas: u32,
    /// What is being changed about its replicas; empty when nothing is.
    pub change: String,
}

impl PartitionStatus {
    /// Messages that are kept.
    pub fn messages(&self) -> u64 {
        self.next_sequence.saturating_sub(self.first_sequence)
    }
}

/// The cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClusterStatus {
    /// The cluster's id.
    pub cluster_id: String,
    /// Version of the gateway that answered.
    pub version: String,
    /// Storage nodes in order of their ids.
    pub nodes: Vec<NodeStatus>,
    /// Stations.
    pub stations: u64,
    /// Partitions.
    pub partitions: u64,
    /// Partitions without a known leader.
    pub partitions_without_leader: u64,
    /// Partitions with fewer healthy replicas than wanted.
    pub partitions_under_replicated: u64,
    /// What is not well.
    pub troubles: Vec<String>,
}

/// A storage node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// Id.
    pub node_id: u64,
    /// Name.
    pub name: String,
    /// host:port of its cluster listener.
    pub address: String,
    /// Whether it reported lately.
    pub alive: bool,
    /// Software version; empty when not known.
    pub version: String,
    /// Replicas that it holds.
    pub replicas: u32,
    /// Partitions that it leads.
    pub leaders: u32,
    /// Free bytes on its data disk; `None` when not known.
    pub disk_free_bytes: Option<u64>,
    /// Size of its data disk in bytes; `None` when not known.
    pub disk_total_bytes: Option<u64>,
    /// Milliseconds since its last report.
    pub last_seen_ms_ago: u64,
    /// What is not well.
    pub troubles: Vec<String>,
    /// What it is there for: `serving`, `draining` or `forgotten`.
    pub duty: &'static str,
    /// Replicas that are placed on it, those on their way in or out included.
    pub placed_replicas: u32,
}

/// Settings of a consumer group that has to be made. `None` leaves the choice to the broker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupConfig {
    /// Start behind the newest message instead of at the oldest.
    pub starts_at_end: bool,
    /// How long a message may stay unacknowledged.
    pub ack_deadline: Option<Duration>,
}

/// A stored message.
#[derive(Debug, Clone)]
pub struct Message {
    /// Partition.
    pub partition: u32,
    /// Place in the partition.
    pub sequence: u64,
    /// Time it was stored, in nanoseconds since 1970-01-01 UTC.
    pub timestamp_ns: u64,
    /// Body.
    pub payload: Bytes,
    /// Names and values in order.
    pub headers: Vec<(Bytes, Bytes)>,
    /// Key, if it had one.
    pub key: Option<Bytes>,
    /// Subject.
    pub subject: String,
    /// Message id, empty without one.
    pub message_id: String,
    /// Producer, empty without a name.
    pub producer: String,
    /// How it came in.
    pub door: &'static str,
    /// How many times the group got it, this time included; 0 when read without a group.
    pub delivery_count: u32,
}

impl From<pb::Station> for Station {
    fn from(station: pb::Station) -> Self {
        let config = station.config.unwrap_or_default();
        Self {
            name: station.name,
            id: station.id,
            tenant: station.tenant,
            partitions: config.partitions,
            replicas: config.replicas,
            storage: "file",
            kind: match common::StationKind::try_from(config.kind) {
                Ok(common::StationKind::Stream) => "stream",
                _ => "station",
            },
            max_message_bytes: config.max_message_bytes,
            created_at_ms: station.created_at_ms,
            revision: station.revision,
        }
    }
}

impl From<pb::PartitionStatus> for PartitionStatus {
    fn from(status: pb::PartitionStatus) -> Self {
        Self {
            partition: status.partition,
            leader_node_id: status.leader_node_id,
            replica_node_ids: status.replica_node_ids,
            first_sequence: status.first_sequence,
            next_sequence: status.next_sequence,
            trouble: status.trouble,
            healthy_replicas: status.healthy_replicas,
            wanted_replicas: status.wanted_replicas,
            change: status.change,
        }
    }
}

impl From<pb::GetClusterStatusResponse> for ClusterStatus {
    fn from(status: pb::GetClusterStatusResponse) -> Self {
        Self {
            cluster_id: status.cluster_id,
            version: status.version,
            nodes: status.nodes.into_iter().map(NodeStatus::from).collect(),
            stations: status.stations,
            partitions: status.partitions,
            partitions_without_leader: status.partitions_without_leader,
            partitions_under_replicated: status.partitions_under_replicated,
            troubles: status.troubles,
        }
    }
}

impl From<pb::NodeStatus> for NodeStatus {
    fn from(node: pb::NodeStatus) -> Self {
        let duty = match node.duty() {
            common::NodeDuty::Unspecified | common::NodeDuty::Serving => "serving",
            common::NodeDuty::Draining => "draining",
            common::NodeDuty::Forgotten => "forgotten",
        };
        Self {
            duty,
            placed_replicas: node.placed_replicas,
            node_id: node.node_id,
            name: node.name,
            address: node.address,
            alive: node.alive,
            version: node.version,
            replicas: node.replicas,
            leaders: node.leaders,
            disk_free_bytes: node.disk_free_bytes,
            disk_total_bytes: node.disk_total_bytes,
            last_seen_ms_ago: node.last_seen_ms_ago,
            troubles: node.troubles,
        }
    }
}

impl From<pb::Message> for Message {
    fn from(message: pb::Message) -> Self {
        let door = door_name(message.door());
        Self {
            partition: message.partition,
            sequence: message.sequence,
            timestamp_ns: message.timestamp_ns,
            payload: message.payload,
            headers: message
                .headers
                .into_iter()
                .map(|header| (header.name, header.value))
                .collect(),
            key: message.key,
            subject: message.subject,
            message_id: message.message_id,
            producer: message.producer,
            door,
            delivery_count: message.delivery_count,
        }
    }
}

impl From<&GroupConfig> for common::ConsumerGroupConfig {
    fn from(config: &GroupConfig) -> Self {
        let start_at = if config.starts_at_end {
            common::StartAt::End
        } else {
            common::StartAt::First
        };
        let ack_deadline_ms = config.ack_deadline.map_or(0, |deadline| {
            u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX)
        });
        Self {
            start_at: start_at.into(),
            ack_deadline_ms,
            max_in_flight: 0,
        }
    }
}

impl From<common::ConsumerGroupConfig> for GroupConfig {
    fn from(config: common::ConsumerGroupConfig) -> Self {
        Self {
            starts_at_end: config.start_at() == common::StartAt::End,
            ack_deadline: Some(Duration::from_millis(u64::from(config.ack_deadline_ms))),
        }
    }
}

fn door_name(door: common::Door) -> &'static str {
    match door {
        common::Door::Unspecified => "unknown",
        common::Door::Grpc => "grpc",
        common::Door::Rest => "rest",
        common::Door::SdkTcp => "sdk-tcp",
        common::Door::Websocket => "websocket",
        common::Door::Internal => "internal",
    }
}
