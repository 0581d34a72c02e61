//! Settings of a store, all with defaults that fit a storage node.

use crate::OpenError;
use crate::wal::BLOCK;

/// Settings of a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size of one write-ahead log file in bytes (64 MiB).
    pub wal_file_bytes: u64,
    /// Largest commit unit in bytes (8 MiB).
    pub unit_bytes: usize,
    /// A frame whose payload has at least this many bytes goes straight to its segment (1 MiB).
    pub large_bytes: usize,
    /// Bound on bytes that wait for the disk, over all groups (128 MiB). A single append may exceed it when the queue is empty.
    pub queue_bytes: u64,
    /// Bound on frames in memory that are not in their segment yet, over all groups (256 MiB).
    pub unflushed_bytes: u64,
    /// Recently written frames that each group keeps in memory for readers of the tail, in bytes (256 KiB).
    pub recent_bytes_per_group: u64,
    /// Bound on recently written frames over all groups, in bytes (128 MiB).
    pub recent_bytes: u64,
    /// A checkpoint round is wanted when this much write-ahead log was written since the last one, in bytes (256 MiB).
    pub checkpoint_wal_bytes: u64,
    /// Appends wait when this much write-ahead log is not recycled, in bytes (4 GiB).
    pub max_wal_bytes: u64,
    /// Empty write-ahead log files that are kept ready.
    pub spare_wal_files: usize,
    /// Segment files that are kept open.
    pub open_files: usize,
    /// Bytes of sparse indexes of sealed segments that are kept in memory (64 MiB).
    pub index_cache_bytes: usize,
    /// Bytes of the disk that appends must leave free, for votes, the write-ahead log and checkpoints. `None`: 5 % of the disk, at most 8 GiB.
    pub reserve_bytes: Option<u64>,
    /// Quiet milliseconds after which the last commit unit is sealed (50).
    pub seal_after_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            wal_file_bytes: 64 << 20,
            unit_bytes: 8 << 20,
            large_bytes: 1 << 20,
            queue_bytes: 128 << 20,
            unflushed_bytes: 256 << 20,
            recent_bytes_per_group: 256 << 10,
            recent_bytes: 128 << 20,
            checkpoint_wal_bytes: 256 << 20,
            max_wal_bytes: 4 << 30,
            spare_wal_files: 2,
            open_files: 512,
            index_cache_bytes: 64 << 20,
            reserve_bytes: None,
            seal_after_ms: 50,
        }
    }
}

impl Options {
    /// Small files and bounds, for tests and simulations.
    pub fn small() -> Self {
        Self {
            wal_file_bytes: 256 << 10,
            unit_bytes: 64 << 10,
            large_bytes: 16 << 10,
            queue_bytes: 1 << 20,
            unflushed_bytes: 1 << 20,
            recent_bytes_per_group: 16 << 10,
            recent_bytes: 256 << 10,
            checkpoint_wal_bytes: 512 << 10,
            max_wal_bytes: 16 << 20,
            spare_wal_files: 1,
            open_files: 16,
            index_cache_bytes: 1 << 20,
            reserve_bytes: Some(0),
            seal_after_ms: 50,
        }
    }

    pub(crate) fn check(&self) -> Result<(), OpenError> {
        let refuse = |text: &str| Err(OpenError::Options(text.to_owned()));
        if self.unit_bytes < self.large_bytes.saturating_add(3 * BLOCK) {
            return refuse("unit_bytes must exceed large_bytes by at least 12 KiB");
        }
        if self.wal_file_bytes < self.unit_bytes as u64 + 4 * BLOCK as u64 {
            return refuse("wal_file_bytes must exceed unit_bytes by at least 16 KiB");
        }
        if !self.wal_file_bytes.is_multiple_of(BLOCK as u64) {
            return refuse("wal_file_bytes must be a multiple of 4096");
        }
        if self.max_wal_bytes < 3 * self.wal_file_bytes {
            return refuse("max_wal_bytes must be at least three files");
        }
        if self.open_files == 0 {
            return refuse("open_files must be at least 1");
        }
        Ok(())
    }
}
