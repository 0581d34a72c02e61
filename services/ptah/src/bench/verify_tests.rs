//! The verifier must find every way in which a server can break its word.

use bytes::Bytes;

use super::ledger::Ledger;
use super::payload::PayloadWriter;
use super::verify::{Verdict, Verifier};
use crate::client::{ClientError, Message, Outcome, Stored};

const RUN: u64 = 77;
const SIZE: usize = 64;

/// A producer that was told that its first `acked` messages are at sequences from 1 on.
fn ledger(total: u64, acked: u32) -> Ledger {
    let mut ledger = Ledger::new(total);
    let stored = Stored {
        partition: 1,
        first_sequence: 1,
    };
    ledger
        .enter(
            &Outcome {
                first: 0,
                count: acked,
                result: Ok(stored),
            },
            total,
        )
        .unwrap();
    ledger
}

fn message(sequence: u64, payload: &[u8]) -> Message {
    Message {
        partition: 1,
        sequence,
        timestamp_ns: 0,
        payload: Bytes::copy_from_slice(payload),
        headers: Vec::new(),
        key: None,
        subject: String::new(),
        message_id: String::new(),
        producer: String::new(),
        door: "grpc",
        delivery_count: 0,
    }
}

/// Messages of producer 0 with these counters, at sequences from 1 on.
fn stored(counters: &[u64]) -> Vec<Message> {
    let mut writer = PayloadWriter::new(RUN, 0, SIZE);
    (1..)
        .zip(counters)
        .map(|(sequence, counter)| message(sequence, writer.payload(*counter)))
        .collect()
}

fn verdict(ledger: Ledger, messages: &[Message]) -> Verdict {
    let ledgers = [ledger];
    let mut verifier = Verifier::new(RUN, SIZE, &ledgers);
    verifier.take(1, 1, messages);
    verifier.finish()
}

#[test]
fn all_there_and_in_order_is_good() {
    let verdict = verdict(ledger(3, 3), &stored(&[0, 1, 2]));
    assert!(verdict.is_good(), "{verdict:?}");
    assert_eq!((verdict.read, verdict.acknowledged_found), (3, 3));
}

#[test]
fn a_missing_acknowledged_message_is_lost() {
    let verdict = verdict(ledger(3, 3), &stored(&[0, 1]));
    assert_eq!((verdict.lost, verdict.is_good()), (1, false));
}

#[test]
fn a_message_twice_is_a_duplicate() {
    let verdict = verdict(ledger(4, 3), &stored(&[0, 1, 2, 2]));
    assert_eq!((verdict.duplicates, verdict.lost), (1, 0));
}

#[test]
fn a_message_in_the_wrong_place_is_out_of_order_and_not_where_the_server_said() {
    let verdict = verdict(ledger(3, 3), &stored(&[0, 2, 1]));
    assert_eq!((verdict.out_of_order, verdict.lost), (1, 2));
}

#[test]
fn changed_bytes_are_damage() {
    let mut messages = stored(&[0, 1]);
    let mut bytes = messages[1].payload.to_vec();
    bytes[40] ^= 1;
    messages[1].payload = bytes.into();
    let verdict = verdict(ledger(2, 2), &messages);
    assert_eq!((verdict.damaged, verdict.lost), (1, 1));
}

#[test]
fn a_left_out_sequence_is_a_gap() {
    let mut messages = stored(&[0, 1]);
    messages[1].sequence = 3;
    let verdict = verdict(ledger(3, 1), &messages);
    assert_eq!((verdict.gaps, verdict.lost), (1, 0));
}

#[test]
fn a_refused_message_that_is_stored_is_a_broken_word() {
    let mut ledger = ledger(2, 1);
    let refusal = ClientError::new(ptah_types::ErrorKind::Unavailable, "no");
    ledger
        .enter(
            &Outcome {
                first: 1,
                count: 1,
                result: Err(refusal),
            },
            2,
        )
        .unwrap();
    assert_eq!(verdict(ledger, &stored(&[0, 1])).refused_but_stored, 1);
}

#[test]
fn an_unknown_outcome_may_be_there_or_not() {
    let there = verdict(ledger(2, 1), &stored(&[0, 1]));
    let not_there = verdict(ledger(2, 1), &stored(&[0]));
    assert!(there.is_good() && not_there.is_good());
    assert_eq!((there.unknown_but_stored, not_there.unknown_but_stored), (1, 0));
}

#[test]
fn messages_of_others_are_counted_and_allowed() {
    let mut messages = stored(&[0]);
    messages.push(message(2, b"somebody else's"));
    let verdict = verdict(ledger(1, 1), &messages);
    assert_eq!((verdict.foreign, verdict.is_good()), (1, true));
}

#[test]
fn two_messages_acknowledged_with_one_sequence_are_noticed() {
    let mut ledger = ledger(4, 2);
    let stored_again = Stored {
        partition: 1,
        first_sequence: 2,
    };
    ledger
        .enter(
            &Outcome {
                first: 2,
                count: 1,
                result: Ok(stored_again),
            },
            4,
        )
        .unwrap();
    assert_eq!(verdict(ledger, &stored(&[0, 1])).lost, 1);
}
