//! Power loss at random moments, of one node and of all: what was acknowledged survives, and no sequence is used twice.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Answer, Cluster, committed};
use ptah_raft::HostOptions;
use ptah_service::{Random, SeededRandom};

/// What was acknowledged, by sequence.
#[derive(Default)]
struct Book {
    acked: BTreeMap<u64, Bytes>,
    next: u64,
}

impl Book {
    fn note(&mut self, sequence: u64, payload: Bytes) {
        let before = self.acked.insert(sequence, payload);
        assert!(before.is_none(), "sequence {sequence} was acknowledged twice");
    }

    /// Proposes messages, several at a time, until `until` or until the leader is gone.
    fn produce(&mut self, cluster: &Cluster, until: Instant) {
        while Instant::now() < until {
            let mut leader = cluster.leader(1);
            let mut waiting: Vec<(Bytes, Answer)> = Vec::new();
            for _ in 0..8 {
                self.next += 1;
                let payload = Bytes::from(format!("message {} {}", self.next, "x".repeat(200)));
                let Ok(answer) = leader.propose(&payload) else {
                    break;
                };
                waiting.push((payload, answer));
            }
            for (payload, answer) in waiting {
                if let Ok(appended) = committed(&answer) {
                    self.note(appended.base_sequence.get(), payload);
                }
            }
        }
    }

    /// Everything acknowledged is on every node, under its sequence.
    fn check(&self, cluster: &Cluster, nodes: &[u64]) {
        let leader = cluster.leader(1);
        let next = leader.replica.with_partition(|p| p.next_sequence());
        cluster.until_applied(1, next);
        let expected = cluster.messages(leader.on, 1);
        for (place, (sequence, _)) in expected.iter().enumerate() {
            assert_eq!(*sequence, place as u64 + 1, "sequences are dense");
        }
        let stored: BTreeMap<u64, Bytes> = expected.iter().cloned().collect();
        for (sequence, payload) in &self.acked {
            assert!(
                stored.get(sequence) == Some(payload),
                "acknowledged message {sequence} is lost or another"
            );
        }
        for id in nodes {
            let same = cluster.messages(*id, 1) == expected;
            assert!(same, "messages of node {id} differ");
            let same = cluster.partition_bytes(*id, 1) == cluster.partition_bytes(leader.on, 1);
            assert!(same, "state of node {id} differs");
        }
    }
}

/// Small everything: checkpoints, rounds, rolls and purges happen all the time.
fn busy() -> HostOptions {
    HostOptions {
        checkpoint_bytes: Some(8 << 10),
        keep_log_bytes: Some(16 << 10),
        hold_log_bytes: Some(64 << 10),
        round_every: Duration::from_millis(100),
        ..HostOptions::for_tests()
    }
}

fn one_node_loses_power(seed: u64) {
    let random = SeededRandom::new(seed);
    let mut cluster = Cluster::new(3, busy(), seed);
    cluster.create(1, &[1, 2, 3]);
    let mut book = Book::default();
    for _ in 0..4 {
        book.produce(&cluster, Instant::now() + Duration::from_millis(100));
        // The leader half of the time: its unsynced tail is the interesting one.
        let victim = if random.below(2) == 0 {
            cluster.leader(1).on
        } else {
            random.below(3) + 1
        };
        // At a write of its choice, or at once.
        cluster.node(victim).disk.crash_after_writes(random.below(40));
        book.produce(&cluster, Instant::now() + Duration::from_millis(50));
        cluster.power_off(victim);
        book.produce(&cluster, Instant::now() + Duration::from_millis(50));
        cluster.start(victim);
    }
    book.check(&cluster, &[1, 2, 3]);
    assert!(
        book.acked.len() > 20,
        "only {} were acknowledged",
        book.acked.len()
    );
}

fn all_nodes_lose_power(seed: u64, nodes: u64) {
    let random = SeededRandom::new(seed);
    let mut cluster = Cluster::new(nodes, busy(), seed);
    let all: Vec<u64> = (1..=nodes).collect();
    cluster.create(1, &all);
    let mut book = Book::default();
    for _ in 0..4 {
        book.produce(
            &cluster,
            Instant::now() + Duration::from_millis(60 + random.below(80)),
        );
        for id in &all {
            cluster.power_off(*id);
        }
        for id in &all {
            cluster.start(*id);
        }
    }
    book.check(&cluster, &all);
    assert!(
        book.acked.len() > 20,
        "only {} were acknowledged",
        book.acked.len()
    );
}

#[test]
fn acknowledged_messages_survive_the_power_loss_of_one_node_seed_1() {
    one_node_loses_power(1);
}

#[test]
fn acknowledged_messages_survive_the_power_loss_of_one_node_seed_2() {
    one_node_loses_power(2);
}

#[test]
fn acknowledged_messages_survive_the_power_loss_of_one_node_seed_3() {
    one_node_loses_power(3);
}

#[test]
fn acknowledged_messages_survive_the_power_loss_of_all_nodes_seed_1() {
    all_nodes_lose_power(11, 3);
}

#[test]
fn acknowledged_messages_survive_the_power_loss_of_all_nodes_seed_2() {
    all_nodes_lose_power(12, 3);
}

#[test]
fn acknowledged_messages_survive_the_power_loss_of_a_single_replica() {
    for seed in 21..25 {
        all_nodes_lose_power(seed, 1);
    }
}
