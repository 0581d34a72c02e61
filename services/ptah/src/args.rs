//! Every command, option and default. The help texts are the reference.

use std::path::PathBuf;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Parser, Subcommand, ValueEnum};

use crate::failure::Failure;
use crate::units::{parse_duration, parse_size_bytes};

/// Bounds of a group's ack deadline, as the broker has them.
const MIN_ACK_DEADLINE: Duration = Duration::from_millis(100);
const MAX_ACK_DEADLINE: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Exit codes, shown below the help of the command.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed for a reason that has no number of its own
  2  the arguments or what they name are wrong; the same call fails again
  3  the server is not reachable or cannot do it now; nothing happened; try again
  4  the named thing does not exist
  5  a thing of that name exists and differs
  6  no or wrong credentials, or not allowed
  7  some messages were refused, or a verification found a difference
  8  it may or may not have happened
  9  `ptah up` cannot start here: a port, a directory or what lies in it
130  ended at once by a second signal";

/// Heading of the options that say where the server is and who calls.
const CONNECTION: &str = "Connection";

/// Ptah: stations, partitioned and replicated logs with consumer groups.
#[derive(Debug, Parser)]
#[command(name = "ptah", version, after_help = EXIT_CODES, max_term_width = 110)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Gateway to talk to, as host:port.
    #[arg(
        long,
        global = true,
        help_heading = CONNECTION,
        env = "PTAH_SERVER",
        default_value = "127.0.0.1:5555",
        value_name = "HOST:PORT"
    )]
    pub server: String,
    /// User to sign in as.
    #[arg(
        long,
        global = true,
        help_heading = CONNECTION,
        env = "PTAH_USER",
        default_value = "root",
        value_name = "NAME"
    )]
    pub user: String,
    /// Password of the user. Other users of the machine can see arguments: better use PTAH_PASSWORD or
    /// --password-file. Without one, `root` on a loopback server signs in with the password of a fresh `ptah up`.
    #[arg(
        long,
        global = true,
        help_heading = CONNECTION,
        env = "PTAH_PASSWORD",
        hide_env_values = true,
        value_name = "PASSWORD"
    )]
    pub password: Option<String>,
    /// File with the password; its last line end does not count.
    #[arg(long, global = true, help_heading = CONNECTION, value_name = "FILE", conflicts_with = "password")]
    pub password_file: Option<PathBuf>,
    /// Longest wait for an answer.
    #[arg(long, global = true, help_heading = CONNECTION, value_name = "TIME", default_value = "45s", value_parser = parse_timeout)]
    pub timeout: Duration,
    /// Print results as JSON, one object per line.
    #[arg(long, global = true)]
    pub json: bool,
}

/// Options that only make sense for a client of a running cluster.
const CLIENT_OPTIONS: [&str; 5] = ["server", "user", "password", "password_file", "timeout"];

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run all services in this process, with SQLite and a data directory.
    Up(crate::up::UpArgs),
    /// Make, list, show, change and delete stations.
    Station(StationArgs),
    /// Store one message per line of a file or of stdin.
    Produce(ProduceArgs),
    /// Write the messages of a consumer group to stdout, one per line.
    Consume(ConsumeArgs),
    /// Look at the cluster.
    Cluster(ClusterArgs),
    /// List, drain and forget storage nodes.
    Node(NodeArgs),
    /// Measure a running cluster.
    Bench(crate::bench::BenchArgs),
}

/// `ptah station`.
#[derive(Debug, Args)]
pub struct StationArgs {
    /// What to do with stations.
    #[command(subcommand)]
    pub command: StationCommand,
}

/// What to do with stations.
#[derive(Debug, Subcommand)]
pub enum StationCommand {
    /// Make a station. The same name with the same settings again is no error.
    Create(StationCreateArgs),
    /// List stations.
    Ls,
    /// Show one station and its partitions.
    Info {
        /// Name of the station.
        name: String,
    },
    /// Change settings of a station while it is used.
    Update(StationUpdateArgs),
    /// Delete a station and its messages.
    Rm(StationRmArgs),
}

/// `ptah station update`.
#[derive(Debug, Args)]
pub struct StationUpdateArgs {
    /// Name of the station.
    pub name: String,
    /// Replicas that every partition is to have: 1, 3 or 5.
    #[arg(long, value_name = "N")]
    pub replicas: u32,
    /// Wait until every replica is where it is to be, and show how far it is.
    #[arg(long)]
    pub wait: bool,
    /// Longest such wait.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_timeout)]
    pub wait_timeout: Duration,
}

/// `ptah station create`.
#[derive(Debug, Args)]
pub struct StationCreateArgs {
    /// Name: 1 to 128 letters, digits, `_`, `-` and `.`, with a letter, digit or `_` at both ends; upper and lower case
    /// are not told apart.
    pub name: String,
    /// Number of partitions.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub partitions: u32,
    /// Replicas of every partition: 1, 3 or 5.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub replicas: u32,
    /// Largest payload of one message, up to 64MiB.
    #[arg(long, default_value = "8MiB", value_name = "SIZE", value_parser = parse_size_bytes)]
    pub max_message_size: u64,
}

/// `ptah station rm`.
#[derive(Debug, Args)]
pub struct StationRmArgs {
    /// Name of the station.
    pub name: String,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
}

/// `ptah produce`.
#[derive(Debug, Args)]
pub struct ProduceArgs {
    /// Station.
    pub station: String,
    /// File to read; `-` or nothing means stdin. A line is a message; its line feed does not belong to it.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Lines are JSON objects; this member is the key. A string counts as its text, anything else as its JSON.
    #[arg(long, value_name = "NAME")]
    pub key_field: Option<String>,
    /// Partition, counted from 1. Without it the broker chooses by key; messages without a key go to the partitions in
    /// turn, many at a time.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub partition: Option<u32>,
    /// Name of the producer, stored with each message.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub producer: String,
    /// Most messages without an answer.
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub window: u32,
}

/// Where a new group starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Start {
    /// At the oldest message that is kept.
    First,
    /// Behind the newest message.
    End,
}

/// `ptah consume`.
#[derive(Debug, Args)]
pub struct ConsumeArgs {
    /// Station.
    pub station: String,
    /// Consumer group; made when it does not exist.
    #[arg(long, value_name = "NAME")]
    pub group: String,
    /// End after this many messages.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Go on when everything is delivered, and connect again when the connection is lost.
    #[arg(long)]
    pub follow: bool,
    /// Where the group starts if it has to be made.
    #[arg(long, value_enum, value_name = "WHERE")]
    pub start: Option<Start>,
    /// How long a message may stay unacknowledged before it is delivered again, if the group has to be made.
    #[arg(long, value_name = "TIME", value_parser = parse_ack_deadline)]
    pub ack_deadline: Option<Duration>,
    /// Most messages delivered ahead of being written.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub window: u32,
}

/// `ptah cluster`.
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// What to look at.
    #[command(subcommand)]
    pub command: ClusterCommand,
}

/// What to look at.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show nodes, and how many partitions are well.
    Status,
}

/// `ptah node`.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// What to do with nodes.
    #[command(subcommand)]
    pub command: NodeCommand,
}

/// What to do with nodes.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List storage nodes.
    Ls,
    /// Let leaders and replicas of a node move to other nodes, and give it no new ones.
    Drain(NodeDrainArgs),
    /// Take a draining node into service again.
    Undrain {
        /// Id of the node.
        node: u64,
    },
    /// Give a node that is not alive up for good. It can join again with an empty data directory.
    Forget(NodeForgetArgs),
}

/// `ptah node drain`.
#[derive(Debug, Args)]
pub struct NodeDrainArgs {
    /// Id of the node.
    pub node: u64,
    /// Wait until nothing is left on it, and show how far it is.
    #[arg(long)]
    pub wait: bool,
    /// Longest such wait.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_timeout)]
    pub wait_timeout: Duration,
}

/// `ptah node forget`.
#[derive(Debug, Args)]
pub struct NodeForgetArgs {
    /// Id of the node.
    pub node: u64,
    /// Forget it although it holds replicas: they are replaced where a majority is alive elsewhere, and what only it has
    /// is lost.
    #[arg(long)]
    pub accept_loss: bool,
}

/// The broker's own bounds of an ack deadline.
fn parse_ack_deadline(text: &str) -> Result<Duration, String> {
    let deadline = parse_duration(text)?;
    if deadline < MIN_ACK_DEADLINE || deadline > MAX_ACK_DEADLINE {
        return Err("must be 100ms to 7 days".to_owned());
    }
    Ok(deadline)
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let timeout = parse_duration(text)?;
    if timeout.is_zero() {
        return Err("must be longer than nothing".to_owned());
    }
    Ok(timeout)
}

/// Refuses client options that were typed for a command that is no client. Environment variables are left alone:
/// they stay set between commands.
pub fn check_placement(matches: &ArgMatches, cli: &Cli) -> Result<(), Failure> {
    if !matches!(cli.command, Command::Up(_)) {
        return Ok(());
    }
    let typed_at =
        |matches: &ArgMatches, id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    for id in CLIENT_OPTIONS {
        let sub = matches.subcommand().map(|(_, sub)| sub);
        if typed_at(matches, id) || sub.is_some_and(|sub| typed_at(sub, id)) {
            let option = id.replace('_', "-");
            return Err(Failure::usage(format!(
                "--{option} is for commands that talk to a running cluster; `ptah up` does not take it (see `ptah up --help`)"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory as _, FromArgMatches as _};

    fn parse(line: &str) -> Result<(ArgMatches, Cli), clap::Error> {
        let matches = Cli::command().try_get_matches_from(line.split_whitespace())?;
        let cli = Cli::from_arg_matches(&matches)?;
        Ok((matches, cli))
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_server_may_stand_before_and_behind_the_command() {
        for line in ["ptah --server a:1 station ls", "ptah station ls --server a:1"] {
            assert_eq!(parse(line).unwrap().1.global.server, "a:1");
        }
    }

    #[test]
    fn up_refuses_options_of_clients_instead_of_ignoring_them() {
        for line in ["ptah up --server a:1", "ptah --user x up", "ptah up --timeout 3s"] {
            let (matches, cli) = parse(line).unwrap();
            assert!(check_placement(&matches, &cli).is_err(), "{line}");
        }
        let (matches, cli) = parse("ptah up --json").unwrap();
        assert!(check_placement(&matches, &cli).is_ok());
    }

    #[test]
    fn a_password_comes_from_one_place() {
        assert!(parse("ptah station ls --password a --password-file b").is_err());
    }

    #[test]
    fn partitions_are_counted_from_1() {
        assert!(parse("ptah produce orders --partition 0").is_err());
        assert!(parse("ptah produce orders --partition 1").is_ok());
    }

    #[test]
    fn an_ack_deadline_of_nothing_is_refused() {
        assert!(parse("ptah consume orders --group a --ack-deadline 0").is_err());
        assert!(parse("ptah consume orders --group a --ack-deadline 250ms").is_ok());
    }
}
