use proptest::prelude::*;
use ptah_types::{ConsumerGroupId, Sequence, SessionId, StartAt};

use super::*;
use crate::{BatchHead, BatchStamp, Command, DeliveryCount, GroupSpec, SequenceRange, SessionNumber};

fn range(first: u64, last: u64) -> SequenceRange {
    SequenceRange::from_numbers(first, last).unwrap()
}

/// A small partition in which everything that is stored is there.
fn partition() -> Partition {
    let mut partition = Partition::new();
    for number in 1..=3_u64 {
        let stamp = BatchStamp {
            base_sequence: partition.next_sequence(),
            count: 100,
            timestamp: Timestamp(1_000 + number),
            session: SessionNumber::new(SessionId::new(7).unwrap(), number),
        };
        partition
            .apply_batch(
                &stamp,
                BatchHead {
                    count: 100,
                    bytes: 1_000,
                },
            )
            .unwrap();
    }
    let group = ConsumerGroupId::new(5).unwrap();
    let spec = GroupSpec {
        name: "audit".parse().unwrap(),
        start: StartAt::First,
        ack_deadline_ms: 30_000,
        max_in_flight: 1_000,
    };
    let watermark = Sequence::new(50).unwrap();
    let counts = vec![DeliveryCount {
        range: range(3, 30),
        count: 2,
    }];
    let ranges = [range(1, 2), range(10, 12), range(14, 14)].into_iter().collect();
    for command in [
        Command::EnsureGroup { group, spec },
        Command::Delivered {
            group,
            watermark,
            counts,
        },
        Command::Ack { group, ranges },
        Command::TrimTo {
            first: Sequence::new(2).unwrap(),
        },
    ] {
        partition.apply(&command, Timestamp(2_000));
    }
    partition
}

const STORED: &[u8] = &[
    b'P', b'T', b'H', b'P', 1, // magic, format
    2, 0xad, 0x02, 0xeb, 0x07, // first, next, time
    0x80, 0x80, 0x40, 1, 0xab, 0x02, 0xae, 0x17, // bucket size, one bucket: 299 messages, 2990 bytes
    1, 7, 3, 3, 1, 100, 0xe9, 0x07, 100, 100, 1, 100, 100, 1,
    0, // session 7 up to 3: three appends of 100; none evicted
    1, 5, 5, b'a', b'u', b'd', b'i', b't', 1, 0xb0, 0xea, 0x01, 0xe8, 0x07, 0xd0,
    0x0f, // group, settings, time
    2, 48, 2, 8, 2, 2, 0, // floor, watermark, acked ranges
    3, 1, 6, 2, 4, 0, 2, 2, 15, 2, // delivery counts
];

#[test]
fn stored_bytes_do_not_move() {
    let bytes = partition().encode();
    let (body, crc) = bytes.split_at(bytes.len() - 4);
    assert_eq!(body, STORED);
    assert_eq!(crc, crc32c(STORED).to_le_bytes());
}

#[test]
fn a_checkpoint_gives_the_same_partition() {
    assert_eq!(Partition::decode(&partition().encode()), Ok(partition()));
    assert_eq!(
        Partition::decode(&Partition::new().encode()),
        Ok(Partition::new())
    );
}

#[test]
fn every_flipped_bit_is_found() {
    let good = partition().encode();
    for bit in 0..good.len() * 8 {
        let mut bytes = good.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Partition::decode(&bytes).is_err(), "bit {bit}");
    }
}

#[test]
fn a_truncated_checkpoint_is_refused_at_every_length() {
    let bytes = partition().encode();
    for len in 0..bytes.len() {
        assert!(Partition::decode(&bytes[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn a_checkpoint_of_another_version_is_named_as_such() {
    let mut bytes = partition().encode().to_vec();
    bytes[4] = 2;
    assert_eq!(
        Partition::decode(&bytes),
        Err(CheckpointError::UnknownVersion { found: 2 })
    );
    assert_eq!(
        Partition::decode(b"something"),
        Err(CheckpointError::NotACheckpoint)
    );
}

/// The body with a checksum that fits, so that what is behind the checksum is tested.
fn sealed(body: &[u8]) -> Vec<u8> {
    let mut bytes = body.to_vec();
    bytes.extend_from_slice(&crc32c(body).to_le_bytes());
    bytes
}

#[test]
fn a_checkpoint_that_contradicts_itself_is_refused() {
    let floor_at = STORED.len() - 17;
    let mut body = STORED.to_vec();
    assert_eq!(body[floor_at], 2);
    body[floor_at] = 0;
    assert!(matches!(
        Partition::decode(&sealed(&body)),
        Err(CheckpointError::Broken(_))
    ));
}

proptest! {
    #[test]
    fn what_is_accepted_keeps_all_invariants_and_is_written_back_alike(
        damage in prop::collection::vec((5..STORED.len(), any::<u8>()), 1..4), cut in 0..STORED.len()
    ) {
        let mut body = STORED.to_vec();
        for (at, value) in damage {
            body[at] = value;
        }
        for body in [&body[..], &body[..cut]] {
            if let Ok(partition) = Partition::decode(&sealed(body)) {
                prop_assert_eq!(partition.check(), Ok(()));
                prop_assert_eq!(Partition::decode(&partition.encode()), Ok(partition));
            }
        }
    }
}
