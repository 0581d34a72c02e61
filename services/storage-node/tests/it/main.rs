//! Real storage nodes in this process, spoken to as gateways and control planes do: over gRPC, on free ports.

#![allow(
    clippy::unwrap_used,
    clippy::large_futures,
    reason = "tests may panic, and await whole conversations"
)]

mod append;
mod damage;
mod deliver;
mod harness;
mod placement;
mod reads;
mod replicated;
mod restart;
