//! Checkpoint rounds: from the write-ahead log to the groups' own files.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ptah_types::RaftGroupId;

use super::Inner;
use super::commit::{FailAtPanic, LatchAtPanic};
use crate::group::{Flushed, GroupLog};
use crate::types::{RoundLimit, RoundReport};

/// Where the last round stopped.
#[derive(Default)]
pub(super) struct RoundState {
    next: Option<RaftGroupId>,
}

impl Inner {
    pub(super) fn checkpoint_round(&self, limit: RoundLimit) -> io::Result<RoundReport> {
        let _fail = FailAtPanic(&self.shared);
        let mut round = self.round.lock();
        let _latch = LatchAtPanic(&self.shared, "checkpoint round");
        self.shared.check_failed()?;
        let written_before = self.shared.since_checkpoint.load(Ordering::Relaxed);
        let groups: Vec<Arc<GroupLog>> = {
            let groups = self.groups.read();
            let from = round
                .next
                .unwrap_or(RaftGroupId::new(1).map_err(io::Error::other)?);
            groups
                .range(from..)
                .chain(groups.range(..from))
                .map(|(_, group)| group.clone())
                .collect()
        };
        let mut report = RoundReport::default();
        round.next = None;
        for group in &groups {
            if !group.is_dirty() {
                continue;
            }
            if report.groups >= limit.groups || report.bytes >= limit.bytes {
                report.remaining += 1;
                round.next = round.next.or(Some(group.spec().group));
                continue;
            }
            self.flush_one(group, &mut report);
        }
        for group in &groups {
            self.delete_one(group, &mut report);
        }
        if report.remaining == 0 {
            self.shared
                .since_checkpoint
                .fetch_sub(written_before, Ordering::Relaxed);
        }
        self.shared.checkpoint_ran();
        self.forget_indexes(&groups);
        report.recycled = self.recycle()?;
        self.shared.refresh_space();
        self.shared.tell_room();
        Ok(report)
    }

    fn flush_one(&self, group: &Arc<GroupLog>, report: &mut RoundReport) {
        match group.flush() {
            Ok(Flushed::Done { bytes }) => {
                report.groups += 1;
                report.bytes += bytes;
            }
            Ok(Flushed::Clean) => {}
            Ok(Flushed::NotYet) => report.remaining += 1,
            Err(error) => {
                let text = error.to_string();
                tracing::warn!(group = %group.spec().group.to_hex(), %error, "group cannot be flushed");
                // Others must not run out of write-ahead log or memory because of one.
                if self.shared.is_half_full() {
                    group.hold_up(&error);
                }
                report.failed.push((group.spec().group, text));
            }
        }
    }

    fn delete_one(&self, group: &Arc<GroupLog>, report: &mut RoundReport) {
        match group.delete_dropped() {
            Ok(deleted) => report.deleted += deleted,
            Err(error) => {
                tracing::warn!(group = %group.spec().group.to_hex(), %error, "dropped files cannot be deleted, tried again later");
            }
        }
    }

    /// Write-ahead log files that no group needs are used again.
    fn recycle(&self) -> io::Result<usize> {
        // What is being committed now goes to this file or a later one.
        let current = self.shared.wal.last_number();
        // Listed only now: a group that was made since the round began may need a file that nobody else does. One that is
        // made later has its first record in `current` or behind it.
        let groups: Vec<Arc<GroupLog>> = self.groups.read().values().cloned().collect();
        let (epoch, last_seq) = {
            let committer = self.shared.committer.lock();
            (committer.epoch(), committer.last_seq())
        };
        let needed = groups.iter().filter_map(|group| group.oldest_wal_file()).min();
        let needed = needed.map_or(current, |needed| needed.min(current));
        let spares = self.shared.options.spare_wal_files;
        let recycled = self.shared.wal.recycle(needed, spares, epoch, last_seq)?;
        if recycled == 0 {
            self.shared.wal.save_position(epoch, last_seq)?;
        }
        self.shared.wal.prepare(spares.min(1))?;
        Ok(recycled)
    }

    /// Keeps the memory of sparse indexes bounded: those of closed segments go first, oldest groups first.
    fn forget_indexes(&self, groups: &[Arc<GroupLog>]) {
        let limit = self.shared.options.index_cache_bytes;
        let total: usize = groups.iter().map(|group| group.index_memory()).sum();
        let mut excess = total.saturating_sub(limit);
        for group in groups {
            if excess == 0 {
                return;
            }
            excess = excess.saturating_sub(group.forget_closed_indexes());
        }
    }
}
