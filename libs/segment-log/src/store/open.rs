//! Opening a data directory.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::known::Known;
use super::recovery::Recovery;
use super::shared::SharedParts;
use super::{Inner, Shared, Store, groups, identity, known, round};
use crate::OpenError;
use crate::disk::{Disk, DiskLock, parent};
use crate::options::Options;
use crate::types::Identity;
use crate::wal::{Committer, Epoch, WalFiles, WalPosition};

/// Most bytes that are reserved when nothing is configured.
const MAX_RESERVE: u64 = 8 << 30;

pub(super) fn open(
    disk: Arc<dyn Disk>,
    dir: &Path,
    expected: Identity,
    options: Options,
) -> Result<Store, OpenError> {
    options.check()?;
    if let Some(found) = identity::read(&*disk, dir)? {
        identity::check(dir, found, expected)?;
    } else {
        disk.create_dir_all(dir).map_err(OpenError::io("create", dir))?;
        disk.sync_dir(parent(dir))
            .map_err(OpenError::io("sync", parent(dir)))?;
    }
    let lock = lock(&*disk, dir)?;
    // Another process may have made the directory meanwhile.
    match identity::read(&*disk, dir)? {
        Some(found) => identity::check(dir, found, expected)?,
        None => identity::write(&*disk, dir, &expected)?,
    }
    let known = load_known(&*disk, dir)?;
    // The list of groups is written last: with it the directory was complete before.
    let complete = known.is_some();
    for part in ["wal", "g"] {
        let path = dir.join(part);
        disk.create_dir_all(&path)
            .map_err(OpenError::io("create", &path))?;
    }
    disk.sync_dir(dir).map_err(OpenError::io("sync", dir))?;
    let shared = make_shared(disk, dir, expected, options)?;
    let mut recovery = Recovery::new(shared.clone(), known.unwrap_or_default());
    recovery.load_groups()?;
    recovery.replay(complete)?;
    let recovered = recovery.finish()?;
    recovered
        .known
        .save(&*shared.disk, dir)
        .map_err(OpenError::io("write", dir.join(known::FILE)))?;
    shared.refresh_space();
    Ok(Store(Arc::new(Inner {
        shared,
        groups: RwLock::new(recovered.groups),
        damaged: RwLock::new(recovered.damaged),
        known: Mutex::new(recovered.known),
        round: Mutex::new(round::RoundState::default()),
        lock: Mutex::new(Some(lock)),
    })))
}

fn lock(disk: &dyn Disk, dir: &Path) -> Result<Box<dyn DiskLock>, OpenError> {
    let path = dir.join("LOCK");
    disk.lock(&path).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => OpenError::Locked { path },
        _ => OpenError::io("lock", path)(error),
    })
}

fn load_known(disk: &dyn Disk, dir: &Path) -> Result<Option<Known>, OpenError> {
    let path = dir.join(known::FILE);
    let loaded = Known::load(disk, dir).map_err(OpenError::io("read", &path))?;
    let there = disk
        .exists(&groups::groups_dir(dir))
        .map_err(OpenError::io("look at", &path))?;
    let has_groups = there
        && !disk
            .list(&groups::groups_dir(dir))
            .map_err(OpenError::io("list", groups::groups_dir(dir)))?
            .is_empty();
    match loaded {
        Ok(Some(known)) => Ok(Some(known)),
        Ok(None) if !has_groups => Ok(None),
        Ok(None) => {
            tracing::warn!(file = %path.display(), "list of groups is missing, made again from the directories");
            Ok(Some(Known(BTreeMap::new())))
        }
        Err(what) => {
            tracing::warn!(file = %path.display(), what, "list of groups is damaged, made again from the directories");
            Ok(Some(Known(BTreeMap::new())))
        }
    }
}

fn make_shared(
    disk: Arc<dyn Disk>,
    dir: &Path,
    identity: Identity,
    options: Options,
) -> Result<Arc<Shared>, OpenError> {
    let space = disk
        .space(dir)
        .map_err(OpenError::io("ask for the room of", dir))?;
    let reserve_bytes = options
        .reserve_bytes
        .unwrap_or((space.total_bytes / 20).min(MAX_RESERVE));
    let wal_dir = dir.join("wal");
    let position =
        WalPosition::load(&*disk, &wal_dir).map_err(OpenError::io("read", wal_dir.join("position")))?;
    let wal = WalFiles::new(disk.clone(), wal_dir, options.wal_file_bytes, position);
    // Replaced when the end of the write-ahead log is known.
    let committer = Committer::new(identity, options.wal_file_bytes, Epoch::default(), 1, 0);
    let dir = dir.to_owned();
    Ok(Arc::new(Shared::new(SharedParts {
        disk,
        dir,
        identity,
        options,
        committer,
        wal,
        reserve_bytes,
    })))
}
