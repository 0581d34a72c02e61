//! The process `ptah-metadata`.

use std::process::ExitCode;
use std::sync::Arc;

use ptah_metadata::{Config, Deps};
use ptah_rpc::TcpNetwork;
use ptah_service::{Program, Running};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let program = Program {
        name: "metadata",
        about: "Store of record of a Ptah cluster.",
    };
    ptah_service::main(program, |config: Config, shell| async move {
        let deps = Deps::from_shell(shell, Arc::new(TcpNetwork::new()));
        let running = ptah_metadata::start(config, deps).await?;
        Ok(Box::new(running) as Box<dyn Running>)
    })
}
