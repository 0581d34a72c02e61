//! What is wrong with a replica, noted where it is met and read where it is decided whether to start it again.

use parking_lot::Mutex;

/// What forbids a replica to go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Damaged {
    pub(crate) what: String,
    /// Bytes on the disk are not what was written. It is noted there, so that no later start votes on them before
    /// somebody meets them again. What merely contradicts itself is met again by itself, or is healed by another build.
    pub(crate) on_disk: bool,
}

/// The first thing that forbids a replica to go on; it stays until the replica is removed.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    found: Mutex<Option<Damaged>>,
}

impl Trouble {
    /// Notes that stored data is damaged. A damaged replica does not vote.
    pub(crate) fn damaged(&self, what: String) {
        self.note(Damaged { what, on_disk: true });
    }

    /// Notes that stored data contradicts itself, or cannot be understood. Such a replica does not vote either.
    pub(crate) fn contradicts(&self, what: String) {
        self.note(Damaged { what, on_disk: false });
    }

    fn note(&self, damaged: Damaged) {
        let mut found = self.found.lock();
        match &mut *found {
            None => {
                tracing::error!(what = %damaged.what, "replica is damaged and stops");
                *found = Some(damaged);
            }
            Some(first) => first.on_disk |= damaged.on_disk,
        }
    }

    pub(crate) fn found(&self) -> Option<Damaged> {
        self.found.lock().clone()
    }
}
