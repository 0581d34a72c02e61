//! Bytes on disk: fixed ones, and round trips.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use ptah_types::{LogId, LogIndex, RaftGroupId, ReplicaId, Sequence, SessionId, Term, Timestamp};

use crate::group::{CheckpointFiles, GroupState};
use crate::segment::{SegmentName, StreamKind};
use crate::testing::{batch_of, group_id, identity, log_id, spec};
use crate::types::{Checkpoint, Manifest, ManifestSegment, VoteRecord};
use crate::wal::{
    Epoch, FileHeader, Numbers, Record, RecordKind, StreamEnd, Unit, UnitHeader, UnitKind, WalPosition,
    split_records,
};
use crate::{Frame, FrameError, FrameHeader, FrameKind, crc32c};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn frame() -> Frame {
    let payload = Bytes::from_static(b"hello");
    let crc = crc32c(&payload);
    let id = log_id(3, 0x0102);
    let base = Sequence::new(0x0a0b).unwrap();
    let mut frame = Frame::batch(group_id(0x11), id, Timestamp(0x2233), base, 2, payload, crc);
    frame.codec = 5;
    frame.flags = 0x0607;
    frame.session = SessionId::new(0x44).ok();
    frame.number = 0x55;
    frame
}

fn end() -> StreamEnd {
    StreamEnd {
        segment: LogIndex(1),
        length: 2,
        last: log_id(3, 4),
        last_timestamp: Timestamp(5),
        next_sequence: Sequence::new(6),
    }
}

fn epoch() -> Epoch {
    Epoch {
        number: 3,
        nonce: 0x0123_4567_89ab_cdef,
    }
}

fn records() -> Vec<Record> {
    let vote = VoteRecord {
        term: Term(7),
        voted_for: ReplicaId::new(8).ok(),
        committed: true,
    };
    vec![
        Record::Append(vec![frame()]),
        Record::AppendLarge {
            segment: LogIndex(9),
            position: 10,
            header: FrameHeader::of(&frame()),
        },
        Record::Vote(vote),
        Record::Committed(log_id(1, 2)),
        Record::Truncate {
            after: Some(log_id(1, 2)),
            messages: Some(end()),
            commands: None,
            next_sequence: 11,
        },
        Record::Purge(log_id(1, 2)),
        Record::DropMessages {
            first_kept: LogIndex(12),
        },
    ]
}

fn body(record: &Record) -> Bytes {
    let mut out = Vec::new();
    record.encode_body(&mut out);
    out.into()
}

#[test]
fn the_bytes_of_a_frame_are_fixed() {
    let mut out = BytesMut::new();
    frame().encode_into(&mut out);
    assert_eq!(hex(&out), FRAME);
}

#[test]
fn the_bytes_of_every_record_are_fixed() {
    let found: Vec<String> = records().iter().map(|record| hex(&body(record))).collect();
    assert_eq!(found[0], FRAME);
    assert_eq!(found[1..], RECORDS);
    let numbers = Numbers {
        since_seq: 1,
        last: vec![(2, 3), (4, 5)],
    };
    assert_eq!(hex(&numbers.encode()), NUMBERS);
    assert_eq!(Numbers::decode(&numbers.encode()), Some(numbers));
    let kinds: Vec<u8> = records().iter().map(|record| record.kind() as u8).collect();
    assert_eq!(kinds, [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(RecordKind::Numbers as u8, 8);
}

#[test]
fn the_bytes_of_a_commit_unit_are_fixed() {
    let mut unit = Unit::new();
    unit.push_record(0x11, 9, &Record::Committed(log_id(1, 2)));
    let bytes = unit.finish(&epoch(), 4, UnitKind::Data).concat();
    assert_eq!(hex(&bytes), UNIT);
    let header = UnitHeader::decode(&bytes).unwrap();
    let records = split_records(&Bytes::copy_from_slice(&bytes[40..]), header.records).unwrap();
    assert_eq!((records[0].0.group, records[0].0.number), (0x11, 9));
}

#[test]
fn the_bytes_of_file_headers_are_fixed() {
    let wal = FileHeader {
        identity: identity(),
        number: 2,
        epoch: epoch(),
        first_seq: 4,
        file_bytes: 5,
    };
    assert_eq!(hex(&wal.encode()[..80]), WAL_FILE);
    for damaged in [0, 20, 2048, 2100] {
        let mut block = wal.encode();
        block[damaged] ^= 1;
        assert_eq!(FileHeader::decode(&block), Some(wal), "each copy alone is enough");
    }
    let name = SegmentName::new(
        identity(),
        group_id(6),
        StreamKind::Commands,
        LogIndex(7),
        "/d".as_ref(),
    );
    assert_eq!(hex(&name.header()[..64]), SEGMENT);
    assert_eq!(name.path, std::path::Path::new("/d/c-00000000000000000007.seg"));
    let position = WalPosition {
        version: 1,
        epoch: epoch(),
        first_file: 3,
        last_file: 4,
        last_seq: 5,
    };
    let block = position.encode();
    assert_eq!(hex(&block[..64]), POSITION);
    assert_eq!(block[..64], block[2048..2112]);
}

fn checkpoint() -> Checkpoint {
    let segment = ManifestSegment {
        first_index: LogIndex(1),
        last: log_id(2, 3),
        first_sequence: Sequence::new(4).unwrap(),
        next_sequence: Sequence::new(5).unwrap(),
        length: 6,
        crc: 7,
        first_timestamp: Timestamp(8),
        last_timestamp: Timestamp(9),
    };
    let manifest = Manifest {
        segments: vec![segment],
        next_sequence: Sequence::new(5),
    };
    Checkpoint {
        at: log_id(2, 10),
        state: Bytes::from_static(b"state"),
        manifest,
    }
}

#[test]
fn the_bytes_of_a_checkpoint_are_fixed() {
    let cluster = identity().cluster;
    let mut bytes = CheckpointFiles::encode_head(&cluster, group_id(6), &checkpoint());
    bytes.extend_from_slice(b"state");
    assert_eq!(hex(&bytes), CHECKPOINT);
    let bytes = Bytes::from(bytes);
    assert_eq!(
        CheckpointFiles::decode(&bytes, &cluster, group_id(6)),
        Some(checkpoint())
    );
    assert_eq!(CheckpointFiles::decode(&bytes, &cluster, group_id(7)), None);
    for cut in 0..bytes.len() {
        assert_eq!(
            CheckpointFiles::decode(&bytes.slice(..cut), &cluster, group_id(6)),
            None
        );
    }
    assert_eq!(
        CheckpointFiles::parse_name(&CheckpointFiles::name(log_id(2, 10))),
        Some(log_id(2, 10))
    );
}

#[test]
fn the_bytes_of_a_meta_slot_are_fixed() {
    let spec = spec(1, 4096);
    let mut state = GroupState::new(&spec);
    state.durable_vote = Some(VoteRecord {
        term: Term(7),
        voted_for: ReplicaId::new(8).ok(),
        committed: true,
    });
    state.push(batch_of(1, 2, 3, 1, 4, 5), 1);
    state.durable_record = 1;
    let image = state.image(&spec, 9, 1);
    let bytes = image.encode(&identity());
    assert_eq!(
        (bytes.len(), crc32c(&bytes), hex(&bytes[..32])),
        (8192, META_CRC, META_HEAD.to_owned())
    );
    let decoded = crate::group::MetaImage::decode(&bytes, &identity(), group_id(1)).unwrap();
    assert_eq!(decoded.encode(&identity()), bytes);
    // Each copy alone is enough; none of another group is taken.
    for damaged in [100, 4096 + 100] {
        let mut copy = bytes.clone();
        copy[damaged] ^= 1;
        assert!(crate::group::MetaImage::decode(&copy, &identity(), group_id(1)).is_some());
    }
    assert!(crate::group::MetaImage::decode(&bytes, &identity(), group_id(2)).is_none());
}

#[test]
fn a_frame_that_contradicts_itself_is_refused() {
    let good = frame();
    let bad = [
        Frame {
            count: 0,
            ..good.clone()
        },
        Frame {
            base_sequence: None,
            ..good.clone()
        },
        Frame {
            kind: FrameKind::Command,
            ..good.clone()
        },
        Frame {
            base_sequence: Sequence::new(u64::MAX),
            ..good.clone()
        },
    ];
    for frame in bad {
        let mut bytes = BytesMut::new();
        frame.encode_into(&mut bytes);
        assert!(
            matches!(Frame::decode(&mut bytes.freeze()), Err(FrameError::Invalid(_))),
            "{frame:?}"
        );
    }
}

prop_compose! {
    fn any_frame()(
        plain in any::<bool>(),
        kind in 0..3usize,
        codec in any::<u8>(),
        flags in any::<u32>(),
        ids in (1..u64::MAX, any::<u64>(), any::<u64>()),
        base in 1..u64::MAX / 2,
        count in 1..u32::MAX,
        rest in (any::<u64>(), any::<u64>(), any::<u64>()),
        payload in proptest::collection::vec(any::<u8>(), 0..300),
    ) -> Frame {
        let payload = Bytes::from(payload);
        let group = RaftGroupId::new(ids.0).unwrap();
        let id = LogId { term: Term(ids.1), index: LogIndex(ids.2) };
        let crc = crc32c(&payload);
        let kinds = [FrameKind::Blank, FrameKind::Command, FrameKind::Membership];
        let frame = if plain {
            Frame::plain(kinds[kind], group, id, Timestamp(rest.0), payload)
        } else {
            Frame::batch(group, id, Timestamp(rest.0), Sequence::new(base).unwrap(), count, payload, crc)
        };
        Frame { codec, flags, session: SessionId::new(rest.1).ok(), number: rest.2, ..frame }
    }
}

proptest! {
    #[test]
    fn every_frame_is_read_back(frames in proptest::collection::vec(any_frame(), 1..5)) {
        let mut bytes = BytesMut::new();
        frames.iter().for_each(|frame| frame.encode_into(&mut bytes));
        let mut rest = bytes.freeze();
        for frame in &frames {
            prop_assert_eq!(&Frame::decode(&mut rest).unwrap(), frame);
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn a_flipped_bit_in_a_frame_is_always_noticed(frame in any_frame(), place in any::<prop::sample::Index>()) {
        let mut bytes = BytesMut::new();
        frame.encode_into(&mut bytes);
        let bit = place.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Frame::decode(&mut bytes.freeze()).is_err());
    }

    #[test]
    fn bytes_from_anywhere_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 1..8u8) {
        let bytes = Bytes::from(bytes);
        let _ = Frame::decode(&mut bytes.clone());
        let _ = split_records(&bytes, 1);
        let _ = Numbers::decode(&bytes);
        let _ = crate::group::MetaImage::decode(&bytes, &identity(), group_id(1));
        let _ = CheckpointFiles::decode(&bytes, &identity().cluster, group_id(1));
        let record = &records()[usize::from(kind) - 1];
        let _ = Record::decode(record.kind(), group_id(0x11), &bytes);
        // A cut record is no record.
        let whole = body(record);
        let cut = whole.len() * usize::from(bytes.len() as u8) / 256;
        if cut > 0 && cut < whole.len() {
            prop_assert_eq!(Record::decode(record.kind(), group_id(0x11), &whole.slice(..cut)), None);
        }
        prop_assert_eq!(&Record::decode(record.kind(), group_id(0x11), &whole).unwrap(), record);
    }
}

const FRAME: &str = "9973464d5046020507060000050000001100000000000000030000000000000002010000000000000b0a000000000000020000004cbb719a33220000000000004400000000000000550000000000000068656c6c6f";
const RECORDS: [&str; 6] = [
    "09000000000000000a000000000000009973464d5046020507060000050000001100000000000000030000000000000002010000000000000b0a000000000000020000004cbb719a332200000000000044000000000000005500000000000000",
    "070000000000000008000000000000000100000000000000",
    "01000000000000000200000000000000",
    "010000000000000001000000000000000200000000000000010000000000000001000000000000000200000000000000030000000000000004000000000000000500000000000000060000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000b00000000000000",
    "01000000000000000200000000000000",
    "0c00000000000000",
];
const NUMBERS: &str = "01000000000000000200000000000000030000000000000004000000000000000500000000000000";
const UNIT: &str = "505755319cecfea8030000000000000004000000000000002800000001000000010000000000000004000000100000001100000000000000090000000000000001000000000000000200000000000000";
const WAL_FILE: &str = "5054414857414c31ef25f48a010000000707070707070707070707070707070701000000000000000200000000000000030000000000000004000000000000000500000000000000efcdab8967452301";
const SEGMENT: &str = "5054414853454731fb29306901000000070707070707070707070707070707070100000000000000060000000000000002000000000000000700000000000000";
const POSITION: &str = "5054414857504f53d37711c90100000001000000000000000300000000000000030000000000000004000000000000000500000000000000efcdab8967452301";
const CHECKPOINT: &str = "50544148434b5031b846d7d00100000007070707070707070707070707070707060000000000000002000000000000000a00000000000000050000000000000001000000000000000500000000000000df68db66000000000000000000000000010000000000000002000000000000000300000000000000040000000000000005000000000000000600000000000000070000000000000008000000000000000900000000000000000000000000000000000000000000007374617465";
const META_CRC: u32 = 3553692425;
const META_HEAD: &str = "505441484d455441c80c81dd010000006f010000000000000100000000000000";
