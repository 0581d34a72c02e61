//! Replicas in one process: what is committed is everywhere, and stays when leaders go.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use std::time::{Duration, Instant};

use common::{Cluster, committed, group, node, replica, sequence, spec, until};
use ptah_raft::{HostOptions, MembersStep, ProposeError, ReplicaState};

#[test]
fn a_single_replica_leads_and_stores_within_moments_of_opening() {
    let mut cluster = Cluster::new(1, HostOptions::for_tests(), 1);
    cluster.create(1, &[1]);
    assert_eq!(cluster.append(1, b"first").base_sequence, sequence(1));
    cluster.power_off(1);
    cluster.start(1);
    let started = Instant::now();
    let leader = cluster.leader(1);
    assert!(
        started.elapsed() < Duration::from_millis(500),
        "took {:?}",
        started.elapsed()
    );
    assert!(leader.reign > 0);
    assert_eq!(cluster.append(1, b"second").base_sequence, sequence(2));
    let payloads: Vec<_> = cluster
        .messages(1, 1)
        .into_iter()
        .map(|(_, payload)| payload)
        .collect();
    assert_eq!(payloads, ["first", "second"]);
}

#[test]
fn what_is_committed_is_applied_and_read_on_every_replica() {
    let mut cluster = Cluster::three();
    cluster.create(1, &[1, 2, 3]);
    let mut leader = cluster.leader(1);
    let answers: Vec<_> = (0..200)
        .map(|number| leader.propose(format!("message {number}").as_bytes()).unwrap())
        .collect();
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!(committed(answer).unwrap().base_sequence.get(), number as u64 + 1);
    }
    cluster.until_applied(1, sequence(201));
    let expected = cluster.messages(1, 1);
    assert_eq!(expected.len(), 200);
    for id in [2, 3] {
        assert_eq!(cluster.messages(id, 1), expected);
        assert_eq!(cluster.partition_bytes(id, 1), cluster.partition_bytes(1, 1));
    }
}

#[test]
fn after_a_leader_is_killed_the_next_ack_comes_within_two_seconds_and_nothing_is_lost() {
    let mut cluster = Cluster::three();
    cluster.create(1, &[1, 2, 3]);
    for number in 0..20 {
        cluster.append(1, format!("{number}").as_bytes());
    }
    let old = cluster.leader(1);
    cluster.node_mut(old.on).kill_process();
    let killed = Instant::now();
    let appended = cluster.append(1, b"after");
    assert!(
        killed.elapsed() < Duration::from_secs(2),
        "took {:?}",
        killed.elapsed()
    );
    assert_eq!(appended.base_sequence, sequence(21));
    let new = cluster.leader(1);
    assert_ne!(new.on, old.on);
    assert_eq!(cluster.messages(new.on, 1).len(), 21);
    // The old leader comes back as a follower with the same messages.
    cluster.start(old.on);
    cluster.until_applied(1, sequence(22));
    assert_eq!(cluster.messages(old.on, 1), cluster.messages(new.on, 1));
}

#[test]
fn survivors_do_not_wait_for_the_lease_of_a_leader_whose_process_is_gone() {
    // With these times an election needs 9 s or more.
    let options = HostOptions {
        election_timeout_min: Duration::from_secs(4),
        election_timeout_max: Duration::from_secs(5),
        ..HostOptions::for_tests()
    };
    let mut cluster = Cluster::new(3, options, 1);
    cluster.create(1, &[1, 2, 3]);
    cluster.append(1, b"x");
    cluster.until_applied(1, sequence(2));
    let old = cluster.leader(1).on;
    cluster.node_mut(old).kill_process();
    let killed = Instant::now();
    assert_eq!(cluster.append(1, b"y").base_sequence, sequence(2));
    assert!(
        killed.elapsed() < Duration::from_secs(3),
        "took {:?}",
        killed.elapsed()
    );
}

#[test]
fn a_node_that_stops_in_order_hands_its_leaderships_over_first() {
    // Without takeover, a leadership that is not handed over is elected after 1.4 s at the earliest.
    let options = HostOptions {
        takeover: false,
        ..HostOptions::for_tests()
    };
    let mut cluster = Cluster::new(3, options, 1);
    for number in 1..=6 {
        cluster.create(number, &[1, 2, 3]);
    }
    for number in 1..=6 {
        cluster.append(number, b"x");
    }
    let stopped = cluster.leader(1).on;
    cluster.stop(stopped);
    let started = Instant::now();
    for number in 1..=6 {
        cluster.append(number, b"y");
    }
    assert!(
        started.elapsed() < Duration::from_millis(1200),
        "took {:?}",
        started.elapsed()
    );
    cluster.start(stopped);
    for number in 1..=6 {
        cluster.until_applied(number, sequence(3));
    }
}

#[test]
fn leadership_moves_to_the_replica_that_is_asked() {
    let mut cluster = Cluster::three();
    cluster.create(1, &[1, 2, 3]);
    cluster.append(1, b"x");
    let old = cluster.leader(1);
    let to = if old.on == 1 { 2 } else { 1 };
    let runtime = cluster.runtime(old.on);
    runtime
        .block_on(old.replica.transfer_leader(replica(to)))
        .unwrap();
    until("the other one leads", || {
        (cluster.leader(1).on == to).then_some(())
    });
    assert_eq!(cluster.append(1, b"y").base_sequence, sequence(2));
}

#[test]
fn a_proposal_of_an_old_term_or_on_a_follower_is_certainly_not_stored() {
    let mut cluster = Cluster::three();
    cluster.create(1, &[1, 2, 3]);
    cluster.append(1, b"x");
    let mut leader = cluster.leader(1);
    leader.term = ptah_types::Term(leader.term.0 - 1);
    assert!(matches!(
        leader.propose(b"late"),
        Err(ProposeError::NotLeader { .. })
    ));
    let follower = if leader.on == 1 { 2 } else { 1 };
    let replica = cluster.replica(follower, 1);
    let refused = replica.propose_barrier(
        replica.leadership().term,
        Box::new(|_| panic!("must not be called")),
    );
    assert_eq!(
        refused,
        Err(ProposeError::NotLeader {
            leader: Some(node(leader.on))
        })
    );
}

#[test]
fn a_batch_behind_a_lost_one_is_void_and_a_barrier_makes_a_new_beginning() {
    let mut cluster = Cluster::new(1, HostOptions::for_tests(), 1);
    cluster.create(1, &[1]);
    cluster.append(1, b"one");
    let mut leader = cluster.leader(1);
    // The sequencer stamps a message that is never proposed, as when openraft refuses one in the middle of a pipeline.
    let lost = ptah_partition::BatchStamp {
        base_sequence: sequence(3),
        count: 1,
        timestamp: ptah_types::Timestamp(9),
        session: None,
    };
    let batch = common::batch_of(b"behind");
    let (tell, answer) = std::sync::mpsc::channel();
    leader
        .replica
        .propose_batch(
            leader.term,
            &lost,
            batch.payload,
            batch.crc,
            Box::new(move |r| tell.send(r).unwrap()),
        )
        .unwrap();
    assert_eq!(committed(&answer), Err(ProposeError::Superseded));
    let (tell, answer) = std::sync::mpsc::channel();
    let done = Box::new(move |r| tell.send(r).unwrap());
    leader.replica.propose_barrier(leader.term, done).unwrap();
    answer.recv_timeout(common::PATIENCE).unwrap().unwrap();
    assert_eq!(leader.append(b"two").unwrap().base_sequence, sequence(2));
    assert_eq!(cluster.messages(1, 1).len(), 2);
}

#[test]
fn a_batch_that_its_session_refuses_is_not_taken_and_no_replica_is_hurt() {
    let mut cluster = Cluster::three();
    cluster.create(1, &[1, 2, 3]);
    cluster.append(1, b"one");
    let leader = cluster.leader(1);
    // Number 1 of the session was lost on the way; the sequence of number 2 fits all the same.
    let stamp = ptah_partition::BatchStamp {
        base_sequence: sequence(2),
        count: 1,
        timestamp: ptah_types::Timestamp(9),
        session: ptah_partition::SessionNumber::new(ptah_types::SessionId::new(7).unwrap(), 2),
    };
    let batch = common::batch_of(b"two");
    let (tell, answer) = std::sync::mpsc::channel();
    let done = Box::new(move |r| tell.send(r).unwrap());
    leader
        .replica
        .propose_batch(leader.term, &stamp, batch.payload, batch.crc, done)
        .unwrap();
    assert_eq!(committed(&answer), Err(ProposeError::Superseded));
    let next = cluster.append(1, b"two").base_sequence;
    assert_eq!(next, sequence(2));
    cluster.until_applied(1, sequence(3));
    for id in 1..=3 {
        assert_eq!(cluster.state_of(id, 1), ReplicaState::Running);
        assert_eq!(cluster.counter(id, "ptah_disagreements_total"), 0);
    }
}

#[test]
fn a_new_replica_learns_and_an_old_one_leaves() {
    let mut cluster = Cluster::new(4, HostOptions::for_tests(), 1);
    cluster.create(1, &[1, 2, 3]);
    for number in 0..50 {
        cluster.append(1, format!("{number}").as_bytes());
    }
    let gone = if cluster.leader(1).on == 3 { 2 } else { 3 };
    let staying: Vec<u64> = (1..=3).filter(|id| *id != gone).collect();
    let mut newcomer = spec(1, 4, &[1, 2, 3]);
    newcomer.initialize = false;
    cluster.ensure(newcomer, 4);
    settle(&cluster, &[staying[0], staying[1], 4]);
    cluster.remove(1, gone);
    assert!(cluster.host(gone).replicas().is_empty());
    let appended = cluster.append(1, b"after");
    until("the newcomer has everything", || {
        (cluster.messages(4, 1).len() as u64 == appended.base_sequence.get()).then_some(())
    });
    let status = cluster.replica(4, 1).status();
    assert!(status.voters.contains(&(replica(4), node(4))), "{status:?}");
    assert!(!status.voters.iter().any(|(id, _)| *id == replica(gone)));
}

#[test]
fn one_replica_becomes_three_and_one_again_on_another_node_than_it_was() {
    let mut cluster = Cluster::new(3, HostOptions::for_tests(), 1);
    cluster.create(1, &[1]);
    for number in 0..50 {
        cluster.append(1, format!("{number}").as_bytes());
    }
    for id in [2, 3] {
        let mut newcomer = spec(1, id, &[1]);
        newcomer.initialize = false;
        cluster.ensure(newcomer, id);
    }
    settle(&cluster, &[1, 2, 3]);
    let three = cluster.append(1, b"three");
    assert_eq!(cluster.leader(1).on, 1);
    // The leader itself leaves: it hands over first, and the group goes on.
    settle(&cluster, &[3]);
    let one = cluster.append(1, b"one");
    assert_eq!(one.base_sequence.get(), three.base_sequence.get() + 1);
    let leader = cluster.leader(1);
    assert_eq!(leader.on, 3);
    assert_eq!(leader.replica.status().voters, [(replica(3), node(3))]);
    cluster.remove(1, 1);
    cluster.remove(1, 2);
    assert_eq!(cluster.messages(3, 1).len() as u64, one.base_sequence.get());
}

#[test]
fn only_the_replica_that_left_is_removed() {
    let mut cluster = Cluster::new(1, HostOptions::for_tests(), 1);
    cluster.create(1, &[1]);
    cluster.leader(1);
    let host = cluster.host(1);
    let runtime = cluster.runtime(1);
    runtime
        .block_on(host.remove_replica(group(1), replica(2)))
        .unwrap();
    assert_eq!(cluster.state_of(1, 1), ReplicaState::Running);
    runtime
        .block_on(host.remove_replica(group(1), replica(1)))
        .unwrap();
    assert!(cluster.host(1).replicas().is_empty());
    runtime
        .block_on(host.remove_replica(group(1), replica(1)))
        .unwrap();
}

/// Drives group 1 until these replicas, each on the node of its number, are its voters.
fn settle(cluster: &Cluster, voters: &[u64]) {
    let wanted: Vec<_> = voters.iter().map(|id| (replica(*id), node(*id))).collect();
    until("the members are as wanted", || {
        let leader = cluster.leader(1);
        let step = cluster
            .runtime(leader.on)
            .block_on(leader.replica.step_members(&wanted));
        (step.ok() == Some(MembersStep::Settled)).then_some(())
    });
}

#[test]
fn a_replica_whose_disk_was_lost_is_reported_and_never_made_anew() {
    let mut fresh = Cluster::new(1, HostOptions::for_tests(), 2);
    let mut lost = spec(5, 1, &[1]);
    lost.opened = true;
    fresh.ensure(lost, 1);
    until("it is reported as lost", || {
        (fresh.state_of(1, 5) == ReplicaState::Lost).then_some(())
    });
    assert!(fresh.replica(1, 5).status().trouble.is_some());
}

#[test]
fn a_group_that_nobody_asks_for_is_kept_and_reported() {
    let mut cluster = Cluster::new(1, HostOptions::for_tests(), 1);
    cluster.create(1, &[1]);
    cluster.append(1, b"x");
    cluster.stop(1);
    let specs = cluster.node_mut(1).forget_specs();
    cluster.start(1);
    let statuses = cluster.host(1).replicas();
    assert_eq!(statuses.len(), 1);
    assert_eq!(statuses[0].state, ReplicaState::Unclaimed);
    assert_eq!(statuses[0].replica, Some(replica(1)));
    for spec in specs {
        cluster.ensure(spec, 1);
    }
    assert_eq!(cluster.append(1, b"y").base_sequence, sequence(2));
}

#[test]
fn watchers_see_every_group_first_and_changes_later() {
    let mut cluster = Cluster::new(1, HostOptions::for_tests(), 1);
    cluster.create(1, &[1]);
    cluster.leader(1);
    let mut watch = cluster.host(1).watch_leaders();
    cluster.create(2, &[1]);
    cluster.leader(2);
    let runtime = cluster.runtime(1);
    let first = runtime.block_on(watch.next()).unwrap();
    assert_eq!(
        first.iter().map(|row| row.group).collect::<Vec<_>>(),
        [group(1), group(2)]
    );
    assert!(first.iter().all(|row| row.leadership.leader == Some(node(1))));
    cluster.create(3, &[1]);
    cluster.leader(3);
    let later = cluster.runtime(1).block_on(watch.next()).unwrap();
    assert!(later.iter().all(|row| row.group == group(3)));
}
