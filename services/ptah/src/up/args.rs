//! Options of `ptah up`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::client::{DEFAULT_ROOT_PASSWORD, read_password};
use crate::failure::Failure;
use crate::units::{parse_duration, parse_size_bytes};

/// Most storage nodes in one process.
pub(super) const MAX_STORAGE_NODES: u32 = 32;
/// Shortest password of root, except the default one.
const SHORTEST_PASSWORD: usize = 8;

/// `ptah up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// Where everything is kept: metadata, messages and the cluster's secret. Made when it does not exist.
    #[arg(
        long,
        env = "PTAH_UP_DATA_DIR",
        default_value = "ptah-data",
        value_name = "DIR"
    )]
    pub data_dir: PathBuf,
    /// Storage nodes, each with its own directory and cluster port; three make replicated stations work on one
    /// machine. Without it as many as the directory has, one in a new directory. May grow between starts.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_STORAGE_NODES)))]
    pub storage_nodes: Option<u32>,
    /// Address of this machine where clients come in. Anything but loopback needs a root password of your own.
    #[arg(long, env = "PTAH_BIND", default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub bind: IpAddr,
    /// Address of the monitor and metrics pages, which ask for no credentials.
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub monitor_bind: IpAddr,
    /// Added to every port, so that several clusters fit on one machine.
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub port_offset: u16,
    /// Let the system choose every port; the ready line tells them.
    #[arg(long, conflicts_with = "port_offset")]
    pub ephemeral_ports: bool,
    /// Password of `root` in a new cluster, at least 8 characters; it has to be the same at later starts. Other users of the machine can see arguments: better use
    /// PTAH_ROOT_PASSWORD or --root-password-file.
    #[arg(
        long,
        env = "PTAH_ROOT_PASSWORD",
        hide_env_values = true,
        value_name = "PASSWORD"
    )]
    pub root_password: Option<String>,
    /// File with the password of `root`; its last line end does not count.
    #[arg(long, value_name = "FILE", conflicts_with = "root_password")]
    pub root_password_file: Option<PathBuf>,
    /// What is logged to stderr: a level, or levels by module such as `info,ptah_raft=debug`.
    #[arg(
        long,
        env = "PTAH_LOG",
        default_value = "warn,openraft=off",
        value_name = "FILTER"
    )]
    pub log: String,
    /// Form of log lines.
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    pub log_format: LogForm,
    /// Room that stays free on the disk: with less, new messages are refused. A tenth of the disk, and at least 512 MiB,
    /// unless given.
    #[arg(long, value_name = "SIZE", value_parser = parse_size_bytes)]
    pub disk_reserve: Option<u64>,
    /// Start although the data of a storage node is gone, with an empty directory in its place. Its replicas stay lost.
    #[arg(long)]
    pub accept_lost_node: bool,
    /// Look at options, environment and password file without touching data or network, say `ok` or what is wrong, and end.
    #[arg(long)]
    pub check_config: bool,
    /// Give up when not everything is ready by then.
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = parse_duration)]
    pub start_timeout: Duration,
    /// Longest time to finish accepted work when asked to stop.
    #[arg(long, default_value = "20s", value_name = "TIME", value_parser = parse_duration)]
    pub stop_timeout: Duration,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogForm {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl UpArgs {
    /// The password that was asked for; `None` leaves the choice to what is safe.
    pub(super) fn wanted_password(&self) -> Result<Option<String>, Failure> {
        let password = match (&self.root_password, &self.root_password_file) {
            (Some(password), _) => password.clone(),
            (None, Some(path)) => read_password(path)?,
            (None, None) => return Ok(None),
        };
        let is_short = password.chars().count() < SHORTEST_PASSWORD;
        if is_short && password != DEFAULT_ROOT_PASSWORD {
            return Err(Failure::usage(format!(
                "the root password is too short; set PTAH_ROOT_PASSWORD to at least {SHORTEST_PASSWORD} characters"
            )));
        }
        Ok(Some(password))
    }

    /// Whether only this machine can reach the door for clients.
    pub(super) fn is_loopback(&self) -> bool {
        self.bind.is_loopback()
    }
}

/// Refuses a door that others can reach while the password is the one that everybody knows.
pub(super) fn check_password(args: &UpArgs, wanted: Option<&str>) -> Result<(), Failure> {
    if args.is_loopback() || wanted.is_some_and(|password| password != DEFAULT_ROOT_PASSWORD) {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "--bind {} lets other machines in, and everybody knows the default password of root; \
         set PTAH_ROOT_PASSWORD or --root-password-file to a password of your own",
        args.bind
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: UpArgs,
    }

    fn args(line: &str) -> UpArgs {
        Line::try_parse_from(line.split_whitespace()).unwrap().args
    }

    #[test]
    fn a_door_for_others_needs_a_password_of_its_own() {
        let open = args("up --bind 0.0.0.0");
        assert!(
            check_password(&open, None)
                .unwrap_err()
                .message()
                .unwrap()
                .contains("PTAH_ROOT_PASSWORD")
        );
        assert!(check_password(&open, Some(DEFAULT_ROOT_PASSWORD)).is_err());
        assert!(check_password(&open, Some("of my own")).is_ok());
    }

    #[test]
    fn a_short_password_is_refused_before_anything_is_made() {
        assert!(args("up --root-password 1234567").wanted_password().is_err());
        assert!(args("up --root-password 12345678").wanted_password().is_ok());
        assert_eq!(args("up").wanted_password().unwrap(), None);
    }

    #[test]
    fn loopback_needs_none() {
        for line in ["up", "up --bind 127.0.0.2", "up --bind ::1"] {
            assert!(check_password(&args(line), None).is_ok(), "{line}");
        }
    }

    #[test]
    fn ports_are_either_moved_or_chosen_by_the_system() {
        assert!(Line::try_parse_from(["up", "--ephemeral-ports", "--port-offset", "1"]).is_err());
        assert!(Line::try_parse_from(["up", "--storage-nodes", "0"]).is_err());
    }
}
