//! The storage node as a process of its own.

use std::process::ExitCode;
use std::sync::Arc;

use ptah_rpc::{Network, TcpNetwork};
use ptah_service::{Program, Running};
use ptah_storage_node::{Config, Deps, start};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let program = Program {
        name: "storage-node",
        about: "Hosts partition replicas of a Ptah cluster.",
    };
    ptah_service::main(program, |config: Config, shell| async move {
        let network: Arc<dyn Network> = Arc::new(TcpNetwork::new());
        let running = start(config, Deps::from_shell(shell, network)).await?;
        Ok(Box::new(running) as Box<dyn Running>)
    })
}
