//! What passes does not end a replica: full disks, and errors of the operating system.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use std::time::Duration;

use common::{Cluster, committed, group, sequence, until};
use ptah_partition::{Applied, Command, GroupSpec};
use ptah_raft::{HostOptions, ProposeError, ReplicaState};
use ptah_segment_log::{SimDisk, SimFault, SimOp};
use ptah_types::{ConsumerGroupId, StartAt};

const RESERVE: u64 = 8 << 20;

fn with_reserve() -> HostOptions {
    let mut options = HostOptions::for_tests();
    options.store.reserve_bytes = Some(RESERVE);
    options
}

/// Leaves so many bytes on a disk.
fn leave(disk: &SimDisk, bytes: u64) {
    let files = disk.files();
    let used: usize = files
        .iter()
        .filter_map(|path| disk.contents(path))
        .map(|c| c.len())
        .sum();
    disk.set_capacity(used as u64 + bytes);
}

fn until_full(cluster: &Cluster, id: u64, full: bool) {
    until("the node has looked at its disk", || {
        (cluster.host(id).disk_space().refusing == full).then_some(())
    });
}

#[test]
fn a_replica_that_cannot_be_opened_for_long_heals_when_it_can() {
    let options = HostOptions {
        restart_pause_max: Duration::from_millis(40),
        ..HostOptions::for_tests()
    };
    let mut cluster = Cluster::new(1, options, 1);
    cluster.create(1, &[1]);
    for number in 1..=20_u8 {
        cluster.append(1, &[number; 2000]);
    }
    cluster.stop(1);
    let specs = cluster.node_mut(1).forget_specs();
    cluster.start(1);
    let disk = cluster.node(1).disk.clone();
    for op in [SimOp::Open, SimOp::Read] {
        disk.inject(SimFault {
            op,
            path_contains: group(1).to_hex(),
            after: 0,
            times: u64::MAX,
            error: std::io::ErrorKind::Other,
        });
    }
    for spec in specs {
        cluster.ensure(spec, 1);
    }
    until("it was opened again many times", || {
        let status = cluster.replica(1, 1).status();
        assert_ne!(status.state, ReplicaState::Failed, "it may still heal");
        (status.restarts > 40).then_some(())
    });
    assert!(cluster.replica(1, 1).status().trouble.is_some(), "it says why");
    disk.clear_faults();
    assert_eq!(cluster.append(1, b"x").base_sequence, sequence(21));
    assert_eq!(cluster.state_of(1, 1), ReplicaState::Running);
}

#[test]
fn a_follower_whose_disk_is_full_says_so_lives_on_and_catches_up_when_there_is_room() {
    let mut cluster = Cluster::new(3, with_reserve(), 1);
    cluster.create(1, &[1, 2, 3]);
    cluster.append(1, b"x");
    cluster.until_applied(1, sequence(2));
    let leader = cluster.leader(1);
    let full = if leader.on == 3 { 2 } else { 3 };
    let disk = cluster.node(full).disk.clone();
    leave(&disk, RESERVE - 1);
    until_full(&cluster, full, true);
    for number in 2..=50_u64 {
        assert_eq!(cluster.append(1, &[1; 1000]).base_sequence, sequence(number));
    }
    let waiting = until("the replica says what it waits for", || {
        let status = cluster.replica(full, 1).status();
        status.trouble.is_some().then_some(status)
    });
    assert!(waiting.trouble.unwrap().contains("disk"));
    assert_eq!(
        (waiting.state, waiting.next_sequence),
        (ReplicaState::Running, sequence(2))
    );
    assert_eq!(cluster.leader(1).term, leader.term, "it still hears the leader");
    disk.set_capacity(u64::MAX / 2);
    cluster.until_applied(1, sequence(51));
    let healed = until("the replica waits no more", || {
        let status = cluster.replica(full, 1).status();
        status.trouble.is_none().then_some(status)
    });
    assert_eq!((healed.state, healed.restarts), (ReplicaState::Running, 0));
}

#[test]
fn on_full_disks_a_leader_is_elected_and_commands_go_on_while_messages_are_refused() {
    let mut cluster = Cluster::new(3, with_reserve(), 1);
    cluster.create(1, &[1, 2, 3]);
    cluster.append(1, b"x");
    cluster.until_applied(1, sequence(2));
    let old = cluster.leader(1).on;
    for id in 1..=3 {
        leave(&cluster.node(id).disk, RESERVE * 3 / 4);
    }
    for id in 1..=3 {
        until_full(&cluster, id, true);
    }
    // A leader that has not looked at its disk yet takes the message into its log, without content.
    cluster.node_mut(old).kill_process();
    let mut leader = cluster.leader(1);
    assert_ne!(leader.on, old);
    assert_eq!(leader.append(b"refused"), Err(ProposeError::DiskFull));
    let consumers = ConsumerGroupId::new(1).unwrap();
    let spec = GroupSpec {
        name: "readers".parse().unwrap(),
        start: StartAt::First,
        ack_deadline_ms: 30_000,
        max_in_flight: 1000,
    };
    let ensure = Command::EnsureGroup {
        group: consumers,
        spec,
    };
    assert_eq!(
        leader.command(&[ensure]).unwrap(),
        [Applied::GroupEnsured {
            created: true,
            changed: false
        }]
    );
    for id in 1..=3 {
        cluster.node(id).disk.set_capacity(u64::MAX / 2);
    }
    cluster.start(old);
    assert_eq!(cluster.append(1, b"y").base_sequence, sequence(2));
    cluster.until_applied(1, sequence(3));
    for id in 1..=3 {
        assert_eq!(cluster.replica(id, 1).status().restarts, 0, "node {id}");
    }
}

#[test]
fn a_message_that_finds_no_room_at_the_last_moment_is_refused_and_nothing_of_it_is_stored() {
    let mut cluster = Cluster::new(1, with_reserve(), 1);
    cluster.create(1, &[1]);
    cluster.append(1, b"x");
    // More than what is looked at once; the host itself looks once a second.
    let disk = cluster.node(1).disk.clone();
    let mut leader = cluster.leader(1);
    leave(&disk, RESERVE + (64 << 10));
    until("the store knows how much is left", || {
        let space = cluster.host(1).disk_space();
        (space.available_bytes < RESERVE * 2).then_some(())
    });
    let answers: Vec<_> = (0..100).filter_map(|_| leader.propose(&[7; 4000]).ok()).collect();
    let results: Vec<_> = answers.iter().map(committed).collect();
    let stored = results.iter().filter(|result| result.is_ok()).count() as u64;
    assert!(results.contains(&Err(ProposeError::DiskFull)), "{results:?}");
    let rest = [ProposeError::DiskFull, ProposeError::Superseded];
    assert!(
        results
            .iter()
            .flat_map(|result| result.as_ref().err())
            .all(|error| rest.contains(error))
    );
    assert_eq!(cluster.replica(1, 1).status().next_sequence, sequence(stored + 2));
    disk.set_capacity(u64::MAX / 2);
    until_full(&cluster, 1, false);
    assert_eq!(cluster.append(1, b"y").base_sequence, sequence(stored + 2));
    assert_eq!(cluster.state_of(1, 1), ReplicaState::Running);
}
