//! Payload of a message batch: built once at the edge, then replicated, stored, fetched and delivered as it is.
//!
//! Layout of format 1; numbers are little endian:
//!
//! ```text
//! head      0  u8   format version, 1
//!           1  u8   flags, 0
//!           2  u16  0
//!           4  u32  number of messages, 1 to 16,384
//! messages  8  ...  one behind the other
//! ends         u32  per message: where it ends, counted from the start of the payload
//! ```
//!
//! The table of ends comes last so that a batch grows in one buffer; its place follows from the length and the number
//! of messages. Layout of a message: see the module `layout`. The payload carries no checksum; who moves or stores it keeps
//! [`crc32c`] of the whole payload beside it. Sequences and time are not in it: the leader stamps them outside.

mod builder;
mod layout;
mod message;
mod view;

#[cfg(test)]
mod tests;

pub use builder::{Batch, BatchBuilder, BuildError, MessageParts};
pub use layout::{BatchHead, Door};
pub use message::{Headers, MessageView};
pub use view::{BatchError, BatchView};

/// CRC-32C (Castagnoli) of some bytes.
pub fn crc32c(bytes: &[u8]) -> u32 {
    // The algorithm has 32 bits; the library answers all of its algorithms in 64.
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}
