//! What waits for the write-ahead log: units that are being filled.
//!
//! Small records are encoded straight into the unit's buffer by the caller; big payloads are only referred to.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use ptah_types::LogId;

use crate::Frame;
use crate::frame::FRAME_HEADER_LEN;
use crate::group::GroupLog;
use crate::types::VoteRecord;
use crate::wal::answer::Answer;
use crate::wal::format::{Epoch, UNIT_HEADER_LEN, UnitHeader, UnitKind};
use crate::wal::record::{RECORD_HEADER_LEN, Record, RecordHeader, RecordKind};

/// A payload up to this size is copied into the unit, a bigger one is written from where it is.
const COPY_LIMIT: usize = 16 << 10;

/// What becomes true for a group once its record is durable.
pub(crate) enum Effect {
    Append(LogId),
    Vote(VoteRecord),
    Committed(LogId),
    Purge(LogId),
    Nothing,
}

/// One operation that waits for its unit.
pub(crate) struct Completion {
    pub(crate) group: Arc<GroupLog>,
    pub(crate) number: u64,
    pub(crate) effect: Effect,
    pub(crate) bytes: u64,
    pub(crate) done: Answer,
}

/// A commit unit that is being filled.
pub(crate) struct Unit {
    bytes: Vec<u8>,
    /// Payloads that go in at these places of `bytes`.
    inserts: Vec<(usize, Bytes)>,
    records: u32,
    len: usize,
    pub(crate) completions: Vec<Completion>,
}

impl Unit {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; UNIT_HEADER_LEN],
            inserts: Vec::new(),
            records: 0,
            len: 0,
            completions: Vec::new(),
        }
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.truncate(UNIT_HEADER_LEN);
        // A buffer that once held a burst is not kept for ever.
        self.bytes.shrink_to(16 << 20);
        self.inserts.clear();
        self.completions.clear();
        (self.records, self.len) = (0, 0);
    }

    /// Bytes of records.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn header(&mut self, kind: RecordKind, len: usize, group: u64, number: u64) {
        let header = RecordHeader {
            kind,
            len: len as u32,
            group,
            number,
        };
        self.bytes.extend_from_slice(&header.encode());
        self.records += 1;
        self.len += RECORD_HEADER_LEN + len;
    }

    pub(crate) fn push_frames(&mut self, group: u64, number: u64, frames: &[Frame]) {
        let len = frames.iter().map(Frame::encoded_len).sum();
        self.header(RecordKind::Append, len, group, number);
        for frame in frames {
            self.bytes.extend_from_slice(&frame.encode_header());
            if frame.payload.len() <= COPY_LIMIT {
                self.bytes.extend_from_slice(&frame.payload);
            } else {
                self.inserts.push((self.bytes.len(), frame.payload.clone()));
            }
        }
    }

    pub(crate) fn push_record(&mut self, group: u64, number: u64, record: &Record) {
        let start = self.bytes.len();
        self.header(record.kind(), 0, group, number);
        record.encode_body(&mut self.bytes);
        let len = self.bytes.len() - start - RECORD_HEADER_LEN;
        self.bytes[start + 4..start + 8].copy_from_slice(&(len as u32).to_le_bytes());
        self.len += len;
    }

    pub(crate) fn push_raw(&mut self, kind: RecordKind, body: &[u8]) {
        self.header(kind, body.len(), 0, 0);
        self.bytes.extend_from_slice(body);
    }

    /// Adds records that are encoded already.
    pub(crate) fn push_encoded(&mut self, records: &[u8], count: usize) {
        self.bytes.extend_from_slice(records);
        self.records += count as u32;
        self.len += records.len();
    }

    /// Completes the header and gives the unit's bytes in order.
    pub(crate) fn finish(&mut self, epoch: &Epoch, seq: u64, kind: UnitKind) -> Vec<&[u8]> {
        let mut header = UnitHeader {
            crc: 0,
            epoch: epoch.number,
            seq,
            len: self.len as u32,
            records: self.records,
            kind,
        };
        header.encode_into(&mut self.bytes);
        let mut crc = epoch.start_crc();
        crc.extend(&self.bytes[8..UNIT_HEADER_LEN]);
        let mut from = UNIT_HEADER_LEN;
        for (at, payload) in &self.inserts {
            crc.extend(&self.bytes[from..*at]);
            crc.extend(payload);
            from = *at;
        }
        crc.extend(&self.bytes[from..]);
        header.crc = crc.value();
        header.encode_into(&mut self.bytes);
        self.slices()
    }

    fn slices(&self) -> Vec<&[u8]> {
        let mut out = Vec::with_capacity(2 * self.inserts.len() + 2);
        let mut from = 0;
        for (at, payload) in &self.inserts {
            out.push(&self.bytes[from..*at]);
            out.push(payload);
            from = *at;
        }
        out.push(&self.bytes[from..]);
        out
    }
}

struct Inner {
    units: VecDeque<Unit>,
    unused: Vec<Unit>,
    stopped: bool,
}

/// The queue between appenders and the committer. Bounded by the callers' check of the queued bytes.
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    ready: Condvar,
    unit_bytes: usize,
}

/// Room in a record for frames; leaves space for headers.
pub(crate) fn record_room(unit_bytes: usize) -> usize {
    unit_bytes - UNIT_HEADER_LEN - RECORD_HEADER_LEN - FRAME_HEADER_LEN
}

impl Queue {
    pub(crate) fn new(unit_bytes: usize) -> Self {
        let inner = Inner {
            units: VecDeque::new(),
            unused: Vec::new(),
            stopped: false,
        };
        Self {
            inner: Mutex::new(inner),
            ready: Condvar::new(),
            unit_bytes,
        }
    }

    /// Adds one record of about `len` bytes. Whether the queue was empty.
    pub(crate) fn push(&self, len: usize, completion: Completion, fill: impl FnOnce(&mut Unit)) -> bool {
        let mut inner = self.inner.lock();
        let was_empty = inner.units.is_empty();
        let room = self.unit_bytes - UNIT_HEADER_LEN;
        let fits = inner
            .units
            .back()
            .is_some_and(|unit| unit.len() + RECORD_HEADER_LEN + len <= room);
        if !fits {
            let unit = inner.unused.pop().unwrap_or_else(Unit::new);
            inner.units.push_back(unit);
        }
        if let Some(unit) = inner.units.back_mut() {
            fill(unit);
            unit.completions.push(completion);
        }
        if was_empty {
            self.ready.notify_one();
        }
        was_empty
    }

    /// Takes the oldest unit, and whether more are there.
    pub(crate) fn take(&self) -> Option<(Unit, bool)> {
        let mut inner = self.inner.lock();
        let unit = inner.units.pop_front()?;
        Some((unit, !inner.units.is_empty()))
    }

    pub(crate) fn has_more(&self) -> bool {
        !self.inner.lock().units.is_empty()
    }

    pub(crate) fn give_back(&self, mut unit: Unit) {
        unit.clear();
        let mut inner = self.inner.lock();
        if inner.unused.len() < 2 {
            inner.unused.push(unit);
        }
    }

    /// Waits until something is queued; `false` when the time is over or the queue is stopped.
    pub(crate) fn wait(&self, limit: Option<std::time::Duration>) -> bool {
        let mut inner = self.inner.lock();
        while inner.units.is_empty() && !inner.stopped {
            match limit {
                Some(limit) => {
                    if self.ready.wait_for(&mut inner, limit).timed_out() {
                        break;
                    }
                }
                None => self.ready.wait(&mut inner),
            }
        }
        !inner.units.is_empty()
    }

    pub(crate) fn stop(&self) {
        self.inner.lock().stopped = true;
        self.ready.notify_all();
    }

    pub(crate) fn restart(&self) {
        self.inner.lock().stopped = false;
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.inner.lock().stopped
    }
}
