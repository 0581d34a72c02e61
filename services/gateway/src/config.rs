//! Settings of the gateway. Read once, validated, passed down as values.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ptah_service::config::{check_dial_list, check_listen, check_range};
use ptah_service::{ClusterConfig, ConfigError, List, LogConfig, MonitorConfig, Settings, ShutdownConfig};
use ptah_types::limits::{MAX_BATCH_BYTES, MAX_BATCH_MESSAGES};
use serde::{Deserialize, Serialize};

use crate::append::AppendSettings;
use crate::auth::AuthSettings;
use crate::consume::ConsumeSettings;
use crate::produce::InFlightLimit;

/// Most that a setting in bytes may be: 1 TiB.
const MOST_BYTES: u64 = 1 << 40;
/// What deadlines may be, in milliseconds.
const DEADLINE_MS: std::ops::RangeInclusive<u64> = 10..=3_600_000;

/// All settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address for clients.
    pub grpc_listen: String,
    /// Name in the logs of other processes.
    pub name: String,
    /// host:port of each instance of the metadata service; any of them is asked.
    pub metadata_addresses: List,
    /// host:port of each control plane; any of them is asked.
    pub control_plane_addresses: List,
    /// Whether user `root` may sign in with the password that a new cluster on a laptop has. Without the setting: only
    /// when `grpc_listen` is a loopback address.
    pub allow_default_password: Option<bool>,
    /// Where a copy of stations, placements, users and nodes is kept, so that the gateway can start while metadata is
    /// down. Empty for none. It holds password hashes: only its owner can read it.
    pub catalog_file: PathBuf,
    /// How long making a station waits for the leaders of its partitions, in milliseconds.
    pub create_deadline_ms: u64,
    /// Messages in.
    pub produce: ProduceConfig,
    /// Messages out.
    pub consume: ConsumeConfig,
    /// Sign-in.
    pub auth: AuthConfig,
    /// Where the bound addresses are written as JSON once they are known. Empty for nowhere.
    pub ports_file: PathBuf,
    /// The cluster.
    pub cluster: ClusterConfig,
    /// How the process ends.
    pub shutdown: ShutdownConfig,
    /// Logs.
    pub log: LogConfig,
    /// Monitor endpoints.
    pub monitor: MonitorConfig,
}

/// Section `[produce]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProduceConfig {
    /// Bytes of messages that are being received or stored, over all clients (256 MiB). Clients beyond it are held back.
    pub budget_bytes: usize,
    /// Messages without an answer on one stream; the stream stops reading beyond.
    pub stream_messages: u64,
    /// Bytes without an answer on one stream (32 MiB); a single larger request passes alone.
    pub stream_bytes: u64,
    /// How long the gateway tries to store a message, in milliseconds.
    pub append_deadline_ms: u64,
    /// Batches of one partition that are under way at the same time, 1 to 8.
    pub window_batches: usize,
}

/// Section `[consume]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsumeConfig {
    /// Bytes of messages that wait for clients, over all clients (64 MiB). What does not fit goes back to its partition
    /// and comes again when there is room.
    pub budget_bytes: u64,
    /// A client that was sent messages and has not read them for this long is cut off when others wait for memory, in
    /// milliseconds.
    pub stall_timeout_ms: u64,
    /// Bytes that one stream may have waiting and on the way (8 MiB).
    pub stream_bytes: u64,
    /// Payload bytes of one answer to a pull or a read (3 MiB, so that clients with the usual limit of 4 MiB can read it). A
    /// single message may be larger.
    pub answer_bytes: u64,
    /// How long acknowledgements and consumer groups are tried, in milliseconds.
    pub ack_deadline_ms: u64,
}

/// Section `[auth]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// Passwords that are verified at the same time.
    pub concurrent_verifications: usize,
    /// Sign-ins that wait for their turn; more are refused.
    pub waiting_verifications: usize,
    /// Verified passwords that are remembered.
    pub cached_passwords: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            grpc_listen: "127.0.0.1:5555".to_owned(),
            name: "gateway".to_owned(),
            metadata_addresses: List(vec!["127.0.0.1:6224".to_owned()]),
            control_plane_addresses: List(vec!["127.0.0.1:6223".to_owned()]),
            allow_default_password: None,
            catalog_file: PathBuf::new(),
            create_deadline_ms: 30_000,
            produce: ProduceConfig::default(),
            consume: ConsumeConfig::default(),
            auth: AuthConfig::default(),
            ports_file: PathBuf::new(),
            cluster: ClusterConfig::default(),
            shutdown: ShutdownConfig::default(),
            log: LogConfig::default(),
            monitor: MonitorConfig::default(),
        }
    }
}

impl Default for ProduceConfig {
    fn default() -> Self {
        Self {
            budget_bytes: 256 << 20,
            stream_messages: MAX_BATCH_MESSAGES as u64,
            stream_bytes: 32 << 20,
            append_deadline_ms: 30_000,
            window_batches: 4,
        }
    }
}

impl Default for ConsumeConfig {
    fn default() -> Self {
        Self {
            budget_bytes: 64 << 20,
            stall_timeout_ms: 10_000,
            stream_bytes: 8 << 20,
            answer_bytes: 3 << 20,
            ack_deadline_ms: 30_000,
        }
    }
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            concurrent_verifications: 2,
            waiting_verifications: 256,
            cached_passwords: 10_000,
        }
    }
}

impl Settings for Config {
    fn validate(&self) -> Result<(), ConfigError> {
        self.cluster.validate()?;
        self.validate_addresses()?;
        self.validate_deadlines()?;
        self.validate_sizes()?;
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
        Some(self.ports_file.as_path()).filter(|path| !path.as_os_str().is_empty())
    }
}

impl Config {
    fn validate_addresses(&self) -> Result<(), ConfigError> {
        check_listen("grpc_listen", &self.grpc_listen)?;
        check_dial_list("metadata_addresses", &self.metadata_addresses)?;
        check_dial_list("control_plane_addresses", &self.control_plane_addresses)
    }

    fn validate_sizes(&self) -> Result<(), ConfigError> {
        let (produce, consume, auth) = (&self.produce, &self.consume, &self.auth);
        let least_budget = MAX_BATCH_BYTES as u64 + (1 << 20);
        let bytes = |key, value, least| check_range(key, value, least..=MOST_BYTES);
        bytes("produce.budget_bytes", produce.budget_bytes as u64, least_budget)?;
        check_range("produce.stream_messages", produce.stream_messages, 1..=1_000_000)?;
        bytes("produce.stream_bytes", produce.stream_bytes, 1)?;
        check_range("produce.window_batches", produce.window_batches, 1..=8)?;
        bytes("consume.budget_bytes", consume.budget_bytes, 1)?;
        bytes("consume.stream_bytes", consume.stream_bytes, 1)?;
        bytes("consume.answer_bytes", consume.answer_bytes, 1)?;
        if consume.budget_bytes < consume.answer_bytes {
            let why = "must be at least `consume.answer_bytes`";
            return Err(ConfigError::invalid("consume.budget_bytes", why));
        }
        check_range(
            "auth.concurrent_verifications",
            auth.concurrent_verifications,
            1..=1_024,
        )?;
        check_range(
            "auth.waiting_verifications",
            auth.waiting_verifications,
            1..=1_000_000,
        )?;
        check_range("auth.cached_passwords", auth.cached_passwords, 0..=10_000_000)
    }

    /// A deadline of nothing lets every call fail, one of weeks never ends.
    fn validate_deadlines(&self) -> Result<(), ConfigError> {
        for (key, value) in [
            ("create_deadline_ms", self.create_deadline_ms),
            ("produce.append_deadline_ms", self.produce.append_deadline_ms),
            ("consume.stall_timeout_ms", self.consume.stall_timeout_ms),
            ("consume.ack_deadline_ms", self.consume.ack_deadline_ms),
        ] {
            check_range(key, value, DEADLINE_MS)?;
        }
        Ok(())
    }

    /// Settings of sign-in.
    pub fn auth_settings(&self) -> AuthSettings {
        AuthSettings {
            concurrent_verifications: self.auth.concurrent_verifications,
            waiting_verifications: self.auth.waiting_verifications,
            cached_passwords: self.auth.cached_passwords,
            allow_default_password: self
                .allow_default_password
                .unwrap_or_else(|| is_loopback(&self.grpc_listen)),
        }
    }

    /// Settings of the append path.
    pub fn append_settings(&self) -> AppendSettings {
        AppendSettings {
            window_batches: self.produce.window_batches,
            deadline: Duration::from_millis(self.produce.append_deadline_ms),
            backlog_bytes: self.produce.budget_bytes / 4,
        }
    }

    /// What one produce stream may have in flight.
    pub fn in_flight_limit(&self) -> InFlightLimit {
        InFlightLimit {
            messages: self.produce.stream_messages,
            bytes: self.produce.stream_bytes,
        }
    }

    /// Settings of the consume path.
    pub fn consume_settings(&self) -> ConsumeSettings {
        ConsumeSettings {
            stall: Duration::from_millis(self.consume.stall_timeout_ms),
            stream_bytes: self.consume.stream_bytes,
            answer_bytes: self.consume.answer_bytes,
            ack_deadline: Duration::from_millis(self.consume.ack_deadline_ms),
        }
    }
}

/// Whether an address is only reached from this machine. A name other than `localhost` is not.
fn is_loopback(address: &str) -> bool {
    if let Ok(address) = address.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_password_is_taken_on_loopback_addresses_alone() {
        for (address, allowed) in [
            ("127.0.0.1:5555", true),
            ("[::1]:5555", true),
            ("localhost:0", true),
            ("0.0.0.0:5555", false),
            ("broker:5555", false),
        ] {
            let config = Config {
                grpc_listen: address.to_owned(),
                ..Config::default()
            };
            assert_eq!(
                config.auth_settings().allow_default_password,
                allowed,
                "{address}"
            );
        }
    }

    #[test]
    fn defaults_are_valid_once_there_is_a_secret() {
        let mut config = Config::default();
        assert!(config.validate().is_err());
        config.cluster.secret = ptah_service::Secret::new("0123456789abcdef".to_owned());
        assert!(config.validate().is_ok());
    }

    #[test]
    fn deadlines_of_nothing_and_addresses_without_a_port_are_refused_by_name() {
        type Change = fn(&mut Config);
        let refused = |change: Change| {
            let mut config = Config::default();
            config.cluster.secret = ptah_service::Secret::new("0123456789abcdef".to_owned());
            change(&mut config);
            config.validate().err().map(|error| error.to_string())
        };
        let wrong: [(&str, Change); 11] = [
            ("create_deadline_ms", |config| config.create_deadline_ms = 0),
            ("produce.append_deadline_ms", |config| {
                config.produce.append_deadline_ms = 0;
            }),
            ("consume.stall_timeout_ms", |config| {
                config.consume.stall_timeout_ms = u64::MAX;
            }),
            ("consume.ack_deadline_ms", |config| {
                config.consume.ack_deadline_ms = 9
            }),
            ("metadata_addresses", |config| {
                config.metadata_addresses = List(vec!["127.0.0.1".to_owned()]);
            }),
            ("metadata_addresses", |config| {
                config.metadata_addresses = List(vec!["metadata:0".to_owned()]);
            }),
            ("metadata_addresses", |config| {
                config.metadata_addresses = List(vec!["http://metadata:6224".to_owned()]);
            }),
            ("grpc_listen", |config| config.grpc_listen = ":5555".to_owned()),
            ("grpc_listen", |config| config.grpc_listen = "::1:5555".to_owned()),
            ("control_plane_addresses", |config| {
                config.control_plane_addresses = List(vec!["a:1".to_owned(), "b:65536".to_owned()]);
            }),
            ("control_plane_addresses", |config| {
                config.control_plane_addresses = List(Vec::new());
            }),
        ];
        for (key, change) in wrong {
            let why = refused(change).unwrap_or_else(|| panic!("{key} is taken"));
            assert!(why.contains(key), "{key}: {why}");
        }
        let well: [Change; 3] = [
            |config| config.grpc_listen = "[::]:0".to_owned(),
            |config| config.metadata_addresses = List(vec!["metadata.example:6224".to_owned()]),
            |config| config.create_deadline_ms = 10,
        ];
        for (index, change) in well.into_iter().enumerate() {
            assert_eq!(refused(change), None, "{index}");
        }
    }

    #[test]
    fn the_sample_file_has_every_key_with_its_default() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/config/gateway.toml");
        ptah_service::config::sample::check::<Config>(Path::new(path)).unwrap();
    }
}
