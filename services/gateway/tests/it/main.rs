//! The gateway between fakes of the other services.

mod auth;
mod catalog;
mod consume;
mod faults;
mod produce;
mod support;
