//! The gateway as a process of its own.

use std::sync::Arc;

use ptah_gateway::{Config, Deps};
use ptah_rpc::{Network, TcpNetwork};
use ptah_service::{Program, Running};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    let program = Program {
        name: "gateway",
        about: "The door of a Ptah cluster for clients.",
    };
    ptah_service::main(program, |config: Config, shell| async move {
        let network: Arc<dyn Network> = Arc::new(TcpNetwork::new());
        let gateway = ptah_gateway::start(config, Deps::from_shell(shell, network)).await?;
        Ok(Box::new(gateway) as Box<dyn Running>)
    })
}
