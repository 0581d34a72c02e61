//! Settings: one TOML file, then the environment on top, then secrets from files, read once at the start.
//!
//! `PTAH_GRPC_LISTEN` sets `grpc_listen`, `PTAH_CLUSTER__SECRET` sets `secret` of section `[cluster]`, and
//! `PTAH_CLUSTER__SECRET_FILE` names a file that holds it. A key that nobody knows is refused by name, in the file and in
//! the environment alike: a misspelt setting that is silently ignored is found by accident. A value of another type is
//! refused as well and never converted. Every error is one line that names the file or the variable, and the key.
//!
//! Defaults are those of the settings structs (`#[serde(default, deny_unknown_fields)]`), and so is the list of keys.

mod check;
mod environment;
mod error;
mod keys;
pub mod sample;
mod secret;
mod secret_files;
mod sections;
mod sources;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use config::Value;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use check::{check_dial, check_dial_list, check_listen, check_range};
pub use error::ConfigError;
pub use keys::{Key, Kind, keys_of};
pub use secret::Secret;
pub use sections::{ClusterConfig, List, LogConfig, LogFormat, MonitorConfig, ShutdownConfig};
pub use sources::Sources;

use environment::Variables;
use keys::Keys;
use secret_files::SecretTexts;

/// Longest settings file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Settings of one service, as the process shell needs them.
pub trait Settings: Serialize + DeserializeOwned + Default + Send + 'static {
    /// Keys that can also be given as `<key>_file`, which names a file with the value: everything that is a secret or can
    /// hold one.
    const SECRETS: &'static [&'static str] = &["cluster.secret"];

    /// Checks what types alone cannot.
    fn validate(&self) -> Result<(), ConfigError>;
    /// Section `[log]`.
    fn log(&self) -> &LogConfig;
    /// Section `[monitor]`.
    fn monitor(&self) -> &MonitorConfig;
    /// Section `[shutdown]`.
    fn shutdown(&self) -> &ShutdownConfig;
    /// Where to write the addresses that were bound, if anywhere.
    fn ports_file(&self) -> Option<&Path>;
}

/// Settings that were read, and where they come from.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The settings.
    pub settings: T,
    /// Where they come from.
    pub sources: Sources,
}

/// Reads `file`, if given, and the process's environment variables that start with `env_prefix` and `_`.
pub fn load<T: Settings>(file: Option<&Path>, env_prefix: &str) -> Result<Loaded<T>, ConfigError> {
    load_from(file, env_prefix, environment::of_process(env_prefix)?)
}

/// The same with a given environment.
pub fn load_from<T: Settings>(
    file: Option<&Path>,
    env_prefix: &str,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded<T>, ConfigError> {
    let keys = Keys::of::<T>();
    let mut file = file.map(|path| SettingsFile::read(path, &keys)).transpose()?;
    let mut variables = environment::settings(env_prefix, env, &keys)?;
    let mut sources = Sources::new(file.as_ref().map(|file| file.path), variables.keys());
    let tree = file.as_mut().map(|file| &mut file.tree);
    let secrets = SecretTexts::take(T::SECRETS, tree, &mut variables)?;
    sources.secret_files = secrets.files;
    match parse(file.as_ref(), &variables, &secrets.texts) {
        Ok(settings) => Ok(Loaded { settings, sources }),
        Err(error) => Err(blame::<T>(error, file.as_ref(), &variables, &secrets.texts)),
    }
}

/// Checks everything that can be checked without data and network.
pub(crate) fn check<T: Settings>(settings: &T) -> Result<(), ConfigError> {
    settings.validate()?;
    settings.shutdown().validate()?;
    check::check_ports_file(settings.ports_file())?;
    crate::telemetry::check(settings.log())
}

/// A settings file that is TOML, with values of the right types.
struct SettingsFile<'a> {
    path: &'a Path,
    tree: config::Config,
}

impl<'a> SettingsFile<'a> {
    fn read(path: &'a Path, keys: &Keys) -> Result<Self, ConfigError> {
        let wrong = |why: String| ConfigError::File {
            path: path.to_owned(),
            why,
        };
        let text = read_text(path)?;
        let source = config::File::from_str(&text, config::FileFormat::Toml);
        let tree = config::Config::builder()
            .add_source(source)
            .build()
            .map_err(|error| match keys::number_beyond_range(&text) {
                Some(why) => wrong(why),
                None => ConfigError::from_file(Some(path.to_owned()), &error),
            })?;
        keys.check_kinds(&tree.cache).map_err(wrong)?;
        Ok(Self { path, tree })
    }
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let wrong = |why: &str| ConfigError::File {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(wrong("is larger than 1 MiB, which no settings file is"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        wrong(&format!("line {line} is not valid UTF-8"))
    })
}

/// Values that come from files of their own, by key.
type Texts = BTreeMap<&'static str, Secret>;

fn parse<T: DeserializeOwned>(
    file: Option<&SettingsFile<'_>>,
    variables: &Variables,
    secrets: &Texts,
) -> Result<T, config::ConfigError> {
    let mut builder = config::Config::builder();
    if let Some(file) = file {
        builder = builder.add_source(file.tree.clone());
    }
    for variable in variables.values() {
        builder = builder.set_override(&variable.key, variable.value.clone())?;
    }
    for (key, secret) in secrets {
        builder = builder.set_override(*key, Value::new(None, secret.expose()))?;
    }
    builder.build()?.try_deserialize()
}

/// Finds out who is to blame: the file alone, or the first variable that does not fit on top of it.
fn blame<T: DeserializeOwned>(
    error: config::ConfigError,
    file: Option<&SettingsFile<'_>>,
    variables: &Variables,
    secrets: &Texts,
) -> ConfigError {
    if let Err(error) = parse::<T>(file, &Variables::new(), secrets) {
        let path = file.map(|file| file.path.to_owned());
        return ConfigError::from_file(path, &error);
    }
    for (name, variable) in variables {
        let alone = Variables::from([(name.clone(), variable.clone())]);
        if let Err(error) = parse::<T>(file, &alone, secrets) {
            return ConfigError::from_variable(name, &variable.key, &error);
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
