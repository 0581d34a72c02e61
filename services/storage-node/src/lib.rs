//! Hosts partition replicas: append, fetch, consume, snapshot, repair.
//!
//! A request comes in through `grpc`, reaches the [`leader`] of its partition through [`node`], becomes a proposal in
//! `ptah-raft`, and is answered when it is applied. What the control plane wants is kept by [`placement`]; talk with it is
//! in [`control`].

mod app;
mod append;
mod budget;
pub mod config;
mod control;
mod deliver;
mod disk;
mod error;
mod grpc;
mod identity;
mod leader;
mod membership;
mod metrics;
mod node;
mod placement;
mod shared;
mod status;
mod steady;

pub use app::{Deps, Running, start};
pub use config::{Config, DiskConfig};
