//! Idle groups that rest without heartbeats: they fall asleep, wake for whatever comes, and lose no leader unnoticed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use std::time::{Duration, Instant};

use common::{Cluster, committed, node, replica, sequence, spec, until};
use ptah_raft::{HostOptions, MembersStep};

fn quiet_on(cluster: &Cluster, id: u64) -> u64 {
    cluster.counter(id, "ptah_quiet")
}

/// Waits until this many replicas rest on each of these nodes.
fn until_quiet(cluster: &Cluster, ids: &[u64], count: u64) {
    for id in ids {
        until(&format!("{count} replicas rest on node {id}"), || {
            (quiet_on(cluster, *id) == count).then_some(())
        });
    }
}

fn soon() -> HostOptions {
    HostOptions {
        quiesce_after: Duration::from_millis(300),
        ..HostOptions::for_tests()
    }
}

/// Three nodes that hear each other, and groups with one message each.
fn cluster(options: HostOptions, groups: u64) -> Cluster {
    let mut cluster = Cluster::new(3, options, 1);
    cluster.until_all_are_heard();
    for number in 1..=groups {
        cluster.create(number, &[1, 2, 3]);
        cluster.append(number, b"x");
    }
    cluster
}

#[test]
fn an_idle_group_rests_on_all_sides_and_wakes_for_a_message_in_moments_under_the_same_leader() {
    let cluster = cluster(soon(), 1);
    let before = cluster.leader(1);
    for round in 2..12 {
        until_quiet(&cluster, &[1, 2, 3], 1);
        let started = Instant::now();
        let appended = cluster.leader(1).append(b"y").unwrap();
        assert!(
            started.elapsed() < Duration::from_secs(1),
            "took {:?}",
            started.elapsed()
        );
        assert_eq!(appended.base_sequence, sequence(round));
    }
    let after = cluster.leader(1);
    assert_eq!(
        (after.on, after.term, after.reign),
        (before.on, before.term, before.reign)
    );
    cluster.until_applied(1, sequence(12));
}

#[test]
fn a_group_rests_longer_than_any_election_timeout_without_an_election() {
    let cluster = cluster(soon(), 5);
    until_quiet(&cluster, &[1, 2, 3], 5);
    let terms: Vec<_> = (1..=5).map(|n| cluster.leader(n).term).collect();
    // Lease and longest election timeout together are 1.8 s.
    let over = Instant::now() + Duration::from_secs(4);
    until("time has passed", || (Instant::now() > over).then_some(()));
    until_quiet(&cluster, &[1, 2, 3], 5);
    assert_eq!(terms, (1..=5).map(|n| cluster.leader(n).term).collect::<Vec<_>>());
}

#[test]
fn messages_proposed_while_the_leader_wakes_are_stored_in_order() {
    let cluster = cluster(soon(), 1);
    until_quiet(&cluster, &[1, 2, 3], 1);
    let mut leader = cluster.leader(1);
    let answers: Vec<_> = (0..100)
        .map(|number| leader.propose(format!("{number}").as_bytes()).unwrap())
        .collect();
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!(committed(answer).unwrap().base_sequence.get(), number as u64 + 2);
    }
}

#[test]
fn nothing_is_lost_or_refused_when_messages_come_at_the_moment_of_falling_asleep() {
    let options = HostOptions {
        quiesce_after: Duration::from_millis(20),
        ..HostOptions::for_tests()
    };
    let cluster = cluster(options, 1);
    let mut leader = cluster.leader(1);
    // The pauses wander over the whole time that falling asleep takes.
    for number in 0..120u64 {
        let pause = Instant::now() + Duration::from_millis(20 + number % 60);
        until("the next message is due", || {
            (Instant::now() >= pause).then_some(())
        });
        let appended = leader.append(format!("{number}").as_bytes()).unwrap();
        assert_eq!(appended.base_sequence.get(), number + 2);
    }
    assert_eq!(cluster.leader(1).term, leader.term);
    assert!(cluster.counter(leader.on, "ptah_wakes_total") > 0);
}

#[test]
fn groups_of_a_dead_leader_that_rested_are_taken_over() {
    // With these times openraft's own election needs 9 s or more.
    let options = HostOptions {
        election_timeout_min: Duration::from_secs(4),
        election_timeout_max: Duration::from_secs(5),
        ..soon()
    };
    let mut cluster = cluster(options, 6);
    until_quiet(&cluster, &[1, 2, 3], 6);
    cluster.node_mut(1).kill_process();
    let started = Instant::now();
    until("every group has a leader", || {
        let is_led = |number: u64| {
            [2, 3]
                .iter()
                .any(|id| cluster.replica(*id, number).leadership().ready)
        };
        (1..=6).all(is_led).then_some(())
    });
    let took = started.elapsed();
    assert!(took < Duration::from_secs(6), "took {took:?}");
    for number in 1..=6 {
        assert_eq!(cluster.append(number, b"y").base_sequence, sequence(2));
    }
    // With a node that is not heard they stay awake; with it, all rest again.
    cluster.start(1);
    until_quiet(&cluster, &[1, 2, 3], 6);
    for number in 1..=6 {
        assert_eq!(cluster.messages(1, number).len(), 2);
    }
}

#[test]
fn a_follower_that_restarts_wakes_its_groups_and_all_rest_again_under_the_same_leader() {
    let mut cluster = cluster(soon(), 3);
    until_quiet(&cluster, &[1, 2, 3], 3);
    let led: Vec<_> = (1..=3)
        .map(|n| (cluster.leader(n).on, cluster.leader(n).term))
        .collect();
    let restarted = (1..=3).find(|id| led.iter().all(|(on, _)| on != id));
    let restarted = restarted.unwrap_or(if led[0].0 == 3 { 2 } else { 3 });
    cluster.power_off(restarted);
    cluster.start(restarted);
    until_quiet(&cluster, &[1, 2, 3], 3);
    for (number, (on, term)) in (1..=3).zip(led) {
        if on != restarted {
            let now = cluster.leader(number);
            assert_eq!((now.on, now.term), (on, term), "group {number}");
        }
        cluster.append(number, b"y");
    }
}

#[test]
fn a_leaders_replica_that_ends_while_its_node_lives_is_missed_by_those_that_rest() {
    let mut cluster = cluster(soon(), 1);
    until_quiet(&cluster, &[1, 2, 3], 1);
    let old = cluster.leader(1).on;
    cluster.remove(1, old);
    let appended = until("a survivor acknowledges", || {
        let id = (1..=3).find(|id| *id != old && cluster.replica(*id, 1).leadership().ready)?;
        cluster.leader_on(id, 1).append(b"y").ok()
    });
    assert_eq!(appended.base_sequence, sequence(2));
}

#[test]
fn leadership_moves_and_members_change_in_a_group_that_rests() {
    let mut cluster = cluster(soon(), 1);
    until_quiet(&cluster, &[1, 2, 3], 1);
    let old = cluster.leader(1);
    let to = if old.on == 1 { 2 } else { 1 };
    cluster
        .runtime(old.on)
        .block_on(old.replica.transfer_leader(replica(to)))
        .unwrap();
    until("the other one leads", || {
        (cluster.leader(1).on == to).then_some(())
    });
    assert_eq!(cluster.append(1, b"y").base_sequence, sequence(2));
    until_quiet(&cluster, &[1, 2, 3], 1);
    // A node that stops in order hands over what rests, too.
    cluster.stop(to);
    until("another one leads", || {
        let id = (1..=3).find(|id| *id != to && cluster.replica(*id, 1).leadership().ready)?;
        cluster.leader_on(id, 1).append(b"z").ok()
    });
}

#[test]
fn a_group_with_a_follower_that_lacks_something_does_not_rest() {
    let mut cluster = cluster(soon(), 1);
    until_quiet(&cluster, &[1, 2, 3], 1);
    let leader = cluster.leader(1).on;
    let down = if leader == 3 { 2 } else { 3 };
    cluster.node_mut(down).kill_process();
    cluster.append(1, b"y");
    let over = Instant::now() + Duration::from_secs(2);
    until("time has passed", || (Instant::now() > over).then_some(()));
    assert_eq!(quiet_on(&cluster, leader), 0);
    cluster.start(down);
    until_quiet(&cluster, &[1, 2, 3], 1);
    assert_eq!(cluster.messages(down, 1).len(), 2);
}

#[test]
fn a_group_that_grows_from_one_member_to_three_beats_from_then_on_and_rests_later() {
    let mut cluster = Cluster::new(3, soon(), 1);
    cluster.until_all_are_heard();
    cluster.create(1, &[1]);
    cluster.append(1, b"x");
    for id in [2, 3] {
        let mut newcomer = spec(1, id, &[1]);
        newcomer.initialize = false;
        cluster.ensure(newcomer, id);
    }
    let voters: Vec<_> = (1..=3).map(|id| (replica(id), node(id))).collect();
    until("all three vote", || {
        let leader = cluster.leader(1);
        let step = leader.replica.step_members(&voters);
        let step = cluster.runtime(leader.on).block_on(step);
        (step.ok() == Some(MembersStep::Settled)).then_some(())
    });
    let term = cluster.leader(1).term;
    until_quiet(&cluster, &[1, 2, 3], 1);
    assert_eq!(cluster.leader(1).term, term);
}

#[test]
fn a_group_of_one_needs_no_rest_and_no_waking() {
    let mut cluster = Cluster::new(1, soon(), 1);
    cluster.ensure(spec(1, 1, &[1]), 1);
    cluster.append(1, b"x");
    let over = Instant::now() + Duration::from_secs(1);
    until("time has passed", || (Instant::now() > over).then_some(()));
    assert_eq!(cluster.append(1, b"y").base_sequence, sequence(2));
    assert_eq!(
        (
            quiet_on(&cluster, 1),
            cluster.leader(1).replica.leadership().leader
        ),
        (0, Some(node(1)))
    );
}
