//! The write-ahead log: one per store, shared by all groups.

mod answer;
mod committer;
mod files;
mod format;
mod queue;
mod record;
mod scan;

pub(crate) use answer::Answer;
pub(crate) use committer::Committer;
pub(crate) use files::{WalFiles, WalPosition};
pub(crate) use format::{BLOCK, Epoch, FORMAT, UnitKind};
pub(crate) use queue::{Completion, Effect, Queue, Unit, record_room};
pub(crate) use record::{Numbers, RECORD_HEADER_LEN, Record, RecordHeader, RecordKind, StreamEnd};
pub(crate) use scan::{ScanEvent, ScanResult, scan};

#[cfg(test)]
pub(crate) use format::{FileHeader, UnitHeader};
#[cfg(test)]
pub(crate) use record::split_records;
