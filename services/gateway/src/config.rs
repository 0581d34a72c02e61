//! Settings of the gateway. Read once, validated, passed down as values.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ptah_service::{ClusterConfig, ConfigError, List, LogConfig, MonitorConfig, Settings};
use ptah_types::limits::{MAX_BATCH_BYTES, MAX_BATCH_MESSAGES};
use serde::{Deserialize, Serialize};

use crate::append::AppendSettings;
use crate::auth::AuthSettings;
use crate::consume::ConsumeSettings;
use crate::produce::InFlightLimit;

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
        let least_budget = MAX_BATCH_BYTES + (1 << 20);
        if self.produce.budget_bytes < least_budget {
            let why = format!("is too small; the largest message needs {least_budget} bytes");
            return Err(ConfigError::invalid("produce.budget_bytes", why));
        }
        if self.produce.stream_messages == 0 {
            return Err(ConfigError::invalid(
                "produce.stream_messages",
                "is 0; use at least 1",
            ));
        }
        if !(1..=8).contains(&self.produce.window_batches) {
            return Err(ConfigError::invalid("produce.window_batches", "must be 1 to 8"));
        }
        if self.consume.budget_bytes < self.consume.answer_bytes || self.consume.answer_bytes == 0 {
            return Err(ConfigError::invalid(
                "consume.budget_bytes",
                "must be at least `consume.answer_bytes`, above 0",
            ));
        }
        if self.consume.stream_bytes == 0 {
            return Err(ConfigError::invalid(
                "consume.stream_bytes",
                "is 0; use at least 1",
            ));
        }
        if self.auth.concurrent_verifications == 0 || self.auth.waiting_verifications == 0 {
            return Err(ConfigError::invalid(
                "auth",
                "at least one password must be verified at a time",
            ));
        }
        Ok(())
    }

    fn log(&self) -> &LogConfig {
        &self.log
    }

    fn monitor(&self) -> &MonitorConfig {
        &self.monitor
    }

    fn ports_file(&self) -> Option<&Path> {
        Some(self.ports_file.as_path()).filter(|path| !path.as_os_str().is_empty())
    }
}

impl Config {
    fn validate_addresses(&self) -> Result<(), ConfigError> {
        let must_listen = ("grpc_listen", self.grpc_listen.as_str(), 0);
        let lists = [
            ("metadata_addresses", &self.metadata_addresses),
            ("control_plane_addresses", &self.control_plane_addresses),
        ];
        let must_dial = lists
            .into_iter()
            .flat_map(|(key, list)| list.iter().map(move |address| (key, address.as_str(), 1)));
        for (key, address, least_port) in [must_listen].into_iter().chain(must_dial) {
            if !is_address(address, least_port) {
                let why = format!("has `{address}`, which is not an address; write host:port");
                return Err(ConfigError::invalid(key, why));
            }
        }
        for (key, list) in lists {
            if list.is_empty() {
                return Err(ConfigError::invalid(key, "is empty; name at least one host:port"));
            }
        }
        Ok(())
    }

    /// A deadline of nothing lets every call fail, one of weeks never ends.
    fn validate_deadlines(&self) -> Result<(), ConfigError> {
        for (key, value) in [
            ("create_deadline_ms", self.create_deadline_ms),
            ("produce.append_deadline_ms", self.produce.append_deadline_ms),
            ("consume.stall_timeout_ms", self.consume.stall_timeout_ms),
            ("consume.ack_deadline_ms", self.consume.ack_deadline_ms),
        ] {
            if !DEADLINE_MS.contains(&value) {
                let (least, most) = (DEADLINE_MS.start(), DEADLINE_MS.end());
                return Err(ConfigError::invalid(
                    key,
                    format!("is {value}; use {least} to {most}"),
                ));
            }
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

/// Whether a text is host:port, with a port of at least `least_port`: 0 asks for any free port, which nobody can dial.
fn is_address(text: &str, least_port: u16) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let host_is_well = !host.is_empty() && (bracketed || !host.contains(':')) && !host.contains(['/', ' ']);
    host_is_well && port.parse::<u16>().is_ok_and(|port| port >= least_port)
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
    fn the_sample_file_shows_the_defaults() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/config/gateway.toml");
        let sample: Config = ptah_service::config::load_from(Some(Path::new(path)), "PTAH", []).unwrap();
        assert_eq!(sample, Config::default());
    }
}
