//! Owns every decision: management calls, placement, reconciliation, authorization.
//!
//! Any number may run; the one that holds the lease in metadata decides, the others say so. It keeps no state of its
//! own: what is wanted is in metadata, what is comes from the storage nodes' reports, and one worker per node orders
//! the difference.
//!
//! Elsewhere: who leads a partition (the storage nodes tell gateways themselves), users' credentials (gateways).

pub mod app;
pub mod cluster;
pub mod config;
pub mod decide;
pub mod error;
mod grpc;
pub mod lease;
pub mod metrics;
pub mod nodes;
pub mod placement;
pub mod reconcile;
pub mod sync;
pub mod view;

pub use app::{ControlPlane, Deps, start};
pub use config::{Config, DEFAULT_ROOT_PASSWORD};
