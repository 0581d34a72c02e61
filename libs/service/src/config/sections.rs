//! Sections that every service has, and forms of values that several use.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{ConfigError, Secret, check_listen, check_range};

/// Section `[log]`. Logs go to standard error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// What is logged: a level (`error`, `warn`, `info`, `debug`, `trace`), or levels by module such as
    /// `info,ptah_raft=debug`.
    pub filter: String,
    /// `text` for people, `json` for machines.
    pub format: LogFormat,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl TryFrom<String> for LogFormat {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("`{text}` is no log format; use `text` or `json`")),
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            // openraft tells every normal stop and start as an error; what it has to say to an operator, Ptah says.
            filter: "info,openraft=off".to_owned(),
            format: LogFormat::Text,
        }
    }
}

/// Section `[monitor]`: where a process tells how it is. Neither endpoint asks for credentials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MonitorConfig {
    /// Address of `/healthz`, `/readyz` and `/status`; empty to switch them off.
    pub monitor_listen: String,
    /// Address of `/metrics` for Prometheus; empty to switch it off.
    pub metrics_listen: String,
}

impl Default for MonitorConfig {
    fn default() -> Self {
        Self {
            monitor_listen: "127.0.0.1:8222".to_owned(),
            metrics_listen: "127.0.0.1:7777".to_owned(),
        }
    }
}

impl MonitorConfig {
    /// Refuses addresses that cannot be listened on, and two listeners at one address. `others` are the service's own, by
    /// key.
    pub fn validate(&self, others: &[(&str, &str)]) -> Result<(), ConfigError> {
        let mut taken = others.to_vec();
        for (key, address) in [
            ("monitor.monitor_listen", self.monitor_listen.as_str()),
            ("monitor.metrics_listen", self.metrics_listen.as_str()),
        ] {
            if address.is_empty() {
                continue;
            }
            check_listen(key, address)?;
            let same = |taken: &&(&str, &str)| taken.1 == address && !address.ends_with(":0");
            if let Some((other, _)) = taken.iter().find(same) {
                let why = format!("and `{other}` are both `{address}`; give each its own port");
                return Err(ConfigError::invalid(key, why));
            }
            taken.push((key, address));
        }
        Ok(())
    }
}

/// Section `[shutdown]`: how a process ends when it is asked to by SIGTERM or SIGINT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShutdownConfig {
    /// How long a process goes on serving after it said that it is not ready, in milliseconds, for those who send it
    /// traffic to notice. 0 is right when clients try again elsewhere by themselves.
    pub drain_ms: u64,
    /// How long it may take after that to finish what it accepted and to let go, in milliseconds. Then it ends with what
    /// is unfinished, and says what.
    pub timeout_ms: u64,
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self {
            drain_ms: 0,
            // Orchestrators kill after 30 s.
            timeout_ms: 25_000,
        }
    }
}

impl ShutdownConfig {
    /// Refuses times of nothing and of hours.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_range("shutdown.drain_ms", self.drain_ms, 0..=300_000)?;
        check_range("shutdown.timeout_ms", self.timeout_ms, 1_000..=600_000)
    }

    /// [`ShutdownConfig::drain_ms`] as a duration.
    pub fn drain(&self) -> Duration {
        Duration::from_millis(self.drain_ms)
    }

    /// What the service has to finish accepted work: four fifths of the time.
    pub(crate) fn service_time(&self) -> Duration {
        Duration::from_millis(self.timeout_ms - self.timeout_ms / 5)
    }

    /// What its tasks have on top to end: the rest.
    pub(crate) fn tasks_time(&self) -> Duration {
        Duration::from_millis(self.timeout_ms / 5)
    }
}

/// Section `[cluster]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// Shared by all processes of the cluster; internal ports refuse callers without it. At least 16 characters.
    pub secret: Secret,
}

impl ClusterConfig {
    /// Refuses a secret that is missing or too short.
    pub fn validate(&self) -> Result<(), ConfigError> {
        const SHORTEST: usize = 16;
        if self.secret.is_empty() {
            let why = "is not set; give every process of the cluster the same random text, \
                       as PTAH_CLUSTER__SECRET, or in a file that `cluster.secret_file` names";
            return Err(ConfigError::invalid("cluster.secret", why));
        }
        if self.secret.expose().chars().count() < SHORTEST {
            let why = format!("is too short; use at least {SHORTEST} random characters");
            return Err(ConfigError::invalid("cluster.secret", why));
        }
        Ok(())
    }
}

/// Several texts: an array in the file, comma-separated in the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct List(pub Vec<String>);

impl Deref for List {
    type Target = [String];
    fn deref(&self) -> &[String] {
        &self.0
    }
}

impl<S: Into<String>> FromIterator<S> for List {
    fn from_iter<I: IntoIterator<Item = S>>(items: I) -> Self {
        Self(items.into_iter().map(Into::into).collect())
    }
}

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListVisitor)
    }
}

struct ListVisitor;

impl<'de> Visitor<'de> for ListVisitor {
    type Value = List;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of texts, or one text with commas")
    }

    fn visit_str<E>(self, text: &str) -> Result<List, E> {
        let items = text.split(',').map(str::trim);
        Ok(items.filter(|item| !item.is_empty()).collect())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<List, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<String>()? {
            items.push(item);
        }
        Ok(List(items))
    }
}
