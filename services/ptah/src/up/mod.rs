//! `ptah up`.
mod args;
mod data_dir;
mod doors;
mod network;
pub use args::UpArgs;
/// Run.
pub async fn run(_args: UpArgs, _output: &crate::output::Output) -> Result<(), crate::failure::Failure> {
    Ok(())
}
