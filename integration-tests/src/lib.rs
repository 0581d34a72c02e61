//! Cluster harness and tests of the whole platform.
