//! The command line of Ptah.
//!
//! `ptah up` runs the four services in one process; every other command is a client of the public gRPC door.
//! Nothing of the cluster's logic lives here: `up` only starts the services together, the commands only ask and show.

pub mod args;
pub mod bench;
pub mod client;
pub mod command;
mod encoding;
pub mod failure;
pub mod output;
mod signals;
pub mod units;
pub mod up;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

use crate::args::{Cli, Command};
use crate::failure::Failure;
use crate::output::Output;

/// Reads the arguments, runs the command, reports its failure on stderr and answers with the exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let parsed = Cli::command()
        .try_get_matches_from(&arguments)
        .and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        // A script that asked for JSON gets its errors as JSON; help and version are no errors.
        Err(error) if error.use_stderr() && arguments.iter().any(|argument| argument == "--json") => {
            let failure = wrong_arguments(&error);
            Output::new(true).report(&failure);
            return ExitCode::from(failure.exit().code());
        }
        Err(error) => error.exit(),
    };
    let output = Output::new(cli.global.json);
    let result = args::check_placement(&matches, &cli).and_then(|()| run(cli, &output));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.report(&failure);
            ExitCode::from(failure.exit().code())
        }
    }
}

/// What is wrong with the arguments, without the usage lines that are for people.
fn wrong_arguments(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<_> = first.split_whitespace().collect();
    let message = words.join(" ");
    Failure::usage(message.strip_prefix("error: ").unwrap_or(&message))
}

fn run(cli: Cli, output: &Output) -> Result<(), Failure> {
    let is_server = matches!(cli.command, Command::Up(_));
    let mut builder = if is_server {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.max_blocking_threads(ptah_service::MAX_BLOCKING_THREADS);
        builder
    } else {
        // One thread: a client's work is small, and a hand-over between threads costs more than it saves.
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = builder
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("start the runtime: {error}")))?;
    let result = runtime.block_on(dispatch(cli, output));
    // A thread may still wait for a terminal or a pipe that never says anything; nobody needs its answer.
    runtime.shutdown_background();
    result
}

async fn dispatch(cli: Cli, output: &Output) -> Result<(), Failure> {
    let global = cli.global;
    match cli.command {
        Command::Up(args) => Box::pin(up::run(args, output)).await,
        Command::Station(args) => command::station::run(args, &global, output).await,
        Command::Produce(args) => Box::pin(command::produce::run(args, &global, output)).await,
        Command::Consume(args) => Box::pin(command::consume::run(args, &global, output)).await,
        Command::Cluster(args) => command::cluster::run(args, &global, output).await,
        Command::Node(args) => command::node::run(args, &global, output).await,
        Command::Bench(args) => Box::pin(bench::run(args, &global, output)).await,
    }
}
