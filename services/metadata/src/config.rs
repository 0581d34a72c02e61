//! Settings of the metadata service.

use std::path::{Path, PathBuf};

use ptah_service::{ClusterConfig, ConfigError, LogConfig, MonitorConfig, Settings};
use serde::{Deserialize, Serialize};

/// All settings; every one has a default except the cluster's secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where control planes and gateways reach the store.
    pub grpc_listen: String,
    /// The database: `sqlite://path/to/file.db?mode=rwc` makes the file when it is not there. Files beside it with the
    /// endings `-wal`, `-shm`, `.lock` and `.mark` belong to it.
    pub database_url: String,
    /// Changes to keep for watchers that were away; one that was away for longer lists everything again.
    pub history_changes: u32,
    /// Most watches at a time: every gateway and every control plane has one or two.
    pub max_watches: u32,
    /// File to write the bound addresses to, as JSON; for tests and scripts that let the system choose ports.
    pub ports_file: Option<PathBuf>,
    /// What the cluster's processes share.
    pub cluster: ClusterConfig,
    /// Logs.
    pub log: LogConfig,
    /// Health and metrics endpoints.
    pub monitor: MonitorConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            grpc_listen: "127.0.0.1:6224".to_owned(),
            database_url: "sqlite://ptah-metadata.db?mode=rwc".to_owned(),
            history_changes: 100_000,
            max_watches: 256,
            ports_file: None,
            cluster: ClusterConfig::default(),
            log: LogConfig::default(),
            monitor: MonitorConfig::default(),
        }
    }
}

impl Settings for Config {
    fn validate(&self) -> Result<(), ConfigError> {
        self.cluster.validate()?;
        if self.grpc_listen.is_empty() {
            return Err(ConfigError::invalid("grpc_listen", "is empty; use host:port"));
        }
        if !(1_000..=10_000_000).contains(&self.history_changes) {
            let why = format!("is {}; use 1000 to 10000000", self.history_changes);
            return Err(ConfigError::invalid("history_changes", why));
        }
        if !(1..=4_096).contains(&self.max_watches) {
            let why = format!("is {}; use 1 to 4096", self.max_watches);
            return Err(ConfigError::invalid("max_watches", why));
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
        self.ports_file.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use ptah_service::Secret;

    use super::*;

    const KEYS: [&str; 10] = [
        "grpc_listen",
        "database_url",
        "history_changes",
        "max_watches",
        "ports_file",
        "secret",
        "filter",
        "format",
        "monitor_listen",
        "metrics_listen",
    ];

    #[test]
    fn the_sample_file_has_every_key_with_its_default() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/config/metadata.toml");
        let sample: Config = ptah_service::config::load_from(Some(Path::new(path)), "PTAH", []).unwrap();
        assert_eq!(sample, Config::default());
        let text = std::fs::read_to_string(path).unwrap();
        for key in KEYS {
            let is_there = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{key} = "));
            assert!(text.lines().any(is_there), "{key} is missing");
        }
    }

    fn valid() -> Config {
        Config {
            cluster: ClusterConfig {
                secret: Secret::new("a secret of sixteen".to_owned()),
            },
            ..Config::default()
        }
    }

    #[test]
    fn defaults_are_valid_once_there_is_a_secret() {
        valid().validate().unwrap();
        assert!(Config::default().validate().is_err());
    }

    #[test]
    fn limits_are_checked_by_name() {
        let few = Config {
            history_changes: 10,
            ..valid()
        };
        assert!(
            few.validate()
                .unwrap_err()
                .to_string()
                .contains("history_changes")
        );
        let none = Config {
            max_watches: 0,
            ..valid()
        };
        assert!(none.validate().unwrap_err().to_string().contains("max_watches"));
    }
}
