//! Limits that hold everywhere. A limit that only one component has lives in that component.

/// Most characters of a station, tenant, user, group or node name.
pub const MAX_NAME_LEN: usize = 128;
/// Largest message payload that a station may be configured for, in bytes (64 MiB).
pub const MAX_MESSAGE_BYTES: u64 = 64 << 20;
/// Message payload limit of a station that says nothing, in bytes (8 MiB).
pub const DEFAULT_MESSAGE_BYTES: u64 = 8 << 20;
/// Headers, subject, key and ids of one message together, in bytes (64 KiB).
pub const MAX_MESSAGE_META_BYTES: usize = 64 << 10;
/// Most messages in one batch.
pub const MAX_BATCH_MESSAGES: usize = 16_384;
/// Largest encoded batch, in bytes: one message of [`MAX_MESSAGE_BYTES`] and 1 MiB of everything else.
pub const MAX_BATCH_BYTES: usize = (MAX_MESSAGE_BYTES as usize) + (1 << 20);
/// A batch is closed when it reaches this size in bytes (1 MiB); a larger single message travels alone.
pub const TARGET_BATCH_BYTES: usize = 1 << 20;
/// Most partitions of a station.
pub const MAX_PARTITIONS: u32 = 1_024;
/// Most consumer groups of a station.
pub const MAX_GROUPS_PER_STATION: usize = 1_024;
/// Largest piece of a batch that one transport message carries, in bytes (256 KiB), so that big messages share the wire.
pub const FRAGMENT_BYTES: usize = 256 << 10;
