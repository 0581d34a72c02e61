//! Logs: structured lines on standard error.

use std::sync::Once;

use tracing_subscriber::EnvFilter;

use crate::config::{ConfigError, LogConfig, LogFormat};

/// Installs the subscriber of the process and a panic hook that logs. Once per process: later calls check the
/// filter and change nothing, so that tests may start several services.
pub fn init(config: &LogConfig) -> Result<(), ConfigError> {
    let filter = filter(config)?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    // An error says that a subscriber is there already: a second service of the same process.
    let _ = match config.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    log_panics();
    Ok(())
}

/// Refuses a filter that cannot be used.
pub(crate) fn check(config: &LogConfig) -> Result<(), ConfigError> {
    filter(config).map(|_| ())
}

fn filter(config: &LogConfig) -> Result<EnvFilter, ConfigError> {
    EnvFilter::try_new(&config.filter).map_err(|error| {
        let why = format!("is no log filter: {error}; use a level such as `info`, or `info,ptah_raft=debug`");
        ConfigError::invalid("log.filter", why)
    })
}

/// Panics become log lines, so that they are found where everything else is.
fn log_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            let text = info.payload_as_str().unwrap_or("no text");
            let thread = std::thread::current();
            let thread = thread.name().unwrap_or("unnamed");
            let backtrace = std::backtrace::Backtrace::capture();
            tracing::error!(%place, text, thread, %backtrace, "panic");
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_filter_is_refused_with_its_key() {
        let config = LogConfig {
            filter: "info,=nonsense=".to_owned(),
            format: LogFormat::Text,
        };
        let error = init(&config).unwrap_err().to_string();
        assert!(
            error.starts_with("setting `log.filter` is no log filter"),
            "{error}"
        );
    }
}
