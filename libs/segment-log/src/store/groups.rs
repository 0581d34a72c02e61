//! Making, dropping and setting aside groups.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ptah_types::{RaftGroupId, ReplicaId};

use super::known::Presence;
use super::{Inner, Shared, Store};
use crate::GroupError;
use crate::disk::parent;
use crate::group::{GroupLog, GroupState, MetaImage, data_dir, slot_name};
use crate::types::{CommitOutcome, GroupSpec, LargeOutcome};

/// Directory of all groups.
pub(super) fn groups_dir(dir: &Path) -> PathBuf {
    dir.join("g")
}

pub(super) fn group_dir(dir: &Path, group: RaftGroupId) -> PathBuf {
    groups_dir(dir).join(group.to_hex())
}

fn io_error(action: &'static str, group: RaftGroupId) -> impl FnOnce(io::Error) -> GroupError {
    move |source| GroupError::Io {
        action,
        group,
        source,
    }
}

impl Store {
    /// Makes a group; durable when this returns. Blocking.
    pub fn create_group(&self, spec: GroupSpec) -> Result<Arc<GroupLog>, GroupError> {
        let inner = &self.0;
        let group = spec.group;
        let mut known = inner.known.lock();
        inner.shared.check_failed().map_err(io_error("create", group))?;
        if inner.groups.read().contains_key(&group) || inner.damaged.read().contains_key(&group) {
            return Err(GroupError::Exists(group));
        }
        if let Some((replica, _)) = known
            .0
            .get(&group)
            .filter(|(replica, _)| spec.replica <= *replica)
        {
            return Err(GroupError::ReplicaUsed {
                group,
                replica: *replica,
            });
        }
        if spec.segment_bytes == 0 {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "segment_bytes must not be 0");
            return Err(io_error("create", group)(error));
        }
        let (dir, image) = make_directory(&inner.shared, &spec).map_err(io_error("create", group))?;
        let mut next = known.clone();
        next.0.insert(group, (spec.replica, Presence::Here));
        next.save(&*inner.shared.disk, &inner.shared.dir)
            .map_err(io_error("create", group))?;
        *known = next;
        let mut state = GroupState::restore(image);
        state.slot_proven = true;
        let log = Arc::new(GroupLog::new(spec, dir, inner.shared.clone(), state));
        inner.groups.write().insert(group, log.clone());
        Ok(log)
    }

    /// Deletes a group with all its data; the caller holds a tombstone for it. Works for damaged groups too. The replica's id
    /// is remembered and never accepted again. Blocking.
    pub fn drop_group(&self, group: RaftGroupId) -> Result<(), GroupError> {
        let inner = &self.0;
        let (dir, mut known) = inner
            .retire(group, Presence::Dropped)
            .map_err(|error| error.into_error("drop", group))?;
        known.take();
        let disk = &inner.shared.disk;
        if disk.exists(&dir).map_err(io_error("drop", group))? {
            disk.remove_dir_all(&dir).map_err(io_error("drop", group))?;
            disk.sync_dir(parent(&dir)).map_err(io_error("drop", group))?;
        }
        Ok(())
    }

    /// Moves a group's directory to `aside/`, where the store never touches it again, and forgets it. Blocking.
    pub fn set_aside(&self, group: RaftGroupId) -> Result<PathBuf, GroupError> {
        let inner = &self.0;
        let (dir, known) = inner
            .retire(group, Presence::Aside)
            .map_err(|error| error.into_error("set aside", group))?;
        let target = move_aside(&inner.shared, group, &dir).map_err(io_error("set aside", group))?;
        drop(known);
        Ok(target)
    }
}

enum RetireError {
    NotFound,
    Io(io::Error),
}

impl RetireError {
    fn into_error(self, action: &'static str, group: RaftGroupId) -> GroupError {
        match self {
            Self::NotFound => GroupError::NotFound(group),
            Self::Io(error) => io_error(action, group)(error),
        }
    }
}

type KnownGuard<'a> = Option<parking_lot::MutexGuard<'a, super::Known>>;

impl Inner {
    /// Takes a group out of use and notes that durably. Its files are quiet afterwards.
    fn retire(
        &self,
        group: RaftGroupId,
        presence: Presence,
    ) -> Result<(PathBuf, KnownGuard<'_>), RetireError> {
        let mut known = self.known.lock();
        self.shared.check_failed().map_err(RetireError::Io)?;
        let log = self.groups.read().get(&group).cloned();
        let damaged = self.damaged.read().get(&group).cloned();
        let (dir, replica) = match (&log, &damaged) {
            (Some(log), _) => (log.dir().to_owned(), Some(log.spec().replica)),
            (None, Some(damaged)) => (
                damaged.path.clone(),
                damaged.spec.as_ref().map(|spec| spec.replica),
            ),
            (None, None) => return Err(RetireError::NotFound),
        };
        if let Some(log) = &log {
            log.state().dropped = true;
            drain(&self.shared, log).map_err(RetireError::Io)?;
        }
        let mut next = known.clone();
        let seen = next.0.get(&group).map(|(replica, _)| *replica);
        // A group of which nothing can be read any more still uses up the smallest id.
        let newest = replica.max(seen).or(ReplicaId::new(1).ok());
        if let Some(newest) = newest {
            next.0.insert(group, (newest, presence));
        }
        next.save(&*self.shared.disk, &self.shared.dir)
            .map_err(RetireError::Io)?;
        *known = next;
        self.groups.write().remove(&group);
        self.damaged.write().remove(&group);
        if let Some(log) = &log {
            log.quiesce();
        }
        self.shared.files.forget_under(&dir);
        Ok((dir, Some(known)))
    }
}

/// Waits until nothing of the group is queued, by doing the drivers' work.
fn drain(shared: &Shared, log: &Arc<GroupLog>) -> io::Result<()> {
    loop {
        {
            let state = log.state();
            let idle = state.durable_record + 1 >= state.next_record
                && !state.large_outstanding
                && !state.installing;
            if idle {
                return Ok(());
            }
        }
        shared.check_failed()?;
        let large = shared.write_large_pending();
        let committed = shared.commit_pending();
        if large == LargeOutcome::Idle && committed == CommitOutcome::Idle {
            // Another driver is in the middle of it.
            std::thread::yield_now();
        }
    }
}

/// Makes a group's directory with both meta slots, under its final name only when complete.
fn make_directory(shared: &Shared, spec: &GroupSpec) -> io::Result<(PathBuf, MetaImage)> {
    let disk = &shared.disk;
    let dir = group_dir(&shared.dir, spec.group);
    let unfinished = groups_dir(&shared.dir).join(format!("{}.new", spec.group.to_hex()));
    if disk.exists(&unfinished)? {
        disk.remove_dir_all(&unfinished)?;
    }
    disk.create_dir_all(&data_dir(&unfinished, 1))?;
    // Records of an earlier group of this id are in units up to here.
    let wal_seq = shared.completed_seq.load(Ordering::Acquire);
    let mut image = GroupState::new(spec).image(spec, wal_seq, 0);
    for version in [1, 2] {
        image.version = version;
        let file = disk.create(&unfinished.join(slot_name(version)))?;
        let bytes = image.encode(&shared.identity);
        file.write_at(&mut [io::IoSlice::new(&bytes)], 0)?;
        file.sync_data()?;
    }
    disk.sync_dir(&unfinished)?;
    disk.rename(&unfinished, &dir)?;
    disk.sync_dir(parent(&dir))?;
    Ok((dir, image))
}

/// Moves a group's directory away, durably.
pub(super) fn move_aside(shared: &Shared, group: RaftGroupId, dir: &Path) -> io::Result<PathBuf> {
    let disk = &shared.disk;
    let aside = shared.dir.join("aside");
    disk.create_dir_all(&aside)?;
    disk.sync_dir(&shared.dir)?;
    let mut target = aside.join(group.to_hex());
    let mut number = 1;
    while disk.exists(&target)? {
        number += 1;
        target = aside.join(format!("{}-{number}", group.to_hex()));
    }
    if disk.exists(dir)? {
        disk.rename(dir, &target)?;
        disk.sync_dir(&aside)?;
        disk.sync_dir(parent(dir))?;
    }
    Ok(target)
}
