//! Settings: one TOML file, then the environment on top, read once at the start.
//!
//! `PTAH_GRPC_LISTEN` sets `grpc_listen`, `PTAH_CLUSTER__SECRET` sets `secret` of section `[cluster]`. A key that
//! nobody knows is refused by name, in the file and in the environment alike: a misspelt setting that is silently
//! ignored is found by accident. Every error is one line that names the file or the variable, and the key.
//!
//! Defaults are those of the settings structs (`#[serde(default, deny_unknown_fields)]`).

mod error;
mod secret;
mod sections;

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;

pub use error::ConfigError;
pub use secret::Secret;
pub use sections::{ClusterConfig, List, LogConfig, LogFormat, MonitorConfig};

/// Variables under our prefix that are not settings of a service: where the settings file is, and what the command line
/// reads. People export the latter in the shell from which they start services.
const NOT_SETTINGS: [&str; 8] = [
    "CONFIG",
    "SERVER",
    "USER",
    "PASSWORD",
    "BIND",
    "LOG",
    "ROOT_PASSWORD",
    "UP_DATA_DIR",
];

/// Settings of one service, as the process shell needs them.
pub trait Settings: DeserializeOwned + Send + 'static {
    /// Checks what types alone cannot.
    fn validate(&self) -> Result<(), ConfigError>;
    /// Section `[log]`.
    fn log(&self) -> &LogConfig;
    /// Section `[monitor]`.
    fn monitor(&self) -> &MonitorConfig;
    /// Where to write the addresses that were bound, if anywhere.
    fn ports_file(&self) -> Option<&Path>;
}

/// Reads `file`, if given, and the process's environment variables that start with `env_prefix` and `_`.
pub fn load<T: DeserializeOwned>(file: Option<&Path>, env_prefix: &str) -> Result<T, ConfigError> {
    load_from(file, env_prefix, text_environment(env_prefix)?)
}

/// The same with a given environment.
pub fn load_from<T: DeserializeOwned>(
    file: Option<&Path>,
    env_prefix: &str,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<T, ConfigError> {
    let text = match file {
        Some(path) => Some((path, read(path)?)),
        None => None,
    };
    let variables = setting_variables(env_prefix, env);
    match parse(text.as_ref(), &variables) {
        Ok(settings) => Ok(settings),
        Err(error) => Err(blame::<T>(error, text.as_ref(), &variables)),
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

fn text_environment(env_prefix: &str) -> Result<Vec<(String, String)>, ConfigError> {
    let start = format!("{env_prefix}_");
    let mut variables = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|name| name.starts_with(&start)) else {
            continue;
        };
        let value = value.into_string().map_err(|_| ConfigError::Variable {
            name: name.to_owned(),
            why: "is not valid UTF-8".to_owned(),
        })?;
        variables.push((name.to_owned(), value));
    }
    Ok(variables)
}

/// Variables by name: name, and (key, value).
type Variables = BTreeMap<String, (String, String)>;

fn setting_variables(env_prefix: &str, env: impl IntoIterator<Item = (String, String)>) -> Variables {
    let start = format!("{env_prefix}_");
    let mut variables = Variables::new();
    for (name, value) in env {
        let Some(rest) = name.strip_prefix(&start) else {
            continue;
        };
        if NOT_SETTINGS.contains(&rest) || is_service_link(rest, &value) {
            continue;
        }
        let key = rest.to_ascii_lowercase().replace("__", ".");
        variables.insert(name, (key, value));
    }
    variables
}

/// Whether Kubernetes or Docker set the variable: they announce a service `ptah-gateway` to every container of its
/// name space as `PTAH_GATEWAY_SERVICE_HOST`, `PTAH_GATEWAY_PORT_5555_TCP_ADDR` and the like.
fn is_service_link(rest: &str, value: &str) -> bool {
    let port_detail = |text: &str| {
        text.split_once("_PORT_").is_some_and(|(_, tail)| {
            let number: String = tail.chars().take_while(char::is_ascii_digit).collect();
            let protocol = &tail[number.len()..];
            !number.is_empty() && ["_TCP", "_UDP"].iter().any(|p| protocol.starts_with(p))
        })
    };
    rest.ends_with("_SERVICE_HOST")
        || rest.ends_with("_SERVICE_PORT")
        || rest.contains("_SERVICE_PORT_")
        || (rest.ends_with("_PORT") && (value.starts_with("tcp://") || value.starts_with("udp://")))
        || port_detail(rest)
}

fn parse<T: DeserializeOwned>(
    file: Option<&(&Path, String)>,
    variables: &Variables,
) -> Result<T, config::ConfigError> {
    let mut builder = config::Config::builder();
    if let Some((_, text)) = file {
        builder = builder.add_source(config::File::from_str(text, config::FileFormat::Toml));
    }
    for (key, value) in variables.values() {
        builder = builder.set_override(key, value.as_str())?;
    }
    builder.build()?.try_deserialize()
}

/// Finds out who is to blame: the file alone, or the first variable that does not fit on top of it.
fn blame<T: DeserializeOwned>(
    error: config::ConfigError,
    file: Option<&(&Path, String)>,
    variables: &Variables,
) -> ConfigError {
    let nothing = Variables::new();
    if let Err(error) = parse::<T>(file, &nothing) {
        let path = file.map(|(path, _)| (*path).to_owned());
        return ConfigError::from_file(path, &error);
    }
    for (name, setting) in variables {
        let alone = Variables::from([(name.clone(), setting.clone())]);
        if let Err(error) = parse::<T>(file, &alone) {
            return ConfigError::from_variable(name, &setting.0, &error);
        }
    }
    // Each fits, all together do not: two variables contradict each other.
    ConfigError::Variable {
        name: variables.keys().cloned().collect::<Vec<_>>().join(", "),
        why: error.to_string(),
    }
}

#[cfg(test)]
mod tests;
