//! Power cuts: which names and bytes survive.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{NameChange, Node, Sim};
use crate::disk::parent;

/// SplitMix64: small, seeded, good enough to choose damage.
pub(super) struct SimRng(u64);

impl SimRng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// True once in `n` times.
    pub(super) fn chance(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            items.swap(last, other);
        }
    }
}

pub(super) fn apply(names: &mut BTreeMap<PathBuf, Node>, change: &NameChange) {
    match change {
        NameChange::Set(path, node) => {
            names.insert(path.clone(), node.clone());
        }
        NameChange::Remove(path) => names.retain(|name, _| !name.starts_with(path)),
        NameChange::Rename(from, to) => rename(names, from, to),
    }
}

fn rename(names: &mut BTreeMap<PathBuf, Node>, from: &Path, to: &Path) {
    let moved: Vec<PathBuf> = names
        .keys()
        .filter(|name| name.starts_with(from))
        .cloned()
        .collect();
    if moved.is_empty() {
        return;
    }
    names.retain(|name, _| !name.starts_with(to));
    for name in moved {
        let Some(node) = names.remove(&name) else { continue };
        let inside = name.strip_prefix(from).unwrap_or(Path::new(""));
        let target = if inside.as_os_str().is_empty() {
            to.to_owned()
        } else {
            to.join(inside)
        };
        names.insert(target, node);
    }
}

impl NameChange {
    fn directory(&self) -> &Path {
        match self {
            Self::Set(path, _) | Self::Remove(path) | Self::Rename(_, path) => parent(path),
        }
    }
}

impl Sim {
    /// Makes the names of one directory durable.
    pub(super) fn persist_names(&mut self, dir: &Path) {
        let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.changes)
            .into_iter()
            .partition(|change| change.directory() == dir);
        for change in now {
            apply(&mut self.durable_names, &change);
        }
        self.changes = later;
    }

    /// Chooses what survives the power cut; once per cut.
    pub(super) fn resolve(&mut self) {
        if self.resolved {
            return;
        }
        self.resolved = true;
        self.budget = None;
        // Journals keep the order of name changes, so mostly a prefix survives; sometimes any subset does.
        let changes = std::mem::take(&mut self.changes);
        let prefix = self
            .rng
            .chance(2)
            .then(|| self.rng.below(changes.len() as u64 + 1));
        for (number, change) in changes.iter().enumerate() {
            let survives = match prefix {
                Some(kept) => (number as u64) < kept,
                None => self.rng.chance(2),
            };
            if survives {
                apply(&mut self.durable_names, change);
            }
        }
        self.drop_unreachable();
        self.names = self.durable_names.clone();
        let inodes: Vec<_> = self.names.values().cloned().collect();
        for node in inodes {
            if let Node::File(inode) = node {
                inode.lock().crash(&mut self.rng);
            }
        }
    }

    fn drop_unreachable(&mut self) {
        let names = std::mem::take(&mut self.durable_names);
        for (path, node) in names {
            let root = path.as_os_str().is_empty() || path == Path::new("/");
            if root || matches!(self.durable_names.get(parent(&path)), Some(Node::Dir)) {
                self.durable_names.insert(path, node);
            }
        }
    }
}
