use ptah_partition::BatchStamp;
use ptah_segment_log::crc32c;
use ptah_types::{LogId, Sequence, Term, Timestamp};

use super::*;
use crate::record::Record;
use crate::types::{EntryPayload, raft_log_id};

fn group() -> RaftGroupId {
    RaftGroupId::new(7).unwrap()
}

fn at(term: u64, index: u64) -> RaftLogId {
    raft_log_id(LogId {
        term: Term(term),
        index: LogIndex(index),
    })
}

fn entry(index: u64, bytes: usize) -> Entry {
    let payload = Bytes::from(vec![index as u8; bytes]);
    let stamp = BatchStamp {
        base_sequence: Sequence::new(index + 1).unwrap(),
        count: 1,
        timestamp: Timestamp(1),
        session: None,
    };
    let crc = crc32c(&payload);
    let record = Record {
        fresh: false,
        ..Record::batch(&stamp, payload, crc)
    };
    openraft::entry::RaftEntry::new(at(2, index), EntryPayload::Normal(record))
}

fn join(pieces: Vec<Bytes>) -> Bytes {
    let mut remaining: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
    let mut assembly = Assembly::default();
    for piece in pieces {
        remaining -= piece.len() as u64;
        assembly.add(piece, remaining).unwrap();
    }
    assembly.finish()
}

#[test]
fn entries_of_all_sizes_arrive_as_they_were() {
    let entries: Vec<Entry> = [10, 0, 40_000, 300, 1_000_000, 262_144, 5]
        .into_iter()
        .enumerate()
        .map(|(place, bytes)| entry(4 + place as u64, bytes))
        .collect();
    let pieces = encode_entries(entries.clone(), group());
    assert!(
        pieces
            .iter()
            .all(|piece| piece.len() <= FRAGMENT_BYTES && !piece.is_empty())
    );
    let back = decode_entries(join(pieces), group(), Some(at(1, 3)), 2).unwrap();
    assert_eq!(back, entries);
}

#[test]
fn a_big_payload_is_cut_without_copying() {
    let big = entry(0, 1_000_000);
    let EntryPayload::Normal(record) = &big.payload else {
        panic!("a batch");
    };
    let address = record.payload.as_ptr();
    let pieces = encode_entries(vec![big.clone()], group());
    assert_eq!(pieces[0].len(), FRAME_HEADER_LEN);
    assert_eq!(pieces[1].as_ptr(), address);
}

#[test]
fn any_flipped_bit_is_refused() {
    let bytes = join(encode_entries(vec![entry(0, 100), entry(1, 50)], group()));
    for place in 0..bytes.len() {
        let mut damaged = bytes.to_vec();
        damaged[place] ^= 1;
        assert!(
            decode_entries(damaged.into(), group(), None, 2).is_err(),
            "byte {place}"
        );
    }
}

#[test]
fn entries_of_another_group_place_or_term_are_refused() {
    let bytes = join(encode_entries(vec![entry(4, 10)], group()));
    let other = RaftGroupId::new(8).unwrap();
    assert!(matches!(
        decode_entries(bytes.clone(), other, Some(at(1, 3)), 2),
        Err(EntriesError::OtherGroup { .. })
    ));
    assert!(matches!(
        decode_entries(bytes.clone(), group(), Some(at(1, 9)), 2),
        Err(EntriesError::OutOfOrder { expected: 10, .. })
    ));
    assert!(matches!(
        decode_entries(bytes.clone(), group(), Some(at(3, 3)), 3),
        Err(EntriesError::Term(_))
    ));
    assert!(matches!(
        decode_entries(bytes, group(), Some(at(1, 3)), 1),
        Err(EntriesError::Term(_))
    ));
}

#[test]
fn a_request_that_claims_to_be_huge_is_refused_before_memory_is_taken() {
    let mut assembly = Assembly::default();
    let refused = assembly.add(Bytes::from_static(b"x"), u64::MAX);
    assert!(matches!(refused, Err(EntriesError::TooLarge(_))));
}
