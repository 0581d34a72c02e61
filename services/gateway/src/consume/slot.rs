//! One partition of a consume stream: the pull in use, what it delivered, and acknowledgements on their way.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use ptah_partition::{BatchView, RangeSet, SequenceRange, crc32c};
use ptah_types::limits::MAX_BATCH_BYTES;
use ptah_types::{PartitionNumber, Sequence};
use tokio::time::Instant;

use super::acks::{ConfirmedAck, WaitingAcks};
use super::budget::Reservation;
use super::link::{DeliveryPart, Pull};
use super::outbox::GroupOnPartition;

/// Places behind every sequence that can have been handed out; half of the numbers, so that no sum overflows.
const FAR: u64 = u64::MAX / 2;

/// Messages of one partition with sequences in a row, ready to be sent to a client.
#[derive(Debug, Clone)]
pub struct DeliveredRun {
    /// Partition.
    pub partition: PartitionNumber,
    /// Sequence of the first message of `view`.
    pub base_sequence: u64,
    /// Time of the messages in nanoseconds.
    pub timestamp_ns: u64,
    /// How many times they were handed out.
    pub delivery_count: u32,
    /// The batch.
    pub view: Arc<BatchView>,
    /// Which messages of it.
    pub range: Range<usize>,
    /// Memory that they take; dropped when they have left the process.
    pub reservation: Arc<Reservation>,
}

impl DeliveredRun {
    /// Payloads of its messages, in bytes.
    pub fn payload_bytes(&self) -> u64 {
        let messages = self.range.clone().filter_map(|index| self.view.message(index));
        messages.map(|message| message.payload().len() as u64).sum()
    }
}

/// A whole delivery that waits to be sent.
#[derive(Debug)]
pub(super) struct Buffered {
    pub(super) run: DeliveredRun,
    pub(super) since: Instant,
    pub(super) bytes: u64,
    pull: u64,
}

/// A delivery of which parts are missing.
#[derive(Debug)]
struct Assembly {
    head: DeliveryPart,
    bytes: BytesMut,
    reservation: Reservation,
}

/// An acknowledgement whose answer the client waits for.
#[derive(Debug)]
pub(super) struct Confirm {
    pub(super) client_id: u64,
    pub(super) ack: Arc<ConfirmedAck>,
    pub(super) deadline: Instant,
}

/// State of one partition.
pub(super) struct Slot {
    pub(super) partition: PartitionNumber,
    pub(super) group: GroupOnPartition,
    pub(super) pull: Option<Pull>,
    pub(super) buffer: VecDeque<Buffered>,
    assembly: Option<Assembly>,
    /// Newest sequence that came; what is on the wire is mostly behind it.
    highest: u64,
    pub(super) unacknowledged: u64,
    pub(super) confirms: BTreeMap<u64, Confirm>,
    pub(super) resend_confirms_at: Option<Instant>,
    /// Acknowledgements that wait for a pull.
    pub(super) acks: WaitingAcks,
    pub(super) failures: u32,
    pub(super) not_before: Option<Instant>,
    /// Bytes to set aside before the next pull: the last one brought more than there was memory for.
    pub(super) parked: Option<usize>,
    /// Bytes set aside for the next delivery.
    pub(super) prepaid: Option<Reservation>,
}

/// What came of a part.
pub(super) enum Received {
    /// More parts are to come.
    Partly,
    /// A whole delivery is in the buffer, and what it repeats is not any more: messages and bytes of each.
    Whole { came: (u64, u64), dropped: (u64, u64) },
    /// There is no memory for so many bytes of these sequences.
    NoMemory(usize, Option<SequenceRange>),
    /// The node sent nonsense or damaged bytes.
    Damaged(String),
}

impl Slot {
    pub(super) fn new(partition: PartitionNumber, group: GroupOnPartition) -> Self {
        Self {
            partition,
            group,
            pull: None,
            buffer: VecDeque::new(),
            assembly: None,
            highest: 0,
            unacknowledged: 0,
            confirms: BTreeMap::new(),
            resend_confirms_at: None,
            acks: WaitingAcks::default(),
            failures: 0,
            not_before: None,
            parked: None,
            prepaid: None,
        }
    }

    pub(super) fn is_pull(&self, pull: u64) -> bool {
        self.pull.as_ref().is_some_and(|known| known.id == pull)
    }

    /// Takes a part of a delivery in.
    pub(super) fn receive(
        &mut self,
        part: DeliveryPart,
        reserve: impl FnOnce(usize) -> Option<Reservation>,
        now: Instant,
    ) -> Received {
        let total = part.total_bytes as usize;
        if total > MAX_BATCH_BYTES || part.count == 0 || part.payload.len() > total {
            return Received::Damaged(format!("a delivery of {} messages and {total} bytes", part.count));
        }
        if part.offset > 0 {
            return self.receive_more(&part, now);
        }
        let last = part
            .base_sequence
            .saturating_add(u64::from(part.count) - 1)
            .min(FAR);
        let prepaid = self.prepaid.take().filter(|prepaid| prepaid.bytes() >= total);
        let Some(reservation) = prepaid.or_else(|| reserve(total)) else {
            return Received::NoMemory(total, range(part.base_sequence, last));
        };
        self.highest = self.highest.max(last);
        if part.payload.len() == total {
            let payload = part.payload.clone();
            return self.complete(&part, payload, reservation, now);
        }
        let mut bytes = BytesMut::with_capacity(total);
        bytes.extend_from_slice(&part.payload);
        let head = DeliveryPart {
            payload: Bytes::new(),
            ..part
        };
        self.assembly = Some(Assembly {
            head,
            bytes,
            reservation,
        });
        Received::Partly
    }

    fn receive_more(&mut self, part: &DeliveryPart, now: Instant) -> Received {
        let Some(mut assembly) = self.assembly.take() else {
            return Received::Damaged("a further part of a delivery that did not begin".to_owned());
        };
        let total = assembly.head.total_bytes as usize;
        let fits = assembly.bytes.len() == part.offset as usize
            && assembly.bytes.len() + part.payload.len() <= total;
        if !fits {
            return Received::Damaged(format!(
                "a part at {} of a delivery of {total} bytes",
                part.offset
            ));
        }
        assembly.bytes.extend_from_slice(&part.payload);
        if assembly.bytes.len() < total {
            self.assembly = Some(assembly);
            return Received::Partly;
        }
        let payload = assembly.bytes.freeze();
        self.complete(&assembly.head, payload, assembly.reservation, now)
    }

    fn complete(
        &mut self,
        head: &DeliveryPart,
        payload: Bytes,
        reservation: Reservation,
        now: Instant,
    ) -> Received {
        let bytes = payload.len() as u64;
        if crc32c(&payload) != head.crc {
            return Received::Damaged("the checksum does not match".to_owned());
        }
        let view = match BatchView::parse(payload) {
            Ok(view) if view.len() == head.count as usize => view,
            Ok(view) => {
                return Received::Damaged(format!("{} messages instead of {}", view.len(), head.count));
            }
            Err(error) => return Received::Damaged(error.to_string()),
        };
        let pull = self.pull.as_ref().map_or(0, |pull| pull.id);
        let last = head.base_sequence + u64::from(head.count) - 1;
        let dropped = self.drop_repeated(pull, head.base_sequence, last);
        let run = DeliveredRun {
            partition: self.partition,
            base_sequence: head.base_sequence,
            timestamp_ns: head.timestamp_ns,
            delivery_count: head.delivery_count,
            range: 0..view.len(),
            view: Arc::new(view),
            reservation: Arc::new(reservation),
        };
        self.buffer.push_back(Buffered {
            run,
            since: now,
            bytes,
            pull,
        });
        Received::Whole {
            came: (u64::from(head.count), bytes),
            dropped,
        }
    }

    /// What an earlier pull brought and the leader now hands out again does not have to be sent twice.
    fn drop_repeated(&mut self, pull: u64, first: u64, last: u64) -> (u64, u64) {
        let mut dropped = (0, 0);
        self.buffer.retain(|buffered| {
            let begin = buffered.run.base_sequence + buffered.run.range.start as u64;
            let end = buffered.run.base_sequence + buffered.run.range.end as u64 - 1;
            let repeated = buffered.pull != pull && first <= begin && end <= last;
            if repeated {
                dropped.0 += buffered.run.range.len() as u64;
                dropped.1 += buffered.bytes;
            }
            !repeated
        });
        dropped
    }

    /// Drops what is buffered and returns its amount, and what of it the current pull can have back: whatever was not
    /// sent, and whatever may be on the wire.
    pub(super) fn give_back(&mut self) -> ((u64, u64), Vec<SequenceRange>) {
        let mut amount = (0, 0);
        let mut unsent = RangeSet::new();
        let pull = self.pull.as_ref().map_or(0, |pull| pull.id);
        for buffered in self.buffer.drain(..) {
            amount.0 += buffered.run.range.len() as u64;
            amount.1 += buffered.bytes;
            if buffered.pull == pull {
                let first = buffered.run.base_sequence + buffered.run.range.start as u64;
                let last = buffered.run.base_sequence + buffered.run.range.end as u64 - 1;
                unsent.extend_with(first, last);
            }
        }
        if let Some(assembly) = self.assembly.take() {
            let first = assembly.head.base_sequence;
            unsent.extend_with(first, first + u64::from(assembly.head.count) - 1);
        }
        unsent.extend_with(self.highest + 1, FAR);
        (amount, unsent.iter().collect())
    }

    /// The pull is over; parts of a delivery are worth nothing.
    pub(super) fn pull_is_over(&mut self) {
        self.pull = None;
        self.assembly = None;
    }

    /// When the oldest buffered delivery came.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.buffer.front().map(|buffered| buffered.since)
    }
}

/// The run from `first` to `last`, if it is one.
fn range(first: u64, last: u64) -> Option<SequenceRange> {
    SequenceRange::new(Sequence::new(first)?, Sequence::new(last.min(FAR))?)
}

trait ExtendWith {
    fn extend_with(&mut self, first: u64, last: u64);
}

impl ExtendWith for RangeSet {
    fn extend_with(&mut self, first: u64, last: u64) {
        if let Some(range) = range(first, last) {
            self.insert(range);
        }
    }
}
