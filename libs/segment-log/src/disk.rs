//! The disk port: the little that the storage engine asks of a file system.
//!
//! Contract of an implementation:
//! - `write_at` makes bytes visible to later reads; only `sync_data` makes them (and the file's length) survive power loss.
//! - Names (create, rename, remove, link) survive power loss only after `sync_dir` of their directory.
//! - `rename` replaces an existing target atomically.
//! - A file that is removed or renamed stays usable through handles that are open.
//! - After an error of `write_at`, `write_back` or `sync_data` nothing may be assumed about the bytes concerned.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open file.
pub trait DiskFile: Send + Sync {
    /// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `slices`, one after the other, at `offset`.
    fn write_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Hands the written bytes of a range to the device and waits until it took them, so that a later `sync_data` has
    /// little left to do. Whoever syncs another file of the same device waits behind all that is under way there: large
    /// writes are handed over piece by piece. Says nothing about power loss; an error is one of `write_at`.
    fn write_back(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes everything written so far survive power loss.
    fn sync_data(&self) -> io::Result<()>;
    /// Cuts or extends (with zeros) the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// Keeps a directory locked against other stores until it is dropped.
pub trait DiskLock: Send + Sync {}

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DirEntry {
    /// Name without its directory.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// Room on the file system that holds a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskSpace {
    /// All bytes.
    pub total_bytes: u64,
    /// Bytes that this process may still use.
    pub available_bytes: u64,
}

/// A file system. See the module documentation for what must hold.
pub trait Disk: Send + Sync {
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for reading only.
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Makes an empty file, or empties an existing one.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames, replacing the target.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name.
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory with everything in it.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Makes a directory and its missing parents.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Names in a directory, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>>;
    /// Makes the names in a directory survive power loss.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Whether something of that name exists.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Room on the file system that holds `path`.
    fn space(&self, path: &Path) -> io::Result<DiskSpace>;
    /// A number that nobody can guess.
    fn entropy(&self) -> io::Result<u64>;
    /// Locks the file `path`, made when missing. `WouldBlock` when another store holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>>;
}

/// Reads exactly `len` bytes, or fewer when the file ends before.
pub(crate) fn read_up_to(file: &dyn DiskFile, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; len];
    let mut filled = 0;
    while filled < len {
        let read = file.read_at(&mut buffer[filled..], offset + filled as u64)?;
        if read == 0 {
            break;
        }
        filled += read;
    }
    buffer.truncate(filled);
    Ok(buffer)
}

/// Reads a whole file of at most `limit` bytes.
pub(crate) fn read_file(disk: &dyn Disk, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = disk.open_read(path)?;
    let len = file.len()?;
    if len > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} has {len} bytes, more than {limit}", path.display()),
        ));
    }
    read_up_to(&*file, 0, len as usize)
}

/// Replaces a file durably: a temporary file, synced, renamed, and the directory synced.
pub(crate) fn replace_file(disk: &dyn Disk, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let temporary = temporary_name(path);
    let file = disk.create(&temporary)?;
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    file.write_at(&mut slices, 0)?;
    file.sync_data()?;
    drop(file);
    disk.rename(&temporary, path)?;
    disk.sync_dir(parent(path))
}

pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}
