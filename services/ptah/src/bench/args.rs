//! Options of `ptah bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::payload::MIN_SIZE_BYTES;
use crate::failure::Failure;
use crate::units::{parse_count, parse_size_bytes};

/// `ptah bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to measure.
    #[command(subcommand)]
    pub command: BenchCommand,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Store messages as fast as the server takes them, or one at a time; then read back and verify every one.
    Produce(BenchProduceArgs),
}

/// `ptah bench produce`.
#[derive(Debug, Clone, Args)]
pub struct BenchProduceArgs {
    /// Messages of all connections together.
    #[arg(long, default_value = "1M", value_name = "N", value_parser = parse_count)]
    pub messages: u64,
    /// Payload of a message; at least 24 bytes, so that it can carry who sent it, its number and a checksum.
    #[arg(long, default_value = "128", value_name = "SIZE", value_parser = parse_size_bytes)]
    pub size: u64,
    /// Most messages without an answer, per connection.
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub window: u32,
    /// Most messages that leave together; a quarter of the window unless given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16_384))]
    pub batch: Option<u32>,
    /// Connections, each with a producer of its own.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub connections: u32,
    /// Most messages a second, of all connections together; as many as the server takes unless given.
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub rate: Option<u64>,
    /// Give messages one of this many keys, in turn; without it they have none.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub keys: Option<u32>,
    /// Station to use, made if it is not there and kept afterwards. Without it, one is made and deleted.
    #[arg(long, value_name = "NAME")]
    pub station: Option<String>,
    /// Partitions of the station.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub partitions: u32,
    /// Replicas of every partition.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub replicas: u32,
    /// One message at a time: the time from sending it to its answer.
    #[arg(long, conflicts_with_all = ["window", "batch", "connections"])]
    pub latency: bool,
    /// Beside every message, write as many bytes to a file in this directory and wait until they are on the disk:
    /// what the disk alone takes, measured in the same moments.
    #[arg(long, value_name = "DIR", requires = "latency")]
    pub disk_probe: Option<PathBuf>,
    /// Server processes whose CPU time is counted, as numbers with commas between.
    #[arg(long, value_name = "PID,..", value_delimiter = ',')]
    pub pids: Vec<u32>,
    /// Metrics pages of the storage nodes; the fsyncs of all are counted.
    #[arg(long, value_name = "URL", num_args = 1..)]
    pub metrics: Vec<String>,
    /// Counters of fsyncs on those pages.
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', default_values = super::scrape::FSYNC_COUNTERS)]
    pub fsync_counters: Vec<String>,
}

impl BenchProduceArgs {
    /// What clap cannot check.
    pub(super) fn validate(&self) -> Result<(), Failure> {
        if self.messages == 0 {
            return Err(Failure::usage("--messages must be at least 1"));
        }
        if self.rate == Some(0) {
            return Err(Failure::usage("--rate must be at least 1"));
        }
        if self.size < MIN_SIZE_BYTES as u64 || self.size > ptah_types::limits::MAX_MESSAGE_BYTES {
            return Err(Failure::usage(format!(
                "--size must be {MIN_SIZE_BYTES} bytes to 64 MiB, not {} bytes",
                self.size
            )));
        }
        Ok(())
    }
}
