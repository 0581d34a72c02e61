//! The only door for clients: gRPC.
//!
//! Messages in: [`produce`] sorts them by partition, [`append`] stores them in order and once. Messages out: [`consume`].
//! Management: [`stations`], [`cluster`], decided by the control plane behind [`control`].
//! What all of them stand on: [`catalog`] (what exists) and [`routing`] (who leads), which work while metadata and control
//! plane are down; [`auth`] (who calls).
//!
//! The gateway owns no durable state: any number may run.

pub mod app;
pub mod append;
pub mod auth;
pub mod catalog;
pub mod cluster;
pub mod config;
pub mod consume;
pub mod control;
pub mod error;
pub mod grpc;
pub mod leaders;
pub mod metrics;
pub mod produce;
pub mod routing;
pub mod stations;

pub use app::{Deps, Gateway, start};
pub use config::Config;
