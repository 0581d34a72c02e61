//! Reading the write-ahead log at start: torn tail or damage?
//!
//! Units follow each other by sequence. A bad unit with any later valid one is damage (the later one proves that it was
//! synced); a bad unit at the very end is a write that the power cut interrupted, and is cut. Files name the sequence
//! of their first unit, so that a damaged end of a file, or a missing file, is noticed too. Every epoch begins with a copy
//! of the last unit that its start found: that unit may be found twice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::files::{LiveFile, WalPosition, file_path, parse_file_name};
use super::format::{BLOCK, Epoch, FileHeader, UNIT_HEADER_LEN, UnitHeader, UnitKind, padded};
use super::record::{RecordHeader, split_records};
use crate::disk::{Disk, DiskFile, read_up_to};
use crate::types::Identity;
use crate::{Damage, OpenError};

/// What the scan found next.
pub(crate) enum ScanEvent {
    Unit {
        file: u64,
        seq: u64,
        seal: bool,
        records: Vec<(RecordHeader, Bytes)>,
    },
    /// Units `from..to` were durable and cannot be read.
    Gap { from: u64, to: u64, damage: Damage },
}

/// The unit that was found last.
#[derive(Clone, Debug)]
pub(crate) struct LastUnit {
    pub(crate) seq: u64,
    pub(crate) kind: UnitKind,
    /// Its records as they are on disk.
    pub(crate) bytes: Bytes,
    pub(crate) headers: Vec<RecordHeader>,
}

/// What the scan found altogether.
#[derive(Debug, Default)]
pub(crate) struct ScanResult {
    pub(crate) next_seq: u64,
    pub(crate) epoch: u64,
    pub(crate) live: Vec<LiveFile>,
    /// Files with a number that hold nothing.
    pub(crate) unused: Vec<PathBuf>,
    pub(crate) last_number: u64,
    pub(crate) last_unit: Option<LastUnit>,
}

type Handler<'a> = dyn FnMut(ScanEvent) -> Result<(), OpenError> + 'a;

struct Scan<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    identity: Identity,
    on: &'a mut Handler<'a>,
    /// Nonces of the epochs, as far as a file header or the position file tells them.
    nonces: BTreeMap<u64, u64>,
    expected: Option<u64>,
    result: ScanResult,
}

struct FoundUnit {
    header: UnitHeader,
    bytes: Bytes,
    records: Vec<(RecordHeader, Bytes)>,
}

/// Reads everything, oldest first.
pub(crate) fn scan<'a>(
    disk: &'a dyn Disk,
    dir: &'a Path,
    identity: Identity,
    known: Option<WalPosition>,
    on: &'a mut Handler<'a>,
) -> Result<ScanResult, OpenError> {
    let entries = disk.list(dir).map_err(OpenError::io("list", dir))?;
    let numbers: Vec<u64> = entries
        .iter()
        .filter_map(|entry| parse_file_name(&entry.name))
        .collect();
    let mut scan = Scan {
        disk,
        dir,
        identity,
        on,
        nonces: known
            .iter()
            .map(|known| (known.epoch.number, known.epoch.nonce))
            .collect(),
        expected: None,
        result: ScanResult::default(),
    };
    for number in &numbers {
        if let Some(header) = scan.header(*number)? {
            scan.nonces.insert(header.epoch.number, header.epoch.nonce);
        }
    }
    let mut first = known.map(|known| known.first_file).filter(|first| *first > 0);
    for number in numbers {
        // Everything older was recycled; the power cut may have undone the renaming of some.
        if known.is_some_and(|known| number < known.first_file) {
            scan.result.unused.push(file_path(dir, number));
            continue;
        }
        scan.file(number, &mut first)?;
    }
    scan.finish(known)
}

impl Scan<'_> {
    /// The header of a file, if it is valid.
    fn header(&self, number: u64) -> Result<Option<FileHeader>, OpenError> {
        let path = file_path(self.dir, number);
        let file = self.disk.open_read(&path).map_err(OpenError::io("open", &path))?;
        let block = read_up_to(&*file, 0, BLOCK).map_err(OpenError::io("read", &path))?;
        let header = FileHeader::decode(&block);
        if header.is_some_and(|header| header.identity != self.identity) {
            let what = "it belongs to another cluster or node".to_owned();
            return Err(OpenError::StoreDamaged { path, what });
        }
        Ok(header)
    }

    fn file(&mut self, number: u64, first: &mut Option<u64>) -> Result<(), OpenError> {
        let path = file_path(self.dir, number);
        self.result.last_number = self.result.last_number.max(number);
        let header = self.header(number)?;
        let file = self.disk.open_read(&path).map_err(OpenError::io("open", &path))?;
        // A recycled file that was renamed, but not written yet, says its old number.
        let header = match header {
            Some(header) if header.number != number => {
                self.result.unused.push(path);
                return Ok(());
            }
            other => other,
        };
        let start = self.start_of(&*file, &path, header, number, first)?;
        let Some((epoch, seq)) = start else {
            self.result.unused.push(path);
            return Ok(());
        };
        self.result.epoch = self.result.epoch.max(epoch);
        self.result.live.push(LiveFile {
            number,
            first_seq: seq,
        });
        self.units(&*file, &path, number, epoch, seq)
    }

    /// Epoch and sequence of the file's first unit; reports what is missing before it. `None`: the file holds nothing.
    fn start_of(
        &mut self,
        file: &dyn DiskFile,
        path: &Path,
        header: Option<FileHeader>,
        number: u64,
        first: &mut Option<u64>,
    ) -> Result<Option<(u64, u64)>, OpenError> {
        let (epoch, seq) = match header {
            Some(header) => (header.epoch.number, header.first_seq),
            None => match self.first_unit(file, path)? {
                Some(found) => found,
                None => return Ok(None),
            },
        };
        let missing_from = match self.expected {
            Some(expected) if expected < seq => Some(expected),
            None if first.is_some_and(|first| first < number) => Some(0),
            _ => None,
        };
        *first = None;
        if let Some(from) = missing_from {
            let what = format!(
                "units {from} to {} before this file are damaged or missing",
                seq - 1
            );
            (self.on)(ScanEvent::Gap {
                from,
                to: seq,
                damage: Damage::new(path, 0, what),
            })?;
        }
        Ok(Some((epoch, seq)))
    }

    /// For a file whose header block is damaged: the first unit that is not from the file's former life.
    fn first_unit(&self, file: &dyn DiskFile, path: &Path) -> Result<Option<(u64, u64)>, OpenError> {
        let floor = self.expected.unwrap_or(0);
        let epoch = self.result.epoch;
        let newer = |header: &UnitHeader| header.seq >= floor && header.epoch >= epoch;
        let found = self.search(file, path, BLOCK as u64, &newer)?;
        Ok(found.map(|(_, unit)| (unit.header.epoch, unit.header.seq)))
    }

    fn units(
        &mut self,
        file: &dyn DiskFile,
        path: &Path,
        number: u64,
        epoch: u64,
        first: u64,
    ) -> Result<(), OpenError> {
        let mut position = BLOCK as u64;
        let mut seq = first;
        loop {
            let unit = self
                .read_unit(file, position)
                .map_err(OpenError::io("read", path))?;
            let unit = match unit.filter(|unit| unit.header.epoch == epoch && unit.header.seq == seq) {
                Some(unit) => unit,
                None => {
                    let later = |header: &UnitHeader| header.epoch == epoch && header.seq >= seq;
                    let Some((at, unit)) = self.search(file, path, position, &later)? else {
                        break;
                    };
                    let what = format!(
                        "units {seq} to {} are damaged, a later one is not",
                        unit.header.seq - 1
                    );
                    let damage = Damage::new(path, position, what);
                    (self.on)(ScanEvent::Gap {
                        from: seq,
                        to: unit.header.seq,
                        damage,
                    })?;
                    position = at;
                    unit
                }
            };
            position += padded(unit.header.len as usize);
            seq = unit.header.seq + 1;
            let seal = unit.header.kind == UnitKind::Seal;
            self.result.last_unit = Some(LastUnit {
                seq: unit.header.seq,
                kind: unit.header.kind,
                bytes: unit.bytes,
                headers: unit.records.iter().map(|(header, _)| *header).collect(),
            });
            (self.on)(ScanEvent::Unit {
                file: number,
                seq: unit.header.seq,
                seal,
                records: unit.records,
            })?;
        }
        // The file may begin with a copy of the last unit before it, and the copy may be torn.
        self.expected = Some(seq.max(self.expected.unwrap_or(0)));
        Ok(())
    }

    /// First valid unit at or behind `from` that `wanted` accepts.
    fn search(
        &self,
        file: &dyn DiskFile,
        path: &Path,
        from: u64,
        wanted: &dyn Fn(&UnitHeader) -> bool,
    ) -> Result<Option<(u64, FoundUnit)>, OpenError> {
        const WINDOW: usize = 1 << 20;
        let mut at = from;
        loop {
            let window = read_up_to(file, at, WINDOW).map_err(OpenError::io("read", path))?;
            for (number, block) in window.chunks(BLOCK).enumerate() {
                let Some(header) = UnitHeader::decode(block).filter(|header| wanted(header)) else {
                    continue;
                };
                let position = at + (number * BLOCK) as u64;
                let unit = self
                    .read_unit(file, position)
                    .map_err(OpenError::io("read", path))?;
                if let Some(unit) = unit.filter(|unit| unit.header == header) {
                    return Ok(Some((position, unit)));
                }
            }
            if window.len() < WINDOW {
                return Ok(None);
            }
            at += WINDOW as u64;
        }
    }

    fn finish(mut self, known: Option<WalPosition>) -> Result<ScanResult, OpenError> {
        let known = known.unwrap_or_default();
        let next = self.expected.unwrap_or(1).max(1);
        if next <= known.last_seq {
            let path = file_path(self.dir, known.last_file);
            let what = format!(
                "units {next} to {} at the end of the log are damaged or missing",
                known.last_seq
            );
            let gap = ScanEvent::Gap {
                from: next,
                to: known.last_seq + 1,
                damage: Damage::new(path, 0, what),
            };
            (self.on)(gap)?;
        }
        self.result.next_seq = next.max(known.last_seq + 1);
        self.result.epoch = self.result.epoch.max(known.epoch.number);
        self.result.last_number = self.result.last_number.max(known.last_file);
        Ok(self.result)
    }

    /// The unit at `position`; `None` when there is no valid one.
    fn read_unit(&self, file: &dyn DiskFile, position: u64) -> std::io::Result<Option<FoundUnit>> {
        let first = read_up_to(file, position, BLOCK)?;
        let Some(header) = UnitHeader::decode(&first) else {
            return Ok(None);
        };
        // Without its epoch's nonce nothing can be told from what a client made up.
        let Some(nonce) = self.nonces.get(&header.epoch).copied() else {
            return Ok(None);
        };
        let len = UNIT_HEADER_LEN + header.len as usize;
        if position + len as u64 > file.len()? {
            return Ok(None);
        }
        let bytes = if len <= first.len() {
            first
        } else {
            read_up_to(file, position, len)?
        };
        let Some(bytes) = bytes.get(..len).map(<[u8]>::to_vec) else {
            return Ok(None);
        };
        let number = header.epoch;
        let mut crc = Epoch { number, nonce }.start_crc();
        crc.extend(&bytes[8..]);
        if crc.value() != header.crc {
            return Ok(None);
        }
        let records = Bytes::from(bytes).slice(UNIT_HEADER_LEN..);
        Ok(split_records(&records, header.records).map(|split| FoundUnit {
            header,
            bytes: records,
            records: split,
        }))
    }
}
