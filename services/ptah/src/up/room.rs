//! Room on the disk: how much storage nodes keep free, and whether a start makes sense.

use std::path::Path;

use ptah_segment_log::{Disk as _, OsDisk};
use ptah_storage_node::DiskConfig;

use super::args::UpArgs;
use crate::failure::Failure;
use crate::units::size_text;

/// What a storage node takes before the first message: its write-ahead log with spare files.
const NODE_START_BYTES: u64 = 3 * (64 << 20);
/// A server's reserve of a tenth of a large disk is too much to ask of a laptop.
const ENOUGH_BYTES: u64 = 4 << 30;

/// What the storage nodes keep free.
pub(super) fn reserve(args: &UpArgs) -> DiskConfig {
    match args.disk_reserve {
        Some(bytes) => DiskConfig {
            full_percent: 99,
            reserve_bytes: bytes,
            enough_bytes: bytes,
        },
        None => DiskConfig {
            enough_bytes: ENOUGH_BYTES,
            ..DiskConfig::default()
        },
    }
}

/// Refuses to make a cluster on a disk where it could not take a message. One that exists may start all the same: its
/// messages can be read, and deleting makes room.
pub(super) fn check(dir: &Path, storage_nodes: u32, reserve: &DiskConfig) -> Result<(), Failure> {
    let Some(existing) = dir.ancestors().find(|dir| dir.exists()) else {
        return Ok(());
    };
    // The name of a directory below the current one has the empty path as its ancestor.
    let existing = if existing.as_os_str().is_empty() {
        Path::new(".")
    } else {
        existing
    };
    let Ok(space) = OsDisk.space(existing) else {
        return Ok(()); // Whatever is wrong there is told by what tries to use it.
    };
    let needed = reserve.needed_bytes(space.total_bytes) + u64::from(storage_nodes) * NODE_START_BYTES;
    if space.available_bytes >= needed {
        return Ok(());
    }
    Err(Failure::cannot_start(format!(
        "data directory `{}`: its disk has {} free of {}, and {} are needed to start and to keep in reserve; make room, give \
         another --data-dir, or less in --disk-reserve",
        dir.display(),
        size_text(space.available_bytes),
        size_text(space.total_bytes),
        size_text(needed)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_the_reserve_is_refused_with_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("not/made/yet");
        let reserve = |bytes| DiskConfig {
            full_percent: 99,
            reserve_bytes: bytes,
            enough_bytes: bytes,
        };
        assert!(check(&path, 1, &reserve(1)).is_ok());
        let refused = check(&path, 1, &reserve(1 << 60)).unwrap_err();
        assert!(refused.message().unwrap().contains("--disk-reserve"));
    }
}
