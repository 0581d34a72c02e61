//! Which partition a message goes to.

use std::io::Cursor;
use std::num::NonZeroU32;

use ptah_types::PartitionNumber;

/// Seed that every client library of the protocol family uses.
const SEED: u32 = 31;

/// Hash of a message key: murmur3, 32 bits.
pub fn key_hash(key: &[u8]) -> u32 {
    murmur3::murmur3_32(&mut Cursor::new(key), SEED).expect("reading from memory cannot fail")
}

/// Partition of a key in a station of `partitions` partitions.
pub fn partition_of_key(key: &[u8], partitions: NonZeroU32) -> PartitionNumber {
    numbered(key_hash(key), partitions)
}

/// Partition of the `turn`-th request without keys.
pub fn partition_of_turn(turn: u32, partitions: NonZeroU32) -> PartitionNumber {
    numbered(turn, partitions)
}

fn numbered(value: u32, partitions: NonZeroU32) -> PartitionNumber {
    PartitionNumber::new(value % partitions + 1).expect("a remainder is below u32::MAX")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_hashes_equal_those_of_other_clients() {
        let golden = [
            ("", 1_257_683_291),
            ("a", 3_387_765_255),
            ("key", 2_580_712_894),
            ("partition_key", 383_570_016),
        ];
        for (key, hash) in golden {
            assert_eq!(key_hash(key.as_bytes()), hash, "key {key:?}");
        }
    }

    #[test]
    fn a_key_chooses_by_remainder_and_partitions_count_from_1() {
        let three = NonZeroU32::new(3).unwrap();
        assert_eq!(partition_of_key(b"key", three).get(), 2_580_712_894 % 3 + 1);
        let turns: Vec<_> = (0..4).map(|turn| partition_of_turn(turn, three).get()).collect();
        assert_eq!(turns, [1, 2, 3, 1]);
    }
}
