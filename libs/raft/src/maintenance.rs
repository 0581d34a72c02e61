//! State checkpoints, purging the log behind them, and dropping messages that retention gave up.
//!
//! A checkpoint is taken when enough was applied or enough time has passed, and only up to what is durable. The log is
//! purged behind a checkpoint that lies at least `keep_log_bytes` back, and not past a follower that lags less than
//! `hold_log_bytes`: what lags more copies segments instead. Commands (acks) live only in the log and vanish with it;
//! messages stay until retention drops them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use ptah_segment_log::CheckpointError;
use ptah_service::Tasks;
use ptah_types::{LogId, LogIndex, RaftGroupId, Sequence};
use tokio::time::Instant;

use crate::applied::Volume;
use crate::cell::{Cell, Running};
use crate::checkpoint_codec::encode_state;
use crate::directory::Directory;
use crate::drivers::Wakes;

/// Most checkpoints of one replica that are remembered; older ones are reached by purging.
const MAX_MARKS: usize = 64;

/// A replica to which nothing was applied for so many turns has its turn only now and then: for checkpoints that are due
/// by time, and for purges that waited for somebody.
const CALM_TURNS: u32 = 8;
const IDLE_TURNS: u64 = 40;

/// A checkpoint, and how much was applied when it was taken.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: LogIndex,
    bytes: u64,
}

/// What the maintenance of one replica remembers.
struct Memory {
    /// What was applied at the last turn.
    seen: Volume,
    /// Turns since anything happened.
    calm: u32,
    taken: Volume,
    taken_at: Instant,
    marks: VecDeque<Mark>,
    /// How far the log was purged at the last turn.
    purged: Option<LogIndex>,
}

/// Keeps all replicas of a host small.
pub(crate) struct Maintenance {
    directory: Arc<Directory>,
    interval: Duration,
    wakes: Arc<Wakes>,
    memory: BTreeMap<RaftGroupId, Memory>,
}

impl Maintenance {
    pub(crate) fn new(directory: Arc<Directory>, interval: Duration, wakes: Arc<Wakes>) -> Self {
        Self {
            directory,
            interval,
            wakes,
            memory: BTreeMap::new(),
        }
    }

    pub(crate) async fn run(mut self, tasks: Tasks) {
        let stopping = tasks.stopping();
        for turn in 0_u64.. {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(self.interval) => {}
            }
            let cells = self.directory.all();
            if self.memory.len() > cells.len() {
                let groups: BTreeSet<_> = cells.iter().map(|cell| cell.group).collect();
                self.memory.retain(|group, _| groups.contains(group));
            }
            for cell in cells {
                if stopping.is_stopping() {
                    return;
                }
                if !self.is_idle(&cell, turn) {
                    self.maintain(&cell).await;
                }
            }
        }
    }

    /// Whether this turn can be left out. The turns of idle replicas are spread over time.
    fn is_idle(&self, cell: &Cell, turn: u64) -> bool {
        let Some(memory) = self.memory.get(&cell.group) else {
            return false;
        };
        if memory.calm < CALM_TURNS {
            return false;
        }
        let is_turn = turn.wrapping_add(cell.group.get()).is_multiple_of(IDLE_TURNS);
        !is_turn && cell.with_running(|_| ()).is_some() && cell.state.volume() == memory.seen
    }

    async fn maintain(&mut self, cell: &Arc<Cell>) {
        let Some(running) = cell.running() else {
            // It may be opened again with other content; what was remembered of it is void.
            self.memory.remove(&cell.group);
            return;
        };
        let volume = cell.state.volume();
        let memory = self
            .memory
            .entry(cell.group)
            .or_insert_with(|| Memory::of(&running, volume));
        let is_same = memory.seen == volume;
        memory.seen = volume;
        memory.calm = if is_same { memory.calm.saturating_add(1) } else { 0 };
        if memory.is_due(cell, volume) {
            memory.calm = 0;
            if let Some((at, bytes)) = checkpoint(cell, &running).await {
                memory.took(at, bytes, volume);
                // openraft offers and purges behind what its own snapshot position says.
                if running.raft.trigger().snapshot().await.is_err() {
                    return;
                }
            }
        }
        let purged = running.log.last_purged().map(|id| id.index);
        if purged > memory.purged {
            memory.purged = purged;
            // The files go when the purge is durable in the group's own files: soon, not with the next regular round.
            self.wakes.round.notify_one();
        }
        purge(cell, &running, memory, volume).await;
    }
}

impl Memory {
    fn of(running: &Running, volume: Volume) -> Self {
        let marks = running
            .log
            .checkpoint_log_id()
            .map(|at| Mark {
                at: at.index,
                bytes: volume.bytes,
            })
            .into_iter()
            .collect();
        Self {
            seen: volume,
            calm: 0,
            taken: Volume::default(),
            taken_at: Instant::now(),
            marks,
            purged: None,
        }
    }

    fn is_due(&self, cell: &Cell, now: Volume) -> bool {
        let options = &cell.shared.options;
        let entries = now.entries - self.taken.entries;
        let bytes = now.bytes - self.taken.bytes;
        bytes >= options.checkpoint_bytes(cell.segment_bytes)
            || entries >= options.checkpoint_entries
            || (entries > 0 && self.taken_at.elapsed() >= options.checkpoint_every)
    }

    fn took(&mut self, at: LogId, bytes: u64, volume: Volume) {
        self.taken = volume;
        self.taken_at = Instant::now();
        self.marks.push_back(Mark { at: at.index, bytes });
        while self.marks.len() > MAX_MARKS {
            // Every second old mark goes, so that both near and far positions stay known.
            self.marks.remove(1);
        }
    }

    /// The newest checkpoint at least `distance` bytes behind what is applied.
    fn behind(&self, applied_bytes: u64, distance: u64) -> Option<LogIndex> {
        self.marks
            .iter()
            .rev()
            .find(|mark| mark.bytes.saturating_add(distance) <= applied_bytes)
            .map(|mark| mark.at)
    }
}

/// Takes a checkpoint when everything applied is durable; otherwise the next turn does. Answers where, and how much
/// was applied there.
async fn checkpoint(cell: &Arc<Cell>, running: &Running) -> Option<(LogId, u64)> {
    let (state, log) = (Arc::clone(&cell.state), Arc::clone(&running.log));
    let written = running
        .blocking
        .run(move || {
            let (encoded, volume, first) = state.read_with_volume(|content, volume| {
                (encode_state(content), volume, content.partition.first_sequence())
            });
            let Some((at, bytes)) = encoded else {
                return Ok(None);
            };
            if log.checkpoint_log_id().is_some_and(|newest| newest >= at) {
                return Ok(None);
            }
            log.write_checkpoint(at, bytes)?;
            drop_messages(&log, first);
            Ok::<_, CheckpointError>(Some((at, volume.bytes)))
        })
        .await;
    let metrics = &cell.shared.metrics;
    match written {
        Ok(Ok(taken)) => {
            metrics.checkpoints.inc_by(u64::from(taken.is_some()));
            taken
        }
        Ok(Err(CheckpointError::AheadOfLog { .. })) => None,
        Ok(Err(error)) => {
            metrics.checkpoints_failed.inc();
            tracing::error!(group = %cell.group.to_hex(), %error, "checkpoint was not written");
            None
        }
        // The runtime goes down, or encoding panicked.
        Err(error) => {
            metrics.checkpoints_failed.inc();
            tracing::error!(group = %cell.group.to_hex(), %error, "checkpoint was not written");
            None
        }
    }
}

/// Retention moved the first message; whole segments before it go.
fn drop_messages(log: &Arc<ptah_segment_log::GroupLog>, first: Sequence) {
    if first > log.first_sequence() {
        log.drop_messages_before(first);
    }
}

/// Purges what neither a restart nor a close follower needs.
async fn purge(cell: &Arc<Cell>, running: &Running, memory: &Memory, volume: Volume) {
    let options = &cell.shared.options;
    let keep = options.keep_log_bytes(cell.segment_bytes);
    let hold = options.hold_log_bytes(cell.segment_bytes).max(keep);
    let Some(wanted) = memory.behind(volume.bytes, keep) else {
        return;
    };
    // Whoever is behind this position is too far away to wait for.
    let floor = memory.behind(volume.bytes, hold);
    let close_follower = slowest_follower(running, cell.replica.get(), floor);
    let upto = [
        Some(wanted),
        close_follower,
        cell.holds.lowest().filter(|held| Some(*held) > floor),
    ]
    .into_iter()
    .flatten()
    .min()
    .unwrap_or(wanted);
    if memory.purged < Some(upto) && running.raft.trigger().purge_log(upto.0).await.is_err() {
        tracing::debug!(group = %cell.group.to_hex(), "replica stopped before it was purged");
    }
}

/// The lowest position that a follower at or above `floor` has; `None` on a follower, and when all are far away.
fn slowest_follower(running: &Running, own: u64, floor: Option<LogIndex>) -> Option<LogIndex> {
    let metrics = running.raft.data_metrics();
    let metrics = metrics.borrow_watched();
    let replication = metrics.replication.as_ref()?;
    replication
        .iter()
        .filter(|(replica, _)| **replica != own)
        .map(|(_, matched)| LogIndex(matched.as_ref().map_or(0, |id| id.index())))
        .filter(|matched| floor.is_none_or(|floor| *matched >= floor))
        .min()
}
