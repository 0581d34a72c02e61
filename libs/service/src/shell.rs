//! The process shell: from the command line to a running service and back.
//!
//! Order of a start: settings, logs, monitor endpoints, service, ports file. Order of a stop: not ready, the
//! service finishes what it accepted, tasks end, monitor endpoints end. A second signal ends the process at once.
//!
//! Exit codes: 0 stopped as asked, 1 could not start or failed while running, 2 settings are wrong,
//! 3 did not stop in time, 130 ended by a second signal.

use std::future::Future;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{self, ConfigError, Settings};
use crate::{BoxFuture, Health, Metrics, Monitor, Ports, Tasks, error_text, telemetry, write_ports_file};

/// Prefix of environment variables that are settings.
const ENV_PREFIX: &str = "PTAH";
/// Threads for work that blocks: enough to keep a disk busy, and few enough that a thousand groups opened at once do not
/// leave a thousand threads' memory behind. All such work is short and none waits for another.
pub const MAX_BLOCKING_THREADS: usize = 64;
/// What a service gets to finish accepted work. Orchestrators kill after 30 s; leave room for the tasks.
const SERVICE_STOP: Duration = Duration::from_secs(20);
/// What tasks get on top to end.
const TASKS_STOP: Duration = Duration::from_secs(5);
/// What the monitor endpoints get to answer the last probe.
const MONITOR_STOP: Duration = Duration::from_secs(1);

const STOPPED: u8 = 0;
const FAILED: u8 = 1;
const BAD_SETTINGS: u8 = 2;
const STOPPED_LATE: u8 = 3;
const SECOND_SIGNAL: u8 = 130;

/// What the shell gives to a service.
#[derive(Clone, Debug)]
pub struct Shell {
    /// Clock and randomness.
    pub ports: Ports,
    /// Owner of the service's tasks. Its critical failures stop the process.
    pub tasks: Tasks,
    /// Registry of the process.
    pub metrics: Metrics,
    /// Health of the process.
    pub health: Health,
}

impl Shell {
    /// A shell on the machine's clock and randomness, with nothing started.
    pub fn new(service: &'static str) -> Self {
        Self {
            ports: Ports::system(),
            tasks: Tasks::root(),
            metrics: Metrics::new(),
            health: Health::new(service),
        }
    }
}

/// A service that was started.
pub trait Running: Send + 'static {
    /// Stops: no new work, finish what was accepted, let go. Must return soon after `deadline`.
    fn stop(self: Box<Self>, deadline: Duration) -> BoxFuture<'static, anyhow::Result<()>>;
}

/// Runs a service as a process: reads its settings, starts it, waits for a signal or a failure, stops it.
///
/// `start` gets the settings, validated, and the shell. Every error is logged; the result is for `main`.
pub fn run<C, F, Fut>(name: &'static str, config_file: Option<&Path>, start: F) -> ExitCode
where
    C: Settings,
    F: FnOnce(C, Shell) -> Fut,
    Fut: Future<Output = anyhow::Result<Box<dyn Running>>>,
{
    let config = match settings::<C>(config_file) {
        Ok(config) => config,
        Err(error) => {
            complain(&format!("{name}: {error}"));
            return ExitCode::from(BAD_SETTINGS);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "start the runtime");
            return ExitCode::from(FAILED);
        }
    };
    let code = runtime.block_on(run_process(name, config, start));
    // Blocking work that is still going on must not keep the process from ending.
    runtime.shutdown_timeout(Duration::from_millis(500));
    ExitCode::from(code)
}

fn settings<C: Settings>(file: Option<&Path>) -> Result<C, ConfigError> {
    let config: C = config::load(file, ENV_PREFIX)?;
    config.validate()?;
    telemetry::init(config.log())?;
    Ok(config)
}

#[allow(
    clippy::print_stderr,
    reason = "settings say how to log, and they are what is wrong"
)]
fn complain(text: &str) {
    eprintln!("error: {text}");
}

async fn run_process<C, F, Fut>(name: &'static str, config: C, start: F) -> u8
where
    C: Settings,
    F: FnOnce(C, Shell) -> Fut,
    Fut: Future<Output = anyhow::Result<Box<dyn Running>>>,
{
    let mut signals = match Signals::install() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(%error, "listen for signals");
            return FAILED;
        }
    };
    let asked = CancellationToken::new();
    let two_signals = async {
        signals.next().await;
        tracing::info!("signal received, stopping; a second signal ends at once");
        asked.cancel();
        signals.next().await;
    };
    tokio::select! {
        ended = serve(Shell::new(name), config, start, asked.cancelled()) => ended.exit_code(),
        () = two_signals => {
            tracing::warn!("second signal, ending at once");
            SECOND_SIGNAL
        }
    }
}

/// The signals that ask a process to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// As asked, with everything accepted finished.
    Stopped,
    /// It could not start, or a part that it needs failed.
    Failed,
    /// As asked, but not in time.
    Late,
}

impl Ended {
    fn exit_code(self) -> u8 {
        match self {
            Self::Stopped => STOPPED,
            Self::Failed => FAILED,
            Self::Late => STOPPED_LATE,
        }
    }
}

/// [`run`] without process: no settings file, no signals, no exit. Runs until `asked` is ready or a critical task
/// of `shell` fails.
pub async fn serve<C, F, Fut>(shell: Shell, config: C, start: F, asked: impl Future<Output = ()>) -> Ended
where
    C: Settings,
    F: FnOnce(C, Shell) -> Fut,
    Fut: Future<Output = anyhow::Result<Box<dyn Running>>>,
{
    // Of its own root, so that probes are answered until the service has stopped.
    let monitor_tasks = Tasks::root();
    let ports_file = config.ports_file().map(Path::to_owned);
    let monitor = config.monitor().clone();
    tokio::pin!(asked);
    let starting = async {
        Monitor::start(&monitor, &shell.health, &shell.metrics, &monitor_tasks).await?;
        let running = start(config, shell.clone()).await?;
        if let Some(path) = &ports_file {
            let written = write_ports_file(path, &shell.health.addresses());
            written.with_context(|| format!("write ports file `{}`", path.display()))?;
        }
        anyhow::Ok(running)
    };
    let started = tokio::select! {
        started = starting => started,
        () = &mut asked => {
            tracing::info!("stopped before the start was over");
            return finish(&shell, &monitor_tasks, Ended::Stopped).await;
        }
    };
    let running = match started {
        Ok(running) => running,
        Err(error) => {
            tracing::error!(error = %error_text(&error), "start failed");
            return finish(&shell, &monitor_tasks, Ended::Failed).await;
        }
    };
    tracing::info!(addresses = ?shell.health.addresses(), version = env!("CARGO_PKG_VERSION"), "started");
    let ended = tokio::select! {
        () = asked => Ended::Stopped,
        failure = shell.tasks.failed() => {
            tracing::error!(task = %failure.task, error = %failure.error, "stopping because a part failed");
            Ended::Failed
        }
        failure = monitor_tasks.failed() => {
            tracing::error!(task = %failure.task, error = %failure.error, "stopping because monitoring failed");
            Ended::Failed
        }
    };
    shell.health.set_stopping();
    let ended = stop_service(running, ended).await;
    finish(&shell, &monitor_tasks, ended).await
}

async fn stop_service(running: Box<dyn Running>, ended: Ended) -> Ended {
    // A service that forgets its own deadline is left behind a little later.
    match tokio::time::timeout(SERVICE_STOP + TASKS_STOP, running.stop(SERVICE_STOP)).await {
        Ok(Ok(())) => ended,
        Ok(Err(error)) => {
            tracing::warn!(error = %format!("{error:#}"), "stopped with accepted work unfinished");
            ended.or_late()
        }
        Err(_) => {
            tracing::warn!("the service did not stop in time");
            ended.or_late()
        }
    }
}

impl Ended {
    fn or_late(self) -> Self {
        match self {
            Self::Stopped => Self::Late,
            other => other,
        }
    }
}

async fn finish(shell: &Shell, monitor_tasks: &Tasks, ended: Ended) -> Ended {
    shell.health.set_stopping();
    let mut ended = ended;
    if let Err(unfinished) = shell.tasks.stop(TASKS_STOP).await {
        tracing::warn!(%unfinished, "tasks were cut off");
        ended = ended.or_late();
    }
    // A probe that hangs on its connection is no reason to call the stop late.
    let _ = monitor_tasks.stop(MONITOR_STOP).await;
    tracing::info!(?ended, "stopped");
    ended
}

#[cfg(test)]
mod tests;
