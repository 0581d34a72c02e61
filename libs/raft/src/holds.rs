//! Positions of the log that must not be purged now, because a snapshot that ends there is on its way to a follower.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use ptah_types::{LogId, LogIndex};

/// The held positions of one replica.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    counts: Mutex<BTreeMap<LogIndex, usize>>,
}

impl Holds {
    /// Holds everything behind `at` until the guard is dropped.
    pub(crate) fn hold(self: &Arc<Self>, at: LogId) -> Hold {
        *self.counts.lock().entry(at.index).or_insert(0) += 1;
        Hold {
            owner: Arc::clone(self),
            index: at.index,
        }
    }

    /// The lowest held position: entries above it must stay.
    pub(crate) fn lowest(&self) -> Option<LogIndex> {
        self.counts.lock().keys().next().copied()
    }
}

/// A held position.
#[derive(Debug)]
pub(crate) struct Hold {
    owner: Arc<Holds>,
    index: LogIndex,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut counts = self.owner.counts.lock();
        if let Some(count) = counts.get_mut(&self.index) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.index);
            }
        }
    }
}
