//! One consumer group's replicated state: what is acknowledged, what may be out, and how often it went out.
//!
//! Every stored sequence is in one of four places:
//! - at or below the *floor*: acknowledged, trimmed, or before the group's start;
//! - in `acked`: acknowledged, with something below that is not;
//! - above the floor and up to the *watermark*: may have been delivered;
//! - above the watermark: not delivered, except for what a leader that went away had not recorded yet.

use ptah_types::{Sequence, StartAt, Timestamp};

use crate::applied::Broken;
use crate::codec::{Malformed, Reader, Writer};
use crate::ranges::SpanMap;
use crate::{DeliveryCount, GroupSpec, RangeSet, SequenceRange};

/// Most messages of a group that may be delivered and not acknowledged.
pub const MAX_IN_FLIGHT: u32 = 65_536;
/// Most separate ranges that a group acknowledges above its floor. Acks that would need more are refused; the leader
/// leases nothing new from half of it on.
pub const MAX_ACK_RANGES: usize = 16_384;
/// Longest ack deadline, in milliseconds (a week).
pub const MAX_ACK_DEADLINE_MS: u64 = 7 * 24 * 3_600_000;
/// Most runs of different delivery counts. More can only be needed with more than [`MAX_IN_FLIGHT`] messages out;
/// those keep a count that is too low.
const MAX_COUNT_RUNS: usize = MAX_IN_FLIGHT as usize;

/// State of a consumer group in one partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConsumerGroup {
    spec: GroupSpec,
    created: Timestamp,
    floor: u64,
    watermark: u64,
    acked: RangeSet,
    /// Deliveries from the second on, of messages that are not acknowledged.
    counts: SpanMap<u32>,
}

impl ConsumerGroup {
    /// Settings, within their limits.
    pub fn spec(&self) -> &GroupSpec {
        &self.spec
    }

    /// Log time at which the group was made.
    pub fn created(&self) -> Timestamp {
        self.created
    }

    /// Oldest sequence that is not acknowledged; it may not be stored yet.
    pub fn first_unacked(&self) -> Sequence {
        after(self.floor)
    }

    /// The sequence after the delivered watermark: everything before it may have been delivered.
    pub fn next_undelivered(&self) -> Sequence {
        after(self.watermark)
    }

    /// Whether the group is done with the message.
    pub fn is_acked(&self, sequence: Sequence) -> bool {
        sequence.get() <= self.floor || self.acked.contains(sequence)
    }

    /// Messages acknowledged while something below them is not.
    pub fn acked_above_floor(&self) -> &RangeSet {
        &self.acked
    }

    /// How often the message may have been delivered: exact from 2 on, 0 or 1 by the watermark. 0 once acknowledged.
    pub fn delivery_count(&self, sequence: Sequence) -> u32 {
        if self.is_acked(sequence) {
            return 0;
        }
        let recorded = self.counts.get(sequence.get());
        recorded.unwrap_or(u32::from(sequence.get() <= self.watermark))
    }

    /// Delivery counts from 2 on, as runs.
    pub(crate) fn counts(&self) -> &SpanMap<u32> {
        &self.counts
    }

    pub(crate) fn new(spec: GroupSpec, created: Timestamp, first: Sequence, next: Sequence) -> Self {
        let start = match spec.start {
            StartAt::First => first,
            StartAt::End => next,
        };
        Self {
            spec: spec.within_limits(),
            created,
            floor: start.get() - 1,
            watermark: start.get() - 1,
            acked: RangeSet::new(),
            counts: SpanMap::default(),
        }
    }

    /// Whether `spec` describes this group, apart from what can change.
    pub(crate) fn is_same(&self, spec: &GroupSpec) -> bool {
        self.spec.name == spec.name && self.spec.start == spec.start
    }

    /// Takes over the settings that can change; tells whether they did.
    pub(crate) fn reconfigure(&mut self, spec: &GroupSpec) -> bool {
        let spec = spec.clone().within_limits();
        let changed = self.spec != spec;
        self.spec = spec;
        changed
    }

    /// Acknowledges; returns how many messages are new and what could not be recorded.
    pub(crate) fn ack(&mut self, ranges: &RangeSet, next: Sequence) -> (u64, RangeSet) {
        let end = next.get() - 1;
        let (mut newly, mut refused) = (0, RangeSet::new());
        for range in ranges.iter() {
            if let Some(not_stored) = range.clip(next.get(), u64::MAX) {
                refused.insert(not_stored);
            }
            let Some(range) = range.clip(self.floor + 1, end) else {
                continue;
            };
            let joins = range.first().get() == self.floor + 1 || self.acked.touches(range);
            if !joins && self.acked.len() >= MAX_ACK_RANGES {
                refused.insert(range);
                continue;
            }
            newly += self.acked.insert(range);
            self.counts.remove(range.first().get(), range.last().get());
            self.raise_floor(self.floor);
        }
        (newly, refused)
    }

    /// Records deliveries; nothing is lowered.
    pub(crate) fn delivered(&mut self, watermark: Sequence, counts: &[DeliveryCount], next: Sequence) {
        self.watermark = self.watermark.max(watermark.get().min(next.get() - 1));
        for DeliveryCount { range, count } in counts.iter().filter(|counted| counted.count >= 2) {
            let Some(range) = range.clip(self.floor + 1, self.watermark) else {
                continue;
            };
            for part in self.acked.missing(range) {
                self.raise_count(part, *count);
            }
        }
    }

    fn raise_count(&mut self, range: SequenceRange, count: u32) {
        let (first, last) = (range.first().get(), range.last().get());
        let higher: Vec<_> = self
            .counts
            .overlapping(first, last)
            .filter(|(.., recorded)| *recorded > count)
            .collect();
        if self.counts.len() + higher.len() >= MAX_COUNT_RUNS {
            return;
        }
        self.counts.set(first, last, count);
        for (run_first, run_last, recorded) in higher {
            self.counts.set(run_first, run_last, recorded);
        }
    }

    /// Everything before `first` is gone.
    pub(crate) fn trim(&mut self, first: Sequence) {
        self.raise_floor(self.floor.max(first.get() - 1));
    }

    /// Moves the floor to `floor`, or behind the acknowledged run that then touches it.
    fn raise_floor(&mut self, floor: u64) {
        self.floor = floor;
        if let Some(run) = self.acked.run_from(floor.max(1))
            && run.first().get() <= floor + 1
        {
            self.floor = floor.max(run.last().get());
        }
        if let Some(below) = SequenceRange::from_numbers(1, self.floor) {
            self.acked.remove(below);
            self.counts.remove(1, self.floor);
        }
        self.watermark = self.watermark.max(self.floor);
    }

    pub(crate) fn check(&self, first: Sequence, next: Sequence) -> Result<(), Broken> {
        let (floor, watermark) = (self.floor, self.watermark);
        Broken::unless(floor + 1 >= first.get(), || {
            format!("floor {floor} is before the oldest message {first}")
        })?;
        Broken::unless(floor <= watermark && watermark < next.get(), || {
            format!("floor {floor}, watermark {watermark} and next sequence {next} are out of order")
        })?;
        Broken::unless(self.acked.len() <= MAX_ACK_RANGES, || {
            "too many acknowledged ranges".into()
        })?;
        Broken::unless(self.counts.len() <= MAX_COUNT_RUNS, || {
            "too many delivery counts".into()
        })?;
        Broken::unless(self.spec == self.spec.clone().within_limits(), || {
            "settings out of limits".into()
        })?;
        for run in self.acked.iter() {
            let placed = run.first().get() > floor + 1 && run.last() < next;
            Broken::unless(placed, || {
                format!("acknowledged range {run} touches floor {floor} or end {next}")
            })?;
        }
        for (first, last, count) in self.counts.iter() {
            let placed = first > floor && last <= watermark && count >= 2;
            let open = self.acked.overlaps(first, last);
            Broken::unless(placed && !open, || {
                format!("delivery count {count} of {first}-{last} is out of place")
            })?;
        }
        Ok(())
    }

    pub(crate) fn encode(&self, writer: &mut Writer) {
        self.spec.encode(writer);
        writer.varint(self.created.0);
        writer.varint(self.floor);
        writer.varint(self.watermark - self.floor);
        self.acked.encode(writer, self.floor);
        writer.varint(self.counts.len() as u64);
        let mut previous = self.floor;
        for (first, last, count) in self.counts.iter() {
            writer.varint(first - previous);
            writer.varint(last - first);
            writer.varint(u64::from(count));
            previous = last;
        }
    }

    /// Reads [`ConsumerGroup::encode`] back; the caller checks the invariants.
    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let spec = GroupSpec::decode(reader)?;
        let created = Timestamp(reader.varint("time of a group")?);
        let floor = reader.varint("ack floor")?;
        let ahead = reader.varint("delivered watermark")?;
        let watermark = floor
            .checked_add(ahead)
            .filter(|watermark| *watermark < u64::MAX - 1);
        Ok(Self {
            spec,
            created,
            floor,
            watermark: watermark.ok_or(reader.malformed("delivered watermark"))?,
            acked: RangeSet::decode(reader, floor, MAX_ACK_RANGES)?,
            counts: decode_counts(reader, floor)?,
        })
    }
}

fn decode_counts(reader: &mut Reader<'_>, floor: u64) -> Result<SpanMap<u32>, Malformed> {
    let mut counts = SpanMap::default();
    let mut previous = floor;
    for _ in 0..reader.count(MAX_COUNT_RUNS, 3, "number of delivery counts")? {
        let gap = reader.varint("start of a delivery count")?;
        let length = reader.varint("length of a delivery count")?;
        let count = reader.varint_u32("delivery count")?;
        let ends = previous
            .checked_add(gap)
            .and_then(|first| Some((first, first.checked_add(length)?)));
        let ends = ends
            .filter(|_| gap > 0)
            .ok_or(reader.malformed("delivery count out of order"))?;
        counts.set(ends.0, ends.1, count);
        previous = ends.1;
    }
    Ok(counts)
}

/// The sequence after `place`. Places stay below the end of numbers, see [`ConsumerGroup::check`].
fn after(place: u64) -> Sequence {
    Sequence::new(place.saturating_add(1)).unwrap_or(Sequence::FIRST)
}

impl GroupSpec {
    /// The same with settings moved into their limits, so that every replica uses the same values.
    fn within_limits(mut self) -> Self {
        self.ack_deadline_ms = self.ack_deadline_ms.clamp(1, MAX_ACK_DEADLINE_MS);
        self.max_in_flight = self.max_in_flight.clamp(1, MAX_IN_FLIGHT);
        self
    }
}
