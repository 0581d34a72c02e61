//! Flush: durable frames that are only in memory and in the write-ahead log go to their segments, then the meta slot.
//!
//! Order: cuts, frames, sync of the files, sync of the directory, meta slot. Only afterwards the write-ahead log of
//! these records may be recycled.

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
use crate::{Damage, Frame, ReadError};

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

struct Plan {
    pieces: Vec<Piece>,
    cuts: Vec<Cut>,
    image: MetaImage,
    dir_number: u64,
    in_place: bool,
}

/// Text file in a group's directory that says why it may not be used.
pub(crate) const DAMAGE_MARKER: &str = "damaged";

/// Most bytes of one write.
const WRITE_BYTES: u64 = 4 << 20;

impl GroupLog {
    /// Makes everything that is durable now durable in the group's own files.
    pub(crate) fn flush(&self) -> io::Result<Flushed> {
        let _io = self.io.lock();
        let plan = match self.plan_flush()? {
            Ok(plan) => plan,
            Err(outcome) => return Ok(outcome),
        };
        let record = plan.image.record;
        let version = plan.image.version;
        let cuts = plan.cuts.clone();
        match self.run_flush(plan) {
            Ok(bytes) => {
                self.flushed_up_to(record, version);
                Ok(Flushed::Done { bytes })
            }
            Err(error) => {
                // What was not cut must still be cut; what was cut may be cut again.
                self.state.lock().return_cuts(cuts);
                Err(error)
            }
        }
    }

    fn plan_flush(&self) -> io::Result<Result<Plan, Flushed>> {
        // Read before the state: all records in units up to here are in `durable_record`.
        let wal_seq = self.shared.completed_seq.load(Ordering::Acquire);
        let mut state = self.state.lock();
        if state.dropped || !state.dirty {
            return Ok(Err(Flushed::Clean));
        }
        if state.barrier > state.durable_record || state.installing {
            return Ok(Err(Flushed::NotYet));
        }
        let record = state.durable_record;
        let wanted = |entry: &&super::tail::Entry| !entry.in_segment && entry.record <= record;
        let pieces = state.tail.iter().filter(wanted).map(|entry| Piece {
            kind: entry.place.kind,
            segment: entry.place.segment,
            position: entry.place.position,
            frame: entry.frame.clone(),
        });
        let mut pieces: Vec<Piece> = pieces.collect();
        pieces.sort_by_key(|piece| (piece.kind, piece.segment, piece.position));
        let image = state.image(&self.spec, wal_seq);
        let cuts = state.take_cuts();
        state.dirty = false;
        // The log keeps the record behind the older slot until the new one is durable: it proves a torn one harmless.
        let in_place = !state.wal_files.is_empty();
        Ok(Ok(Plan {
            pieces,
            cuts,
            image,
            dir_number: state.dir_number,
            in_place,
        }))
    }

    fn run_flush(&self, plan: Plan) -> io::Result<u64> {
        let result = self.write_plan(&plan);
        if result.is_err() {
            self.state.lock().dirty = true;
        }
        result
    }

    fn write_plan(&self, plan: &Plan) -> io::Result<u64> {
        self.run_cuts(plan.dir_number, plan.cuts.clone())?;
        let mut bytes = 0;
        let mut rest = &plan.pieces[..];
        while let Some(first) = rest.first() {
            let same = |piece: &Piece| piece.kind == first.kind && piece.segment == first.segment;
            let count = rest.iter().take_while(|piece| same(piece)).count();
            let (segment, others) = rest.split_at(count);
            bytes += self.write_segment(plan.dir_number, plan.image.record, segment)?;
            rest = others;
        }
        if !plan.pieces.is_empty() {
            self.shared.disk.sync_dir(&data_dir(&self.dir, plan.dir_number))?;
        }
        self.write_meta(&plan.image, plan.in_place)?;
        Ok(bytes)
    }

    /// Writes frames of one segment in large writes and syncs it.
    fn write_segment(&self, dir_number: u64, as_of: u64, pieces: &[Piece]) -> io::Result<u64> {
        let Some(first) = pieces.first() else { return Ok(0) };
        let name = self.segment_name(dir_number, first.kind, first.segment);
        let file = self.segment_file(&name, as_of)?;
        let mut total = 0;
        let mut rest = pieces;
        while let Some(first) = rest.first() {
            let mut end = first.position;
            let mut count = 0;
            for piece in rest {
                if piece.position != end || end - first.position >= WRITE_BYTES {
                    break;
                }
                end += piece.frame.encoded_len() as u64;
                count += 1;
            }
            let (run, others) = rest.split_at(count);
            let headers: Vec<_> = run.iter().map(|piece| piece.frame.encode_header()).collect();
            let mut slices = Vec::with_capacity(2 * run.len());
            for (piece, header) in run.iter().zip(&headers) {
                slices.push(IoSlice::new(header));
                slices.push(IoSlice::new(&piece.frame.payload));
            }
            file.write_at(&mut slices, file_offset(first.position))?;
            total += end - first.position;
            rest = others;
        }
        file.sync_data()?;
        count(&self.shared.counters.file_syncs, 1);
        count(&self.shared.counters.segment_bytes, total);
        Ok(total)
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
    pub(super) fn run_cuts(&self, dir_number: u64, cuts: Vec<Cut>) -> io::Result<()> {
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

    /// Replaces a slot that is lost by one that says the same as the other.
    pub(crate) fn rewrite_meta(&self) -> io::Result<()> {
        let _io = self.io.lock();
        let wal_seq = self.shared.completed_seq.load(Ordering::Acquire);
        let image = self.state.lock().image(&self.spec, wal_seq);
        self.write_meta(&image, false)?;
        self.state.lock().meta_version = image.version;
        Ok(())
    }

    fn flushed_up_to(&self, record: u64, version: u64) {
        let mut state = self.state.lock();
        state.meta_version = version;
        state.covered = record;
        state.tail.mark(|entry| entry.record <= record);
        while state.wal_files.front().is_some_and(|(_, last)| *last <= record) {
            state.wal_files.pop_front();
        }
        state.update_written();
        self.account(&mut state);
    }

    /// The oldest write-ahead log file that holds a record this group still needs.
    pub(crate) fn oldest_wal_file(&self) -> Option<u64> {
        self.state.lock().wal_files.front().map(|(file, _)| *file)
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.state.lock().dirty
    }

    /// The group's files cannot be written: it takes no more work, is damaged from the next start on, and does not hold the
    /// write-ahead log any more. Another replica must take its place.
    pub(crate) fn give_up(&self, why: &str) {
        let damage = Damage::new(
            &self.dir,
            0,
            format!("given up because its files could not be written: {why}"),
        );
        tracing::error!(group = %self.spec.group.to_hex(), %damage, "group is given up");
        let marker = self.dir.join(DAMAGE_MARKER);
        if let Err(error) = replace_file(&*self.shared.disk, &marker, &[damage.to_string().as_bytes()]) {
            tracing::error!(file = %marker.display(), %error, "damage of a group cannot be noted");
            return;
        }
        let mut state = self.state.lock();
        state.damage.push(damage);
        state.dropped = true;
        state.wal_files.clear();
        let record = state.next_record;
        state.tail.mark(|entry| entry.record < record);
        self.account(&mut state);
    }

    /// Deletes files that were dropped. Answers how many.
    pub(crate) fn delete_dropped(&self) -> io::Result<usize> {
        let _io = self.io.lock();
        let paths: Vec<PathBuf> = {
            let mut state = self.state.lock();
            // The meta slot must not name a file that is gone.
            if state.barrier > state.covered || state.deletes.is_empty() {
                return Ok(0);
            }
            std::mem::take(&mut state.deletes)
        };
        for (number, path) in paths.iter().enumerate() {
            if let Err(error) = self.remove(path) {
                self.state.lock().deletes.extend_from_slice(&paths[number..]);
                return Err(error);
            }
        }
        Ok(paths.len())
    }
}
