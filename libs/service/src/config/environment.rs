//! Settings from environment variables.

use std::collections::BTreeMap;

use config::Value;

use super::ConfigError;
use super::keys::Keys;

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

/// What a variable sets.
#[derive(Clone, Debug)]
pub(super) struct Variable {
    pub(super) key: String,
    pub(super) value: Value,
}

/// Variables by name.
pub(super) type Variables = BTreeMap<String, Variable>;

/// The variables of this process that start with the prefix.
pub(super) fn of_process(env_prefix: &str) -> Result<Vec<(String, String)>, ConfigError> {
    let start = format!("{env_prefix}_");
    let mut variables = Vec::new();
    for (name, value) in std::env::vars_os() {
        let shown = name.to_string_lossy();
        if !shown.starts_with(&start) {
            continue;
        }
        let not_text = || ConfigError::Variable {
            name: shown.clone().into_owned(),
            why: "is not valid UTF-8".to_owned(),
        };
        let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else {
            return Err(not_text());
        };
        variables.push((name.to_owned(), value.to_owned()));
    }
    Ok(variables)
}

/// Those of `env` that are settings, with values of the types that their keys want.
pub(super) fn settings(
    env_prefix: &str,
    env: impl IntoIterator<Item = (String, String)>,
    keys: &Keys,
) -> Result<Variables, ConfigError> {
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
        let value = match keys.read(&key, &value) {
            Ok(value) => value,
            Err(why) => {
                let why = format!("{why} (it sets key `{key}`)");
                return Err(ConfigError::Variable { name, why });
            }
        };
        variables.insert(name, Variable { key, value });
    }
    Ok(variables)
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
