//! One file per command.

pub mod cluster;
pub mod consume;
pub mod node;
pub mod produce;
pub mod station;
