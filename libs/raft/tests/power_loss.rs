//! Power loss at random moments, of one node and of all at once, with syncs, votes and proposals under way: what was
//! acknowledged or applied survives, nothing is stored twice or out of nowhere, no sequence and no term is used twice.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Answer, Cluster, committed, until};
use ptah_raft::HostOptions;
use ptah_segment_log::SimOp;
use ptah_service::{Random, SeededRandom};

/// What was proposed, and what nobody may take back.
#[derive(Default)]
struct Book {
    acked: BTreeMap<u64, Bytes>,
    /// What a replica had applied.
    applied: BTreeMap<u64, Bytes>,
    /// Who led in a term.
    leaders: BTreeMap<u64, u64>,
    next: u64,
}

impl Book {
    fn note(&mut self, sequence: u64, payload: Bytes) {
        let before = self.acked.insert(sequence, payload);
        assert!(before.is_none(), "sequence {sequence} was acknowledged twice");
    }

    fn payload(number: u64) -> Bytes {
        Bytes::from(format!("message {number} {}", "x".repeat(200)))
    }

    fn next_payload(&mut self) -> Bytes {
        self.next += 1;
        Self::payload(self.next)
    }

    /// Proposes some messages and does not wait.
    fn propose(&mut self, cluster: &Cluster, count: usize) -> Vec<(Bytes, Answer)> {
        let mut leader = cluster.leader(1);
        let mut waiting = Vec::new();
        for _ in 0..count {
            let payload = self.next_payload();
            let Ok(answer) = leader.propose(&payload) else {
                break;
            };
            waiting.push((payload, answer));
        }
        waiting
    }

    /// Waits for all answers, as far as any come.
    fn settle(&mut self, waiting: Vec<(Bytes, Answer)>) {
        for (payload, answer) in waiting {
            if let Ok(appended) = committed(&answer) {
                self.note(appended.base_sequence.get(), payload);
            }
        }
    }

    /// Proposes messages, several at a time, until `until` or until the leader is gone.
    fn produce(&mut self, cluster: &Cluster, until: Instant) {
        while Instant::now() < until {
            let waiting = self.propose(cluster, 8);
            self.settle(waiting);
        }
    }

    /// Who leads, as each node sees itself.
    fn look_at_leaders(&mut self, cluster: &Cluster) {
        for node in cluster.nodes.iter().filter(|node| node.up.is_some()) {
            let leadership = cluster.replica(node.id, 1).leadership();
            if leadership.leader_replica != Some(common::replica(node.id)) {
                continue;
            }
            let term = leadership.term.0;
            let first = *self.leaders.entry(term).or_insert(node.id);
            assert_eq!(first, node.id, "term {term} has two leaders");
        }
    }

    /// What every node has applied.
    fn look_at_applied(&mut self, cluster: &Cluster, nodes: &[u64]) {
        for id in nodes {
            for (sequence, payload) in cluster.messages(*id, 1) {
                let first = self.applied.entry(sequence).or_insert_with(|| payload.clone());
                assert!(*first == payload, "sequence {sequence} was used twice");
            }
        }
    }

    /// Everything acknowledged or applied is on every node, under its sequence; everything on them was proposed, and is
    /// there once.
    fn check(&mut self, cluster: &Cluster, nodes: &[u64]) {
        let leader = cluster.leader(1);
        let next = leader.replica.with_partition(|p| p.next_sequence());
        cluster.until_applied(1, next);
        self.look_at_leaders(cluster);
        let expected = cluster.messages(leader.on, 1);
        let known: BTreeSet<Bytes> = (1..=self.next).map(Self::payload).collect();
        let mut once = BTreeSet::new();
        for (place, (sequence, payload)) in expected.iter().enumerate() {
            assert_eq!(*sequence, place as u64 + 1, "sequences are dense");
            assert!(known.contains(payload), "message {sequence} was never proposed");
            assert!(once.insert(payload.clone()), "message {sequence} is stored twice");
        }
        let stored: BTreeMap<u64, Bytes> = expected.iter().cloned().collect();
        for (what, promised) in [("acknowledged", &self.acked), ("applied", &self.applied)] {
            for (sequence, payload) in promised {
                assert!(
                    stored.get(sequence) == Some(payload),
                    "{what} message {sequence} is lost or another"
                );
            }
        }
        for id in nodes {
            let same = cluster.messages(*id, 1) == expected;
            assert!(same, "messages of node {id} differ");
            let same = cluster.partition_bytes(*id, 1) == cluster.partition_bytes(leader.on, 1);
            assert!(same, "state of node {id} differs");
        }
    }
}

/// Disks whose syncs stand still.
#[derive(Clone, Default)]
struct Held(Arc<(Mutex<BTreeSet<u64>>, Condvar)>);

impl Held {
    /// Stands before every sync of every disk of a cluster, for as long as the cluster lives.
    fn of(cluster: &Cluster) -> Self {
        let held = Self::default();
        for node in &cluster.nodes {
            let (id, own) = (node.id, held.clone());
            node.disk.set_hook(Some(Arc::new(move |op, _| {
                if op == SimOp::Sync {
                    let (nodes, changed) = &*own.0;
                    let nodes = nodes.lock().unwrap();
                    drop(changed.wait_while(nodes, |nodes| nodes.contains(&id)).unwrap());
                }
            })));
        }
        held
    }

    fn hold(&self, nodes: impl IntoIterator<Item = u64>) {
        self.0.0.lock().unwrap().extend(nodes);
    }

    fn release(&self) {
        self.0.0.lock().unwrap().clear();
        self.0.1.notify_all();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // A test that fails must not leave threads behind that wait.
        if std::thread::panicking() {
            self.release();
        }
    }
}

/// The power goes off everywhere in the same moment; whoever waits for a disk then is told so.
fn cut_power(cluster: &mut Cluster, held: &Held, nodes: &[u64]) {
    for id in nodes {
        cluster.node(*id).disk.crash();
    }
    held.release();
    for id in nodes {
        cluster.power_off(*id);
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

fn all_nodes_lose_power(seed: u64, count: u64) {
    let random = SeededRandom::new(seed);
    let mut cluster = Cluster::new(count, busy(), seed);
    let held = Held::of(&cluster);
    let all: Vec<u64> = (1..=count).collect();
    cluster.create(1, &all);
    let mut book = Book::default();
    let mut open = 0;
    for round in 0..6 {
        book.produce(
            &cluster,
            Instant::now() + Duration::from_millis(40 + random.below(60)),
        );
        let leader = cluster.leader(1);
        book.look_at_applied(&cluster, &all);
        // All disks stand still every second time, so that nothing whatever may be promised; otherwise some do.
        let still = all.iter().filter(|_| round % 2 == 0 || random.below(2) == 0);
        held.hold(still.copied());
        let waiting = book.propose(&cluster, 8);
        let others: Vec<u64> = all.iter().copied().filter(|id| *id != leader.on).collect();
        if !others.is_empty() && random.below(2) == 0 {
            // A vote is under way, too.
            let to = others[random.below(others.len() as u64) as usize];
            let moving = leader.replica.transfer_leader(common::replica(to));
            let asked = cluster
                .runtime(leader.on)
                .block_on(async { tokio::time::timeout(Duration::from_secs(1), moving).await });
            drop(asked);
        }
        let cut = Instant::now() + Duration::from_millis(5 + random.below(60));
        while Instant::now() < cut {
            book.look_at_leaders(&cluster);
            std::thread::sleep(Duration::from_millis(1));
        }
        cut_power(&mut cluster, &held, &all);
        open += waiting.len();
        book.settle(waiting);
        for id in &all {
            cluster.start(*id);
        }
        book.check(&cluster, &all);
    }
    assert!(open > 20, "only {open} proposals were under way");
    let acked = book.acked.len();
    assert!(acked > 20, "only {acked} were acknowledged");
}

/// Nobody leads by votes that a power loss would take back.
fn a_vote_that_is_not_durable_elects_nobody(seed: u64, candidate_is_held: bool) {
    let mut cluster = Cluster::new(3, busy(), seed);
    let held = Held::of(&cluster);
    let all = [1, 2, 3];
    cluster.create(1, &all);
    let mut book = Book::default();
    for _ in 0..3 {
        book.produce(&cluster, Instant::now() + Duration::from_millis(40));
        let leader = cluster.leader(1);
        let next = leader.replica.with_partition(|p| p.next_sequence());
        cluster.until_applied(1, next);
        book.look_at_leaders(&cluster);
        let candidate = leader.on % 3 + 1;
        held.hold(all.into_iter().filter(|id| candidate_is_held || *id != candidate));
        let moving = leader.replica.transfer_leader(common::replica(candidate));
        let asked = cluster
            .runtime(leader.on)
            .block_on(async { tokio::time::timeout(Duration::from_secs(1), moving).await });
        assert!(asked.is_ok(), "the leader was asked");
        let patience = Instant::now() + Duration::from_millis(700);
        while Instant::now() < patience {
            book.look_at_leaders(&cluster);
            let newest = book.leaders.keys().next_back().copied();
            assert_eq!(newest, Some(leader.term.0), "a vote counted that is not durable");
            std::thread::sleep(Duration::from_millis(2));
        }
        cut_power(&mut cluster, &held, &all);
        for id in all {
            cluster.start(id);
        }
        book.check(&cluster, &all);
    }
    until("somebody leads again", || {
        book.look_at_leaders(&cluster);
        (book.leaders.len() > 1).then_some(())
    });
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

#[test]
fn a_vote_counts_only_when_the_voters_have_it_on_disk() {
    a_vote_that_is_not_durable_elects_nobody(31, false);
}

#[test]
fn a_candidate_asks_for_votes_only_when_its_own_is_on_disk() {
    a_vote_that_is_not_durable_elects_nobody(32, true);
}
