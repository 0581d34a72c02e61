//! Flush: durable frames that are only in memory and in the write-ahead log go to their segments, then the meta slot.
//!
//! Order: cuts, frames, sync of the files, sync of the directory, meta slot. Only afterwards the write-ahead log of
//! these records may be recycled.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ptah_types::LogIndex;

use super::GroupLog;
use super::meta::{MetaImage, data_dir, slot_name};
use super::state::Cut;
use crate::disk::{DiskFile, replace_file};
use crate::segment::{SegmentName, StreamKind, file_offset};
use crate::store::count;
use crate::{Frame, ReadError};

/// What a flush did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flushed {
    /// There was nothing to do.
    Clean,
    /// A truncation, purge or drop must become durable first.
    NotYet,
    /// Everything that was durable is in the group's own files.
    Done { bytes: u64 },
}

struct Piece {
    kind: StreamKind,
    segment: LogIndex,
    position: u64,
    frame: Frame,
}

/// What a flush covers, decided at its start.
struct Plan {
    /// Records up to this one.
    record: u64,
    /// Records in units up to this one are among them.
    wal_seq: u64,
    generation: u64,
    cuts: Vec<Cut>,
    dir_number: u64,
    in_place: bool,
}

/// Files that were written and not synced yet.
type Touched = BTreeMap<PathBuf, Arc<dyn DiskFile>>;

/// Text file in a group's directory that says why it may not be used.
pub(crate) const DAMAGE_MARKER: &str = "damaged";

/// Most bytes that are written at once, but for one frame: what the write-ahead log's sync may have to wait behind.
const WRITE_BYTES: u64 = 1 << 20;
/// Most frames that are looked at while appends wait.
const GATHER_FRAMES: usize = 4096;

impl GroupLog {
    /// Makes everything that is durable now durable in the group's own files. Appends go on meanwhile: the lock is held for
    /// short pieces only.
    pub(crate) fn flush(&self) -> io::Result<Flushed> {
        let _io = self.io.lock();
        let mut plan = match self.plan_flush() {
            Ok(plan) => plan,
            Err(outcome) => return Ok(outcome),
        };
        let result = self.run_flush(&mut plan);
        if !matches!(result, Ok(Flushed::Done { .. })) {
            let mut state = self.state.lock();
            // What was not cut must still be cut; what was cut may be cut again.
            state.return_cuts(plan.cuts);
            // After a failed sync no later one reaches what was written before.
            state.failed_flushes += u64::from(result.is_err());
            state.dirty = true;
            state.flushing = None;
        }
        result
    }

    fn plan_flush(&self) -> Result<Plan, Flushed> {
        // Read before the state: all records in units up to here are in `durable_record`.
        let wal_seq = self.shared.completed_seq.load(Ordering::Acquire);
        let mut state = self.state.lock();
        if state.dropped || !state.dirty {
            return Err(Flushed::Clean);
        }
        if state.barrier > state.durable_record || state.installing {
            return Err(Flushed::NotYet);
        }
        let cuts = state.take_cuts();
        state.dirty = false;
        // The log keeps the record behind the newest slot until the next one is durable: it proves a torn one harmless.
        let continued = state
            .wal_files
            .back()
            .is_some_and(|(_, last)| *last > state.covered);
        let in_place = continued && state.slot_proven;
        let (record, generation, dir_number) = (state.durable_record, state.generation, state.dir_number);
        state.flushing = Some(record);
        Ok(Plan {
            record,
            wal_seq,
            generation,
            cuts,
            dir_number,
            in_place,
        })
    }

    fn run_flush(&self, plan: &mut Plan) -> io::Result<Flushed> {
        self.run_cuts(plan.dir_number, &plan.cuts)?;
        let mut touched = Touched::new();
        let mut from = LogIndex(0);
        let mut bytes = 0;
        loop {
            let Some((pieces, next)) = self.gather(plan, from) else {
                return Ok(Flushed::NotYet);
            };
            bytes += self.write_pieces(plan, &pieces, &mut touched)?;
            let Some(next) = next else { break };
            from = next;
        }
        for file in touched.values() {
            file.sync_data()?;
        }
        count(&self.shared.counters.file_syncs, touched.len() as u64);
        count(&self.shared.counters.segment_bytes, bytes);
        if !touched.is_empty() {
            self.shared.disk.sync_dir(&data_dir(&self.dir, plan.dir_number))?;
        }
        let image = {
            let state = self.state.lock();
            if state.generation != plan.generation {
                return Ok(Flushed::NotYet);
            }
            state.image(&self.spec, plan.wal_seq, plan.record)
        };
        self.write_meta(&image, plan.in_place)?;
        plan.cuts.clear();
        self.flushed_up_to(plan.record, image.version);
        Ok(Flushed::Done { bytes })
    }

    /// Some frames from index `from` on that must be written, and where to go on. `None`: the log changed meanwhile.
    fn gather(&self, plan: &Plan, from: LogIndex) -> Option<(Vec<Piece>, Option<LogIndex>)> {
        let state = self.state.lock();
        if state.generation != plan.generation {
            return None;
        }
        let mut pieces = Vec::new();
        let mut bytes = 0;
        for entry in state
            .tail
            .range_from(from)
            .take_while(|entry| entry.record <= plan.record)
        {
            if pieces.len() >= GATHER_FRAMES || bytes >= WRITE_BYTES {
                return Some((pieces, Some(entry.frame.index)));
            }
            if !entry.in_segment {
                bytes += entry.frame.encoded_len() as u64;
                let (kind, segment, position) = (entry.place.kind, entry.place.segment, entry.place.position);
                pieces.push(Piece {
                    kind,
                    segment,
                    position,
                    frame: entry.frame.clone(),
                });
            }
        }
        Some((pieces, None))
    }

    fn write_pieces(&self, plan: &Plan, pieces: &[Piece], touched: &mut Touched) -> io::Result<u64> {
        let mut sorted: Vec<&Piece> = pieces.iter().collect();
        sorted.sort_by_key(|piece| (piece.kind, piece.segment, piece.position));
        let mut bytes = 0;
        let mut rest = &sorted[..];
        while let Some(first) = rest.first() {
            let mut end = first.position;
            let mut count = 0;
            for piece in rest {
                if (piece.kind, piece.segment, piece.position) != (first.kind, first.segment, end) {
                    break;
                }
                end += piece.frame.encoded_len() as u64;
                count += 1;
            }
            let (run, others) = rest.split_at(count);
            self.write_run(plan, run, touched)?;
            bytes += end - first.position;
            rest = others;
        }
        Ok(bytes)
    }

    /// Writes frames that lie behind each other in one segment.
    fn write_run(&self, plan: &Plan, run: &[&Piece], touched: &mut Touched) -> io::Result<()> {
        let Some(first) = run.first() else { return Ok(()) };
        let name = self.segment_name(plan.dir_number, first.kind, first.segment);
        let file = match touched.get(&name.path) {
            Some(file) => file.clone(),
            None => self.segment_file(&name, plan.record)?,
        };
        let headers: Vec<_> = run.iter().map(|piece| piece.frame.encode_header()).collect();
        let mut slices = Vec::with_capacity(2 * run.len() + 1);
        // The file's header block goes with the first frame: when the sync fails, both are written again.
        let block = (first.position == 0).then(|| name.header());
        slices.extend(block.as_ref().map(|block| IoSlice::new(block)));
        let offset = if block.is_some() {
            0
        } else {
            file_offset(first.position)
        };
        for (piece, header) in run.iter().zip(&headers) {
            slices.push(IoSlice::new(header));
            slices.push(IoSlice::new(&piece.frame.payload));
        }
        let len: u64 = slices.iter().map(|slice| slice.len() as u64).sum();
        file.write_at(&mut slices, offset)?;
        if len >= WRITE_BYTES / 4 {
            file.write_back(offset, len)?;
        }
        touched.insert(name.path, file);
        Ok(())
    }

    /// Opens a segment's file as it is after record `as_of`; makes it with its header block when it was not made yet. The
    /// caller holds `io`.
    ///
    /// A truncation that is not durable may already have replaced the segment by one of the same name in memory: the file
    /// is still the old one's then, and must be kept as it is.
    pub(super) fn segment_file(&self, name: &SegmentName, as_of: u64) -> io::Result<Arc<dyn DiskFile>> {
        let (replaced, known) = {
            let state = self.state.lock();
            let whole = |cut: &Cut| cut.record > as_of && cut.length.is_none();
            let later = |cut: &Cut| whole(cut) && cut.kind == name.kind && cut.segment == name.first;
            let known = state
                .stream(name.kind)
                .find(name.first)
                .map(|segment| segment.exists);
            (state.cuts.iter().any(later), known)
        };
        let exists = match known.filter(|_| !replaced) {
            Some(exists) => exists,
            None => self.shared.disk.exists(&name.path)?,
        };
        if exists {
            return self.shared.files.open(name).map_err(io::Error::from);
        }
        let file = self.shared.disk.create(&name.path)?;
        file.write_at(&mut [IoSlice::new(&name.header())], 0)?;
        self.shared.files.insert(&name.path, file.clone());
        if !replaced && let Some(segment) = self.state.lock().stream_mut(name.kind).find_mut(name.first) {
            segment.exists = true;
        }
        Ok(file)
    }

    /// Cuts files to where a truncation ended them. The truncation is durable. The caller holds `io`.
    pub(super) fn run_cuts(&self, dir_number: u64, cuts: &[Cut]) -> io::Result<()> {
        for cut in cuts {
            let name = self.segment_name(dir_number, cut.kind, cut.segment);
            match cut.length {
                Some(length) => match self.shared.files.open(&name) {
                    Ok(file) if file.len()? > file_offset(length) => file.set_len(file_offset(length))?,
                    // It was never written, or damage is reported where it is read.
                    Ok(_) | Err(ReadError::Damaged(_)) => {}
                    Err(error) => return Err(error.into()),
                },
                None => {
                    let made = self
                        .state
                        .lock()
                        .stream(cut.kind)
                        .find(cut.segment)
                        .is_some_and(|s| s.exists);
                    if !made {
                        self.remove(&name.path)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes a file that may be gone already.
    pub(super) fn remove(&self, path: &std::path::Path) -> io::Result<()> {
        self.shared.files.forget(path);
        match self.shared.disk.remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes a meta slot; durable when this returns. Not `in_place` the old slot stays until the new one is complete, for
    /// one sync more. The caller holds `io`.
    pub(super) fn write_meta(&self, image: &MetaImage, in_place: bool) -> io::Result<()> {
        let disk = &*self.shared.disk;
        let path = self.dir.join(slot_name(image.version));
        let bytes = image.encode(&self.shared.identity);
        count(&self.shared.counters.file_syncs, 1);
        if !in_place || !disk.exists(&path)? {
            return replace_file(disk, &path, &[&bytes]);
        }
        let file = disk.create(&path)?;
        file.write_at(&mut [IoSlice::new(&bytes)], 0)?;
        file.sync_data()
    }

    /// During recovery, when one slot is lost: both are written. The one that is left first, it may not be proven.
    pub(crate) fn rewrite_meta(&self) -> io::Result<()> {
        self.flush()?;
        let _io = self.io.lock();
        let wal_seq = self.shared.completed_seq.load(Ordering::Acquire);
        for _ in ["left", "lost"] {
            let image = {
                let state = self.state.lock();
                state.image(&self.spec, wal_seq, state.durable_record)
            };
            self.write_meta(&image, false)?;
            let mut state = self.state.lock();
            state.meta_version = image.version;
            state.slot_proven = true;
        }
        Ok(())
    }

    fn flushed_up_to(&self, record: u64, version: u64) {
        {
            let mut state = self.state.lock();
            state.meta_version = version;
            state.slot_proven = true;
            state.unwritable = None;
            state.covered = record;
            state.flushing = None;
            while state.wal_files.front().is_some_and(|(_, last)| *last <= record) {
                state.wal_files.pop_front();
            }
        }
        // In short pieces, so that appends are not held up.
        let mut from = LogIndex(0);
        loop {
            let mut state = self.state.lock();
            let next = state.tail.mark_from(from, GATHER_FRAMES, record);
            if let Some(next) = next {
                from = next;
                continue;
            }
            state.update_written();
            while self.account(&mut state) {
                drop(state);
                state = self.state.lock();
            }
            return;
        }
    }

    /// The oldest write-ahead log file that holds a record this group still needs.
    pub(crate) fn oldest_wal_file(&self) -> Option<u64> {
        self.state.lock().wal_files.front().map(|(file, _)| *file)
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.state.lock().dirty
    }

    /// Deletes files that were dropped. Answers how many.
    pub(crate) fn delete_dropped(&self) -> io::Result<usize> {
        let _io = self.io.lock();
        self.remove_given_up()?;
        let dropped = self.state.lock().take_deletable();
        for (number, delete) in dropped.iter().enumerate() {
            if let Err(error) = self.remove(&delete.path) {
                let mut state = self.state.lock();
                state.deletes.splice(0..0, dropped[number..].iter().cloned());
                return Err(error);
            }
        }
        Ok(dropped.len())
    }
}

#[cfg(test)]
mod tests;
