//! Store of record: stations, users, nodes, placements, groups; revisions and a watch stream.
//!
//! Everything that is not a message is here, behind one total order of transactions. Whoever changes something holds
//! the control plane's lease; whoever needs something lists it once and watches from there.
//!
//! Elsewhere: what the records mean and when they change (control plane), messages and who leads (storage nodes).

pub mod app;
pub mod config;
pub mod error;
mod grpc;
pub mod metrics;
pub mod store;
pub mod watch;

pub use app::{Deps, Metadata, start};
pub use config::Config;
