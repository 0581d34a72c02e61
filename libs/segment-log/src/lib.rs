//! Shared write-ahead log, segments, checkpoints and recovery over a disk port.
mod codec;
mod disk;
mod error;
mod frame;
mod options;
mod types;
mod wal {
    pub(crate) const BLOCK: usize = 4096;
}
mod skeleton;

pub use codec::crc32c;
pub use disk::{DirEntry, Disk, DiskFile, DiskLock, DiskSpace};
pub use error::{
    AppendRefused, CheckpointError, Damage, FlushDone, GroupError, InstallError, OpenError, ReadError,
    RefusedReason,
};
pub use frame::{FRAME_HEADER_LEN, Frame, FrameError, FrameHeader, FrameKind};
pub use options::Options;
#[cfg(any(test, feature = "sim"))]
pub use skeleton::SimDisk;
pub use skeleton::{Drivers, GroupLog, Install, OsDisk, Store};
pub use types::{
    Checkpoint, CommitOutcome, GroupCondition, GroupInfo, GroupSpec, Identity, LargeOutcome, Manifest,
    ManifestSegment, MissingRange, Pressure, RoundLimit, RoundReport, SegmentSummary, Space, Stats,
    VoteRecord, Work,
};
