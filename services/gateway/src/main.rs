//! The gateway as a process of its own.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;
use ptah_gateway::{Config, Deps};
use ptah_rpc::{Network, TcpNetwork};
use ptah_service::Running;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The only door for clients.
#[derive(Parser)]
#[command(name = "ptah-gateway", version)]
struct Args {
    /// Settings file (TOML). Every setting can also come from the environment, as `PTAH_SECTION__KEY`.
    #[arg(long, env = "PTAH_CONFIG")]
    config: Option<PathBuf>,
}

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    ptah_service::run(
        "gateway",
        args.config.as_deref(),
        |config: Config, shell| async move {
            let network: Arc<dyn Network> = Arc::new(TcpNetwork::new());
            let gateway = ptah_gateway::start(config, Deps::from_shell(shell, network)).await?;
            Ok(Box::new(gateway) as Box<dyn Running>)
        },
    )
}
