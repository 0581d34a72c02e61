//! Settings of the metadata service.

use std::fmt;
use std::path::{Path, PathBuf};

use ptah_service::config::{check_listen, check_range};
use ptah_service::{ClusterConfig, ConfigError, LogConfig, MonitorConfig, Settings, ShutdownConfig};
use serde::{Deserialize, Serialize};

use crate::store;

/// All settings; every one has a default except the cluster's secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where control planes and gateways reach the store.
    pub grpc_listen: String,
    /// The database: `sqlite://path/to/file.db?mode=rwc` makes the file when it is not there. Files beside it with the
    /// endings `-wal`, `-shm`, `.lock` and `.mark` belong to it. `postgres://user:password@host:port/database` is one that
    /// several instances may share.
    pub database_url: String,
    /// Most connections of this process to PostgreSQL; SQLite does not need it. One listens for hints of other instances.
    pub database_max_connections: u32,
    /// Changes to keep for watchers that were away; one that was away for longer lists everything again.
    pub history_changes: u32,
    /// Most watches at a time: every gateway and every control plane has one or two.
    pub max_watches: u32,
    /// File to write the bound addresses to, as JSON; for tests and scripts that let the system choose ports.
    pub ports_file: Option<PathBuf>,
    /// What the cluster's processes share.
    pub cluster: ClusterConfig,
    /// How the process ends.
    pub shutdown: ShutdownConfig,
    /// Logs.
    pub log: LogConfig,
    /// Health and metrics endpoints.
    pub monitor: MonitorConfig,
}

impl fmt::Debug for Config {
    /// Everything but the URL, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("grpc_listen", &self.grpc_listen)
            .field("database_max_connections", &self.database_max_connections)
            .field("history_changes", &self.history_changes)
            .field("max_watches", &self.max_watches)
            .field("ports_file", &self.ports_file)
            .field("cluster", &self.cluster)
            .field("shutdown", &self.shutdown)
            .field("log", &self.log)
            .field("monitor", &self.monitor)
            .finish_non_exhaustive()
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            grpc_listen: "127.0.0.1:6224".to_owned(),
            database_url: "sqlite://ptah-metadata.db?mode=rwc".to_owned(),
            database_max_connections: 10,
            history_changes: 100_000,
            max_watches: 256,
            ports_file: None,
            cluster: ClusterConfig::default(),
            shutdown: ShutdownConfig::default(),
            log: LogConfig::default(),
            monitor: MonitorConfig::default(),
        }
    }
}

impl Settings for Config {
    // A database's URL may hold a password.
    const SECRETS: &'static [&'static str] = &["cluster.secret", "database_url"];

    fn validate(&self) -> Result<(), ConfigError> {
        self.cluster.validate()?;
        check_listen("grpc_listen", &self.grpc_listen)?;
        check_database_url(&self.database_url)?;
        check_range("database_max_connections", self.database_max_connections, 2..=200)?;
        check_range("history_changes", self.history_changes, 1_000..=10_000_000)?;
        check_range("max_watches", self.max_watches, 1..=4_096)?;
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

/// Refuses what is no URL of a database. What is said does not show the URL, which may hold a password.
fn check_database_url(url: &str) -> Result<(), ConfigError> {
    let unusable = |why: &str| Err(ConfigError::invalid("database_url", why));
    if let Some(file) = url.strip_prefix("sqlite:") {
        if file.contains(":memory:") || file.contains("mode=memory") {
            return unusable("names memory; metadata must survive a restart");
        }
        let (path, _) = file.split_once('?').unwrap_or((file, ""));
        if path.trim_start_matches('/').is_empty() {
            return unusable("names no file; write sqlite://path/to/file.db?mode=rwc");
        }
        return Ok(());
    }
    if store::is_postgres(url) {
        return match store::parse_postgres_url(url) {
            Ok(_) => Ok(()),
            Err(why) => unusable(&why),
        };
    }
    unusable(
        "is no URL of a database; write sqlite://path/to/file.db?mode=rwc or postgres://user:password@host/database",
    )
}

#[cfg(test)]
mod tests {
    use ptah_service::Secret;

    use super::*;

    #[test]
    fn the_sample_file_has_every_key_with_its_default() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/config/metadata.toml");
        ptah_service::config::sample::check::<Config>(Path::new(path)).unwrap();
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
