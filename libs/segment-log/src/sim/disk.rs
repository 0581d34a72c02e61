//! The simulated disk as the port.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::file::Inode;
use super::{Fate, NameChange, Node, SimDisk, SimOp, off};
use crate::disk::{DirEntry, Disk, DiskFile, DiskLock, DiskSpace, parent};

struct SimLock {
    disk: SimDisk,
    path: PathBuf,
    boot: u64,
}

impl DiskLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut sim = self.disk.0.lock();
        if sim.boot == self.boot {
            sim.locks.remove(&self.path);
        }
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.open_read(path)
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.begin(SimOp::Open, path)?;
        let inode = self.0.lock().file(path)?;
        Ok(self.handle(path, inode))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.begin(SimOp::Open, path)?;
        let mut sim = self.0.lock();
        sim.need_parent(path)?;
        let fate = sim.mutate();
        let inode = match sim.file(path) {
            Ok(inode) => {
                inode.lock().set_len(0);
                inode
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let inode = Arc::new(Mutex::new(Inode::default()));
                sim.change(NameChange::Set(path.to_owned(), Node::File(inode.clone())));
                inode
            }
            Err(error) => return Err(error),
        };
        drop(sim);
        if fate == Fate::Last {
            Err(off())
        } else {
            Ok(self.handle(path, inode))
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.name_change(from, |sim| {
            sim.need_parent(to)?;
            if !sim.names.contains_key(from) {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok(vec![NameChange::Rename(from.to_owned(), to.to_owned())])
        })
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.name_change(from, |sim| {
            sim.need_parent(to)?;
            if sim.names.contains_key(to) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            Ok(vec![NameChange::Set(to.to_owned(), Node::File(sim.file(from)?))])
        })
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.name_change(path, |sim| {
            sim.file(path)?;
            Ok(vec![NameChange::Remove(path.to_owned())])
        })
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.name_change(path, |sim| {
            if !sim.names.contains_key(path) {
                return Err(io::ErrorKind::NotFound.into());
            }
            let inside = sim.names.keys().filter(|name| name.starts_with(path));
            // Children first: a power cut in the middle leaves a part of them.
            Ok(inside.rev().cloned().map(NameChange::Remove).collect())
        })
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.name_change(path, |sim| {
            let mut missing: Vec<PathBuf> = Vec::new();
            for ancestor in path.ancestors() {
                match sim.names.get(ancestor) {
                    Some(Node::Dir) => break,
                    Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                    None => missing.push(ancestor.to_owned()),
                }
            }
            missing.reverse();
            Ok(missing
                .into_iter()
                .map(|dir| NameChange::Set(dir, Node::Dir))
                .collect())
        })
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.begin(SimOp::List, path)?;
        let sim = self.0.lock();
        if !matches!(sim.names.get(path), Some(Node::Dir)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut entries = Vec::new();
        for (name, node) in &sim.names {
            if name != path && parent(name) == path {
                let text = name.file_name().map(|n| n.to_string_lossy().into_owned());
                let is_dir = matches!(node, Node::Dir);
                entries.extend(text.map(|name| DirEntry { name, is_dir }));
            }
        }
        entries.sort();
        Ok(entries)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.begin(SimOp::SyncDir, path)?;
        let mut sim = self.0.lock();
        let fate = sim.mutate();
        if fate == Fate::Go || sim.rng.chance(2) {
            sim.persist_names(path);
        }
        if fate == Fate::Last { Err(off()) } else { Ok(()) }
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.begin(SimOp::List, path)?;
        Ok(self.0.lock().names.contains_key(path))
    }

    fn space(&self, _path: &Path) -> io::Result<DiskSpace> {
        let sim = self.0.lock();
        Ok(DiskSpace {
            total_bytes: sim.capacity,
            available_bytes: sim.capacity.saturating_sub(sim.used()),
        })
    }

    fn entropy(&self) -> io::Result<u64> {
        Ok(self.0.lock().rng.next())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        if !self.exists(path)? {
            drop(self.create(path)?);
        }
        let mut sim = self.0.lock();
        if !sim.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock {
            disk: self.clone(),
            path: path.to_owned(),
            boot: sim.boot,
        }))
    }
}
