//! Settings of a storage node. The comment of each field is its reference text.

use std::path::{Path, PathBuf};

use ptah_service::config::{
    ClusterConfig, ConfigError, List, LogConfig, MonitorConfig, Settings, ShutdownConfig, check_dial,
    check_dial_list, check_listen, check_range,
};
use ptah_types::limits::MAX_BATCH_BYTES;
use ptah_types::{NodeId, NodeName};
use serde::{Deserialize, Serialize};

/// Greatest number of a node.
const MOST_NODE_ID: u64 = i64::MAX as u64;
/// Most that a setting in bytes may be: 1 TiB.
const MOST_BYTES: u64 = 1 << 40;

/// Settings of a storage node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Number of this node, unique in the cluster for ever: a node that lost its disk comes back under a new one.
    pub node_id: u64,
    /// Name for people.
    pub name: String,
    /// Directory for everything that the node stores. One node per directory.
    pub data_dir: PathBuf,
    /// Where gateways, control planes and other storage nodes reach this node; port 0 takes a free one.
    pub grpc_listen: String,
    /// host:port that others dial; empty means the address of `grpc_listen`, which must then not be 0.0.0.0.
    pub advertise_address: String,
    /// Control planes, host:port each. Needed for the first start and for new placements, not for serving.
    pub control_plane_addresses: List,
    /// Failure domain, for example a rack; empty when not known.
    pub zone: String,
    /// File that gets the bound addresses as JSON once they are known; for tests and for port 0.
    pub ports_file: Option<PathBuf>,
    /// The cluster.
    pub cluster: ClusterConfig,
    /// Appending.
    pub append: AppendConfig,
    /// Delivering.
    pub deliver: DeliverConfig,
    /// Room on the data disk.
    pub disk: DiskConfig,
    /// Partitions.
    pub partition: PartitionConfig,
    /// How the process ends.
    pub shutdown: ShutdownConfig,
    /// Logging.
    pub log: LogConfig,
    /// Monitor and metrics listeners.
    pub monitor: MonitorConfig,
}

/// Bounds of appending.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AppendConfig {
    /// Payload bytes that one gateway stream may have unanswered. When there are more, the stream is not read until
    /// some are answered. A single larger batch is let through alone.
    pub window_bytes: u64,
    /// Payload bytes that all streams together may have unanswered: the memory that producing costs this node. Above
    /// it batches are refused as exhausted, and gateways try again.
    pub node_bytes: u64,
    /// Payload bytes that one partition may have in flight, so that one without a majority does not use up `node_bytes`.
    pub partition_bytes: u64,
    /// Milliseconds after which an append that the log has not decided is answered as unknown.
    pub deadline_ms: u64,
}

/// Bounds of delivering.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeliverConfig {
    /// Bytes of deliveries that wait in memory per gateway stream; one batch more may be held beyond it. What a slow
    /// reader has not been sent stays on disk, so 100 slow gateways cost at most 100 times this and a batch each.
    pub in_hand_bytes: u64,
    /// Milliseconds for which acknowledgements that nobody waits for are collected into one log entry.
    pub ack_collect_ms: u64,
    /// Milliseconds for which progress of deliveries is collected before it is stored. What was delivered in this time
    /// is delivered again when the leader changes.
    pub watermark_collect_ms: u64,
}

/// Room on the data disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskConfig {
    /// New messages are refused when more than this share of the disk is used, in percent.
    pub full_percent: u8,
    /// New messages are refused when less than this is free, in bytes, whatever the share.
    pub reserve_bytes: u64,
    /// With this much free, in bytes, the share does not matter: a tenth of a huge disk need not stay empty.
    pub enough_bytes: u64,
}

/// Partitions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PartitionConfig {
    /// Size of a segment file in bytes. Must be equal on all nodes of a cluster.
    pub segment_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_id: 1,
            name: "storage-1".to_owned(),
            data_dir: PathBuf::from("ptah-storage"),
            grpc_listen: "127.0.0.1:6222".to_owned(),
            advertise_address: String::new(),
            control_plane_addresses: List(vec!["127.0.0.1:6223".to_owned()]),
            zone: String::new(),
            ports_file: None,
            cluster: ClusterConfig::default(),
            append: AppendConfig::default(),
            deliver: DeliverConfig::default(),
            disk: DiskConfig::default(),
            partition: PartitionConfig::default(),
            shutdown: ShutdownConfig::default(),
            log: LogConfig::default(),
            monitor: MonitorConfig::default(),
        }
    }
}

impl Default for AppendConfig {
    fn default() -> Self {
        Self {
            window_bytes: 32 << 20,
            node_bytes: 512 << 20,
            partition_bytes: 32 << 20,
            deadline_ms: 30_000,
        }
    }
}

impl Default for DeliverConfig {
    fn default() -> Self {
        Self {
            in_hand_bytes: 4 << 20,
            ack_collect_ms: 3,
            watermark_collect_ms: 100,
        }
    }
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self {
            full_percent: 90,
            reserve_bytes: 512 << 20,
            enough_bytes: 64 << 30,
        }
    }
}

impl Default for PartitionConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
        }
    }
}

impl Config {
    /// This node's id.
    pub fn node(&self) -> Result<NodeId, ConfigError> {
        NodeId::new(self.node_id).map_err(|error| ConfigError::invalid("node_id", error.to_string()))
    }

    /// This node's name.
    pub fn node_name(&self) -> Result<NodeName, ConfigError> {
        self.name
            .parse()
            .map_err(|error: ptah_types::InvalidName| ConfigError::invalid("name", error.to_string()))
    }

    fn validate_sizes(&self) -> Result<(), ConfigError> {
        let (append, deliver, disk) = (&self.append, &self.deliver, &self.disk);
        let bytes = |key, value, least| check_range(key, value, least..=MOST_BYTES);
        bytes("append.window_bytes", append.window_bytes, 1 << 20)?;
        bytes("append.node_bytes", append.node_bytes, MAX_BATCH_BYTES as u64)?;
        bytes("append.partition_bytes", append.partition_bytes, 1 << 20)?;
        check_range("append.deadline_ms", append.deadline_ms, 100..=3_600_000)?;
        bytes("deliver.in_hand_bytes", deliver.in_hand_bytes, 256 << 10)?;
        check_range("deliver.ack_collect_ms", deliver.ack_collect_ms, 0..=1_000)?;
        check_range(
            "deliver.watermark_collect_ms",
            deliver.watermark_collect_ms,
            0..=60_000,
        )?;
        check_range("disk.full_percent", disk.full_percent, 1..=99)?;
        check_range("disk.reserve_bytes", disk.reserve_bytes, 0..=MOST_BYTES)?;
        check_range("disk.enough_bytes", disk.enough_bytes, 0..=MOST_BYTES)?;
        let segment_bytes = self.partition.segment_bytes;
        check_range("partition.segment_bytes", segment_bytes, 1 << 20..=1 << 30)
    }

    fn validate_addresses(&self) -> Result<(), ConfigError> {
        check_listen("grpc_listen", &self.grpc_listen)?;
        check_dial_list("control_plane_addresses", &self.control_plane_addresses)?;
        if !self.advertise_address.is_empty() {
            return check_dial("advertise_address", &self.advertise_address);
        }
        let everywhere = ["0.0.0.0:", "[::]:"];
        if everywhere.iter().any(|all| self.grpc_listen.starts_with(all)) {
            let why = "is empty, and `grpc_listen` is not an address that others can dial; set host:port of this node";
            return Err(ConfigError::invalid("advertise_address", why));
        }
        Ok(())
    }
}

impl Settings for Config {
    fn validate(&self) -> Result<(), ConfigError> {
        self.node()?;
        // What a TOML file can say, so that file and environment take the same.
        check_range("node_id", self.node_id, 1..=MOST_NODE_ID)?;
        self.node_name()?;
        self.cluster.validate()?;
        self.validate_sizes()?;
        if self.data_dir.as_os_str().is_empty() {
            return Err(ConfigError::invalid("data_dir", "is empty; name a directory"));
        }
        self.validate_addresses()?;
        self.monitor.validate(&[("grpc_listen", &self.grpc_listen)])
    }

    fn log(&self) -> &LogConfig {
        &self.log
    }

    fn monitor(&self) -> &MonitorConfig {
        &self.monitor
    }

    fn shutdown(&self) -> &ShutdownConfig {
        &self.shutdown
    }

    fn ports_file(&self) -> Option<&Path> {
        self.ports_file.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use ptah_service::config::Secret;

    use super::*;

    fn valid() -> Config {
        Config {
            cluster: ClusterConfig {
                secret: Secret::new("0123456789abcdef".to_owned()),
            },
            ..Config::default()
        }
    }

    #[test]
    fn the_sample_file_shows_every_key_with_its_default() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../deploy/config/storage-node.toml"
        );
        ptah_service::config::sample::check::<Config>(Path::new(path)).unwrap();
    }

    #[test]
    fn defaults_with_a_secret_are_valid() {
        valid().validate().unwrap();
    }

    #[test]
    fn a_node_that_listens_everywhere_must_say_where_it_is() {
        let mut config = valid();
        config.grpc_listen = "0.0.0.0:6222".to_owned();
        assert!(
            config
                .validate()
                .unwrap_err()
                .to_string()
                .contains("advertise_address")
        );
        config.advertise_address = "storage-1:6222".to_owned();
        config.validate().unwrap();
    }

    #[test]
    fn a_budget_that_cannot_hold_the_largest_batch_is_refused() {
        let mut config = valid();
        config.append.node_bytes = 1 << 20;
        assert!(
            config
                .validate()
                .unwrap_err()
                .to_string()
                .contains("append.node_bytes")
        );
    }
}
