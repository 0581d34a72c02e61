//! What a message of the benchmark carries, so that reading it back proves something.
//!
//! ```text
//! 0        4          12         16        24
//! | crc32c | run: u64 | producer | counter | filler ... |      little endian; the checksum covers all behind it
//! ```

use crc_fast::CrcAlgorithm::Crc32Iscsi;

/// Bytes before the filler.
pub(super) const MIN_SIZE_BYTES: usize = 24;

/// Who sent a message, and which of its messages it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label {
    /// Producer of the run, counted from 0.
    pub(super) producer: u32,
    /// Message of the producer, counted from 0.
    pub(super) counter: u64,
}

/// What a payload turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// A message of this run, as it was sent.
    Ours(Label),
    /// Not of this run.
    Foreign,
    /// Bears the mark of this run, but is not what was sent.
    Damaged,
}

/// Writes the payloads of one producer, always into the same bytes.
#[derive(Debug)]
pub(super) struct PayloadWriter {
    bytes: Vec<u8>,
}

impl PayloadWriter {
    pub(super) fn new(run: u64, producer: u32, size_bytes: usize) -> Self {
        let mut bytes: Vec<u8> = (0..size_bytes.max(MIN_SIZE_BYTES)).map(filler).collect();
        bytes[4..12].copy_from_slice(&run.to_le_bytes());
        bytes[12..16].copy_from_slice(&producer.to_le_bytes());
        Self { bytes }
    }

    /// The payload of a message.
    pub(super) fn payload(&mut self, counter: u64) -> &[u8] {
        self.bytes[16..24].copy_from_slice(&counter.to_le_bytes());
        let crc = checksum(&self.bytes[4..]);
        self.bytes[..4].copy_from_slice(&crc.to_le_bytes());
        &self.bytes
    }
}

/// Looks at a payload that was read back.
pub(super) fn inspect(payload: &[u8], run: u64, size_bytes: usize) -> Found {
    let Some((crc, rest)) = payload.split_first_chunk::<4>() else {
        return Found::Foreign;
    };
    let Some((found_run, rest)) = rest.split_first_chunk::<8>() else {
        return Found::Foreign;
    };
    if u64::from_le_bytes(*found_run) != run {
        return Found::Foreign;
    }
    let Some((producer, rest)) = rest.split_first_chunk::<4>() else {
        return Found::Damaged;
    };
    let Some((counter, _)) = rest.split_first_chunk::<8>() else {
        return Found::Damaged;
    };
    if payload.len() != size_bytes || checksum(&payload[4..]) != u32::from_le_bytes(*crc) {
        return Found::Damaged;
    }
    Found::Ours(Label {
        producer: u32::from_le_bytes(*producer),
        counter: u64::from_le_bytes(*counter),
    })
}

fn checksum(bytes: &[u8]) -> u32 {
    // A 32-bit algorithm gives 32 bits.
    crc_fast::checksum(Crc32Iscsi, bytes) as u32
}

/// Bytes that do not repeat at a power of two, so that blocks in the wrong place are noticed.
fn filler(index: usize) -> u8 {
    (index.wrapping_mul(167) >> 3) as u8 ^ index as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: u64 = 0x1234_5678_9abc_def0;

    #[test]
    fn a_payload_says_who_sent_it_and_which_it_is() {
        let mut writer = PayloadWriter::new(RUN, 3, 128);
        let payload = writer.payload(41).to_vec();
        assert_eq!(payload.len(), 128);
        assert_eq!(
            inspect(&payload, RUN, 128),
            Found::Ours(Label {
                producer: 3,
                counter: 41
            })
        );
    }

    #[test]
    fn a_flipped_bit_anywhere_behind_the_run_is_damage() {
        let mut writer = PayloadWriter::new(RUN, 0, 64);
        let payload = writer.payload(1).to_vec();
        for index in (0..4).chain(12..64) {
            let mut flipped = payload.clone();
            flipped[index] ^= 1;
            assert_eq!(inspect(&flipped, RUN, 64), Found::Damaged, "byte {index}");
        }
        assert_eq!(inspect(&payload[..63], RUN, 64), Found::Damaged, "cut");
    }

    #[test]
    fn messages_of_others_are_foreign() {
        let mut writer = PayloadWriter::new(RUN + 1, 0, 64);
        assert_eq!(inspect(writer.payload(1), RUN, 64), Found::Foreign);
        assert_eq!(inspect(b"hello", RUN, 64), Found::Foreign);
        assert_eq!(inspect(b"", RUN, 64), Found::Foreign);
    }
}
