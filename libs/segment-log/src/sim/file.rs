//! Files of the simulated disk.

use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::crash::SimRng;
use super::{Fate, SimDisk, SimOp, off};
use crate::disk::DiskFile;

/// What a power cut may lose, tear or reorder.
pub(super) enum Unsynced {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

#[derive(Default)]
pub(super) struct Inode {
    pub(super) current: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Unsynced>,
    /// So many of these were covered by a late sync.
    promised: usize,
}

impl Inode {
    pub(super) fn set_len(&mut self, len: u64) {
        self.current.resize(len as usize, 0);
        self.unsynced.push(Unsynced::SetLen(len));
    }

    pub(super) fn replace(&mut self, bytes: Vec<u8>) {
        self.durable.clone_from(&bytes);
        self.current = bytes;
        self.unsynced.clear();
        self.promised = 0;
    }

    fn write(&mut self, offset: u64, bytes: Vec<u8>) {
        put(&mut self.current, offset, &bytes);
        self.unsynced.push(Unsynced::Write(offset, bytes));
    }

    fn sync(&mut self, late: bool) {
        let covered = if late { self.promised } else { self.unsynced.len() };
        for change in self.unsynced.drain(..covered) {
            persist(&mut self.durable, &change);
        }
        self.promised = self.unsynced.len();
    }

    /// A sync failed: the system counts what it tried to write as written. Readers see it, a later sync does not write it.
    fn lose(&mut self) {
        self.unsynced.clear();
        self.promised = 0;
    }

    /// Chooses what survives.
    pub(super) fn crash(&mut self, rng: &mut SimRng) {
        let mut changes = std::mem::take(&mut self.unsynced);
        self.promised = 0;
        if rng.chance(2) {
            rng.shuffle(&mut changes);
        }
        let mood = rng.below(4);
        for change in &changes {
            match mood {
                0 => {}
                1 => persist(&mut self.durable, change),
                _ => persist_some(&mut self.durable, change, rng),
            }
        }
        self.current.clone_from(&self.durable);
    }
}

fn put(target: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let start = offset as usize;
    let end = start + bytes.len();
    if target.len() < end {
        target.resize(end, 0);
    }
    target[start..end].copy_from_slice(bytes);
}

fn persist(durable: &mut Vec<u8>, change: &Unsynced) {
    match change {
        Unsynced::Write(offset, bytes) => put(durable, *offset, bytes),
        Unsynced::SetLen(len) => durable.resize(*len as usize, 0),
    }
}

const SECTOR: usize = 512;

fn persist_some(durable: &mut Vec<u8>, change: &Unsynced, rng: &mut SimRng) {
    let Unsynced::Write(offset, bytes) = change else {
        if rng.chance(2) {
            persist(durable, change);
        }
        return;
    };
    match rng.below(4) {
        0 => {}
        1 => persist(durable, change),
        2 => {
            let sectors = bytes.len().div_ceil(SECTOR) as u64;
            let cut = (rng.below(sectors + 1) as usize * SECTOR).min(bytes.len());
            put(durable, *offset, &bytes[..cut]);
        }
        _ => {
            for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                if rng.chance(2) {
                    put(durable, offset + (number * SECTOR) as u64, sector);
                }
            }
        }
    }
}

pub(super) struct SimFile {
    pub(super) disk: SimDisk,
    pub(super) inode: Arc<Mutex<Inode>>,
    pub(super) boot: u64,
    pub(super) path: PathBuf,
}

impl SimFile {
    fn begin(&self, op: SimOp) -> io::Result<()> {
        self.disk.begin(op, &self.path)?;
        self.disk.0.lock().live(self.boot)
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.begin(SimOp::Read)?;
        let inode = self.inode.lock();
        let from = (offset as usize).min(inode.current.len());
        let len = buffer.len().min(inode.current.len() - from);
        buffer[..len].copy_from_slice(&inode.current[from..from + len]);
        Ok(len)
    }

    fn write_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.begin(SimOp::Write)?;
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        let mut sim = self.disk.0.lock();
        let grows = (offset + bytes.len() as u64).saturating_sub(self.inode.lock().current.len() as u64);
        if grows > 0 && sim.capacity < u64::MAX / 2 && sim.used() + grows > sim.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let fate = sim.mutate();
        self.inode.lock().write(offset, bytes);
        if fate == Fate::Last { Err(off()) } else { Ok(()) }
    }

    /// Nothing: whatever was written may survive a power cut here, or not.
    fn write_back(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if let Err(error) = self.begin(SimOp::Sync) {
            if !self.disk.is_off() {
                self.inode.lock().lose();
            }
            return Err(error);
        }
        let mut sim = self.disk.0.lock();
        let fate = sim.mutate();
        if !sim.ignore_syncs && (fate == Fate::Go || sim.rng.chance(2)) {
            self.inode.lock().sync(sim.late_syncs);
        }
        if fate == Fate::Last {
            return Err(off());
        }
        sim.syncs += 1;
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.begin(SimOp::SetLen)?;
        let fate = self.disk.0.lock().mutate();
        self.inode.lock().set_len(len);
        if fate == Fate::Last { Err(off()) } else { Ok(()) }
    }

    fn len(&self) -> io::Result<u64> {
        self.begin(SimOp::List)?;
        Ok(self.inode.lock().current.len() as u64)
    }
}
