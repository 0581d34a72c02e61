//! The only crate that sees openraft: log store, state machine, multiplexed network, group host.
