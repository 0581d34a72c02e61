//! Time for ack deadlines: runs evenly even when the wall clock is set.
//!
//! Leases live in the leader's memory only, so their times need no relation to other machines; a wall clock that jumps
//! must neither deliver everything again nor hold messages back.

use std::time::Duration;

use ptah_types::Timestamp;
use tokio::time::Instant;

/// A clock of this process: the wall-clock time at its start plus the time that has passed since.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SteadyClock {
    origin: Instant,
    base: Timestamp,
}

impl SteadyClock {
    /// Starts at `base`.
    pub(crate) fn new(base: Timestamp) -> Self {
        Self {
            origin: Instant::now(),
            base,
        }
    }

    /// Now.
    pub(crate) fn now(&self) -> Timestamp {
        let passed = u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Timestamp(self.base.0.saturating_add(passed))
    }

    /// When this clock shows `time`.
    pub(crate) fn instant_of(&self, time: Timestamp) -> Instant {
        self.origin + Duration::from_nanos(time.0.saturating_sub(self.base.0))
    }
}
