//! Open files, a bounded number of them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::SegmentName;
use crate::disk::{Disk, DiskFile, read_up_to};
use crate::wal::BLOCK;
use crate::{Damage, ReadError};

struct Open {
    file: Arc<dyn DiskFile>,
    used: u64,
}

#[derive(Default)]
struct Inner {
    open: BTreeMap<PathBuf, Open>,
    clock: u64,
}

/// Segment files that are open; the one that was unused for longest is closed when there are too many.
pub(crate) struct FileCache {
    disk: Arc<dyn Disk>,
    capacity: usize,
    inner: Mutex<Inner>,
}

impl FileCache {
    pub(crate) fn new(disk: Arc<dyn Disk>, capacity: usize) -> Self {
        Self {
            disk,
            capacity,
            inner: Mutex::default(),
        }
    }

    fn cached(&self, path: &Path) -> Option<Arc<dyn DiskFile>> {
        let mut inner = self.inner.lock();
        inner.clock += 1;
        let clock = inner.clock;
        let open = inner.open.get_mut(path)?;
        open.used = clock;
        Some(open.file.clone())
    }

    pub(crate) fn insert(&self, path: &Path, file: Arc<dyn DiskFile>) {
        let mut inner = self.inner.lock();
        inner.clock += 1;
        let used = inner.clock;
        inner.open.insert(path.to_owned(), Open { file, used });
        if inner.open.len() > self.capacity {
            let oldest = inner
                .open
                .iter()
                .min_by_key(|(_, open)| open.used)
                .map(|(path, _)| path.clone());
            if let Some(oldest) = oldest {
                inner.open.remove(&oldest);
            }
        }
    }

    /// Opens a segment; its header block is checked when it was not open.
    pub(crate) fn open(&self, name: &SegmentName) -> Result<Arc<dyn DiskFile>, ReadError> {
        if let Some(file) = self.cached(&name.path) {
            return Ok(file);
        }
        let file = self.disk.open(&name.path).map_err(|source| {
            if source.kind() == io::ErrorKind::NotFound {
                return ReadError::Damaged(Damage::new(&name.path, 0, "the file is missing"));
            }
            ReadError::io("open", &name.path)(source)
        })?;
        let header = read_up_to(&*file, 0, BLOCK).map_err(ReadError::io("read", &name.path))?;
        if !name.matches(&header) {
            let what = "the header block is not that of this segment";
            return Err(Damage::new(&name.path, 0, what).into());
        }
        self.insert(&name.path, file.clone());
        Ok(file)
    }

    /// Forgets a file that is removed, renamed or made anew.
    pub(crate) fn forget(&self, path: &Path) {
        self.inner.lock().open.remove(path);
    }

    /// Forgets all files in a directory.
    pub(crate) fn forget_under(&self, dir: &Path) {
        self.inner.lock().open.retain(|path, _| !path.starts_with(dir));
    }
}
