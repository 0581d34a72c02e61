//! Small helpers of this crate's tests.

use bytes::Bytes;
use ptah_types::{
    ClusterId, LogId, LogIndex, NodeId, PartitionKey, PartitionNumber, RaftGroupId, ReplicaId, Sequence,
    StationId, Term, Timestamp,
};

use crate::types::{GroupSpec, Identity};
use crate::{Frame, FrameKind, crc32c};

pub(crate) fn identity() -> Identity {
    Identity {
        cluster: ClusterId::from_bytes([7; 16]).unwrap(),
        node: NodeId::new(1).unwrap(),
    }
}

pub(crate) fn group_id(number: u64) -> RaftGroupId {
    RaftGroupId::new(number).unwrap()
}

pub(crate) fn spec(group: u64, segment_bytes: u64) -> GroupSpec {
    GroupSpec {
        group: group_id(group),
        replica: ReplicaId::new(group * 10).unwrap(),
        key: PartitionKey {
            tenant: "default".parse().unwrap(),
            station: StationId::new(group).unwrap(),
            partition: PartitionNumber::FIRST,
        },
        segment_bytes,
    }
}

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId {
        term: Term(term),
        index: LogIndex(index),
    }
}

fn bytes(index: u64, term: u64, len: usize) -> Bytes {
    (0..len)
        .map(|n| (n as u64 ^ index.wrapping_mul(31) ^ (term << 3)) as u8)
        .collect::<Vec<u8>>()
        .into()
}

/// A batch of group 1.
pub(crate) fn batch(term: u64, index: u64, base: u64, count: u32, len: usize) -> Frame {
    batch_of(1, term, index, base, count, len)
}

pub(crate) fn batch_of(group: u64, term: u64, index: u64, base: u64, count: u32, len: usize) -> Frame {
    let payload = bytes(index, term, len);
    let crc = crc32c(&payload);
    let time = Timestamp(1_000 * index);
    Frame::batch(
        group_id(group),
        log_id(term, index),
        time,
        Sequence::new(base).unwrap(),
        count,
        payload,
        crc,
    )
}

pub(crate) fn command_of(group: u64, term: u64, index: u64, len: usize) -> Frame {
    let time = Timestamp(1_000 * index);
    Frame::plain(
        FrameKind::Command,
        group_id(group),
        log_id(term, index),
        time,
        bytes(index, term, len),
    )
}
