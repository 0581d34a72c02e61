//! A private PostgreSQL server for the cluster's metadata; see `ptah-test-postgres`.

pub use ptah_test_postgres::{PASSWORD, Server, USER};
