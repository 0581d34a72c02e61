//! Real servers and channels over real networks.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not know as tests"
)]

mod budget;
mod calls;
mod half_open;
mod hostile;
mod lifecycle;
mod support;
