//! Service shell: config, telemetry, health, signals, tracked tasks, shutdown.
//!
//! What every process of Ptah has in common, and nothing about messages. A service's `main` calls [`run`]; its
//! composition root takes a [`Shell`] and hands the parts down as values. Nothing here is global except the
//! subscriber of `tracing`.
//!
//! Elsewhere: gRPC and everything on the network between processes (`ptah-rpc`).

mod arguments;
mod blocking;
pub mod config;
mod error_text;
mod health;
mod metrics;
mod monitor;
mod ports;
mod ports_file;
mod shell;
mod tasks;
pub mod telemetry;

pub use arguments::Program;
pub use blocking::{Blocking, long_step};
pub use config::{
    ClusterConfig, ConfigError, List, LogConfig, LogFormat, MonitorConfig, Secret, Settings, ShutdownConfig,
};
pub use error_text::error_text;
pub use health::{Component, Health, NotReady};
pub use metrics::Metrics;
pub use monitor::{BindError, Monitor};
pub use ports::{Clock, ManualClock, Ports, Random, SeededRandom, SystemClock, SystemRandom};
pub use ports_file::write_ports_file;
pub use shell::{Ended, MAX_BLOCKING_THREADS, Running, Shell, main, run, serve};
pub use tasks::{Stopping, TaskFailure, TaskHandle, Tasks, Unfinished};

/// A future on the heap, as ports that are used through `dyn` return it.
pub type BoxFuture<'a, T> = futures_util::future::BoxFuture<'a, T>;
