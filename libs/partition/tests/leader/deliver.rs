//! Consumers of one group, and what must be true of what they get.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ptah_partition::{
    Applied, ConsumerGroup, ConsumerId, Deliveries, Lease, Partition, Replicate, Round, SequenceRange,
    Urgency,
};
use ptah_types::{Sequence, Timestamp};

use crate::Step;
use crate::world::group_id;

const DEADLINE_MS: u64 = 1_000;
const MAX_IN_FLIGHT: u64 = 40;

/// An ack that waits for its answer.
struct Waiting {
    settled_by: Option<Round>,
    places: Vec<u64>,
}

/// What one leader did.
#[derive(Default)]
struct Reign {
    /// Place -> who has it until when. Nobody in particular: an earlier leader's consumer.
    held: BTreeMap<u64, (Option<ConsumerId>, u64)>,
    /// Acknowledged by this leader, applied or not.
    acked: BTreeSet<u64>,
    /// Deliveries that the partition knew of when the reign began.
    counts: BTreeMap<u64, u32>,
    sends: BTreeMap<u64, u32>,
    leased: BTreeSet<u64>,
    /// Highest place leased.
    high: u64,
    waiting: Vec<Waiting>,
    round: Option<Round>,
    /// Everything was taken over from an earlier leader: more may be out than this one would allow.
    taken_over: u64,
}

pub(crate) struct Group {
    index: usize,
    deliveries: Deliveries,
    reign: Reign,
    /// Leases not sent yet, in the order in which they came.
    unsent: VecDeque<Lease>,
    /// Acks that were answered.
    answered: BTreeSet<u64>,
    /// Everything that any consumer ever acknowledged.
    requested: BTreeSet<u64>,
    delivered: BTreeSet<u64>,
}

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn range(first: u64, last: u64) -> SequenceRange {
    SequenceRange::new(Sequence::new(first).unwrap(), Sequence::new(last).unwrap()).unwrap()
}

fn places(range: SequenceRange) -> impl Iterator<Item = u64> {
    range.iter().map(Sequence::get)
}

impl Group {
    pub(crate) fn new(partition: &Partition, index: usize, now: u64) -> Self {
        let mut group = Self {
            index,
            deliveries: Deliveries::new(partition, group_id(index), at(now)).unwrap(),
            reign: Reign::default(),
            unsent: VecDeque::new(),
            answered: BTreeSet::new(),
            requested: BTreeSet::new(),
            delivered: BTreeSet::new(),
        };
        group.change_leader(partition, now);
        group
    }

    fn state<'a>(&self, partition: &'a Partition) -> &'a ConsumerGroup {
        partition.group(group_id(self.index)).unwrap()
    }

    pub(crate) fn change_leader(&mut self, partition: &Partition, now: u64) {
        self.deliveries = Deliveries::new(partition, group_id(self.index), at(now)).unwrap();
        self.unsent.clear();
        let state = self.state(partition);
        let unacked = |place: &u64| !state.is_acked(Sequence::new(*place).unwrap());
        let out: Vec<_> = (1..state.next_undelivered().get()).filter(unacked).collect();
        let count = |place: u64| (place, state.delivery_count(Sequence::new(place).unwrap()));
        self.reign = Reign {
            held: out
                .iter()
                .map(|place| (*place, (None, now + DEADLINE_MS)))
                .collect(),
            counts: out.iter().map(|place| count(*place)).collect(),
            leased: out.iter().copied().collect(),
            high: state.next_undelivered().get() - 1,
            taken_over: out.len() as u64,
            ..Reign::default()
        };
    }

    pub(crate) fn step(&mut self, step: Step, partition: &Partition, now: u64) {
        match step {
            Step::Credit { consumer, credit, .. } => {
                self.deliveries.open(ConsumerId(consumer), credit).unwrap()
            }
            Step::Lease { most, .. } => self.lease(most, partition, now),
            Step::Send { leases, cut, .. } => self.send(leases, cut, partition, now),
            Step::GiveBack { .. } => {
                if let Some(lease) = self.unsent.pop_front() {
                    self.deliveries.give_back(lease.consumer, lease.range);
                }
            }
            Step::AckSent { pick, len, .. } => {
                // Now and then an ack comes twice.
                let again = self
                    .reign
                    .acked
                    .iter()
                    .rev()
                    .take(if pick % 4 == 0 { 5 } else { 0 });
                let candidates: Vec<_> = self.reign.held.keys().chain(again).copied().collect();
                if !candidates.is_empty() {
                    let place = candidates[pick / 4 % candidates.len()];
                    self.ack(range(place, place + len), partition);
                }
            }
            Step::AckAny { place, len, .. } => self.ack(range(place, place + len), partition),
            Step::Nack {
                consumer, place, len, ..
            } => self.nack(consumer, range(place, place + len)),
            Step::NackSent { pick, len, .. } => {
                let held: Vec<_> = self.reign.held.iter().collect();
                if let Some((place, (holder, _))) = held.get(pick % held.len().max(1)) {
                    let consumer = holder.map_or(1, |holder| holder.0);
                    self.nack(consumer, range(**place, **place + len));
                }
            }
            Step::Extend {
                consumer, place, len, ..
            } => {
                let extended = range(place, place + len);
                self.deliveries.extend(ConsumerId(consumer), &[extended], at(now));
                for (place, held) in &mut self.reign.held {
                    if theirs(extended, consumer, *place, *held) {
                        held.1 = now + DEADLINE_MS;
                    }
                }
            }
            Step::Recall { pick, .. } => {
                // A connection broke: what was on its way did not arrive.
                let held: Vec<_> = self
                    .reign
                    .held
                    .iter()
                    .map(|(place, held)| (*place, held.0))
                    .collect();
                if let Some((place, Some(holder))) = held.get(pick % held.len().max(1)) {
                    self.deliveries.recall(*holder, range(*place, *place));
                    self.reign.held.remove(place);
                    self.reign.sends.entry(*place).and_modify(|sends| *sends -= 1);
                }
            }
            Step::Detach { consumer, .. } => {
                self.deliveries.detach(ConsumerId(consumer));
                self.unsent.retain(|lease| lease.consumer != ConsumerId(consumer));
            }
            Step::Release { consumer, .. } => {
                self.deliveries.release(ConsumerId(consumer));
                self.reign
                    .held
                    .retain(|_, held| held.0 != Some(ConsumerId(consumer)));
            }
            other => panic!("not a step of a group: {other:?}"),
        }
    }

    fn nack(&mut self, consumer: u64, nacked: SequenceRange) {
        self.deliveries.nack(ConsumerId(consumer), &[nacked]);
        self.reign
            .held
            .retain(|place, held| !theirs(nacked, consumer, *place, *held));
    }

    fn lease(&mut self, most: u32, partition: &Partition, now: u64) {
        let leases = self.deliveries.lease(at(now), most);
        assert!(leases.iter().map(|lease| lease.range.count()).sum::<u64>() <= u64::from(most));
        self.leased(leases, partition);
    }

    fn leased(&mut self, leases: Vec<Lease>, partition: &Partition) {
        for lease in leases {
            for place in places(lease.range) {
                if self.reign.leased.insert(place) {
                    self.check_order(place, partition);
                    self.reign.high = place;
                }
            }
            self.unsent.push_back(lease);
        }
    }

    /// A first delivery comes after all others, and what it skips is done.
    fn check_order(&self, place: u64, partition: &Partition) {
        assert!(
            place > self.reign.high,
            "message {place} is leased after {}",
            self.reign.high
        );
        for skipped in self.reign.high + 1..place {
            let gone = skipped < partition.first_sequence().get();
            assert!(
                gone || self.reign.acked.contains(&skipped) || self.is_acked(partition, skipped),
                "{skipped} is skipped"
            );
        }
    }

    fn is_acked(&self, partition: &Partition, place: u64) -> bool {
        self.state(partition).is_acked(Sequence::new(place).unwrap())
    }

    /// Sends the oldest leases; the last `cut` messages of each stay behind.
    fn send(&mut self, leases: usize, cut: u64, partition: &Partition, now: u64) {
        for _ in 0..leases.min(self.unsent.len()) {
            let Some(lease) = self.unsent.pop_front() else {
                return;
            };
            let (first, last) = (lease.range.first().get(), lease.range.last().get());
            let sent_last = last.saturating_sub(cut).max(first);
            let piece = Lease {
                range: range(first, sent_last),
                ..lease
            };
            for part in self.deliveries.mark_lease_sent(&piece, at(now)) {
                for place in places(part) {
                    self.check_sent(place, &lease, partition);
                    self.reign
                        .held
                        .insert(place, (Some(lease.consumer), now + DEADLINE_MS));
                    *self.reign.sends.entry(place).or_default() += 1;
                    self.delivered.insert(place);
                }
            }
            if sent_last < last {
                self.unsent.push_front(Lease {
                    range: range(sent_last + 1, last),
                    ..lease
                });
                return;
            }
        }
    }

    fn check_sent(&self, place: u64, lease: &Lease, partition: &Partition) {
        assert!(
            place >= partition.first_sequence().get(),
            "message {place} is trimmed"
        );
        assert!(
            place < partition.next_sequence().get(),
            "message {place} is not stored"
        );
        assert!(
            !self.answered.contains(&place),
            "message {place} was acknowledged and answered"
        );
        assert!(
            !self.reign.acked.contains(&place),
            "message {place} was acknowledged"
        );
        assert!(
            !self.is_acked(partition, place),
            "message {place} is acknowledged in the partition"
        );
        assert_eq!(self.reign.held.get(&place), None, "message {place} is held");
        let before = self.reign.counts.get(&place).copied().unwrap_or(0);
        let sends = self.reign.sends.get(&place).copied().unwrap_or(0);
        assert_eq!(
            lease.delivery_count,
            before + sends + 1,
            "delivery count of message {place}"
        );
        if lease.delivery_count >= 2 {
            let recorded = self
                .state(partition)
                .delivery_count(Sequence::new(place).unwrap());
            assert!(
                recorded >= lease.delivery_count,
                "count of message {place} is not replicated"
            );
        }
    }

    fn ack(&mut self, acked: SequenceRange, partition: &Partition) {
        let outcome = self.deliveries.ack(&[acked]);
        let next = partition.next_sequence().get();
        let places: Vec<_> = places(acked).filter(|place| *place < next).collect();
        assert_eq!(
            outcome.refused.covered(),
            acked.count() - places.len() as u64,
            "only what is not stored is refused"
        );
        for place in &places {
            self.reign.held.remove(place);
            self.reign.acked.insert(*place);
            self.requested.insert(*place);
        }
        self.reign.waiting.push(Waiting {
            settled_by: outcome.settled_by,
            places,
        });
        self.answer(Round(0), partition);
    }

    /// Answers what is settled by `round`.
    fn answer(&mut self, round: Round, partition: &Partition) {
        let (settled, waiting) = std::mem::take(&mut self.reign.waiting)
            .into_iter()
            .partition(|ack| ack.settled_by.is_none_or(|by| by <= round));
        self.reign.waiting = waiting;
        for place in settled.into_iter().flat_map(|ack: Waiting| ack.places) {
            assert!(
                self.is_acked(partition, place),
                "ack of message {place} is answered and not applied"
            );
            self.answered.insert(place);
        }
    }

    pub(crate) fn fail_round(&mut self) -> Option<Round> {
        let round = self.reign.round.take()?;
        self.deliveries.failed(round);
        Some(round)
    }

    pub(crate) fn next_round(&mut self) -> Option<Replicate> {
        let replicate = self.deliveries.to_replicate()?;
        self.reign.round = Some(replicate.round);
        Some(replicate)
    }

    pub(crate) fn confirmed(&mut self, round: Round, applied: &[Applied], partition: &Partition, now: u64) {
        if self.reign.round != Some(round) {
            // Reported as failed before; it was applied all the same.
            assert_eq!(self.deliveries.confirmed(round, applied, at(now)).leases, []);
            return;
        }
        self.reign.round = None;
        let confirmed = self.deliveries.confirmed(round, applied, at(now));
        assert!(confirmed.refused_acks.is_empty() && !confirmed.group_is_gone);
        self.leased(confirmed.leases, partition);
        self.answer(round, partition);
    }

    pub(crate) fn observe(&mut self, partition: &Partition) {
        self.deliveries
            .observe(partition.first_sequence(), partition.next_sequence());
        let first = partition.first_sequence().get();
        self.reign.held.retain(|place, _| *place >= first);
        self.reign.high = self.reign.high.max(first - 1);
    }

    pub(crate) fn expire(&mut self, now: u64) {
        self.deliveries.expire(at(now));
        self.reign.held.retain(|_, held| held.1 > now);
        assert!(
            self.deliveries
                .next_deadline()
                .is_none_or(|deadline| deadline > at(now))
        );
    }

    pub(crate) fn check(&self, partition: &Partition) {
        self.deliveries.check().unwrap();
        let bound = MAX_IN_FLIGHT.max(self.reign.taken_over);
        assert!(
            self.deliveries.outstanding() <= bound,
            "{} are out",
            self.deliveries.outstanding()
        );
        let state = self.state(partition);
        for place in &self.answered {
            assert!(
                self.is_acked(partition, *place),
                "the answered ack of message {place} is lost"
            );
        }
        for place in partition.first_sequence().get()..partition.next_sequence().get() {
            let acked = state.is_acked(Sequence::new(place).unwrap());
            assert!(
                !acked || self.requested.contains(&place),
                "nobody acknowledged message {place}"
            );
        }
    }

    /// One consumer takes all there is and acknowledges it.
    pub(crate) fn take_and_ack_all(&mut self, partition: &Partition, now: u64) {
        self.deliveries.open(ConsumerId(99), 1_000).unwrap();
        self.lease(1_000, partition, now);
        self.send(usize::MAX, 0, partition, now);
        let held: Vec<_> = self
            .reign
            .held
            .iter()
            .filter(|(_, held)| held.0.is_some())
            .map(|(place, _)| *place)
            .collect();
        for place in held {
            self.ack(range(place, place), partition);
        }
    }

    /// Nothing is left, and everything that is kept was delivered, or acknowledged by somebody who knew it.
    pub(crate) fn check_drained(&self, partition: &Partition) {
        let state = self.state(partition);
        assert_eq!(
            state.first_unacked(),
            partition.next_sequence(),
            "not everything was delivered"
        );
        assert_eq!(self.deliveries.outstanding(), 0);
        assert!(self.reign.waiting.is_empty(), "an ack is never answered");
        assert!(!self.deliveries.available() && self.deliveries.urgency() == Urgency::Nothing);
        for place in partition.first_sequence().get()..partition.next_sequence().get() {
            assert!(
                self.delivered.contains(&place) || self.requested.contains(&place),
                "message {place} is lost"
            );
        }
    }
}

/// Whether the consumer may speak for the message: it holds it, or an earlier leader's consumer did.
fn theirs(range: SequenceRange, consumer: u64, place: u64, held: (Option<ConsumerId>, u64)) -> bool {
    let holder = held.0.is_none_or(|holder| holder == ConsumerId(consumer));
    holder && Sequence::new(place).is_some_and(|place| range.contains(place))
}
