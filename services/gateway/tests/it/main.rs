//! The gateway between fakes of the other services.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod acks;
mod auth;
mod catalog;
mod cluster;
mod consume;
mod faults;
mod limits;
mod produce;
mod support;
