//! Storage of a node: a shared write-ahead log, segments, checkpoints and recovery over a disk port.
//!
//! A [`Store`] is one data directory. Its [`GroupLog`]s are Raft logs and message stores at once: what is appended goes
//! to the one write-ahead log of the store (one write and one sync for whatever arrived during the last sync), is read
//! from memory while it is new, and moves to the group's segments in large writes at checkpoint rounds. Frames in
//! segments are the Raft log until [`GroupLog::purge`], and the partition's messages from then on: one copy.
//!
//! What must always hold:
//! - a completion is called with `Ok` only after the bytes survive power loss; after a failed write or sync never again;
//! - everything on disk names its owner and has a checksum that is verified whenever it is read from disk;
//! - what was acknowledged and cannot be proven complete makes its group `Damaged`: kept, reported, never used.
//!
//! Not here: what frames mean (`ptah-partition`), who may append (`ptah-raft`), timers (the callers drive). The layout of
//! each file is documented where it is encoded; the crate's `README.md` has the overview.

mod codec;
mod disk;
mod error;
mod frame;
mod group;
mod options;
mod os_disk;
mod segment;
#[cfg(any(test, feature = "sim"))]
mod sim;
mod store;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod types;
mod wal;

pub use codec::crc32c;
pub use disk::{DirEntry, Disk, DiskFile, DiskLock, DiskSpace};
pub use error::{
    AppendRefused, CheckpointError, Damage, FlushDone, GroupError, InstallError, OpenError, ReadError,
    RefusedReason,
};
pub use frame::{FRAME_HEADER_LEN, Frame, FrameError, FrameHeader, FrameKind};
pub use group::{GroupLog, Install};
pub use options::Options;
pub use os_disk::OsDisk;
#[cfg(any(test, feature = "sim"))]
pub use sim::{SimDisk, SimFault, SimOp};
pub use store::{Drivers, Store};
pub use types::{
    Checkpoint, CommitOutcome, GroupCondition, GroupInfo, GroupSpec, Identity, LargeOutcome, Manifest,
    ManifestSegment, MissingRange, Pressure, RoundLimit, RoundReport, SegmentSummary, Space, Stats,
    VoteRecord, Work,
};
