//! Noting damage for good.

use std::io;

use super::{DAMAGE_MARKER, GroupLog};
use crate::Damage;
use crate::disk::replace_file;

impl GroupLog {
    /// Notes durably that the group is damaged: from the next start on it is kept, reported and not used. Blocking.
    pub fn note_damage(&self, what: &str) -> io::Result<()> {
        let marker = self.dir.join(DAMAGE_MARKER);
        replace_file(&*self.shared.disk, &marker, &[what.as_bytes()])?;
        self.state.lock().damage.push(Damage::new(&self.dir, 0, what));
        Ok(())
    }
}
