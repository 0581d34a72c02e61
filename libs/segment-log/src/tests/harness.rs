//! Drives a store on a simulated disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::testing::identity;
use crate::types::{CommitOutcome, LargeOutcome};
use crate::{FlushDone, Frame, GroupLog, OpenError, Options, SimDisk, Store};

/// Result of one operation, once it is known.
#[derive(Clone, Default)]
pub(crate) struct Outcome(Arc<Mutex<Option<io::Result<()>>>>);

impl Outcome {
    pub(crate) fn done(&self) -> FlushDone {
        let slot = self.0.clone();
        Box::new(move |result| *slot.lock() = Some(result))
    }

    pub(crate) fn is_ok(&self) -> bool {
        matches!(*self.0.lock(), Some(Ok(())))
    }

    pub(crate) fn is_err(&self) -> bool {
        matches!(*self.0.lock(), Some(Err(_)))
    }

    pub(crate) fn is_open(&self) -> bool {
        self.0.lock().is_none()
    }
}

/// The options of most tests: everything small, so that files roll and bounds are met.
pub(crate) fn tiny() -> Options {
    Options {
        wal_file_bytes: 128 << 10,
        unit_bytes: 48 << 10,
        large_bytes: 12 << 10,
        recent_bytes_per_group: 4 << 10,
        ..Options::small()
    }
}

pub(crate) fn dir() -> PathBuf {
    PathBuf::from("/data")
}

pub(crate) fn open_with(disk: &SimDisk, options: Options) -> Result<Store, OpenError> {
    Store::open(disk.as_disk(), Path::new("/data"), identity(), options)
}

pub(crate) fn open(disk: &SimDisk) -> Store {
    open_with(disk, tiny()).unwrap()
}

/// Does everything that is queued.
pub(crate) fn settle(store: &Store) {
    loop {
        let committed = matches!(store.commit_pending(), CommitOutcome::Committed { .. });
        let large = store.write_large_pending() == LargeOutcome::Progress;
        if !committed && !large {
            return;
        }
    }
}

pub(crate) fn append(group: &Arc<GroupLog>, frames: Vec<Frame>) -> Outcome {
    let outcome = Outcome::default();
    group.append(frames, outcome.done()).unwrap();
    outcome
}

pub(crate) fn append_now(store: &Store, group: &Arc<GroupLog>, frames: Vec<Frame>) {
    let outcome = append(group, frames);
    settle(store);
    assert!(outcome.is_ok(), "append must be durable");
}

/// Files whose name contains `part`.
pub(crate) fn files(disk: &SimDisk, part: &str) -> Vec<PathBuf> {
    disk.files()
        .into_iter()
        .filter(|path| path.to_string_lossy().contains(part))
        .collect()
}

/// Power cut and restart of the disk.
pub(crate) fn power_cycle(disk: &SimDisk) {
    disk.crash();
    disk.reboot();
}
