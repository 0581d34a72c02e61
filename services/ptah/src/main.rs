//! The one command people type: `ptah up`, stations, produce, consume, bench.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ptah::main(std::env::args_os())
}
