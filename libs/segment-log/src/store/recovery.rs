//! Recovery: meta slots, then the write-ahead log over them, then the proof that nothing is missing.
//!
//! A group is used only when it is proven that every record of it was found: records are numbered per group without
//! gaps. After a damaged stretch of the log a group is clear when its next record continues the numbers, when a seal
//! lists its last number, or when its meta slot was written after the stretch.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use ptah_types::RaftGroupId;

use super::groups::group_dir;
use super::known::Known;
use super::{DamagedGroup, Shared};
use crate::group::{DAMAGE_MARKER, GroupLog, data_dir, is_damage};
use crate::wal::{Committer, Epoch, Numbers, Record, RecordHeader, RecordKind, ScanEvent, ScanResult, scan};
use crate::{Damage, OpenError, ReadError};

pub(super) struct Recovering {
    pub(super) log: Arc<GroupLog>,
    /// Records in units up to this one are in the meta slot.
    pub(super) wal_seq: u64,
    /// Last record in the meta slot.
    pub(super) covered: u64,
    /// Only one slot was valid: the log must reach back to it.
    pub(super) one_slot: Option<Damage>,
    /// The other slot must be written again.
    pub(super) lost_slot: bool,
    /// Records may be lost from this unit on.
    pub(super) suspect: Option<(u64, Damage)>,
    pub(super) failed: Option<Damage>,
}

/// What recovery found.
pub(super) struct Recovered {
    pub(super) groups: BTreeMap<RaftGroupId, Arc<GroupLog>>,
    pub(super) damaged: BTreeMap<RaftGroupId, DamagedGroup>,
    pub(super) known: Known,
}

pub(super) struct Recovery {
    pub(super) shared: Arc<Shared>,
    pub(super) known: Known,
    pub(super) groups: BTreeMap<RaftGroupId, Recovering>,
    pub(super) damaged: BTreeMap<RaftGroupId, DamagedGroup>,
    /// Bytes in memory that the last flush could not write.
    stuck: u64,
}

impl Recovery {
    pub(super) fn new(shared: Arc<Shared>, known: Known) -> Self {
        Self {
            shared,
            known,
            groups: BTreeMap::new(),
            damaged: BTreeMap::new(),
            stuck: 0,
        }
    }

    /// Reads the write-ahead log. `complete`: the directory was complete before, so an empty log is a lost one.
    pub(super) fn replay(&mut self, complete: bool) -> Result<(), OpenError> {
        let shared = self.shared.clone();
        let dir = shared.dir.join("wal");
        let position = shared.wal.position();
        let identity = shared.identity;
        let mut on = |event: ScanEvent| self.event(event);
        let result = scan(&*shared.disk, &dir, identity, position, &mut on)?;
        if position.is_none() && complete {
            let path = dir.join("position");
            if result.live.is_empty() {
                self.gap(
                    0,
                    u64::MAX,
                    &Damage::new(path, 0, "the write-ahead log is missing"),
                );
            } else {
                tracing::warn!(file = %path.display(), "position of the write-ahead log is missing or damaged, made again");
            }
        }
        self.demand_proof(&result);
        self.start_epoch(result, &dir)
    }

    fn event(&mut self, event: ScanEvent) -> Result<(), OpenError> {
        match event {
            ScanEvent::Gap { from, to, damage } => self.gap(from, to, &damage),
            ScanEvent::Unit {
                file,
                seq,
                seal,
                records,
            } => {
                for (header, body) in records {
                    if seal && header.kind == RecordKind::Numbers {
                        self.seal(&body);
                    } else {
                        self.record(file, seq, header, &body);
                    }
                }
                self.shared.completed_seq.store(seq, Ordering::Release);
                self.relieve_memory()?;
            }
        }
        Ok(())
    }

    fn gap(&mut self, from: u64, to: u64, damage: &Damage) {
        tracing::error!(%damage, "write-ahead log is damaged");
        for group in self.groups.values_mut() {
            if group.wal_seq >= to - 1 {
                continue;
            }
            match &mut group.suspect {
                Some((first, _)) => *first = (*first).min(from),
                None => group.suspect = Some((from, damage.clone())),
            }
        }
    }

    /// A seal lists the last numbers of all groups that had a record lately.
    fn seal(&mut self, body: &Bytes) {
        let Some(numbers) = Numbers::decode(body) else {
            return;
        };
        let last: BTreeMap<u64, u64> = numbers.last.into_iter().collect();
        for (id, group) in &mut self.groups {
            let Some((from, _)) = &group.suspect else { continue };
            if *from < numbers.since_seq {
                continue;
            }
            let found = group.log.durable_record();
            let complete = last.get(&id.get()).is_none_or(|last| *last <= found);
            if complete {
                group.suspect = None;
            }
        }
    }

    fn record(&mut self, file: u64, seq: u64, header: RecordHeader, body: &Bytes) {
        let Ok(id) = RaftGroupId::new(header.group) else {
            return;
        };
        let path = self.shared.dir.join("wal").join(format!("{file:016x}.wal"));
        let Some(group) = self.groups.get_mut(&id) else {
            if !self.known.0.contains_key(&id) && !self.damaged.contains_key(&id) {
                let dir = group_dir(&self.shared.dir, id);
                let what = "the write-ahead log has records of this group, its directory is missing";
                self.add_damaged(id, None, &dir, Damage::new(&dir, 0, what));
            }
            return;
        };
        if group.failed.is_some() {
            return;
        }
        let found = group.log.durable_record();
        if seq <= group.wal_seq || header.number <= found {
            // The meta slot has it, but nothing proves that the slot was synced.
            group.log.hold(file);
            return;
        }
        if header.number > found + 1 {
            let what = format!(
                "records {} to {} of group {} are lost",
                found + 1,
                header.number - 1,
                id.to_hex()
            );
            let lost = group.suspect.take().map(|(_, damage)| damage);
            group.failed = Some(lost.unwrap_or_else(|| Damage::new(path, 0, what)));
            return;
        }
        group.suspect = None;
        let result = match Record::decode(header.kind, id, body) {
            Some(record) => group.log.replay(header.number, record, file),
            None => Err(format!("record {} is not valid", header.number)),
        };
        if let Err(what) = result {
            group.failed = Some(Damage::new(path, 0, format!("unit {seq}: {what}")));
        }
    }

    /// A long log may hold more frames than fit in memory: they go to their segments.
    ///
    /// A group whose files cannot be written keeps its frames in memory, as it did before the start, up to a bound.
    fn relieve_memory(&mut self) -> Result<(), OpenError> {
        let shared = &self.shared;
        let held = || shared.unflushed.load(Ordering::Relaxed) + shared.recent.load(Ordering::Relaxed);
        if held() <= shared.options.unflushed_bytes + self.stuck {
            return Ok(());
        }
        let mut refused = None;
        for (id, group) in &mut self.groups {
            if group.suspect.is_some() || group.failed.is_some() || group.one_slot.is_some() {
                continue;
            }
            match group.log.flush() {
                Ok(_) => {}
                Err(error) if is_damage(&error) => {
                    let what = format!("flush group {}: {error}", id.to_hex());
                    group.failed = Some(Damage::new(group.log.dir(), 0, what));
                }
                Err(error) => {
                    tracing::warn!(group = %id.to_hex(), %error, "group cannot be flushed, its frames stay in memory");
                    refused = Some((group.log.dir().to_owned(), error));
                }
            }
        }
        self.stuck = if refused.is_some() { held() } else { 0 };
        match refused {
            Some((dir, error)) if self.stuck > 2 * shared.options.unflushed_bytes => {
                Err(OpenError::io("write the files of", dir)(error))
            }
            _ => Ok(()),
        }
    }

    /// A group with one valid slot is fine when the log reaches back to it: nothing newer can be in the lost slot.
    fn demand_proof(&mut self, result: &ScanResult) {
        let start = result.live.first().map_or(result.next_seq, |file| file.first_seq);
        for (id, group) in &mut self.groups {
            let Some(damage) = group.one_slot.take() else {
                continue;
            };
            // The record right behind the slot is there, so all later ones are; or the log reaches back to before the slot.
            let continued = group.log.durable_record() > group.covered;
            if continued || start <= group.wal_seq + 1 {
                tracing::warn!(group = %id.to_hex(), %damage, "meta slot is lost, the log proves the other one");
                group.lost_slot = true;
            } else {
                group.failed = group.failed.take().or(Some(damage));
            }
        }
    }

    /// Continues the log in a new epoch, in a new file.
    ///
    /// The last unit may be in the page cache only, and no sync need reach it any more: it is written again. The units before
    /// it were synced. Nothing is given up before the position file says so durably.
    fn start_epoch(&mut self, mut result: ScanResult, dir: &Path) -> Result<(), OpenError> {
        let shared = &self.shared;
        let epoch = Epoch {
            number: result.epoch + 1,
            nonce: shared
                .disk
                .entropy()
                .map_err(OpenError::io("ask for a random number for", dir))?,
        };
        let bytes = shared.options.wal_file_bytes;
        shared.completed_seq.store(result.next_seq - 1, Ordering::Release);
        // A later unit than the last one that was found is known to have been synced, so that one was, too.
        let last = result
            .last_unit
            .take()
            .filter(|last| last.seq + 1 == result.next_seq);
        let copied = last.as_ref().map(|last| last.seq);
        // A file with nothing but an earlier copy is of no use behind the new one.
        while let Some(file) = result.live.pop_if(|file| copied == Some(file.first_seq)) {
            result.unused.push(dir.join(format!("{:016x}.wal", file.number)));
        }
        let next_seq = copied.unwrap_or(result.next_seq);
        let mut committer = Committer::new(shared.identity, bytes, epoch, next_seq, result.last_number);
        let wal = &shared.wal;
        wal.set_live(result.live);
        wal.find_spares()
            .and_then(|()| wal.prepare(1))
            .map_err(OpenError::io("prepare", dir))?;
        match last {
            Some(last) => committer.copy(wal, &last),
            None => wal.save_position(epoch, result.next_seq - 1),
        }
        .map_err(OpenError::io("begin the write-ahead log in", dir))?;
        *shared.committer.lock() = committer;
        wal.adopt_spares(&result.unused)
            .and_then(|()| wal.prepare(1))
            .map_err(OpenError::io("prepare", dir))
    }

    /// Judges every group.
    pub(super) fn finish(mut self) -> Result<Recovered, OpenError> {
        let mut groups = BTreeMap::new();
        for (id, group) in std::mem::take(&mut self.groups) {
            let lost = group.failed.or(group.suspect.map(|(_, damage)| damage));
            let damage = match lost {
                Some(damage) => Some(damage),
                None => self.check_group(&group.log)?,
            };
            match damage {
                None => {
                    if group.lost_slot {
                        group
                            .log
                            .rewrite_meta()
                            .map_err(OpenError::io("write a meta slot in", group.log.dir()))?;
                    }
                    groups.insert(id, group.log);
                }
                Some(damage) => {
                    let dir = group.log.dir().to_owned();
                    self.write_marker(&dir, &damage)?;
                    self.add_damaged(id, Some(group.log.spec().clone()), &dir, damage);
                }
            }
        }
        Ok(Recovered {
            groups,
            damaged: self.damaged,
            known: self.known,
        })
    }

    fn check_group(&self, log: &Arc<GroupLog>) -> Result<Option<Damage>, OpenError> {
        if let Err(damage) = log.check_recovered() {
            return Ok(Some(damage));
        }
        match log.recover_checkpoint() {
            Ok(()) => {}
            Err(ReadError::Damaged(damage)) => return Ok(Some(damage)),
            Err(error) => return Ok(Some(Damage::new(log.dir(), 0, error))),
        }
        let dir: PathBuf = data_dir(log.dir(), log.state().dir_number);
        // A checkpoint that is there may have been renamed by a process that died before it synced the directory.
        self.shared
            .disk
            .sync_dir(&dir)
            .map_err(OpenError::io("sync", &dir))?;
        let mut names = Vec::new();
        for entry in self.shared.disk.list(&dir).map_err(OpenError::io("list", &dir))? {
            if entry.name.ends_with(".tmp") {
                let path = dir.join(&entry.name);
                self.shared
                    .disk
                    .remove_file(&path)
                    .map_err(OpenError::io("remove", &path))?;
            } else {
                names.push(entry.name);
            }
        }
        log.tidy_files(&names);
        Ok(None)
    }

    /// The damage stays known when the evidence is recycled.
    fn write_marker(&self, dir: &Path, damage: &Damage) -> Result<(), OpenError> {
        let disk = &*self.shared.disk;
        if !disk.exists(dir).map_err(OpenError::io("look at", dir))? {
            return Ok(());
        }
        let path = dir.join(DAMAGE_MARKER);
        let text = format!("{damage}\n");
        crate::disk::replace_file(disk, &path, &[text.as_bytes()]).map_err(OpenError::io("write", path))
    }
}
