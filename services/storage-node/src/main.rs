//! The storage node as a process of its own.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use ptah_rpc::{Network, TcpNetwork};
use ptah_service::Running;
use ptah_storage_node::{Config, Deps, start};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Hosts partition replicas of a Ptah cluster.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Settings, as TOML; every key can be set as PTAH_SECTION__KEY as well.
    #[arg(long, env = "PTAH_CONFIG")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    ptah_service::run(
        "storage-node",
        args.config.as_deref(),
        |config: Config, shell| async move {
            let network: Arc<dyn Network> = Arc::new(TcpNetwork::new());
            let running = start(config, Deps::from_shell(shell, network)).await?;
            Ok(Box::new(running) as Box<dyn Running>)
        },
    )
}
