//! The write-ahead log: one per store, shared by all groups.

mod committer;
mod files;
mod format;
mod queue;
mod scan;

pub(crate) use committer::Committer;
pub(crate) use files::{WalFiles, WalPosition};
pub(crate) use format::{
    BLOCK, FORMAT, Numbers, RECORD_HEADER_LEN, Record, RecordHeader, RecordKind, StreamEnd, UnitKind,
};
pub(crate) use queue::{Completion, Effect, Queue, Unit, record_room};
pub(crate) use scan::{ScanEvent, ScanResult, scan};
