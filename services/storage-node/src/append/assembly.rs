//! Putting a batch together that comes in parts.

use bytes::{Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};

/// A batch of which parts are still missing. The checksum is computed part by part, so that a large batch never
/// keeps a thread busy for long.
pub(crate) struct Assembly {
    total_bytes: usize,
    parts: BytesMut,
    digest: Digest,
}

/// What a further part led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// More is missing.
    Incomplete,
    /// All is there.
    Complete {
        /// The whole payload.
        payload: Bytes,
        /// CRC-32C of it.
        crc: u32,
    },
    /// More bytes than announced.
    Overflow,
}

impl Assembly {
    /// Begins a batch of `total_bytes`, which the caller has taken from a budget.
    pub(crate) fn new(total_bytes: usize) -> Self {
        Self {
            total_bytes,
            parts: BytesMut::with_capacity(total_bytes),
            digest: Digest::new(CrcAlgorithm::Crc32Iscsi),
        }
    }

    /// Adds a part.
    pub(crate) fn add(&mut self, part: &[u8]) -> Progress {
        let len = self.parts.len() + part.len();
        if len > self.total_bytes {
            return Progress::Overflow;
        }
        self.parts.extend_from_slice(part);
        self.digest.update(part);
        if len < self.total_bytes {
            return Progress::Incomplete;
        }
        Progress::Complete {
            payload: std::mem::take(&mut self.parts).freeze(),
            crc: checksum(&self.digest),
        }
    }
}

/// The 32 bits of the digest; the crate computes every width in 64.
fn checksum(digest: &Digest) -> u32 {
    (digest.finalize() & u64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_become_the_whole_with_its_checksum() {
        let mut assembly = Assembly::new(9);
        assert_eq!(assembly.add(b"123"), Progress::Incomplete);
        let complete = Progress::Complete {
            payload: Bytes::from_static(b"123456789"),
            crc: 0xe306_9283,
        };
        assert_eq!(assembly.add(b"456789"), complete);
    }

    #[test]
    fn one_byte_more_than_announced_is_noticed() {
        let mut assembly = Assembly::new(3);
        assert_eq!(assembly.add(b"1234"), Progress::Overflow);
    }
}
