//! The process `ptah-control-plane`.

use std::process::ExitCode;
use std::sync::Arc;

use ptah_control_plane::{Config, Deps};
use ptah_rpc::TcpNetwork;
use ptah_service::{Program, Running};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let program = Program {
        name: "control-plane",
        about: "Decides in a Ptah cluster: management calls, placement, repair.",
    };
    ptah_service::main(program, |config: Config, shell| async move {
        let deps = Deps::from_shell(shell, Arc::new(TcpNetwork::new()));
        let running = ptah_control_plane::start(config, deps).await?;
        Ok(Box::new(running) as Box<dyn Running>)
    })
}
