//! Nodes that die, freeze or are cut off: who takes over, how soon, and who does not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::{Cluster, Proxy, committed, node, sequence, until};
use ptah_raft::HostOptions;

/// With these times openraft's own election needs 9 s or more.
fn slow_elections() -> HostOptions {
    HostOptions {
        election_timeout_min: Duration::from_secs(4),
        election_timeout_max: Duration::from_secs(5),
        ..HostOptions::for_tests()
    }
}

fn others(id: u64) -> [u64; 2] {
    match id {
        1 => [2, 3],
        2 => [1, 3],
        _ => [1, 2],
    }
}

/// Appends through one of `ids`, until one of them leads; answers after how long.
fn time_to_next_ack(cluster: &Cluster, ids: [u64; 2], group: u64, payload: &[u8]) -> Duration {
    let started = Instant::now();
    until("a survivor acknowledges", || {
        let id = ids
            .into_iter()
            .find(|id| cluster.replica(*id, group).leadership().ready)?;
        cluster.leader_on(id, group).append(payload).ok()
    });
    started.elapsed()
}

#[test]
fn survivors_take_over_from_a_frozen_leader_which_acknowledges_nothing_when_it_wakes() {
    let mut cluster = Cluster::new(3, slow_elections(), 1);
    cluster.until_all_are_heard();
    cluster.create(1, &[1, 2, 3]);
    cluster.append(1, b"x");
    cluster.until_applied(1, sequence(2));
    let mut old = cluster.leader(1);
    let survivors = others(old.on);
    let frozen = cluster.freeze(old.on);
    // The old leader's lease lives for seconds when it wakes: this one is in its queue.
    let late = old.propose(b"late").unwrap();
    let took = time_to_next_ack(&cluster, survivors, 1, b"y");
    assert!(took < Duration::from_secs(4), "took {took:?}");
    drop(frozen);
    assert!(committed(&late).is_err(), "the old leader acknowledged");
    cluster.append(1, b"z");
    cluster.until_applied(1, sequence(4));
    let payloads = |id| {
        let messages = cluster.messages(id, 1).into_iter();
        messages.map(|(_, payload)| payload).collect::<Vec<_>>()
    };
    for id in 1..=3 {
        assert_eq!(payloads(id), ["x", "y", "z"], "on node {id}");
    }
    let takeovers: u64 = (1..=3)
        .map(|id| cluster.counter(id, "ptah_takeovers_total"))
        .sum();
    assert_eq!(takeovers, 1, "the best survivor alone campaigns");
}

#[test]
fn a_link_that_is_silent_between_two_nodes_alone_moves_no_leader_and_no_term() {
    let mut cluster = Cluster::three();
    cluster.until_all_are_heard();
    cluster.create(1, &[1, 2, 3]);
    cluster.append(1, b"x");
    cluster.until_applied(1, sequence(2));
    let leader = cluster.leader(1);
    let cut_off = others(leader.on)[0];
    // Both ways between the leader and one follower lead through proxies.
    let way = |from: u64, to: u64| {
        let proxy = Proxy::new();
        proxy.set_target(cluster.address(to));
        let mut peers: BTreeMap<_, _> = (1..=3).map(|id| (node(id), cluster.address(id))).collect();
        peers.insert(node(to), proxy.address());
        cluster.host(from).set_peers(peers);
        proxy
    };
    let proxies = [way(leader.on, cut_off), way(cut_off, leader.on)];
    cluster.append(1, b"y");
    cluster.until_applied(1, sequence(3));
    let term = cluster.leader(1).term;
    for proxy in &proxies {
        proxy.silence(true);
    }
    until("the follower suspects the leader", || {
        (cluster.counter(cut_off, "ptah_suspicions_total") > 0).then_some(())
    });
    // Longer than the lease and the longest election timeout together.
    let over = Instant::now() + Duration::from_secs(3);
    until("the follower had time to campaign", || {
        cluster.append(1, b"z");
        (Instant::now() > over).then_some(())
    });
    for proxy in &proxies {
        proxy.silence(false);
    }
    let next = cluster.append(1, b"end").base_sequence.next().unwrap();
    cluster.until_applied(1, next);
    let now = cluster.leader(1);
    assert_eq!((now.on, now.term), (leader.on, term));
    for id in 1..=3 {
        assert_eq!(cluster.counter(id, "ptah_takeovers_total"), 0);
    }
}

#[test]
fn a_leader_whose_process_was_replaced_in_a_moment_is_taken_over_from() {
    let mut cluster = Cluster::new(3, slow_elections(), 1);
    cluster.until_all_are_heard();
    cluster.create(1, &[1, 2, 3]);
    cluster.append(1, b"x");
    cluster.until_applied(1, sequence(2));
    let old = cluster.leader(1).on;
    cluster.power_off(old);
    cluster.start(old);
    let started = Instant::now();
    assert_eq!(cluster.append(1, b"y").base_sequence, sequence(2));
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "took {:?}",
        started.elapsed()
    );
}

#[test]
fn the_groups_of_a_dead_node_are_spread_over_the_survivors() {
    const GROUPS: u64 = 40;
    let mut cluster = Cluster::new(3, slow_elections(), 1);
    cluster.until_all_are_heard();
    for number in 1..=GROUPS {
        cluster.create(number, &[1, 2, 3]);
    }
    for number in 1..=GROUPS {
        cluster.append(number, b"x");
        cluster.until_applied(number, sequence(2));
    }
    let led: Vec<u64> = (1..=GROUPS).filter(|n| cluster.leader(*n).on == 1).collect();
    cluster.node_mut(1).kill_process();
    let killed = Instant::now();
    until("every group has a leader again", || {
        let is_led = |number: &u64| {
            [2, 3]
                .iter()
                .any(|id| cluster.replica(*id, *number).leadership().ready)
        };
        led.iter().all(is_led).then_some(())
    });
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(6), "took {took:?}");
    for number in &led {
        cluster.append(*number, b"y");
    }
    let second = led.iter().filter(|n| cluster.leader(**n).on == 2).count();
    assert!(
        led.len() > 8 && second > led.len() / 5 && second < led.len() * 4 / 5,
        "{second} of {} groups went to the second node",
        led.len()
    );
}
