//! The store: one node's data directory.

mod commit;
mod drivers;
mod groups;
mod identity;
mod known;
mod load;
mod open;
mod recovery;
mod round;
mod shared;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::{Mutex, RwLock};
use ptah_types::RaftGroupId;

use crate::disk::{Disk, DiskLock};
use crate::group::GroupLog;
use crate::options::Options;
use crate::types::{
    CommitOutcome, GroupCondition, GroupInfo, GroupSpec, Identity, LargeOutcome, Pressure, RoundLimit,
    RoundReport, Space, Stats, Work,
};
use crate::{Damage, OpenError};

pub use drivers::Drivers;
pub(crate) use shared::{LargeItem, Shared, count};

use known::Known;

/// A group that may not be used.
#[derive(Clone, Debug)]
struct DamagedGroup {
    spec: Option<GroupSpec>,
    damage: Vec<Damage>,
    path: PathBuf,
}

struct Inner {
    shared: Arc<Shared>,
    groups: RwLock<BTreeMap<RaftGroupId, Arc<GroupLog>>>,
    damaged: RwLock<BTreeMap<RaftGroupId, DamagedGroup>>,
    /// Held while groups are made, dropped or set aside.
    known: Mutex<Known>,
    round: Mutex<round::RoundState>,
    lock: Mutex<Option<Box<dyn DiskLock>>>,
}

/// One node's storage: a write-ahead log and all groups. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

impl Store {
    /// Opens a data directory, or makes it. Recovers every group; refuses other clusters, nodes and newer formats without
    /// changing a byte. Blocking.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: Identity,
        options: Options,
    ) -> Result<Self, OpenError> {
        open::open(disk, dir, identity, options)
    }

    /// Whose data `dir` holds; `None` when it is empty or missing. Changes nothing.
    pub fn read_identity(disk: &dyn Disk, dir: &Path) -> Result<Option<Identity>, OpenError> {
        identity::read(disk, dir)
    }

    /// Whose data this is.
    pub fn identity(&self) -> Identity {
        self.0.shared.identity
    }

    /// All groups, sorted by id, damaged ones too.
    pub fn groups(&self) -> Vec<GroupInfo> {
        let mut out: BTreeMap<RaftGroupId, GroupInfo> = BTreeMap::new();
        for (group, log) in self.0.groups.read().iter() {
            let (spec, condition, path) = (Some(log.spec().clone()), log.condition(), log.dir().to_owned());
            out.insert(
                *group,
                GroupInfo {
                    group: *group,
                    spec,
                    condition,
                    path,
                },
            );
        }
        for (group, damaged) in self.0.damaged.read().iter() {
            let condition = GroupCondition::Damaged(damaged.damage.clone());
            let (spec, path) = (damaged.spec.clone(), damaged.path.clone());
            out.insert(
                *group,
                GroupInfo {
                    group: *group,
                    spec,
                    condition,
                    path,
                },
            );
        }
        out.into_values().collect()
    }

    /// A group that was healthy when the store was opened. `None` for unknown and for damaged ones (see [`Store::groups`]).
    pub fn group(&self, group: RaftGroupId) -> Option<Arc<GroupLog>> {
        self.0.groups.read().get(&group).cloned()
    }

    /// Writes and syncs one unit of what is queued, then calls its completions. One driver at a time; others wait.
    pub fn commit_pending(&self) -> CommitOutcome {
        self.0.shared.commit_pending()
    }

    /// Writes an empty unit behind an unsealed one, which proves that the last unit was synced. `Idle` when nothing is
    /// unsealed or something is queued. Call it after about 50 quiet milliseconds; [`Store::spawn_drivers`] does.
    pub fn seal(&self) -> CommitOutcome {
        self.0.shared.seal()
    }

    /// Writes one piece (1 MiB) of the large frames that are queued, or does one snapshot switch.
    pub fn write_large_pending(&self) -> LargeOutcome {
        self.0.shared.write_large_pending()
    }

    /// Calls `waker` when there is work: from any thread, never under a lock that the named call takes. Set it before the
    /// first append.
    pub fn set_waker(&self, waker: Arc<dyn Fn(Work) + Send + Sync>) {
        self.0.shared.set_waker(waker);
    }

    /// Starts the committer and the large writer as OS threads. `Work::Checkpoint` and `Work::Room` still go to the waker.
    pub fn spawn_drivers(&self) -> io::Result<Drivers> {
        Drivers::spawn(self.0.shared.clone())
    }

    /// Flushes and syncs dirty groups, writes their meta slots, recycles write-ahead log, deletes dropped files. Blocking.
    pub fn checkpoint_round(&self, limit: RoundLimit) -> io::Result<RoundReport> {
        self.0.checkpoint_round(limit)
    }

    /// Whether a checkpoint round is wanted because of write-ahead log or memory.
    pub fn needs_checkpoint(&self) -> bool {
        self.0.shared.needs_checkpoint()
    }

    /// Why the store failed, if it did. A failed store acknowledges nothing; stop the process.
    pub fn failure(&self) -> Option<String> {
        self.0.shared.failure()
    }

    /// Room on the disk.
    pub fn space(&self) -> io::Result<Space> {
        let shared = &self.0.shared;
        // Whoever asks wants appends to know it, too: others may fill the disk.
        shared.refresh_space();
        let space = shared.disk.space(&shared.dir)?;
        let used = space.total_bytes.saturating_sub(space.available_bytes);
        let percent = used
            .saturating_mul(100)
            .checked_div(space.total_bytes)
            .unwrap_or(0);
        Ok(Space {
            total_bytes: space.total_bytes,
            available_bytes: space.available_bytes,
            reserve_bytes: shared.reserve_bytes,
            used_percent: percent.min(100) as u8,
            refusing: space.available_bytes < shared.reserve_bytes,
        })
    }

    /// Queues now.
    pub fn pressure(&self) -> Pressure {
        let shared = &self.0.shared;
        Pressure {
            queued_bytes: shared.queued(),
            unflushed_bytes: shared.unflushed.load(Ordering::Relaxed),
            wal_bytes: shared.wal_live_bytes(),
        }
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        let shared = &self.0.shared;
        let counters = &shared.counters;
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (wal_files, spare_files, recycled_files, created_files) = shared.wal.counts();
        Stats {
            wal_syncs: get(&counters.wal_syncs),
            units: get(&counters.units),
            seals: get(&counters.seals),
            wal_bytes: get(&counters.wal_bytes),
            completions: get(&counters.completions),
            wal_files,
            spare_files,
            recycled_files,
            created_files,
            wal_bytes_since_checkpoint: get(&shared.since_checkpoint),
            segment_bytes: get(&counters.segment_bytes),
            file_syncs: get(&counters.file_syncs),
            large_frames: get(&counters.large_frames),
            unflushed_bytes: get(&shared.unflushed),
            recent_bytes: get(&shared.recent),
            reads_from_memory: get(&counters.reads_from_memory),
            reads_from_disk: get(&counters.reads_from_disk),
            damaged_reads: get(&counters.damaged_reads),
            refused_appends: get(&counters.refused_appends),
        }
    }

    /// Clean shutdown: commits what is queued, writes everything to the groups' own files, seals, refuses later work and
    /// releases the directory. Stop the drivers first. Blocking; a second call does nothing.
    pub fn close(&self) -> io::Result<()> {
        let shared = &self.0.shared;
        if self.0.lock.lock().is_none() {
            return Ok(());
        }
        shared.check_failed()?;
        loop {
            let large = shared.write_large_pending() == LargeOutcome::Progress;
            let committed = matches!(shared.commit_pending(), CommitOutcome::Committed { .. });
            shared.check_failed()?;
            if !large && !committed {
                break;
            }
        }
        self.checkpoint_round(RoundLimit::default())?;
        shared.seal();
        shared.check_failed()?;
        let committer = shared.committer.lock();
        shared
            .wal
            .save_position(committer.epoch(), committer.last_seq())?;
        drop(committer);
        shared.latch_closed();
        self.0.lock.lock().take();
        Ok(())
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.0.shared.dir.display())
    }
}
