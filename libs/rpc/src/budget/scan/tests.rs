//! What is counted is what the decoder would make.

use std::sync::Arc;

use prost::Message as _;
use ptah_proto::api::v1 as pb;
use ptah_proto::api::v1::produce_stream_request::Request as Said;
use ptah_proto::common::v1::Header as PbHeader;

use super::super::{RequestLimits, Shapes};
use super::*;

fn scan(message: &str, limits: &RequestLimits) -> Scan {
    let shapes = Arc::new(Shapes::of(&[ptah_proto::FILE_DESCRIPTORS], limits));
    Scan::new(shapes.request(&format!(".ptah.api.v1.{message}")).unwrap())
}

/// Scans in pieces of that size.
fn fed(scan: &mut Scan, bytes: &[u8], piece: usize) -> Result<u64, Refusal> {
    scan.begin(bytes.len());
    for part in bytes.chunks(piece) {
        scan.feed(part)?;
    }
    Ok(scan.memory())
}

fn header(value: usize) -> PbHeader {
    PbHeader {
        name: b"n".to_vec().into(),
        value: vec![7; value].into(),
    }
}

fn new_message(n: usize) -> pb::NewMessage {
    pb::NewMessage {
        payload: vec![0x22; n * 37 % 700].into(),
        headers: (0..n % 4).map(|_| header(n * 50)).collect(),
        key: n.is_multiple_of(3).then(|| vec![0xff; n].into()),
        partition: (n * 1_000) as u32,
        subject: "s".repeat(n % 200),
        message_id: String::new(),
    }
}

fn batch(messages: usize) -> Vec<u8> {
    let batch = pb::ProduceStreamBatch {
        messages: (0..messages).map(new_message).collect(),
    };
    let request = Some(Said::Batch(batch));
    pb::ProduceStreamRequest { request }.encode_to_vec()
}

fn of_messages(limit: u32) -> RequestLimits {
    RequestLimits::default().list("ptah.api.v1.ProduceStreamBatch.messages", limit)
}

fn too_many(limit: u32, list: &str) -> Refusal {
    Refusal {
        kind: ErrorKind::TooLarge,
        why: format!("the request has more than {limit} elements in `{list}`; send less at a time"),
    }
}

#[test]
fn as_many_elements_pass_as_the_limit_says_and_no_more_however_they_are_cut() {
    let sent = batch(60);
    for piece in [1, 2, 3, 7, 19, 20, 21, 600, sent.len()] {
        let mut enough = scan("ProduceStreamRequest", &of_messages(60));
        let memory = fed(&mut enough, &sent, piece).unwrap();
        assert_eq!(
            fed(&mut enough, &sent, piece),
            Ok(memory),
            "the next of the stream"
        );
        let mut short = scan("ProduceStreamRequest", &of_messages(59));
        let refused = fed(&mut short, &sent, piece);
        assert_eq!(refused, Err(too_many(59, "ProduceStreamBatch.messages")));
    }
}

#[test]
fn memory_is_about_what_the_decoded_message_takes() {
    let mut scan = scan("ProduceStreamRequest", &of_messages(1_000));
    let plain = pb::NewMessage {
        payload: vec![0; 100].into(),
        headers: vec![header(1); 3],
        subject: "twelve bytes".to_owned(),
        ..pb::NewMessage::default()
    };
    let request = pb::ProduceStreamRequest {
        request: Some(Said::Batch(pb::ProduceStreamBatch {
            messages: vec![plain; 300],
        })),
    };
    let memory = fed(&mut scan, &request.encode_to_vec(), 500).unwrap();
    let structs = size_of::<pb::NewMessage>() + 3 * size_of::<PbHeader>();
    let taken = 300 * (2 * structs + 12) as u64;
    assert!(
        (taken..taken + taken / 10).contains(&memory),
        "{memory} instead of {taken}"
    );
}

#[test]
fn every_list_of_a_request_has_a_limit_also_without_a_name() {
    let ranges = vec![pb::SequenceRange { first: 1, last: 2 }; 600];
    let ack = pb::PartitionAck { partition: 1, ranges };
    let request = pb::AckRequest {
        acks: vec![ack; 2],
        ..pb::AckRequest::default()
    };
    let refused = fed(
        &mut scan("AckRequest", &RequestLimits::default()),
        &request.encode_to_vec(),
        100,
    );
    assert_eq!(refused, Err(too_many(1_024, "PartitionAck.ranges")));
}

#[test]
fn lists_of_numbers_are_counted_packed_and_unpacked() {
    let request = |numbers: usize| {
        let partitions = vec![1; numbers];
        pb::PullRequest {
            partitions,
            ..pb::PullRequest::default()
        }
    };
    let mut scan = scan("PullRequest", &RequestLimits::default());
    assert!(fed(&mut scan, &request(1_024).encode_to_vec(), 100).is_ok());
    let refused = fed(&mut scan, &request(20_000).encode_to_vec(), 100);
    assert_eq!(refused, Err(too_many(1_024, "PullRequest.partitions")));
    let unpacked = [0x38, 1].repeat(1_025);
    assert_eq!(pb::PullRequest::decode(&unpacked[..]).unwrap(), request(1_025));
    let refused = fed(&mut scan, &unpacked, 100);
    assert_eq!(refused, Err(too_many(1_024, "PullRequest.partitions")));
}

#[test]
fn fields_of_later_versions_are_passed_over() {
    let mut sent = batch(3);
    sent.extend([0xf8, 0x7f, 0x96, 0x01]); // number
    sent.extend([0xf9, 0x7f, 1, 2, 3, 4, 5, 6, 7, 8]); // 8 bytes
    sent.extend([0xfa, 0x7f, 3, 0x0a, 0xff, 0xff]); // 3 bytes, which are no message
    sent.extend([0xfd, 0x7f, 1, 2, 3, 4]); // 4 bytes
    assert!(pb::ProduceStreamRequest::decode(&sent[..]).is_ok());
    for piece in [1, 5, sent.len()] {
        assert!(fed(&mut scan("ProduceStreamRequest", &of_messages(3)), &sent, piece).is_ok());
    }
}

#[test]
fn what_cannot_be_followed_is_refused() {
    let groups = [0xfb, 0x7f, 0xfc, 0x7f];
    let longer_than_its_message = [0x12, 3, 0x0a, 2, 0, 0];
    let number_without_end = [0xff; 12];
    let no_field = [0x02, 0];
    let past_all_numbers = [
        0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0,
    ];
    let sent: [&[u8]; 5] = [
        &groups,
        &longer_than_its_message,
        &number_without_end,
        &no_field,
        &past_all_numbers,
    ];
    for sent in sent {
        for piece in [1, sent.len()] {
            let refused = fed(&mut scan("ProduceStreamRequest", &of_messages(9)), sent, piece);
            assert_eq!(refused.unwrap_err().kind, ErrorKind::InvalidArgument, "{sent:x?}");
        }
    }
}

#[test]
fn no_bytes_are_decoded_to_more_than_was_counted() {
    let mut state = 7_u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % below
    };
    let whole = batch(12);
    let mut scan = scan("ProduceStreamRequest", &of_messages(1_000));
    for _ in 0..20_000 {
        let mut sent = whole.clone();
        for _ in 0..=random(3) {
            let place = random(sent.len() as u64) as usize;
            sent[place] = random(256) as u8;
        }
        let Ok(decoded) = pb::ProduceStreamRequest::decode(&sent[..]) else {
            continue;
        };
        let messages = match decoded.request {
            Some(Said::Batch(batch)) => batch.messages,
            _ => Vec::new(),
        };
        let headers: usize = messages.iter().map(|message| message.headers.len()).sum();
        if fed(&mut scan, &sent, 1 + random(90) as usize).is_ok() {
            let least = messages.len() * size_of::<pb::NewMessage>() + headers * size_of::<PbHeader>();
            assert!(scan.memory() >= 2 * least as u64, "{} for {least}", scan.memory());
        }
    }
}
