//! Ports to the outside that decide what a run does: wall-clock time and randomness.
//!
//! Code that must be repeatable under simulation takes [`Ports`] and reads neither the system clock nor a random
//! generator. Monotonic time and sleeping come from `tokio::time`, which the simulation steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use ptah_types::Timestamp;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::blocking::Blocking;

/// Wall-clock time. May jump, also backwards: whoever needs order brings its own.
pub trait Clock: Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// Source of random numbers for jitter and ids. Not for keys or passwords unless it is [`SystemRandom`].
pub trait Random: Send + Sync + 'static {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);

    /// A number from the whole range.
    fn next_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A number below `bound`; 0 when `bound` is 0. The bias is below `bound / 2^64`.
    fn below(&self, bound: u64) -> u64 {
        let wide = u128::from(self.next_u64()) * u128::from(bound);
        (wide >> 64) as u64
    }
}

/// Clock of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is the port to the system clock")]
    fn now(&self) -> Timestamp {
        // A clock before 1970 is a clock that was never set: time 0 is as wrong as any other.
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// A clock that moves only when told to.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// A clock that shows `now`.
    pub fn new(now: Timestamp) -> Self {
        Self(AtomicU64::new(now.0))
    }

    /// Shows `now` from here on; may go backwards.
    pub fn set(&self, now: Timestamp) {
        self.0.store(now.0, Ordering::SeqCst);
    }

    /// Moves on by `by`.
    pub fn advance(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanos, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

/// Randomness of the operating system, by way of a generator per thread that is fit for keys.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&self, bytes: &mut [u8]) {
        rand::rng().fill_bytes(bytes);
    }
}

/// The same numbers for the same seed.
#[derive(Debug)]
pub struct SeededRandom(Mutex<SmallRng>);

impl SeededRandom {
    /// Starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(SmallRng::seed_from_u64(seed)))
    }
}

impl Random for SeededRandom {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().fill_bytes(bytes);
    }
}

/// The ports that every service takes.
#[derive(Clone)]
pub struct Ports {
    /// Wall-clock time.
    pub clock: Arc<dyn Clock>,
    /// Random numbers.
    pub random: Arc<dyn Random>,
    /// Where blocking work runs.
    pub blocking: Blocking,
}

impl Ports {
    /// Those of the machine.
    pub fn system() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            random: Arc::new(SystemRandom),
            blocking: Blocking::Threads,
        }
    }

    /// The machine's clock, and random numbers from a seed.
    pub fn seeded(seed: u64) -> Self {
        Self {
            clock: Arc::new(SystemClock),
            random: Arc::new(SeededRandom::new(seed)),
            blocking: Blocking::Threads,
        }
    }
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ports").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let (a, b) = (SeededRandom::new(7), SeededRandom::new(7));
        let numbers = |random: &SeededRandom| (0..10).map(|_| random.next_u64()).collect::<Vec<_>>();
        assert_eq!(numbers(&a), numbers(&b));
        assert_ne!(numbers(&a), numbers(&SeededRandom::new(8)));
    }

    #[test]
    fn bounded_numbers_stay_below_their_bound() {
        let random = SeededRandom::new(1);
        let drawn: Vec<u64> = (0..1_000).map(|_| random.below(3)).collect();
        assert!(drawn.iter().all(|n| *n < 3));
        assert!((0..3).all(|n| drawn.contains(&n)));
        assert_eq!(random.below(0), 0);
    }

    #[test]
    fn a_manual_clock_moves_only_when_told_to() {
        let clock = ManualClock::new(Timestamp::from_millis(5));
        assert_eq!(clock.now(), clock.now());
        clock.advance(Duration::from_millis(2));
        assert_eq!(clock.now(), Timestamp::from_millis(7));
    }

    #[test]
    fn the_system_clock_is_after_2024() {
        assert!(SystemClock.now() > Timestamp::from_millis(1_704_067_200_000));
    }
}
