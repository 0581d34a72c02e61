//! Where a snapshot install is built: a directory of its own, whose number is never used again while the process lives.
//!
//! So neither an install that was given up nor one into a group that was dropped and made anew can write into another one.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::GroupLog;
use super::meta::data_dir;
use super::state::GroupState;
use crate::InstallError;

/// The turn of one install, and its directory. Dropping it gives both back.
pub(super) struct Staging {
    group: Arc<GroupLog>,
    number: u64,
    /// Set before a meta slot may name the directory: it is not removed any more.
    kept: AtomicBool,
}

impl Staging {
    /// Takes the group's turn. The caller holds the group's state.
    pub(super) fn take(group: &Arc<GroupLog>, state: &mut GroupState) -> Result<Self, InstallError> {
        if state.staging || state.installing {
            return Err(InstallError::Busy);
        }
        state.staging = true;
        let number = group.shared.dir_numbers.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Self {
            group: group.clone(),
            number,
            kept: AtomicBool::new(false),
        })
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn dir(&self) -> PathBuf {
        data_dir(&self.group.dir, self.number)
    }

    pub(super) fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let mut state = self.group.state.lock();
        state.staging = false;
        if !self.kept.load(Ordering::Relaxed) {
            // Not here: whoever drops an install does not expect to wait for the disk. The next round removes it.
            state.given_up.push(self.dir());
        }
    }
}

impl GroupLog {
    /// Removes the directories of installs that were given up. The caller holds `io`.
    pub(super) fn remove_given_up(&self) -> io::Result<()> {
        let dirs = std::mem::take(&mut self.state.lock().given_up);
        for (number, dir) in dirs.iter().enumerate() {
            self.shared.files.forget_under(dir);
            match self.shared.disk.remove_dir_all(dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    self.state.lock().given_up.extend_from_slice(&dirs[number..]);
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    }
}
