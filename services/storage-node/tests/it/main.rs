//! Real storage nodes in this process, spoken to as gateways and control planes do: over gRPC, on free ports.

#![allow(clippy::large_futures, reason = "tests await whole conversations")]

mod append;
mod deliver;
mod harness;
mod placement;
mod reads;
mod replicated;
mod restart;
