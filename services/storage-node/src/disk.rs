//! Keeps room on the data disk: new messages are refused before the disk is full, so that acknowledgements, votes and
//! checkpoints still fit and the node recovers by itself when there is room again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::config::DiskConfig;

/// The disk must have this much more than at the refusal before messages are taken again: one part in this many of its size.
const RECOVERY_PART: u64 = 50;

/// Room on the data disk as last seen. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct DiskGuard(Arc<Guard>);

#[derive(Debug)]
struct Guard {
    config: DiskConfig,
    full: AtomicBool,
    total_bytes: AtomicU64,
    free_bytes: AtomicU64,
    needed_bytes: AtomicU64,
}

/// A change of the guard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DiskChange {
    /// As before.
    None,
    /// New messages are refused from now on.
    Full,
    /// New messages are taken again.
    Recovered,
}

impl DiskGuard {
    /// A guard that lets everything pass until it has seen the disk.
    pub(crate) fn new(config: DiskConfig) -> Self {
        Self(Arc::new(Guard {
            config,
            full: AtomicBool::new(false),
            total_bytes: AtomicU64::new(0),
            free_bytes: AtomicU64::new(0),
            needed_bytes: AtomicU64::new(0),
        }))
    }

    /// Whether new messages are refused.
    pub(crate) fn is_full(&self) -> bool {
        self.0.full.load(Ordering::Relaxed)
    }

    /// Size of the disk and free bytes as last seen.
    pub(crate) fn seen(&self) -> (u64, u64) {
        (
            self.0.total_bytes.load(Ordering::Relaxed),
            self.0.free_bytes.load(Ordering::Relaxed),
        )
    }

    /// Bytes that must be free for messages to be taken, as of the last look; more while they are refused.
    pub(crate) fn needed_bytes(&self) -> u64 {
        self.0.needed_bytes.load(Ordering::Relaxed)
    }

    /// Takes a look at the disk.
    pub(crate) fn observe(&self, total_bytes: u64, free_bytes: u64) -> DiskChange {
        self.0.total_bytes.store(total_bytes, Ordering::Relaxed);
        self.0.free_bytes.store(free_bytes, Ordering::Relaxed);
        let least = self.0.config.needed_bytes(total_bytes);
        let to_recover = least.saturating_add(total_bytes / RECOVERY_PART);
        let was_full = self.is_full();
        let full = free_bytes < if was_full { to_recover } else { least };
        let needed = if full { to_recover } else { least };
        self.0.needed_bytes.store(needed, Ordering::Relaxed);
        self.0.full.store(full, Ordering::Relaxed);
        match (was_full, full) {
            (false, true) => DiskChange::Full,
            (true, false) => DiskChange::Recovered,
            _ => DiskChange::None,
        }
    }
}

impl DiskConfig {
    /// Bytes that must be free on a disk of `total_bytes` for new messages to be taken.
    pub fn needed_bytes(&self, total_bytes: u64) -> u64 {
        let by_share = total_bytes / 100 * (100 - u64::from(self.full_percent.min(100)));
        by_share.min(self.enough_bytes).max(self.reserve_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> DiskGuard {
        DiskGuard::new(DiskConfig {
            full_percent: 90,
            reserve_bytes: 50,
            enough_bytes: 10_000,
        })
    }

    #[test]
    fn messages_are_refused_above_the_share_and_taken_again_with_some_room_to_spare() {
        let guard = guard();
        assert_eq!(guard.observe(1_000, 100), DiskChange::None);
        assert_eq!(guard.observe(1_000, 99), DiskChange::Full);
        assert!(guard.is_full());
        assert_eq!(guard.needed_bytes(), 120);
        assert_eq!(guard.observe(1_000, 110), DiskChange::None);
        assert_eq!(guard.observe(1_000, 120), DiskChange::Recovered);
        assert_eq!(guard.needed_bytes(), 100);
    }

    #[test]
    fn a_small_disk_keeps_the_reserve_and_a_huge_one_no_more_than_enough() {
        let guard = guard();
        assert_eq!(guard.observe(100, 49), DiskChange::Full);
        let guard = self::guard();
        assert_eq!(guard.observe(1_000_000, 10_000), DiskChange::None);
        assert_eq!(guard.observe(1_000_000, 9_999), DiskChange::Full);
    }
}
