//! What can be wrong with settings, told in one line.

use std::path::PathBuf;

/// Settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read settings file `{}`: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The file is not TOML, or has a key or value that does not fit.
    #[error("settings file `{}`: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the key.
        why: String,
    },
    /// An environment variable does not fit.
    #[error("environment variable `{name}`: {why}")]
    Variable {
        /// The variable.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A value is of the right type and still wrong, or is missing.
    #[error("setting `{key}` {why}")]
    Invalid {
        /// The key with its section, as `cluster.secret`.
        key: String,
        /// What is wrong and what to do, as the rest of a sentence that starts with the key.
        why: String,
    },
}

impl ConfigError {
    /// A value is wrong: `ConfigError::invalid("grpc_listen", "has no port; use host:port")`.
    pub fn invalid(key: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid {
            key: key.into(),
            why: why.into(),
        }
    }

    pub(super) fn from_file(path: Option<PathBuf>, error: &config::ConfigError) -> Self {
        let why = explain(error);
        match path {
            Some(path) => Self::File { path, why },
            // Without file and variables only a missing value can be wrong.
            None => Self::Invalid {
                key: "settings".to_owned(),
                why,
            },
        }
    }

    pub(super) fn from_variable(name: &str, key: &str, error: &config::ConfigError) -> Self {
        let mut why = explain(error);
        if !why.contains(key) {
            why = format!("{why} (it sets key `{key}`)");
        }
        Self::Variable {
            name: name.to_owned(),
            why,
        }
    }
}

/// The error as one line without the origins that the library invents for text and overrides.
fn explain(error: &config::ConfigError) -> String {
    match error {
        config::ConfigError::Type {
            unexpected,
            expected,
            key,
            ..
        } => with_key(
            &format!("{unexpected} given, {expected} expected"),
            key.as_deref(),
        ),
        config::ConfigError::At { error, key, .. } => with_key(&explain(error), key.as_deref()),
        config::ConfigError::NotFound(key) => format!("key `{key}` is missing"),
        config::ConfigError::FileParse { cause, .. } => one_line(&cause.to_string()),
        other => one_line(&other.to_string()),
    }
}

fn with_key(text: &str, key: Option<&str>) -> String {
    match key {
        Some(key) => format!("key `{key}`: {text}"),
        None => text.to_owned(),
    }
}

/// The text without the excerpt of the file that the TOML parser draws, as one line.
fn one_line(text: &str) -> String {
    let is_excerpt = |line: &str| {
        let rest = line.trim_start().trim_start_matches(|c: char| c.is_ascii_digit());
        rest.trim_start().starts_with('|')
    };
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !is_excerpt(line))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines.join(": ").replace("unknown field", "unknown key")
}
