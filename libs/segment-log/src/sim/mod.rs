//! A disk in memory that behaves as badly as a real one may.
//!
//! What was not synced is lost at a power cut, in part, torn at 512-byte sectors, or persisted in another order.
//! Names that were not followed by a sync of their directory may be lost too. After a failed sync what was written is
//! there for readers, but no later sync persists it. Every choice comes from the seed.

mod crash;
mod disk;
mod file;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::{Disk, DiskFile, parent};
use crash::SimRng;
use file::{Inode, SimFile};

/// Kind of a call to the disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SimOp {
    /// Opening or making a file.
    Open,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Syncing a file.
    Sync,
    /// Changing a length.
    SetLen,
    /// Renaming, linking, removing, making directories.
    Name,
    /// Syncing a directory.
    SyncDir,
    /// Listing a directory.
    List,
}

/// An error to be answered instead of doing the call.
#[derive(Clone, Debug)]
pub struct SimFault {
    /// Which calls.
    pub op: SimOp,
    /// Only on paths that contain this text; empty for all.
    pub path_contains: String,
    /// So many matching calls still work.
    pub after: u64,
    /// So many calls fail then; `u64::MAX` for ever.
    pub times: u64,
    /// What they answer.
    pub error: io::ErrorKind,
}

type Hook = Arc<dyn Fn(SimOp, &Path) + Send + Sync>;
type Shared = Arc<Mutex<Sim>>;

#[derive(Clone)]
enum Node {
    Dir,
    File(Arc<Mutex<Inode>>),
}

/// A change of names that no directory sync has covered yet.
enum NameChange {
    Set(PathBuf, Node),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
}

struct Sim {
    rng: SimRng,
    boot: u64,
    off: bool,
    resolved: bool,
    names: BTreeMap<PathBuf, Node>,
    durable_names: BTreeMap<PathBuf, Node>,
    changes: Vec<NameChange>,
    locks: BTreeSet<PathBuf>,
    budget: Option<u64>,
    writes: u64,
    syncs: u64,
    faults: Vec<SimFault>,
    capacity: u64,
    ignore_syncs: bool,
    late_syncs: bool,
    hook: Option<Hook>,
}

/// How a mutating call goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Go,
    /// The call takes effect (perhaps in part) and the power goes off.
    Last,
}

fn off() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "simulated power loss")
}

impl Sim {
    fn live(&self, boot: u64) -> io::Result<()> {
        if self.off || boot != self.boot {
            Err(off())
        } else {
            Ok(())
        }
    }

    fn fault(&mut self, op: SimOp, path: &Path) -> io::Result<()> {
        let text = path.to_string_lossy();
        for fault in &mut self.faults {
            if fault.op != op || fault.times == 0 || !text.contains(&fault.path_contains) {
                continue;
            }
            if fault.after > 0 {
                fault.after -= 1;
                continue;
            }
            fault.times = fault.times.saturating_sub(u64::from(fault.times != u64::MAX));
            return Err(io::Error::new(fault.error, "injected"));
        }
        Ok(())
    }

    fn mutate(&mut self) -> Fate {
        self.writes += 1;
        match &mut self.budget {
            Some(left) if *left <= 1 => {
                self.budget = None;
                self.off = true;
                self.resolved = false;
                Fate::Last
            }
            Some(left) => {
                *left -= 1;
                Fate::Go
            }
            None => Fate::Go,
        }
    }

    fn used(&self) -> u64 {
        let file = |node: &Node| match node {
            Node::File(inode) => inode.lock().current.len() as u64,
            Node::Dir => 0,
        };
        self.names.values().map(file).sum()
    }

    fn change(&mut self, change: NameChange) {
        crash::apply(&mut self.names, &change);
        self.changes.push(change);
    }

    fn file(&self, path: &Path) -> io::Result<Arc<Mutex<Inode>>> {
        match self.names.get(path) {
            Some(Node::File(inode)) => Ok(inode.clone()),
            Some(Node::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn need_parent(&self, path: &Path) -> io::Result<()> {
        match self.names.get(parent(path)) {
            Some(Node::Dir) => Ok(()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// The disk in memory. Clones share it.
#[derive(Clone)]
pub struct SimDisk(Shared);

impl SimDisk {
    /// An empty disk; all its choices follow from `seed`.
    pub fn new(seed: u64) -> Self {
        let mut names = BTreeMap::new();
        names.insert(PathBuf::new(), Node::Dir);
        names.insert(PathBuf::from("/"), Node::Dir);
        Self(Arc::new(Mutex::new(Sim {
            rng: SimRng::new(seed),
            boot: 1,
            off: false,
            resolved: true,
            durable_names: names.clone(),
            names,
            changes: Vec::new(),
            locks: BTreeSet::new(),
            budget: None,
            writes: 0,
            syncs: 0,
            faults: Vec::new(),
            capacity: u64::MAX / 2,
            ignore_syncs: false,
            late_syncs: false,
            hook: None,
        })))
    }

    /// Another disk with the same content as this one has now; everything on it is durable.
    pub fn fork(&self, seed: u64) -> Self {
        let copy = Self::new(seed);
        let sim = self.0.lock();
        let mut names = BTreeMap::new();
        for (path, node) in &sim.names {
            let node = match node {
                Node::Dir => Node::Dir,
                Node::File(inode) => {
                    let mut twin = Inode::default();
                    twin.replace(inode.lock().current.clone());
                    Node::File(Arc::new(Mutex::new(twin)))
                }
            };
            names.insert(path.clone(), node);
        }
        drop(sim);
        let mut twin = copy.0.lock();
        twin.durable_names = names.clone();
        twin.names = names;
        drop(twin);
        copy
    }

    /// As the port.
    pub fn as_disk(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    /// Power off: what was not synced is lost, torn or reordered. Open handles fail from now on.
    pub fn crash(&self) {
        let mut sim = self.0.lock();
        if !sim.off {
            sim.off = true;
            sim.resolved = false;
        }
        sim.resolve();
    }

    /// Power on again; files must be opened anew.
    pub fn reboot(&self) {
        let mut sim = self.0.lock();
        sim.resolve();
        sim.off = false;
        sim.boot += 1;
        sim.locks.clear();
    }

    /// The process died, the power stayed on: everything that was written is there for readers, synced or not. Files must
    /// be opened anew.
    pub fn restart(&self) {
        let mut sim = self.0.lock();
        (sim.off, sim.resolved, sim.budget) = (false, true, None);
        sim.boot += 1;
        sim.locks.clear();
    }

    /// Power goes off at the `n`-th mutating call from now on; that call may take effect in part.
    pub fn crash_after_writes(&self, n: u64) {
        self.0.lock().budget = Some(n);
    }

    /// Takes back [`SimDisk::crash_after_writes`].
    pub fn cancel_crash(&self) {
        self.0.lock().budget = None;
    }

    /// Whether the power is off.
    pub fn is_off(&self) -> bool {
        self.0.lock().off
    }

    /// Mutating calls so far.
    pub fn writes(&self) -> u64 {
        self.0.lock().writes
    }

    /// Successful syncs of files so far.
    pub fn syncs(&self) -> u64 {
        self.0.lock().syncs
    }

    /// Adds a fault.
    pub fn inject(&self, fault: SimFault) {
        self.0.lock().faults.push(fault);
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        self.0.lock().faults.clear();
    }

    /// Room on the disk; writes above it fail with `StorageFull`.
    pub fn set_capacity(&self, bytes: u64) {
        self.0.lock().capacity = bytes;
    }

    /// Makes file syncs lie: they answer success and persist nothing. For tests that must notice it.
    pub fn set_ignore_syncs(&self, ignore: bool) {
        self.0.lock().ignore_syncs = ignore;
    }

    /// Makes file syncs answer too early: each persists only what the one before should have. For tests that must notice it.
    pub fn set_late_syncs(&self, late: bool) {
        self.0.lock().late_syncs = late;
    }

    /// Called before each call, with no lock held: to delay, count or block.
    pub fn set_hook(&self, hook: Option<Hook>) {
        self.0.lock().hook = hook;
    }

    /// All files, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        let sim = self.0.lock();
        let is_file = |(path, node): (&PathBuf, &Node)| matches!(node, Node::File(_)).then(|| path.clone());
        sim.names.iter().filter_map(is_file).collect()
    }

    /// A file's bytes.
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let inode = self.0.lock().file(path).ok()?;
        let bytes = inode.lock().current.clone();
        Some(bytes)
    }

    /// Replaces or makes a file, durable at once.
    pub fn overwrite(&self, path: &Path, bytes: Vec<u8>) {
        let mut sim = self.0.lock();
        let inode = match sim.file(path) {
            Ok(inode) => inode,
            Err(_) => {
                let inode = Arc::new(Mutex::new(Inode::default()));
                sim.names.insert(path.to_owned(), Node::File(inode.clone()));
                sim.durable_names
                    .insert(path.to_owned(), Node::File(inode.clone()));
                inode
            }
        };
        inode.lock().replace(bytes);
    }

    /// Flips one bit of a file, durable at once. Whether the file has that bit.
    pub fn flip_bit(&self, path: &Path, bit: u64) -> bool {
        let Some(mut bytes) = self.contents(path) else {
            return false;
        };
        let Some(byte) = bytes.get_mut((bit / 8) as usize) else {
            return false;
        };
        *byte ^= 1 << (bit % 8);
        self.overwrite(path, bytes);
        true
    }

    /// Cuts a file, durable at once. Whether it was longer.
    pub fn truncate(&self, path: &Path, len: u64) -> bool {
        let Some(mut bytes) = self.contents(path) else {
            return false;
        };
        let shorter = (len as usize) < bytes.len();
        bytes.truncate(len as usize);
        self.overwrite(path, bytes);
        shorter
    }

    /// Removes a file or directory, durable at once. Whether it was there.
    pub fn delete(&self, path: &Path) -> bool {
        let mut sim = self.0.lock();
        let found = sim.names.contains_key(path);
        let change = NameChange::Remove(path.to_owned());
        crash::apply(&mut sim.names, &change);
        crash::apply(&mut sim.durable_names, &change);
        found
    }

    fn begin(&self, op: SimOp, path: &Path) -> io::Result<()> {
        let hook = self.0.lock().hook.clone();
        if let Some(hook) = hook {
            hook(op, path);
        }
        let mut sim = self.0.lock();
        let boot = sim.boot;
        sim.live(boot)?;
        sim.fault(op, path)
    }

    fn name_change(
        &self,
        path: &Path,
        make: impl FnOnce(&mut Sim) -> io::Result<Vec<NameChange>>,
    ) -> io::Result<()> {
        self.begin(SimOp::Name, path)?;
        let mut sim = self.0.lock();
        let changes = make(&mut sim)?;
        let fate = sim.mutate();
        for change in changes {
            sim.change(change);
        }
        if fate == Fate::Last { Err(off()) } else { Ok(()) }
    }

    fn handle(&self, path: &Path, inode: Arc<Mutex<Inode>>) -> Arc<dyn DiskFile> {
        let boot = self.0.lock().boot;
        Arc::new(SimFile {
            disk: self.clone(),
            inode,
            boot,
            path: path.to_owned(),
        })
    }
}
