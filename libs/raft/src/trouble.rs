//! What is wrong with a replica, noted where it is met and read where it is decided whether to start it again.

use parking_lot::Mutex;

/// The first thing that forbids a replica to go on; it stays until the replica is removed.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    text: Mutex<Option<String>>,
}

impl Trouble {
    /// Notes that stored data is damaged or contradicts itself. A damaged replica does not vote.
    pub(crate) fn damaged(&self, what: String) {
        let mut text = self.text.lock();
        if text.is_none() {
            tracing::error!(%what, "replica is damaged and stops");
            *text = Some(what);
        }
    }

    pub(crate) fn text(&self) -> Option<String> {
        self.text.lock().clone()
    }
}
