//! The metadata service as its clients see it: real servers on ports that the system chooses, a database on disk.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod harness;
mod postgres;
mod records;
mod restarts;
mod watches;
