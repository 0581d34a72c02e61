//! The process `ptah-control-plane`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use ptah_control_plane::{Config, Deps};
use ptah_rpc::TcpNetwork;
use ptah_service::Running;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Control plane of a ptah cluster.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Settings file (TOML); `PTAH_...` variables go on top.
    #[arg(long, short, env = "PTAH_CONFIG")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    ptah_service::run(
        "control-plane",
        args.config.as_deref(),
        |config: Config, shell| async move {
            let deps = Deps::from_shell(shell, Arc::new(TcpNetwork::new()));
            let running = ptah_control_plane::start(config, deps).await?;
            Ok(Box::new(running) as Box<dyn Running>)
        },
    )
}
