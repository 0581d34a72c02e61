//! Tests of the whole crate on the simulated disk.

mod harness;
mod model;
mod basic;
