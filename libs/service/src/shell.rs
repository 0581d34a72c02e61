//! The process shell: from the command line to a running service and back.
//!
//! Order of a start: settings, logs, monitor endpoints, service, ports file. Order of a stop: not ready, then after the
//! drain time the service finishes what it accepted, tasks end, monitor endpoints end. A second signal ends the process at
//! once.
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

use crate::arguments::{NoArguments, Program};
use crate::config::{self, ConfigError, Settings, ShutdownConfig, Sources};
use crate::{BoxFuture, Health, Metrics, Monitor, Ports, Tasks, error_text, telemetry, write_ports_file};

/// Prefix of environment variables that are settings.
const ENV_PREFIX: &str = "PTAH";
/// Threads for work that blocks: enough to keep a disk busy, and few enough that a thousand groups opened at once do not
/// leave a thousand threads' memory behind. All such work is short and none waits for another.
pub const MAX_BLOCKING_THREADS: usize = 64;
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

/// Does what the command line of a service asks for: runs it, or looks whether its settings are well.
///
/// `start` gets the settings, validated, and the shell. Every error is logged; the result is for `main`.
pub fn main<C, F, Fut>(program: Program, start: F) -> ExitCode
where
    C: Settings,
    F: FnOnce(C, Shell) -> Fut,
    Fut: Future<Output = anyhow::Result<Box<dyn Running>>>,
{
    let arguments = match program.parse(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(NoArguments::Told(text)) => {
            tell(text.trim_end());
            return ExitCode::from(STOPPED);
        }
        Err(NoArguments::Wrong(why)) => return bad_settings(program.name, &why),
    };
    if !arguments.check_config {
        return run(program.name, arguments.config.as_deref(), start);
    }
    match settings::<C>(arguments.config.as_deref()) {
        Ok((_, sources)) => {
            tell(&format!("ok: {}: {sources}", program.name));
            ExitCode::from(STOPPED)
        }
        Err(error) => bad_settings(program.name, &error.to_string()),
    }
}

/// Runs a service as a process: reads its settings, starts it, waits for a signal or a failure, stops it.
pub fn run<C, F, Fut>(name: &'static str, config_file: Option<&Path>, start: F) -> ExitCode
where
    C: Settings,
    F: FnOnce(C, Shell) -> Fut,
    Fut: Future<Output = anyhow::Result<Box<dyn Running>>>,
{
    let read = settings::<C>(config_file).and_then(|(config, sources)| {
        telemetry::init(config.log())?;
        sources.warn();
        Ok(config)
    });
    let config = match read {
        Ok(config) => config,
        Err(error) => return bad_settings(name, &error.to_string()),
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

fn settings<C: Settings>(file: Option<&Path>) -> Result<(C, Sources), ConfigError> {
    let loaded = config::load::<C>(file, ENV_PREFIX)?;
    config::check(&loaded.settings)?;
    Ok((loaded.settings, loaded.sources))
}

#[allow(
    clippy::print_stderr,
    reason = "settings say how to log, and they are what is wrong"
)]
fn bad_settings(name: &str, why: &str) -> ExitCode {
    // What is quoted may have lines; the message has one.
    let line = why.replace(char::is_control, " ");
    eprintln!("error: {name}: {line}");
    ExitCode::from(BAD_SETTINGS)
}

#[allow(clippy::print_stdout, reason = "what was asked for on the command line")]
fn tell(text: &str) {
    println!("{text}");
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
    let shell = Shell::new(name);
    let tasks = shell.tasks.clone();
    let two_signals = async {
        signals.next().await;
        tracing::info!("signal received, stopping; a second signal ends at once");
        asked.cancel();
        signals.next().await;
    };
    tokio::select! {
        ended = serve(shell, config, start, asked.cancelled()) => ended.exit_code(),
        () = two_signals => {
            tracing::warn!(unfinished = %tasks.unfinished().join(", "), "second signal, ending at once");
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
    let ports_file = config.ports_file().filter(|path| !path.as_os_str().is_empty());
    let ports_file = ports_file.map(Path::to_owned);
    let shutdown = config.shutdown().clone();
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
            return finish(&shell, &monitor_tasks, &shutdown, Ended::Stopped).await;
        }
    };
    let running = match started {
        Ok(running) => running,
        Err(error) => {
            tracing::error!(error = %error_text(&error), "start failed");
            return finish(&shell, &monitor_tasks, &shutdown, Ended::Failed).await;
        }
    };
    tracing::info!(addresses = ?shell.health.addresses(), version = env!("CARGO_PKG_VERSION"), "started");
    let ended = tokio::select! {
        () = asked => Ended::Stopped,
        ended = failed(&shell, &monitor_tasks) => ended,
    };
    shell.health.set_stopping();
    let ended = drain(&shell, &monitor_tasks, &shutdown, ended).await;
    let ended = stop_service(running, &shell, &shutdown, ended).await;
    finish(&shell, &monitor_tasks, &shutdown, ended).await
}

async fn failed(shell: &Shell, monitor_tasks: &Tasks) -> Ended {
    tokio::select! {
        failure = shell.tasks.failed() => {
            tracing::error!(task = %failure.task, error = %failure.error, "stopping because a part failed");
        }
        failure = monitor_tasks.failed() => {
            tracing::error!(task = %failure.task, error = %failure.error, "stopping because monitoring failed");
        }
    }
    Ended::Failed
}

/// Serves on while those who send traffic learn that they should not.
async fn drain(shell: &Shell, monitor_tasks: &Tasks, shutdown: &ShutdownConfig, ended: Ended) -> Ended {
    if ended != Ended::Stopped || shutdown.drain().is_zero() {
        return ended;
    }
    tracing::info!(drain = ?shutdown.drain(), "not ready any more, serving on for the drain time");
    tokio::select! {
        () = tokio::time::sleep(shutdown.drain()) => ended,
        ended = failed(shell, monitor_tasks) => ended,
    }
}

async fn stop_service(
    running: Box<dyn Running>,
    shell: &Shell,
    shutdown: &ShutdownConfig,
    ended: Ended,
) -> Ended {
    let time = shutdown.service_time();
    // A service that forgets its own deadline is left behind a little later.
    match tokio::time::timeout(time + shutdown.tasks_time(), running.stop(time)).await {
        Ok(Ok(())) => ended,
        Ok(Err(error)) => {
            tracing::warn!(error = %error_text(&error), "stopped with accepted work unfinished");
            ended.or_late()
        }
        Err(_) => {
            let unfinished = shell.tasks.unfinished().join(", ");
            tracing::warn!(%unfinished, "the service did not stop in time");
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

async fn finish(shell: &Shell, monitor_tasks: &Tasks, shutdown: &ShutdownConfig, ended: Ended) -> Ended {
    shell.health.set_stopping();
    let mut ended = ended;
    if let Err(unfinished) = shell.tasks.stop(shutdown.tasks_time()).await {
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
