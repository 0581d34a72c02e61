//! Tests of the whole crate on the simulated disk.

mod basic;
mod damage;
mod faults;
mod format;
mod groups;
pub(crate) mod harness;
mod install;
mod model;
mod os;
mod panics;
mod restart;
mod rounds;
