mod leasing;
mod replicating;
mod settling;

use ptah_types::StartAt;

use super::*;
use crate::{Applied, BatchHead, BatchStamp, Command, DeliveryCount, GroupSpec, Refusal};

const DEADLINE_MS: u64 = 1_000;
const A: ConsumerId = ConsumerId(1);
const B: ConsumerId = ConsumerId(2);

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn range(first: u64, last: u64) -> SequenceRange {
    SequenceRange::from_numbers(first, last).unwrap()
}

fn group() -> ConsumerGroupId {
    ConsumerGroupId::new(5).unwrap()
}

/// A partition with one group, and its leader.
struct Leader {
    partition: Partition,
    deliveries: Deliveries,
}

impl Leader {
    fn with_messages(messages: u32) -> Self {
        Self::with_group(messages, StartAt::First, 1_000)
    }

    fn with_group(messages: u32, start: StartAt, max_in_flight: u32) -> Self {
        let mut partition = Partition::new();
        append(&mut partition, messages);
        let spec = GroupSpec {
            name: "audit".parse().unwrap(),
            start,
            ack_deadline_ms: DEADLINE_MS,
            max_in_flight,
        };
        partition.apply(&Command::EnsureGroup { group: group(), spec }, at(0));
        let deliveries = Deliveries::new(&partition, group(), at(0)).unwrap();
        Self {
            partition,
            deliveries,
        }
    }

    fn append(&mut self, messages: u32) {
        append(&mut self.partition, messages);
        self.deliveries
            .observe(self.partition.first_sequence(), self.partition.next_sequence());
    }

    /// Leases and sends at once.
    fn send(&mut self, now: u64, most: u32) -> Vec<(u64, u64, u32)> {
        let leases = self.deliveries.lease(at(now), most);
        self.send_leases(leases, now)
    }

    fn send_leases(&mut self, leases: Vec<Lease>, now: u64) -> Vec<(u64, u64, u32)> {
        let mut sent = Vec::new();
        for lease in leases {
            assert_eq!(
                self.deliveries.mark_sent(lease.consumer, lease.range, at(now)),
                [lease.range]
            );
            sent.push((
                lease.range.first().get(),
                lease.range.last().get(),
                lease.delivery_count,
            ));
        }
        self.deliveries.check().unwrap();
        sent
    }

    fn apply(&mut self, replicate: &Replicate) -> Vec<Applied> {
        let applied = replicate
            .commands
            .iter()
            .map(|command| self.partition.apply(command, at(0)))
            .collect();
        self.partition.check().unwrap();
        applied
    }

    /// One round from start to end; sends what it sets free.
    fn round(&mut self, now: u64) -> Vec<(u64, u64, u32)> {
        let Some(replicate) = self.deliveries.to_replicate() else {
            return Vec::new();
        };
        let applied = self.apply(&replicate);
        let confirmed = self.deliveries.confirmed(replicate.round, &applied, at(now));
        self.send_leases(confirmed.leases, now)
    }

    fn ack(&mut self, first: u64, last: u64) -> AckOutcome {
        let outcome = self.deliveries.ack(&[range(first, last)]);
        self.deliveries.check().unwrap();
        outcome
    }

    fn change_leader(&mut self, now: u64) {
        self.deliveries = Deliveries::new(&self.partition, group(), at(now)).unwrap();
        self.deliveries.check().unwrap();
    }

    fn floor(&self) -> u64 {
        self.partition.group(group()).unwrap().first_unacked().get() - 1
    }
}

fn append(partition: &mut Partition, messages: u32) {
    if messages == 0 {
        return;
    }
    let stamp = BatchStamp {
        base_sequence: partition.next_sequence(),
        count: messages,
        timestamp: at(0),
        session: None,
    };
    partition
        .apply_batch(
            &stamp,
            BatchHead {
                count: messages,
                bytes: 100,
            },
        )
        .unwrap();
}
