//! A private PostgreSQL server for tests: its own directory, its own port, gone with the test.
//!
//! - The server is the real one, with fsync on; initdb refuses root, so then it runs as an unprivileged user.
//! - A small shell watches over it: when the test's process is gone, however that went, it ends the server and deletes
//!   the directory. So a server may be kept in a static for all tests of a program.
//! - A server that is dropped by a test that fails keeps its directory, and says where.
//!
//! This crate is for tests only, and has no SQL client of its own: questions go through `psql`.

mod programs;
mod server;

use std::time::Duration;

pub use server::{PASSWORD, Server, USER};

/// Longest wait for anything that should happen soon. Generous, because machines are shared.
const SOON: Duration = Duration::from_secs(60);
