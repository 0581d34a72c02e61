//! A bound on bytes that many holders share; what is held goes back when its permit is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that may be held at once. Cheap to clone: all clones share the bound.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit_bytes: u64,
    held_bytes: AtomicU64,
}

/// Bytes that are held; given back when dropped.
#[derive(Debug)]
#[must_use = "the bytes are given back when the permit is dropped"]
pub(crate) struct Permit {
    budget: Budget,
    bytes: u64,
}

impl Budget {
    /// A budget of `limit_bytes`.
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self(Arc::new(Shared {
            limit_bytes,
            held_bytes: AtomicU64::new(0),
        }))
    }

    /// Takes `bytes`, or nothing when the limit would be exceeded. Something larger than the whole budget is let
    /// through when nothing else is held, so that it cannot be stuck for ever.
    pub(crate) fn try_take(&self, bytes: u64) -> Option<Permit> {
        let limit = self.0.limit_bytes;
        let taken = self
            .0
            .held_bytes
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| {
                let after = held.checked_add(bytes)?;
                (after <= limit || held == 0).then_some(after)
            });
        taken.ok().map(|_| Permit {
            budget: self.clone(),
            bytes,
        })
    }

    /// Bytes held now.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.0.held_bytes.load(Ordering::Acquire)
    }
}

impl Permit {
    /// Bytes that this permit holds.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.0.held_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_can_be_taken_again() {
        let budget = Budget::new(10);
        let first = budget.try_take(6).unwrap();
        assert!(budget.try_take(5).is_none());
        drop(first);
        assert_eq!(budget.try_take(10).unwrap().bytes(), 10);
        assert_eq!(budget.held_bytes(), 0);
    }

    #[test]
    fn something_larger_than_the_budget_passes_alone() {
        let budget = Budget::new(10);
        let large = budget.try_take(11).unwrap();
        assert!(budget.try_take(1).is_none());
        drop(large);
        let small = budget.try_take(1).unwrap();
        assert!(budget.try_take(11).is_none());
        drop(small);
    }
}
