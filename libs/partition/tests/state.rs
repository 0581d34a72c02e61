//! The replicated state against a model that keeps one record per message.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};
use ptah_partition::{
    Applied, BatchHead, BatchStamp, Command, DeliveryCount, Disagreement, GroupSpec, MAX_ACK_DEADLINE_MS,
    MAX_ACK_RANGES, MAX_GROUPS, MAX_IN_FLIGHT, Partition, RangeSet, Refusal, SequenceRange, SessionNumber,
    encode_commands,
};
use ptah_types::{ConsumerGroupId, Sequence, SessionId, StartAt, Timestamp};

const NOW: Timestamp = Timestamp(1);

fn sequence(place: u64) -> Sequence {
    Sequence::new(place).unwrap()
}

fn range(first: u64, last: u64) -> SequenceRange {
    SequenceRange::new(sequence(first), sequence(last)).unwrap()
}

fn group(id: u64) -> ConsumerGroupId {
    ConsumerGroupId::new(id).unwrap()
}

fn spec(start: StartAt) -> GroupSpec {
    GroupSpec {
        name: "audit".parse().unwrap(),
        start,
        ack_deadline_ms: 1_000,
        max_in_flight: 100,
    }
}

fn stamp(base: u64, count: u32) -> BatchStamp {
    BatchStamp {
        base_sequence: sequence(base),
        count,
        timestamp: NOW,
        session: None,
    }
}

fn head(count: u32) -> BatchHead {
    BatchHead {
        count,
        bytes: 10 * u64::from(count),
    }
}

fn with_messages(count: u32) -> Partition {
    let mut partition = Partition::new();
    partition.apply_batch(&stamp(1, count), head(count)).unwrap();
    partition
}

fn ensure(partition: &mut Partition, id: u64, start: StartAt) -> Applied {
    let command = Command::EnsureGroup {
        group: group(id),
        spec: spec(start),
    };
    partition.apply(&command, NOW)
}

fn ack(partition: &mut Partition, id: u64, ranges: &[(u64, u64)]) -> Applied {
    let ranges = ranges.iter().map(|(first, last)| range(*first, *last)).collect();
    partition.apply(
        &Command::Ack {
            group: group(id),
            ranges,
        },
        NOW,
    )
}

#[test]
fn batches_that_the_leader_should_not_have_proposed_change_nothing() {
    let mut partition = with_messages(3);
    let session = SessionNumber::new(SessionId::new(7).unwrap(), 1);
    let first = BatchStamp {
        session,
        ..stamp(4, 1)
    };
    partition.apply_batch(&first, head(1)).unwrap();
    let before = partition.clone();
    let again = BatchStamp {
        session,
        ..stamp(5, 1)
    };
    let early = BatchStamp {
        timestamp: Timestamp(0),
        ..stamp(5, 1)
    };
    let refused = [
        partition.apply_batch(&stamp(4, 1), head(1)),
        partition.apply_batch(&stamp(6, 1), head(1)),
        partition.apply_batch(&stamp(5, 1), head(2)),
        partition.apply_batch(&stamp(5, 0), head(0)),
        partition.apply_batch(&stamp(5, 16_385), head(16_385)),
        partition.apply_batch(&early, head(1)),
        partition.apply_batch(&again, head(1)),
    ];
    assert!(refused.iter().all(Result::is_err), "{refused:?}");
    assert!(matches!(
        refused[6],
        Err(Disagreement::Session { expected: 2, .. })
    ));
    assert_eq!(partition, before);
}

#[test]
fn making_a_group_twice_does_not_move_it() {
    let mut partition = with_messages(3);
    let created = Applied::GroupEnsured {
        created: true,
        changed: false,
    };
    let unchanged = Applied::GroupEnsured {
        created: false,
        changed: false,
    };
    assert_eq!(ensure(&mut partition, 1, StartAt::End), created);
    partition.apply_batch(&stamp(4, 2), head(2)).unwrap();
    assert_eq!(ensure(&mut partition, 1, StartAt::End), unchanged);
    assert_eq!(partition.group(group(1)).unwrap().first_unacked(), sequence(4));
    assert_eq!(
        ensure(&mut partition, 1, StartAt::First),
        Applied::Refused(Refusal::GroupDiffers(group(1)))
    );
}

#[test]
fn settings_of_a_group_change_live_and_stay_within_limits() {
    let mut partition = Partition::new();
    ensure(&mut partition, 1, StartAt::First);
    let wide = GroupSpec {
        ack_deadline_ms: u64::MAX,
        max_in_flight: u32::MAX,
        ..spec(StartAt::First)
    };
    let command = Command::EnsureGroup {
        group: group(1),
        spec: wide,
    };
    assert_eq!(
        partition.apply(&command, NOW),
        Applied::GroupEnsured {
            created: false,
            changed: true
        }
    );
    assert_eq!(
        partition.apply(&command, NOW),
        Applied::GroupEnsured {
            created: false,
            changed: false
        }
    );
    let kept = partition.group(group(1)).unwrap().spec();
    assert_eq!(
        (kept.ack_deadline_ms, kept.max_in_flight),
        (MAX_ACK_DEADLINE_MS, MAX_IN_FLIGHT)
    );
}

#[test]
fn groups_are_bounded_and_can_be_dropped() {
    let mut partition = Partition::new();
    for id in 1..=MAX_GROUPS as u64 {
        ensure(&mut partition, id, StartAt::First);
    }
    let refused = Applied::Refused(Refusal::TooManyGroups { limit: MAX_GROUPS });
    assert_eq!(ensure(&mut partition, 5_000, StartAt::First), refused);
    assert_eq!(
        partition.apply(&Command::DropGroup { group: group(3) }, NOW),
        Applied::GroupDropped { existed: true }
    );
    assert_eq!(
        partition.apply(&Command::DropGroup { group: group(3) }, NOW),
        Applied::GroupDropped { existed: false }
    );
    assert_eq!(
        ensure(&mut partition, 5_000, StartAt::First),
        Applied::GroupEnsured {
            created: true,
            changed: false
        }
    );
    assert_eq!(
        ack(&mut partition, 3, &[(1, 1)]),
        Applied::Refused(Refusal::UnknownGroup(group(3)))
    );
}

#[test]
fn acks_out_of_order_move_the_floor_when_the_hole_closes() {
    let mut partition = with_messages(10);
    ensure(&mut partition, 1, StartAt::First);
    let acked = |newly| Applied::Acked {
        newly,
        refused: RangeSet::new(),
    };
    assert_eq!(ack(&mut partition, 1, &[(2, 3), (5, 5)]), acked(3));
    assert_eq!(ack(&mut partition, 1, &[(2, 5)]), acked(1));
    assert_eq!(partition.group(group(1)).unwrap().first_unacked(), sequence(1));
    assert_eq!(ack(&mut partition, 1, &[(1, 1)]), acked(1));
    assert_eq!(partition.group(group(1)).unwrap().first_unacked(), sequence(6));
    assert!(partition.group(group(1)).unwrap().acked_above_floor().is_empty());
}

#[test]
fn an_ack_of_what_is_not_stored_is_refused_in_that_part() {
    let mut partition = with_messages(3);
    ensure(&mut partition, 1, StartAt::First);
    let refused = [range(4, 9)].into_iter().collect();
    assert_eq!(
        ack(&mut partition, 1, &[(2, 9)]),
        Applied::Acked { newly: 2, refused }
    );
    partition.check().unwrap();
}

#[test]
fn acks_with_too_many_holes_are_refused_until_a_hole_closes() {
    let mut partition = with_messages(16_384);
    for base in [16_385, 32_769] {
        partition.apply_batch(&stamp(base, 16_384), head(16_384)).unwrap();
    }
    ensure(&mut partition, 1, StartAt::First);
    let holes: Vec<_> = (1..=MAX_ACK_RANGES as u64 + 2).map(|i| (2 * i, 2 * i)).collect();
    let over = [holes[MAX_ACK_RANGES], holes[MAX_ACK_RANGES + 1]];
    let refused: RangeSet = over.iter().map(|(first, last)| range(*first, *last)).collect();
    let newly = MAX_ACK_RANGES as u64;
    assert_eq!(ack(&mut partition, 1, &holes), Applied::Acked { newly, refused });
    let none = RangeSet::new();
    assert_eq!(
        ack(&mut partition, 1, &[(3, 3)]),
        Applied::Acked {
            newly: 1,
            refused: none.clone()
        }
    );
    assert_eq!(
        ack(&mut partition, 1, &over[..1]),
        Applied::Acked {
            newly: 1,
            refused: none.clone()
        }
    );
    assert_eq!(
        ack(&mut partition, 1, &[(1, 1)]),
        Applied::Acked {
            newly: 1,
            refused: none
        }
    );
    partition.check().unwrap();
}

#[test]
fn an_entry_that_is_not_known_changes_nothing() {
    let mut partition = with_messages(3);
    let mut entry = encode_commands(&[Command::TrimTo { first: sequence(2) }])
        .unwrap()
        .to_vec();
    entry[1] = 2;
    entry.extend_from_slice(&[99, 1]);
    assert!(partition.apply_entry(&entry, NOW).is_err());
    assert_eq!(partition, with_messages(3));
}

/// One step of a random history. Places are relative so that they meet.
#[derive(Clone, Debug)]
enum Step {
    Append(u32),
    Ack(Vec<(u64, u64)>),
    Delivered(u64, Vec<(u64, u64, u32)>),
    Trim(u64),
    Ensure,
    Checkpoint,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = || 1_u64..150;
    let step = prop_oneof![
        3 => (1_u32..12).prop_map(Step::Append),
        6 => prop::collection::vec((place(), 0_u64..8), 0..5).prop_map(Step::Ack),
        3 => (place(), prop::collection::vec((place(), 0_u64..12, 0_u32..5), 0..5))
            .prop_map(|(watermark, counts)| Step::Delivered(watermark, counts)),
        1 => place().prop_map(Step::Trim),
        1 => Just(Step::Ensure),
        1 => Just(Step::Checkpoint),
    ];
    prop::collection::vec(step, 1..60)
}

/// What a group is, said message by message.
#[derive(Default)]
struct Model {
    first: u64,
    next: u64,
    acked: BTreeSet<u64>,
    watermark: u64,
    counts: BTreeMap<u64, u32>,
}

impl Model {
    /// Returns how many are new.
    fn ack(&mut self, ranges: &[(u64, u64)]) -> u64 {
        let places: BTreeSet<_> = ranges
            .iter()
            .flat_map(|(first, len)| *first..=first + len)
            .collect();
        let stored = places
            .into_iter()
            .filter(|place| (self.first..self.next).contains(place));
        stored.filter(|place| self.acked.insert(*place)).count() as u64
    }

    fn delivered(&mut self, watermark: u64, counts: &[(u64, u64, u32)]) {
        self.watermark = self.watermark.max(watermark.min(self.next - 1)).max(self.floor());
        for (first, len, count) in counts.iter().filter(|counted| counted.2 >= 2) {
            for place in
                (*first..=first + len).filter(|place| self.first <= *place && *place <= self.watermark)
            {
                let recorded = self.counts.entry(place).or_default();
                *recorded = (*recorded).max(*count);
            }
        }
    }

    /// Where the floor is: everything up to it is acknowledged or gone.
    fn floor(&self) -> u64 {
        let mut floor = self.first - 1;
        while self.acked.contains(&(floor + 1)) {
            floor += 1;
        }
        floor
    }

    fn delivery_count(&self, place: u64) -> u32 {
        if place < self.first || self.acked.contains(&place) {
            return 0;
        }
        self.counts
            .get(&place)
            .copied()
            .unwrap_or(u32::from(place <= self.watermark.max(self.floor())))
    }
}

fn run(steps: Vec<Step>) {
    let mut partition = Partition::new();
    let mut model = Model {
        first: 1,
        next: 1,
        ..Model::default()
    };
    ensure(&mut partition, 1, StartAt::First);
    for step in steps {
        match step {
            Step::Append(count) => {
                partition
                    .apply_batch(&stamp(model.next, count), head(count))
                    .unwrap();
                model.next += u64::from(count);
            }
            Step::Ack(ranges) => {
                let newly = model.ack(&ranges);
                let ranges: Vec<_> = ranges
                    .into_iter()
                    .map(|(first, len)| (first, first + len))
                    .collect();
                let applied = ack(&mut partition, 1, &ranges);
                assert!(
                    matches!(applied, Applied::Acked { newly: told, .. } if told == newly),
                    "{applied:?}"
                );
            }
            Step::Delivered(watermark, counts) => {
                model.delivered(watermark, &counts);
                let counted = |(first, len, count)| DeliveryCount {
                    range: range(first, first + len),
                    count,
                };
                let counts = counts.into_iter().map(counted).collect();
                let command = Command::Delivered {
                    group: group(1),
                    watermark: sequence(watermark),
                    counts,
                };
                partition.apply(&command, NOW);
            }
            Step::Trim(first) => {
                partition.apply(
                    &Command::TrimTo {
                        first: sequence(first),
                    },
                    NOW,
                );
                model.first = model.first.max(first.min(model.next));
            }
            Step::Ensure => {
                ensure(&mut partition, 1, StartAt::First);
            }
            Step::Checkpoint => partition = Partition::decode(&partition.encode()).unwrap(),
        }
        compare(&partition, &model);
    }
}

fn compare(partition: &Partition, model: &Model) {
    partition.check().unwrap();
    assert_eq!(partition.first_sequence().get(), model.first);
    assert_eq!(partition.next_sequence().get(), model.next);
    assert_eq!(partition.messages(), model.next - model.first);
    if partition.messages() == 0 {
        assert_eq!(partition.bytes(), 0);
    }
    let state = partition.group(group(1)).unwrap();
    assert_eq!(state.first_unacked().get(), model.floor() + 1);
    for place in 1..model.next {
        let acked = place < model.first || model.acked.contains(&place);
        assert_eq!(state.is_acked(sequence(place)), acked, "message {place}");
        assert_eq!(
            state.delivery_count(sequence(place)),
            model.delivery_count(place),
            "count of message {place}"
        );
    }
}

proptest! {
    #![proptest_config(Config { cases: 400, rng_seed: RngSeed::Fixed(1), ..Config::default() })]
    #[test]
    fn fixed_histories_give_what_the_model_gives(steps in steps()) {
        run(steps);
    }
}

proptest! {
    #![proptest_config(Config::with_cases(800))]
    #[test]
    fn random_histories_give_what_the_model_gives(steps in steps()) {
        run(steps);
    }
}
