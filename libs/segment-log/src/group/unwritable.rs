//! Groups whose files cannot be written.
//!
//! An error of the file system may pass: the group keeps its write-ahead log, which may be the only copy, and takes no more
//! frames once it stands in the way of others. What is damaged for good is given up instead.

use std::io;

use super::{DAMAGE_MARKER, GroupLog};
use crate::disk::replace_file;
use crate::{Damage, ReadError};

/// Whether a flush failed because of damage on disk, which no retry mends.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<ReadError>());
    matches!(inner, Some(ReadError::Damaged(_)))
}

impl GroupLog {
    /// The group's files cannot be written, and others run out of write-ahead log or memory because of it.
    pub(crate) fn hold_up(&self, error: &io::Error) {
        if is_damage(error) {
            return self.give_up(error);
        }
        let why = error.to_string();
        let before = self.state.lock().unwritable.replace(why);
        if before.is_none() {
            tracing::error!(group = %self.spec.group.to_hex(), %error, "group takes no appends until its files can be written again");
        }
    }

    /// The group takes no more work, is damaged from the next start on, and does not hold the write-ahead log any more.
    fn give_up(&self, why: &io::Error) {
        let what = format!("given up because its files could not be written: {why}");
        let damage = Damage::new(&self.dir, 0, what);
        tracing::error!(group = %self.spec.group.to_hex(), %damage, "group is given up");
        let marker = self.dir.join(DAMAGE_MARKER);
        if let Err(error) = replace_file(&*self.shared.disk, &marker, &[damage.to_string().as_bytes()]) {
            tracing::error!(file = %marker.display(), %error, "damage of a group cannot be noted");
            return;
        }
        let mut state = self.state.lock();
        state.damage.push(damage);
        state.dropped = true;
        state.wal_files.clear();
        let record = state.next_record;
        state.tail.mark(|entry| entry.record < record);
        self.account(&mut state);
    }
}
