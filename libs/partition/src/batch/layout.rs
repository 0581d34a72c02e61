//! Where the fields of a batch and of a message are. Stored, never change within format 1.
//!
//! ```text
//! message   0  u8   which optional fields there are (bits of `field`)
//!           1  u8   door that it came through
//!           2  u16  bytes of subject
//!           4  u16  bytes of key
//!           6  u16  bytes of message id
//!           8  u16  bytes of producer
//!          10  u16  number of headers
//!          12  u32  bytes of headers
//!          16  u64  schema id, if there is one
//!              u64  session and u64 number in it, if there is one
//!              ...  subject, headers, key, message id, producer, and to the end: payload
//! header       u16  bytes of name
//!              u16  bytes of value
//!              ...  name, value
//! ```

use super::view::BatchError;
use ptah_types::limits::{MAX_BATCH_BYTES, MAX_BATCH_MESSAGES};

/// Version of the layout that this build writes and reads.
pub(super) const FORMAT: u8 = 1;
/// Bytes of a batch before its first message.
pub(super) const HEAD_BYTES: usize = 8;
/// Bytes per message in the table of ends.
pub(super) const END_BYTES: usize = 4;
/// Bytes of a message that are always there.
pub(super) const FIXED_BYTES: usize = 16;
/// Bytes of a header before its name.
pub(super) const HEADER_BYTES: usize = 4;

/// Bits of a message's first byte. Stored, never renumber. 32 is kept for delete markers; a bit that this build does
/// not know is refused, because it may change what the message means.
pub(super) mod field {
    pub(in crate::batch) const KEY: u8 = 1;
    pub(in crate::batch) const ID: u8 = 2;
    pub(in crate::batch) const PRODUCER: u8 = 4;
    pub(in crate::batch) const SCHEMA: u8 = 8;
    pub(in crate::batch) const SESSION: u8 = 16;
    pub(in crate::batch) const ALL: u8 = KEY | ID | PRODUCER | SCHEMA | SESSION;
}

/// The door that a message came in by. Informs people only, so a number of a newer version is kept and not refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Door(u8);

/// Stored, never renumber.
impl Door {
    /// The door of the client libraries.
    pub const SDK: Self = Self(1);
    /// HTTP.
    pub const REST: Self = Self(2);
    /// gRPC.
    pub const GRPC: Self = Self(3);
    /// The command line.
    pub const CLI: Self = Self(4);
    /// Ptah itself.
    pub const INTERNAL: Self = Self(5);

    /// The door of that number; zero is none.
    pub const fn new(number: u8) -> Option<Self> {
        if number == 0 { None } else { Some(Self(number)) }
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SDK => "sdk",
            Self::REST => "rest",
            Self::GRPC => "grpc",
            Self::CLI => "cli",
            Self::INTERNAL => "internal",
            _ => "other",
        }
    }
}

/// What can be told of a batch without looking at its messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchHead {
    /// Number of messages.
    pub count: u32,
    /// Bytes of the whole payload.
    pub bytes: u64,
}

impl BatchHead {
    /// Reads and checks the head of a payload. The messages may still be malformed.
    pub fn read(payload: &[u8]) -> Result<Self, BatchError> {
        if payload.len() > MAX_BATCH_BYTES {
            return Err(BatchError::TooLarge { bytes: payload.len() });
        }
        let Some(([version, flags, rest @ ..], _)) = payload.split_first_chunk::<HEAD_BYTES>() else {
            return Err(BatchError::Malformed {
                what: "head",
                message: None,
            });
        };
        if *version != FORMAT {
            return Err(BatchError::UnknownVersion { found: *version });
        }
        let [0, 0, count @ ..] = rest else {
            return Err(BatchError::Malformed {
                what: "head",
                message: None,
            });
        };
        if *flags != 0 {
            return Err(BatchError::UnknownFlags { found: *flags });
        }
        let count = u32::from_le_bytes(*count);
        let least = HEAD_BYTES as u64 + u64::from(count) * (FIXED_BYTES + END_BYTES) as u64;
        if count == 0 || count as usize > MAX_BATCH_MESSAGES || least > payload.len() as u64 {
            return Err(BatchError::BadCount { count });
        }
        Ok(Self {
            count,
            bytes: payload.len() as u64,
        })
    }
}
