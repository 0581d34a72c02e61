//! Writing commit units: one write and one sync each, into blocks that hold nothing needed.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::Arc;

use super::files::{LiveFile, WalFiles};
use super::format::{BLOCK, Epoch, FileHeader, UnitKind, padded};
use super::queue::Unit;
use super::record::{Numbers, RecordKind};
use super::scan::LastUnit;
use crate::disk::DiskFile;
use crate::types::Identity;

const PADDING: [u8; BLOCK] = [0; BLOCK];
/// Record numbers that are noted before equal groups are merged.
const NOTES: usize = 65_536;

/// Last record numbers of groups since some unit.
struct Notes {
    since_seq: u64,
    last: Vec<(u64, u64)>,
}

impl Notes {
    fn add(&mut self, group: u64, number: u64) {
        match self.last.last_mut() {
            Some(last) if last.0 == group => last.1 = number,
            _ => self.last.push((group, number)),
        }
        if self.last.len() >= NOTES && self.last.len().is_power_of_two() {
            let merged: BTreeMap<u64, u64> = self.last.iter().copied().collect();
            self.last = merged.into_iter().collect();
        }
    }
}

/// The writing end of the write-ahead log.
pub(crate) struct Committer {
    identity: Identity,
    file_bytes: u64,
    file: Option<Arc<dyn DiskFile>>,
    number: u64,
    position: u64,
    epoch: Epoch,
    next_seq: u64,
    unsealed: bool,
    notes: Notes,
    older_notes: Notes,
}

/// A unit that is durable.
pub(crate) struct Written {
    pub(crate) seq: u64,
    pub(crate) file: u64,
    pub(crate) bytes: u64,
}

impl Committer {
    /// Starts a new epoch behind `next_seq - 1`, in a file behind `last_number`.
    pub(crate) fn new(
        identity: Identity,
        file_bytes: u64,
        epoch: Epoch,
        next_seq: u64,
        last_number: u64,
    ) -> Self {
        let notes = || Notes {
            since_seq: next_seq,
            last: Vec::new(),
        };
        Self {
            identity,
            file_bytes,
            file: None,
            number: last_number,
            position: 0,
            epoch,
            next_seq,
            unsealed: false,
            notes: notes(),
            older_notes: notes(),
        }
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(crate) fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    pub(crate) fn is_unsealed(&self) -> bool {
        self.unsealed
    }

    /// Notes a record of the unit that is about to be written.
    pub(crate) fn note(&mut self, group: u64, number: u64) {
        self.notes.add(group, number);
    }

    /// Writes one unit; when this returns it is durable. After an error nothing may be written any more.
    pub(crate) fn write(&mut self, files: &WalFiles, unit: &mut Unit, kind: UnitKind) -> io::Result<Written> {
        let bytes = padded(unit.len());
        let seq = self.next_seq;
        let fits = self.file.is_some() && self.position + bytes <= self.file_bytes;
        let header = if fits { None } else { Some(self.roll(files, seq)?) };
        let Some(file) = &self.file else {
            return Err(io::Error::other("no write-ahead log file is open"));
        };
        let content = unit.finish(&self.epoch, seq, kind);
        let len: usize = content.iter().map(|slice| slice.len()).sum();
        let mut slices = Vec::with_capacity(content.len() + 2);
        slices.extend(header.as_ref().map(|header| IoSlice::new(header)));
        slices.extend(content.into_iter().map(IoSlice::new));
        slices.push(IoSlice::new(&PADDING[..bytes as usize - len]));
        let at = if header.is_some() { 0 } else { self.position };
        file.write_at(&mut slices, at)?;
        file.sync_data()?;
        self.position += bytes;
        self.next_seq += 1;
        self.unsealed = kind == UnitKind::Data;
        if header.is_some() {
            files.add_live(LiveFile {
                number: self.number,
                first_seq: seq,
            });
            files.save_position(self.epoch, seq)?;
        }
        Ok(Written {
            seq,
            file: self.number,
            bytes,
        })
    }

    /// Opens the next file; its header is written together with the first unit.
    fn roll(&mut self, files: &WalFiles, first_seq: u64) -> io::Result<[u8; BLOCK]> {
        self.file = Some(files.take(self.number + 1)?);
        self.number += 1;
        self.position = BLOCK as u64;
        let header = FileHeader {
            identity: self.identity,
            number: self.number,
            epoch: self.epoch,
            first_seq,
            file_bytes: self.file_bytes,
        };
        Ok(header.encode())
    }

    /// Writes the last unit of the former epoch again: its sync may have failed, or may never have happened, although it can
    /// be read.
    pub(crate) fn copy(&mut self, files: &WalFiles, last: &LastUnit) -> io::Result<()> {
        let mut unit = Unit::new();
        unit.push_encoded(&last.bytes, last.headers.len());
        for header in last
            .headers
            .iter()
            .filter(|header| header.kind != RecordKind::Numbers)
        {
            self.note(header.group, header.number);
        }
        self.write(files, &mut unit, last.kind).map(drop)
    }

    /// Writes a unit that proves everything before it.
    pub(crate) fn seal(&mut self, files: &WalFiles) -> io::Result<Written> {
        let mut last: BTreeMap<u64, u64> = self.older_notes.last.iter().copied().collect();
        last.extend(self.notes.last.iter().copied());
        let last = last.into_iter().take(NOTES * 4).collect();
        let numbers = Numbers {
            since_seq: self.older_notes.since_seq,
            last,
        };
        let mut unit = Unit::new();
        unit.push_raw(RecordKind::Numbers, &numbers.encode());
        let written = self.write(files, &mut unit, UnitKind::Seal)?;
        // Two seals overlap, so that a damaged seal costs no proof.
        let fresh = Notes {
            since_seq: written.seq + 1,
            last: Vec::new(),
        };
        self.older_notes = std::mem::replace(&mut self.notes, fresh);
        Ok(written)
    }
}
