//! The first part of recovery: which groups there are, and their meta slots.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ptah_types::RaftGroupId;

use super::DamagedGroup;
use super::groups::{group_dir, groups_dir, move_aside};
use super::known::Presence;
use super::recovery::{Recovering, Recovery};
use crate::disk::read_file;
use crate::group::{DAMAGE_MARKER, GroupLog, GroupState, MetaImage};
use crate::types::GroupSpec;
use crate::{Damage, OpenError};

impl Recovery {
    /// Reads the meta slots of all groups.
    pub(super) fn load_groups(&mut self) -> Result<(), OpenError> {
        let all = groups_dir(&self.shared.dir);
        let disk = self.shared.disk.clone();
        // A group that is there may have been made by a process that died before it synced the directory.
        disk.sync_dir(&all).map_err(OpenError::io("sync", &all))?;
        for entry in disk.list(&all).map_err(OpenError::io("list", &all))? {
            let path = all.join(&entry.name);
            if entry.name.ends_with(".new") {
                disk.remove_dir_all(&path)
                    .map_err(OpenError::io("remove", &path))?;
                continue;
            }
            let Ok(group) = RaftGroupId::from_hex(&entry.name) else {
                continue;
            };
            match self.known.0.get(&group).map(|(_, presence)| *presence) {
                Some(Presence::Dropped) => {
                    disk.remove_dir_all(&path)
                        .map_err(OpenError::io("remove", &path))?;
                }
                Some(Presence::Aside) => {
                    move_aside(&self.shared, group, &path).map_err(OpenError::io("move aside", &path))?;
                }
                Some(Presence::Here) | None => self.load_group(group, &path)?,
            }
        }
        for (group, (_, presence)) in self.known.0.clone() {
            let loaded = self.groups.contains_key(&group) || self.damaged.contains_key(&group);
            if presence == Presence::Here && !loaded {
                let path = group_dir(&self.shared.dir, group);
                self.add_damaged(
                    group,
                    None,
                    &path,
                    Damage::new(&path, 0, "the group's directory is missing"),
                );
            }
        }
        Ok(())
    }

    pub(super) fn add_damaged(
        &mut self,
        group: RaftGroupId,
        spec: Option<GroupSpec>,
        path: &Path,
        damage: Damage,
    ) {
        tracing::error!(group = %group.to_hex(), %damage, "group is damaged, it is kept but not used");
        let entry = self.damaged.entry(group).or_insert_with(|| DamagedGroup {
            spec: None,
            damage: Vec::new(),
            path: path.to_owned(),
        });
        entry.spec = entry.spec.take().or(spec);
        entry.damage.push(damage);
    }

    fn load_group(&mut self, group: RaftGroupId, dir: &Path) -> Result<(), OpenError> {
        let mut images = Vec::new();
        let mut bad_slot = None;
        for slot in ["meta.a", "meta.b"] {
            let path = dir.join(slot);
            match self.read_slot(group, &path)? {
                Ok(image) => images.push(image),
                Err(damage) => bad_slot = Some(damage),
            }
        }
        let newest = images.into_iter().max_by_key(|image| image.version);
        if let Some(image) = &newest {
            self.known
                .0
                .entry(group)
                .or_insert((image.spec.replica, Presence::Here));
        }
        if let Some(damage) = self.read_marker(dir)? {
            self.add_damaged(group, newest.map(|image| image.spec), dir, damage);
            return Ok(());
        }
        let Some(image) = newest else {
            let damage = bad_slot.unwrap_or_else(|| Damage::new(dir, 0, "both meta slots are missing"));
            self.add_damaged(group, None, dir, damage);
            return Ok(());
        };
        self.remove_other_generations(dir, image.dir_number)?;
        self.shared
            .dir_numbers
            .fetch_max(image.dir_number, Ordering::Relaxed);
        let (wal_seq, covered) = (image.wal_seq, image.record);
        let spec = image.spec.clone();
        let log = GroupLog::new(
            spec,
            dir.to_owned(),
            self.shared.clone(),
            GroupState::restore(image),
        );
        let log = Arc::new(log);
        let (one_slot, lost_slot, suspect, failed) = (bad_slot, false, None, None);
        self.groups.insert(
            group,
            Recovering {
                log,
                wal_seq,
                covered,
                one_slot,
                lost_slot,
                suspect,
                failed,
            },
        );
        Ok(())
    }

    fn read_slot(&self, group: RaftGroupId, path: &Path) -> Result<Result<MetaImage, Damage>, OpenError> {
        let bytes = match read_file(&*self.shared.disk, path, 1 << 30) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(OpenError::io("read", path)(error));
            }
            Err(error) => {
                return Ok(Err(Damage::new(
                    path,
                    0,
                    format!("the meta slot cannot be read: {error}"),
                )));
            }
        };
        let image = MetaImage::decode(&bytes, &self.shared.identity, group);
        Ok(image.ok_or_else(|| Damage::new(path, 0, "no copy of the meta slot has the right checksum")))
    }

    fn read_marker(&self, dir: &Path) -> Result<Option<Damage>, OpenError> {
        let path = dir.join(DAMAGE_MARKER);
        match read_file(&*self.shared.disk, &path, 1 << 20) {
            Ok(text) => Ok(Some(Damage::new(dir, 0, String::from_utf8_lossy(&text).trim()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(OpenError::io("read", path)(error)),
        }
    }

    /// Data directories of an install that was not switched to, or that was switched from.
    fn remove_other_generations(&self, dir: &Path, current: u64) -> Result<(), OpenError> {
        let disk = &self.shared.disk;
        // The slot that names the current one may have been renamed by a process that died before it synced the directory.
        disk.sync_dir(dir).map_err(OpenError::io("sync", dir))?;
        for entry in disk.list(dir).map_err(OpenError::io("list", dir))? {
            let path = dir.join(&entry.name);
            let number = entry
                .name
                .strip_prefix('d')
                .and_then(|digits| digits.parse::<u64>().ok());
            if entry.is_dir && number.is_some_and(|number| number != current) {
                disk.remove_dir_all(&path)
                    .map_err(OpenError::io("remove", &path))?;
            }
        }
        Ok(())
    }
}
