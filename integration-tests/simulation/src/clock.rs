//! Wall clocks that differ from host to host.

use std::sync::atomic::{AtomicI64, Ordering};

use ptah_service::Clock;
use ptah_types::Timestamp;

/// Start of simulated time, in milliseconds since 1970: 2026-01-01.
const EPOCH_MS: u64 = 1_767_225_600_000;

/// Simulated time plus an offset that a test may change.
#[derive(Debug, Default)]
pub struct SimClock {
    offset_ms: AtomicI64,
}

impl SimClock {
    /// A clock that is `offset_ms` milliseconds ahead (or behind).
    pub fn with_offset(offset_ms: i64) -> Self {
        Self {
            offset_ms: AtomicI64::new(offset_ms),
        }
    }

    /// Steps the clock to another offset.
    pub fn step_to(&self, offset_ms: i64) {
        self.offset_ms.store(offset_ms, Ordering::SeqCst);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        // Outside of a simulated host there is no time; services only run inside.
        let elapsed = turmoil::sim_elapsed().unwrap_or_default();
        let base = Timestamp::from_millis(EPOCH_MS).0 + elapsed.as_nanos() as u64;
        Timestamp(base.saturating_add_signed(self.offset_ms.load(Ordering::SeqCst) * 1_000_000))
    }
}
