use std::collections::{BTreeMap, BTreeSet};

use ptah_types::Term;

use super::*;

fn group() -> RaftGroupId {
    RaftGroupId::new(7).unwrap()
}

fn entry(payload: EntryPayload) -> Entry {
    let id = LogId {
        term: Term(3),
        index: LogIndex(11),
    };
    Entry::new(raft_log_id(id), payload)
}

fn batch(base: u64, count: u32) -> Record {
    let stamp = BatchStamp {
        base_sequence: Sequence::new(base).unwrap(),
        count,
        timestamp: Timestamp(99),
        session: SessionNumber::new(SessionId::new(5).unwrap(), 8),
    };
    let payload = Bytes::from_static(b"messages");
    Record::batch(&stamp, payload.clone(), crc32c(&payload))
}

fn stored(record: Record) -> Record {
    Record {
        fresh: false,
        ..record
    }
}

fn membership() -> Membership {
    let nodes = BTreeMap::from([(1, HomeNode(10)), (2, HomeNode(20)), (9, HomeNode(30))]);
    Membership::new(vec![BTreeSet::from([1]), BTreeSet::from([1, 2])], nodes).unwrap()
}

#[test]
fn every_kind_of_entry_survives_its_frame() {
    let payloads = [
        EntryPayload::Blank,
        EntryPayload::Membership(membership()),
        EntryPayload::Normal(stored(batch(4, 2))),
        EntryPayload::Normal(stored(Record::commands(
            Bytes::from_static(b"acks"),
            Timestamp(5),
        ))),
        EntryPayload::Normal(stored(Record::barrier())),
    ];
    for payload in payloads {
        let frame = frame_of(entry(payload.clone()), group(), |_| true);
        frame.check().unwrap();
        let mut bytes = BytesMut::new();
        frame.encode_into(&mut bytes);
        let back = Frame::decode(&mut bytes.freeze()).unwrap();
        assert_eq!(entry_of(back).unwrap(), entry(payload));
    }
}

#[test]
fn a_payload_is_shared_not_copied() {
    let record = batch(4, 2);
    let address = record.payload.as_ptr();
    let frame = frame_of(entry(EntryPayload::Normal(record)), group(), |_| true);
    assert_eq!(frame.payload.as_ptr(), address);
    let EntryPayload::Normal(record) = entry_of(frame).unwrap().payload else {
        panic!("a batch stays a batch");
    };
    assert_eq!(record.payload.as_ptr(), address);
}

#[test]
fn a_fresh_batch_that_does_not_fit_becomes_void_and_says_so() {
    let frame = frame_of(entry(EntryPayload::Normal(batch(4, 2))), group(), |_| false);
    assert_eq!((frame.kind, frame.base_sequence), (FrameKind::Command, None));
    let EntryPayload::Normal(record) = entry_of(frame).unwrap().payload else {
        panic!("a void entry is a record");
    };
    assert_eq!(record.body, Body::Void(Void::Superseded));
}

#[test]
fn a_batch_from_another_replica_is_never_made_void() {
    let received = EntryPayload::Normal(stored(batch(4, 2)));
    let frame = frame_of(entry(received), group(), |_| false);
    assert_eq!(frame.kind, FrameKind::Batch);
}

#[test]
fn a_membership_is_read_back_and_a_cut_one_is_refused() {
    let bytes = encode_membership(&membership());
    assert_eq!(decode_membership(&bytes), Ok(membership()));
    for len in 0..bytes.len() {
        assert!(decode_membership(&bytes[..len]).is_err(), "cut at {len}");
    }
    assert_eq!(
        decode_membership(&encode_membership(&Membership::default())),
        Ok(Membership::default())
    );
}

#[test]
fn the_format_of_a_membership_does_not_move() {
    let one = Membership::new(vec![BTreeSet::from([2])], BTreeMap::from([(2, HomeNode(3))])).unwrap();
    let expected = [
        1, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(encode_membership(&one)[..], expected);
}
