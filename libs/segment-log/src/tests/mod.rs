//! Tests of the whole crate on the simulated disk.

mod basic;
mod harness;
mod model;
