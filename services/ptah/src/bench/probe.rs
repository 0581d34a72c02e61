//! What the disk alone takes: one synced write at a time into blocks that were written before, as a log that recycles
//! its files does.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use crate::failure::Failure;

/// Writes start at multiples of this.
const BLOCK_BYTES: u64 = 4096;
/// Room of the file, or four writes if that is more.
const FILE_BYTES: u64 = 16 << 20;

/// A file that is written and synced beside the measured messages. Deleted when dropped.
#[derive(Debug)]
pub(super) struct DiskProbe {
    file: File,
    path: PathBuf,
    write: Vec<u8>,
    position: u64,
    size_bytes: u64,
}

impl DiskProbe {
    /// Makes the file and writes all its blocks once.
    pub(super) fn prepare(dir: &Path, write_bytes: usize) -> Result<Self, Failure> {
        let path = dir.join(format!("ptah-bench-probe-{}", std::process::id()));
        let failed = |error: std::io::Error| {
            Failure::usage(format!("prepare disk probe `{}`: {error}", path.display()))
        };
        let step = (write_bytes as u64).next_multiple_of(BLOCK_BYTES);
        let size_bytes = FILE_BYTES.max(step * 4) / step * step;
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(failed)?;
        let probe = Self {
            file,
            path: path.clone(),
            write: vec![0x5a; write_bytes],
            position: 0,
            size_bytes,
        };
        let block = vec![0; 1 << 20];
        let mut position = 0;
        while position < size_bytes {
            let len = (size_bytes - position).min(block.len() as u64) as usize;
            probe.file.write_all_at(&block[..len], position).map_err(failed)?;
            position += len as u64;
        }
        probe.file.sync_all().map_err(failed)?;
        Ok(probe)
    }

    /// One write and one fdatasync; tells how long they took.
    pub(super) fn measure(&mut self) -> Result<Duration, Failure> {
        let begun = Instant::now();
        let written = self
            .file
            .write_all_at(&self.write, self.position)
            .and_then(|()| self.file.sync_data());
        written.map_err(|error| Failure::failed(format!("disk probe `{}`: {error}", self.path.display())))?;
        let taken = begun.elapsed();
        let step = (self.write.len() as u64).next_multiple_of(BLOCK_BYTES);
        self.position = (self.position + step) % self.size_bytes;
        Ok(taken)
    }
}

impl Drop for DiskProbe {
    fn drop(&mut self) {
        // A file that stays behind harms nobody, and nobody is left to be told.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_writes_in_place_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let mut probe = DiskProbe::prepare(dir.path(), 5000).unwrap();
        let size = std::fs::metadata(&probe.path).unwrap().len();
        for _ in 0..5 {
            probe.measure().unwrap();
        }
        assert_eq!(std::fs::metadata(&probe.path).unwrap().len(), size);
        drop(probe);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_directory_is_told_before_anything_is_measured() {
        let failure = DiskProbe::prepare(Path::new("/nowhere/at/all"), 1).unwrap_err();
        assert!(failure.message().unwrap().contains("/nowhere/at/all"));
    }
}
