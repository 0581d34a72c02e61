//! The control plane against a real metadata service and storage nodes that only pretend to store.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod fake_node;
mod harness;
mod leases;
mod nodes;
mod outages;
mod stations;
