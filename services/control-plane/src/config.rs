//! Settings of the control plane.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ptah_service::config::{check_dial_list, check_listen, check_range};
use ptah_service::{
    ClusterConfig, ConfigError, List, LogConfig, MonitorConfig, Secret, Settings, ShutdownConfig,
};
use ptah_types::{InvalidName, NodeName};
use serde::{Deserialize, Serialize};

use crate::decide::MoveLimits;

/// Password of `root` that existing examples use; fit for a machine that nobody else reaches.
pub const DEFAULT_ROOT_PASSWORD: &str = "memphis"; // DEFAULT_ROOT_PASSWORD
/// Shortest other password of `root`.
const SHORTEST_PASSWORD: usize = 8;

/// All settings; every one has a default except the cluster's secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of this control plane among several: told as the one that decides. One that is started again under its name
    /// takes over from its earlier start at once. Empty: made up at each start.
    pub name: String,
    /// Where gateways and storage nodes reach the control plane.
    pub grpc_listen: String,
    /// host:port of each instance of the metadata service; any of them is asked.
    pub metadata_addresses: List,
    /// How long the right to decide holds without renewal, in milliseconds; another control plane takes over that long
    /// after this one died.
    pub lease_ttl_ms: u32,
    /// How long a storage node counts as alive after its last report, in milliseconds.
    pub node_alive_window_ms: u32,
    /// How often storage nodes shall report, in milliseconds.
    pub report_interval_ms: u32,
    /// File to write the bound addresses to, as JSON; for tests and scripts that let the system choose ports.
    pub ports_file: Option<PathBuf>,
    /// The first start of a cluster.
    pub bootstrap: BootstrapConfig,
    /// Moving replicas.
    pub replicas: ReplicasConfig,
    /// What the cluster's processes share.
    pub cluster: ClusterConfig,
    /// How the process ends.
    pub shutdown: ShutdownConfig,
    /// Logs.
    pub log: LogConfig,
    /// Health and metrics endpoints.
    pub monitor: MonitorConfig,
}

/// Section `[bootstrap]`: used once, when the cluster has no user yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BootstrapConfig {
    /// Password of user `root`, at least 8 characters. Not needed any more once the user exists.
    pub root_password: Secret,
    /// Instead of the password its argon2id hash in PHC form (`$argon2id$...`), so that the password is in no file.
    pub root_password_hash: Secret,
    /// Take the well-known default password. Only where every public address is a loopback address.
    pub allow_default_password: bool,
}

/// Section `[replicas]`: when replicas move to other nodes by themselves, and how many at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReplicasConfig {
    /// How long a storage node may be silent before its replicas are replaced on other nodes, in milliseconds. 0: for
    /// ever, until it is forgotten.
    pub replace_after_ms: u32,
    /// Partitions whose replicas change at the same time.
    pub moving_partitions: u32,
    /// New replicas that one node is filled with at the same time.
    pub filling_per_node: u32,
}

impl Default for ReplicasConfig {
    fn default() -> Self {
        Self {
            replace_after_ms: 300_000,
            moving_partitions: 32,
            filling_per_node: 8,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: String::new(),
            grpc_listen: "127.0.0.1:6223".to_owned(),
            metadata_addresses: List(vec!["127.0.0.1:6224".to_owned()]),
            lease_ttl_ms: 6_000,
            node_alive_window_ms: 5_000,
            report_interval_ms: 1_000,
            ports_file: None,
            bootstrap: BootstrapConfig::default(),
            replicas: ReplicasConfig::default(),
            cluster: ClusterConfig::default(),
            shutdown: ShutdownConfig::default(),
            log: LogConfig::default(),
            monitor: MonitorConfig::default(),
        }
    }
}

impl Config {
    /// The configured name, or one made of `number`, which differs from start to start.
    pub fn instance_name(&self, number: u64) -> Result<NodeName, ConfigError> {
        let name = match self.name.as_str() {
            "" => format!("control-plane-{:08x}", number >> 32),
            name => name.to_owned(),
        };
        name.parse()
            .map_err(|error: InvalidName| ConfigError::invalid("name", error.to_string()))
    }

    /// [`Config::lease_ttl_ms`] as a duration.
    pub fn lease_ttl(&self) -> Duration {
        Duration::from_millis(self.lease_ttl_ms.into())
    }

    /// [`Config::node_alive_window_ms`] as a duration.
    pub fn node_alive_window(&self) -> Duration {
        Duration::from_millis(self.node_alive_window_ms.into())
    }

    /// [`Config::report_interval_ms`] as a duration.
    pub fn report_interval(&self) -> Duration {
        Duration::from_millis(self.report_interval_ms.into())
    }
}

impl ReplicasConfig {
    /// As the decisions take it.
    pub(crate) fn limits(&self) -> MoveLimits {
        let after = Duration::from_millis(self.replace_after_ms.into());
        MoveLimits {
            replace_after: (!after.is_zero()).then_some(after),
            in_cluster: self.moving_partitions as usize,
            per_node: self.filling_per_node as usize,
        }
    }

    fn validate(&self, node_alive_window_ms: u32) -> Result<(), ConfigError> {
        check_range(
            "replicas.replace_after_ms",
            self.replace_after_ms,
            0..=604_800_000,
        )?;
        if self.replace_after_ms != 0 && self.replace_after_ms < node_alive_window_ms {
            let why = format!(
                "is {}; use 0 for never, or at least `node_alive_window_ms`, which is {node_alive_window_ms}: a node that \
                 counts as alive is not replaced",
                self.replace_after_ms
            );
            return Err(ConfigError::invalid("replicas.replace_after_ms", why));
        }
        check_range("replicas.moving_partitions", self.moving_partitions, 1..=1_000)?;
        check_range("replicas.filling_per_node", self.filling_per_node, 1..=1_000)
    }
}

impl BootstrapConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let password = self.root_password.expose();
        let hash = self.root_password_hash.expose();
        if !hash.is_empty() && !hash.starts_with("$argon2id$") {
            let why = "is not an argon2id hash in PHC form (`$argon2id$v=19$...`)";
            return Err(ConfigError::invalid("bootstrap.root_password_hash", why));
        }
        if !hash.is_empty() && !password.is_empty() {
            let why = "and `bootstrap.root_password` are both set; set only one of them";
            return Err(ConfigError::invalid("bootstrap.root_password_hash", why));
        }
        if password.is_empty() {
            return Ok(());
        }
        if password == DEFAULT_ROOT_PASSWORD {
            if self.allow_default_password {
                return Ok(());
            }
            let why = "is the well-known default; choose another one, or set `bootstrap.allow_default_password` \
                       where every public address is a loopback address";
            return Err(ConfigError::invalid("bootstrap.root_password", why));
        }
        if password.chars().count() < SHORTEST_PASSWORD {
            let why = format!("is too short; use at least {SHORTEST_PASSWORD} characters");
            return Err(ConfigError::invalid("bootstrap.root_password", why));
        }
        Ok(())
    }
}

impl Settings for Config {
    const SECRETS: &'static [&'static str] = &[
        "cluster.secret",
        "bootstrap.root_password",
        "bootstrap.root_password_hash",
    ];

    fn validate(&self) -> Result<(), ConfigError> {
        self.cluster.validate()?;
        self.bootstrap.validate()?;
        self.instance_name(0)?;
        check_listen("grpc_listen", &self.grpc_listen)?;
        check_dial_list("metadata_addresses", &self.metadata_addresses)?;
        check_range("lease_ttl_ms", self.lease_ttl_ms, 1_000..=60_000)?;
        check_range("report_interval_ms", self.report_interval_ms, 100..=60_000)?;
        check_range("node_alive_window_ms", self.node_alive_window_ms, 200..=600_000)?;
        if self.node_alive_window_ms < 2 * self.report_interval_ms {
            let why =
                "must be at least twice `report_interval_ms`, or a single late report makes a node dead";
            return Err(ConfigError::invalid("node_alive_window_ms", why));
        }
        self.replicas.validate(self.node_alive_window_ms)?;
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
    use super::*;

    #[test]
    fn the_sample_file_has_every_key_with_its_default() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../deploy/config/control-plane.toml"
        );
        ptah_service::config::sample::check::<Config>(Path::new(path)).unwrap();
    }

    fn with_password(password: &str, allow_default_password: bool) -> Config {
        Config {
            cluster: ClusterConfig {
                secret: Secret::new("a secret of sixteen"),
            },
            bootstrap: BootstrapConfig {
                root_password: Secret::new(password),
                allow_default_password,
                ..BootstrapConfig::default()
            },
            ..Config::default()
        }
    }

    #[test]
    fn the_default_password_needs_permission() {
        with_password(DEFAULT_ROOT_PASSWORD, true).validate().unwrap();
        let refused = with_password(DEFAULT_ROOT_PASSWORD, false)
            .validate()
            .unwrap_err()
            .to_string();
        assert!(refused.contains("bootstrap.allow_default_password"), "{refused}");
        assert!(
            !refused.contains(DEFAULT_ROOT_PASSWORD),
            "not even this one is shown: {refused}"
        );
    }

    #[test]
    fn other_passwords_have_a_least_length() {
        with_password("long enough", false).validate().unwrap();
        with_password("", false).validate().unwrap();
        assert!(with_password("short", true).validate().is_err());
    }

    #[test]
    fn a_hash_stands_in_for_the_password() {
        let with_hash = |hash: &str, password: &str| {
            let mut config = with_password(password, false);
            config.bootstrap.root_password_hash = Secret::new(hash);
            config.validate()
        };
        with_hash("$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA", "").unwrap();
        assert!(with_hash("plain text", "").is_err());
        assert!(with_hash("$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA", "long enough").is_err());
    }

    #[test]
    fn a_window_below_two_reports_is_refused() {
        let config = Config {
            node_alive_window_ms: 1_500,
            ..with_password("", false)
        };
        assert!(
            config
                .validate()
                .unwrap_err()
                .to_string()
                .contains("node_alive_window_ms")
        );
    }

    #[test]
    fn replicas_of_nodes_that_count_as_alive_are_not_replaced() {
        let with = |replace_after_ms| Config {
            replicas: ReplicasConfig {
                replace_after_ms,
                ..ReplicasConfig::default()
            },
            ..with_password("", false)
        };
        let refused = with(4_999).validate().unwrap_err().to_string();
        assert!(refused.contains("replicas.replace_after_ms"), "{refused}");
        with(5_000).validate().unwrap();
        with(0).validate().unwrap();
        assert_eq!(with(0).replicas.limits().replace_after, None);
    }
}
