//! Files of the write-ahead log: names, spares, recycling, and the position file.
//!
//! `wal/<number>.wal` are in use, `wal/spare-<n>` are empty or old and wait for use. `wal/position` says in two
//! alternating blocks (two copies each) which file is the oldest needed one, how far the log reached at least, and the
//! nonce of the epoch.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::format::{BLOCK, Epoch, FORMAT};
use crate::codec::{Reader, crc32c, put_u32, put_u64};
use crate::disk::{Disk, DiskFile, read_file};

const POSITION_MAGIC: u64 = u64::from_le_bytes(*b"PTAHWPOS");
const POSITION_LEN: usize = 64;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A file that may hold records that are needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LiveFile {
    pub(crate) number: u64,
    pub(crate) first_seq: u64,
}

/// What the position file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct WalPosition {
    pub(crate) version: u64,
    pub(crate) epoch: Epoch,
    pub(crate) first_file: u64,
    pub(crate) last_file: u64,
    /// This unit was synced; later ones may have been.
    pub(crate) last_seq: u64,
}

impl WalPosition {
    pub(crate) fn encode(&self) -> [u8; BLOCK] {
        let mut out = [0; BLOCK];
        for copy in [0, BLOCK / 2] {
            let out = &mut out[copy..copy + POSITION_LEN];
            put_u64(out, 0, POSITION_MAGIC);
            put_u32(out, 12, FORMAT);
            put_u64(out, 16, self.version);
            put_u64(out, 24, self.epoch.number);
            put_u64(out, 32, self.first_file);
            put_u64(out, 40, self.last_file);
            put_u64(out, 48, self.last_seq);
            put_u64(out, 56, self.epoch.nonce);
            let crc = crc32c(&out[12..]);
            put_u32(out, 8, crc);
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..POSITION_LEN)?;
        let mut reader = Reader::new(bytes);
        let magic = reader.u64().ok()?;
        let crc = reader.u32().ok()?;
        let format = reader.u32().ok()?;
        if magic != POSITION_MAGIC || crc != crc32c(&bytes[12..]) || format != FORMAT {
            return None;
        }
        let (version, epoch) = (reader.u64().ok()?, reader.u64().ok()?);
        let (first_file, last_file) = (reader.u64().ok()?, reader.u64().ok()?);
        let (last_seq, nonce) = (reader.u64().ok()?, reader.u64().ok()?);
        Some(Self {
            version,
            epoch: Epoch { number: epoch, nonce },
            first_file,
            last_file,
            last_seq,
        })
    }

    /// Newest valid copy of the position file.
    pub(crate) fn load(disk: &dyn Disk, wal_dir: &Path) -> io::Result<Option<Self>> {
        let bytes = match read_file(disk, &wal_dir.join("position"), 2 * BLOCK as u64) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(None),
            Err(error) => return Err(error),
        };
        let copies = (0..4).filter_map(|copy| bytes.get(copy * BLOCK / 2..).and_then(Self::decode));
        Ok(copies.max_by_key(|position| position.version))
    }
}

struct Inner {
    live: VecDeque<LiveFile>,
    spares: Vec<PathBuf>,
    next_spare: u64,
    position: Option<WalPosition>,
    recycled: u64,
    created: u64,
}

/// The files of one write-ahead log.
pub(crate) struct WalFiles {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    file_bytes: u64,
    inner: Mutex<Inner>,
    /// Number of live files, for appenders: they must not wait behind a file that is renamed.
    live_count: AtomicU64,
}

pub(crate) fn file_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.wal"))
}

pub(crate) fn parse_file_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".wal")?;
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok())?
}

impl WalFiles {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        file_bytes: u64,
        position: Option<WalPosition>,
    ) -> Self {
        let inner = Inner {
            live: VecDeque::new(),
            spares: Vec::new(),
            next_spare: 1,
            position,
            recycled: 0,
            created: 0,
        };
        Self {
            disk,
            dir,
            file_bytes,
            inner: Mutex::new(inner),
            live_count: AtomicU64::new(0),
        }
    }

    /// What the position file said last.
    pub(crate) fn position(&self) -> Option<WalPosition> {
        self.inner.lock().position
    }

    /// The files that recovery found.
    pub(crate) fn set_live(&self, live: Vec<LiveFile>) {
        self.live_count.store(live.len() as u64, Ordering::Relaxed);
        self.inner.lock().live = live.into();
    }

    /// Finds the spare files.
    pub(crate) fn find_spares(&self) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in self.disk.list(&self.dir)? {
            if entry.name.starts_with("spare-") || entry.name.starts_with("new-") {
                found.push(self.dir.join(entry.name));
            }
        }
        self.adopt_spares(&found)
    }

    /// Makes spares of files that are not needed and have the right size; removes the others.
    pub(crate) fn adopt_spares(&self, unused: &[PathBuf]) -> io::Result<()> {
        for path in unused {
            let complete = !path.to_string_lossy().contains("new-");
            let fits = complete && self.disk.open_read(path)?.len()? == self.file_bytes;
            let mut inner = self.inner.lock();
            if fits && inner.spares.len() < 4 {
                let spare = self.dir.join(format!("spare-{}", inner.next_spare));
                inner.next_spare += 1;
                if spare != *path {
                    if self.disk.exists(&spare)? {
                        continue;
                    }
                    self.disk.rename(path, &spare)?;
                }
                inner.spares.push(spare);
            } else {
                self.disk.remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Makes sure that `wanted` spare files are ready.
    pub(crate) fn prepare(&self, wanted: usize) -> io::Result<()> {
        while self.inner.lock().spares.len() < wanted {
            let path = self.create_zeroed()?;
            self.inner.lock().spares.push(path);
        }
        Ok(())
    }

    fn create_zeroed(&self) -> io::Result<PathBuf> {
        let number = {
            let mut inner = self.inner.lock();
            inner.next_spare += 1;
            inner.created += 1;
            inner.next_spare - 1
        };
        let unfinished = self.dir.join(format!("new-{number}"));
        let path = self.dir.join(format!("spare-{number}"));
        let made = self
            .fill(&unfinished)
            .and_then(|()| self.disk.rename(&unfinished, &path));
        if let Err(error) = made {
            // What was written of it would take the room that is missing. When it cannot be removed, the next start does.
            if let Err(error) = self.disk.remove_file(&unfinished)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(file = %unfinished.display(), %error, "unfinished file cannot be removed");
            }
            return Err(error);
        }
        Ok(path)
    }

    fn fill(&self, path: &Path) -> io::Result<()> {
        let file = self.disk.create(path)?;
        let mut at = 0;
        while at < self.file_bytes {
            let len = (self.file_bytes - at).min(ZEROS.len() as u64);
            file.write_at(&mut [IoSlice::new(&ZEROS[..len as usize])], at)?;
            at += len;
        }
        file.sync_data()
    }

    /// Gives a spare file the name `number`, durably, and opens it.
    pub(crate) fn take(&self, number: u64) -> io::Result<Arc<dyn DiskFile>> {
        let spare = self.inner.lock().spares.pop();
        let spare = match spare {
            Some(spare) => spare,
            None => self.create_zeroed()?,
        };
        let path = file_path(&self.dir, number);
        self.disk.rename(&spare, &path)?;
        self.disk.sync_dir(&self.dir)?;
        self.disk.open(&path)
    }

    pub(crate) fn add_live(&self, file: LiveFile) {
        self.live_count.fetch_add(1, Ordering::Relaxed);
        self.inner.lock().live.push_back(file);
    }

    /// Writes the position file; when this returns it is durable.
    pub(crate) fn save_position(&self, epoch: Epoch, last_seq: u64) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let first_file = inner.live.front().map_or(0, |file| file.number);
        self.write_position(&mut inner, epoch, first_file, last_seq)
    }

    fn write_position(
        &self,
        inner: &mut Inner,
        epoch: Epoch,
        first_file: u64,
        last_seq: u64,
    ) -> io::Result<()> {
        let next = WalPosition {
            version: inner.position.map_or(0, |position| position.version) + 1,
            epoch,
            first_file,
            last_file: inner.live.back().map_or(0, |file| file.number),
            last_seq,
        };
        let path = self.dir.join("position");
        let is_new = !self.disk.exists(&path)?;
        let file = if is_new {
            self.disk.create(&path)?
        } else {
            self.disk.open(&path)?
        };
        let block = next.encode();
        file.write_at(&mut [IoSlice::new(&block)], next.version % 2 * BLOCK as u64)?;
        file.sync_data()?;
        if is_new {
            self.disk.sync_dir(&self.dir)?;
        }
        inner.position = Some(next);
        Ok(())
    }

    /// Turns files below `needed` into spares, or removes them when there are enough. Answers how many.
    pub(crate) fn recycle(
        &self,
        needed: u64,
        spares: usize,
        epoch: Epoch,
        last_seq: u64,
    ) -> io::Result<usize> {
        let mut inner = self.inner.lock();
        let old = |file: &LiveFile| file.number < needed;
        // The newest file is where the next unit goes.
        let count = inner
            .live
            .iter()
            .take(inner.live.len().saturating_sub(1))
            .take_while(|f| old(f))
            .count();
        if count == 0 {
            return Ok(0);
        }
        let first_file = inner.live.get(count).map_or(0, |file| file.number);
        self.write_position(&mut inner, epoch, first_file, last_seq)?;
        for _ in 0..count {
            let Some(file) = inner.live.pop_front() else { break };
            self.live_count.fetch_sub(1, Ordering::Relaxed);
            let path = file_path(&self.dir, file.number);
            if inner.spares.len() < spares {
                let spare = self.dir.join(format!("spare-{}", inner.next_spare));
                inner.next_spare += 1;
                self.disk.rename(&path, &spare)?;
                inner.spares.push(spare);
            } else {
                self.disk.remove_file(&path)?;
            }
            inner.recycled += 1;
        }
        Ok(count)
    }

    /// Files in use.
    pub(crate) fn live_count(&self) -> u64 {
        self.live_count.load(Ordering::Relaxed)
    }

    /// Files in use, spare, recycled and made since the store was opened.
    pub(crate) fn counts(&self) -> (u64, u64, u64, u64) {
        let inner = self.inner.lock();
        (
            inner.live.len() as u64,
            inner.spares.len() as u64,
            inner.recycled,
            inner.created,
        )
    }

    pub(crate) fn last_number(&self) -> u64 {
        self.inner.lock().live.back().map_or(0, |file| file.number)
    }
}
