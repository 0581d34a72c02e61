//! `ptah up`: all four services in one process.
//!
//! The services are the same code as in processes of their own. This module only decides where they listen and keep
//! their data, lets them call each other in process, and starts and stops them in order. Everything that can be
//! refused is looked at before anything is changed: password, directory, ports, whose data it is.

mod announce;
mod args;
mod cluster;
mod data_dir;
mod doors;
mod identity;
mod network;
mod room;

use std::time::Duration;

use ptah_service::{LogConfig, LogFormat, NotReady, telemetry};
use ptah_types::ErrorKind;
use tokio::time::Instant;

pub use args::{LogForm, UpArgs};

use self::announce::Announcement;
use self::cluster::{Cluster, Plan};
use self::data_dir::DataDir;
use self::doors::Doors;
use crate::client::{Client, Credentials};
use crate::failure::Failure;
use crate::output::Output;
use crate::signals::EndSignals;

/// How often a start that takes long says what it waits for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest wait for the check of root's password.
const SIGN_IN_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs the command: until a signal, or until a part fails.
pub async fn run(args: UpArgs, output: &Output) -> Result<(), Failure> {
    if args.check_config {
        return check(&args, output);
    }
    let mut signals = EndSignals::listen()?;
    let plan = prepare(&args)?;
    let mut cluster = Cluster::new();
    let ended = serve(&args, plan, &mut cluster, &mut signals, output).await;
    if ended.is_ok() {
        tracing::info!("stopping; a second signal ends at once");
    }
    let stopped = tokio::select! {
        stopped = cluster.stop(args.stop_timeout) => stopped,
        signal = signals.next() => Err(Failure::interrupted(signal)),
    };
    // Why it ended says more than what did not finish afterwards.
    ended.and(stopped)
}

/// Says that the options are well, as far as that can be known without data and network.
fn check(args: &UpArgs, output: &Output) -> Result<(), Failure> {
    check_options(args)?;
    Doors::plan(args, args.storage_nodes.unwrap_or(1))?;
    let checked = Checked { ok: true };
    output.result(&checked, |_| "ok: options of `ptah up`".to_owned())
}

/// What `--check-config` answers.
#[derive(serde::Serialize)]
struct Checked {
    ok: bool,
}

/// Password and logs. Answers with the password that was asked for.
fn check_options(args: &UpArgs) -> Result<Option<String>, Failure> {
    let root_password = args.wanted_password()?;
    args::check_password(args, root_password.as_deref())?;
    let log = LogConfig {
        filter: args.log.clone(),
        format: match args.log_format {
            LogForm::Text => LogFormat::Text,
            LogForm::Json => LogFormat::Json,
        },
    };
    telemetry::init(&log).map_err(|error| Failure::usage(format!("--log: {error}")))?;
    Ok(root_password)
}

/// Looks at everything that can be wrong, then takes the directory.
fn prepare(args: &UpArgs) -> Result<Plan, Failure> {
    let root_password = check_options(args)?;
    let inspected = data_dir::inspect(&args.data_dir)?;
    let storage_nodes = inspected.storage_nodes(args.storage_nodes)?;
    let identities = identity::read(&inspected, storage_nodes, args.accept_lost_node)?;
    let disk = room::reserve(args);
    if inspected.is_new() {
        room::check(&args.data_dir, storage_nodes, &disk)?;
    }
    let doors = Doors::plan(args, storage_nodes)?;
    doors.try_all()?;
    let data_dir = inspected.take(storage_nodes)?;
    Ok(Plan {
        data_dir,
        doors,
        identities,
        root_password,
        disk,
    })
}

/// Starts, waits until all is ready, says so, and waits for the end.
async fn serve(
    args: &UpArgs,
    plan: Plan,
    cluster: &mut Cluster,
    signals: &mut EndSignals,
    output: &Output,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let started = tokio::select! {
        started = cluster.start(&plan) => started,
        _ = signals.next() => return Ok(()),
        () = tokio::time::sleep(args.start_timeout) => Err(late(args.start_timeout, &cluster_reasons(&[]))),
    };
    started?;
    let patience = Patience {
        begun,
        timeout: args.start_timeout,
        output,
    };
    tokio::select! {
        ready = patience.until_ready(cluster) => ready?,
        failure = cluster.failed() => return Err(cannot_go_on(&failure, true)),
        _ = signals.next() => return Ok(()),
    }
    check_root(&plan, cluster).await?;
    plan.data_dir.all_started()?;
    announce(args, &plan.data_dir, cluster, output)?;
    tokio::select! {
        _ = signals.next() => Ok(()),
        failure = cluster.failed() => Err(cannot_go_on(&failure, false)),
    }
}

/// A password that was asked for must be the one that root has. A cluster keeps the password that it was made with, and
/// nobody should believe that he changed it.
async fn check_root(plan: &Plan, cluster: &Cluster) -> Result<(), Failure> {
    let Some(password) = &plan.root_password else {
        return Ok(());
    };
    let server = cluster.client_address().parse().map_err(Failure::failed)?;
    let credentials = Credentials::new("root", password);
    let signed_in = async {
        Client::connect(server, &credentials, SIGN_IN_TIMEOUT)
            .await?
            .list_stations()
            .await
    };
    match signed_in.await {
        Err(error) if error.kind == ErrorKind::Unauthenticated => Err(Failure::cannot_start(format!(
            "root of the cluster in `{}` has another password than the one given; give the one that it was made with",
            plan.data_dir.path().display()
        ))),
        Err(error) => Err(Failure::cannot_start(format!(
            "sign in as root: {}",
            error.message
        ))),
        Ok(_) => Ok(()),
    }
}

fn announce(args: &UpArgs, data_dir: &DataDir, cluster: &Cluster, output: &Output) -> Result<(), Failure> {
    let announcement = Announcement::of(data_dir, &cluster.health.addresses(), cluster.cluster_id());
    output.result(&announcement, Announcement::text)?;
    if !args.is_loopback() {
        output.note(
            "note: the gRPC door is open to other machines and not encrypted; passwords and messages can be read on the \
             way, so keep it to a network that you trust",
        );
    }
    Ok(())
}

/// Waiting for everything to be ready, with words when it takes long.
struct Patience<'a> {
    begun: Instant,
    timeout: Duration,
    output: &'a Output,
}

impl Patience<'_> {
    async fn until_ready(&self, cluster: &Cluster) -> Result<(), Failure> {
        loop {
            let waiting = tokio::time::timeout(PATIENCE, cluster.health.until_ready());
            if waiting.await.is_ok() {
                return Ok(());
            }
            let reasons = cluster_reasons(&cluster.health.not_ready());
            if self.begun.elapsed() > self.timeout {
                return Err(late(self.timeout, &reasons));
            }
            self.output.note(&format!(
                "still starting after {} s: {reasons}",
                self.begun.elapsed().as_secs()
            ));
        }
    }
}

fn cluster_reasons(not_ready: &[NotReady]) -> String {
    if not_ready.is_empty() {
        return "services are opening their data".to_owned();
    }
    let reasons: Vec<_> = not_ready
        .iter()
        .map(|part| format!("{} ({})", part.component, part.reason))
        .collect();
    reasons.join(", ")
}

fn late(timeout: Duration, reasons: &str) -> Failure {
    Failure::cannot_start(format!(
        "not ready within {} s: {reasons}; wait longer with --start-timeout, or look at the log with --log info",
        timeout.as_secs()
    ))
}

fn cannot_go_on(failure: &ptah_service::TaskFailure, is_starting: bool) -> Failure {
    let message = format!("{} failed: {}", failure.task, failure.error);
    if is_starting {
        Failure::cannot_start(message)
    } else {
        Failure::failed(message)
    }
}
