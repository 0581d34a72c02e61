use proptest::prelude::*;
use ptah_types::{ConsumerGroupId, Sequence, StartAt};

use super::*;

fn group(id: u64) -> ConsumerGroupId {
    ConsumerGroupId::new(id).unwrap()
}

fn range(first: u64, last: u64) -> SequenceRange {
    SequenceRange::from_numbers(first, last).unwrap()
}

fn one_of_each() -> Vec<Command> {
    let spec = GroupSpec {
        name: "audit".parse().unwrap(),
        start: StartAt::End,
        ack_deadline_ms: 30_000,
        max_in_flight: 1_000,
    };
    vec![
        Command::EnsureGroup {
            group: group(7),
            spec,
        },
        Command::DropGroup { group: group(300) },
        Command::Ack {
            group: group(7),
            ranges: [range(1, 1), range(3, 200)].into_iter().collect(),
        },
        Command::Delivered {
            group: group(7),
            watermark: Sequence::new(200).unwrap(),
            counts: vec![DeliveryCount {
                range: range(2, 5),
                count: 3,
            }],
        },
        Command::TrimTo {
            first: Sequence::new(129).unwrap(),
        },
    ]
}

#[test]
fn stored_bytes_do_not_move() {
    let stored = [
        1, 5, // format, commands
        1, 7, 5, b'a', b'u', b'd', b'i', b't', 2, 0xb0, 0xea, 0x01, 0xe8, 0x07, // ensure group
        2, 0xac, 0x02, // drop group
        3, 7, 2, 1, 0, 2, 0xc5, 0x01, // ack
        4, 7, 0xc8, 0x01, 1, 2, 3, 3, // delivered
        5, 0x81, 0x01, // trim
    ];
    assert_eq!(encode_commands(&one_of_each()).unwrap(), stored.as_slice());
    assert_eq!(decode_commands(&stored).unwrap(), one_of_each());
}

#[test]
fn an_entry_of_a_newer_version_is_named_as_such() {
    assert_eq!(
        decode_commands(&[2, 1, 1]),
        Err(CommandError::UnknownVersion { found: 2 })
    );
    assert_eq!(
        decode_commands(&[1, 1, 6, 0]),
        Err(CommandError::UnknownKind { found: 6 })
    );
}

#[test]
fn entries_without_and_with_too_many_commands_are_refused() {
    let many = vec![Command::DropGroup { group: group(1) }; MAX_ENTRY_COMMANDS + 1];
    assert_eq!(encode_commands(&[]), Err(EncodeError::Commands(0)));
    assert_eq!(encode_commands(&many), Err(EncodeError::Commands(257)));
    assert!(decode_commands(&[1, 0]).is_err());
}

#[test]
fn more_ranges_than_a_command_holds_are_refused() {
    let ranges = (1..=MAX_COMMAND_RANGES as u64 + 1)
        .map(|i| range(2 * i, 2 * i))
        .collect();
    let ack = Command::Ack {
        group: group(1),
        ranges,
    };
    assert_eq!(
        encode_commands(&[ack]),
        Err(EncodeError::Ranges(MAX_COMMAND_RANGES + 1))
    );
}

#[test]
fn a_truncated_entry_is_refused_at_every_length() {
    let bytes = encode_commands(&one_of_each()).unwrap();
    for len in 0..bytes.len() {
        assert!(decode_commands(&bytes[..len]).is_err(), "{len} bytes");
    }
}

fn commands() -> impl Strategy<Value = Command> {
    let runs = || prop::collection::vec((1_u64..1_000, 0_u64..20), 0..20);
    prop_oneof![
        (1_u64.., "[a-z]{1,20}", any::<bool>(), any::<u64>(), any::<u32>()).prop_map(
            |(id, name, first, ack_deadline_ms, max_in_flight)| Command::EnsureGroup {
                group: group(id),
                spec: GroupSpec {
                    name: name.parse().unwrap(),
                    start: if first { StartAt::First } else { StartAt::End },
                    ack_deadline_ms,
                    max_in_flight,
                },
            }
        ),
        (1_u64..).prop_map(|id| Command::DropGroup { group: group(id) }),
        (1_u64.., runs()).prop_map(|(id, runs)| Command::Ack {
            group: group(id),
            ranges: runs
                .into_iter()
                .map(|(first, len)| range(first, first + len))
                .collect(),
        }),
        (1_u64.., 1_u64.., runs(), any::<u32>()).prop_map(|(id, watermark, runs, count)| {
            Command::Delivered {
                group: group(id),
                watermark: Sequence::new(watermark).unwrap(),
                counts: runs
                    .into_iter()
                    .map(|(first, len)| DeliveryCount {
                        range: range(first, first + len),
                        count,
                    })
                    .collect(),
            }
        }),
        (1_u64..).prop_map(|first| Command::TrimTo {
            first: Sequence::new(first).unwrap()
        }),
    ]
}

proptest! {
    #[test]
    fn commands_are_read_back(commands in prop::collection::vec(commands(), 1..10)) {
        let bytes = encode_commands(&commands).unwrap();
        prop_assert_eq!(decode_commands(&bytes), Ok(commands));
    }

    #[test]
    fn random_bytes_never_make_the_reader_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_commands(&bytes);
        if bytes.len() > 3 {
            bytes[0] = FORMAT;
            bytes[1] = 3;
            bytes[2] %= 6;
        }
        let _ = decode_commands(&bytes);
    }
}
