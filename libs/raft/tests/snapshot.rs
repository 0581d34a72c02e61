//! Followers that are too far behind copy segments, whatever interrupts them, and logs stay small.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use bytes::{Bytes, BytesMut};
use common::{Cluster, Proxy, committed, group, sequence, until};
use ptah_partition::{Command, GroupSpec, RangeSet, SequenceRange};
use ptah_raft::HostOptions;
use ptah_segment_log::{Frame, FrameKind, SimOp};
use ptah_types::{ConsumerGroupId, StartAt};

/// Purges early, so that a follower that is away for a moment needs a snapshot.
fn eager() -> HostOptions {
    HostOptions {
        checkpoint_bytes: Some(16 << 10),
        keep_log_bytes: Some(32 << 10),
        hold_log_bytes: Some(64 << 10),
        ..HostOptions::for_tests()
    }
}

/// Appends messages of 1 KiB.
fn fill(cluster: &Cluster, count: usize) {
    let mut done = 0;
    while done < count {
        let mut leader = cluster.leader(1);
        let answers: Vec<_> = (0..32.min(count - done))
            .filter_map(|number| leader.propose(&vec![number as u8; 1024]).ok())
            .collect();
        done += answers.iter().filter(|answer| committed(answer).is_ok()).count();
    }
}

/// Every node holds the same messages and the same state.
fn assert_identical(cluster: &Cluster, nodes: &[u64]) {
    let leader = cluster.leader(1).on;
    let next = cluster.replica(leader, 1).with_partition(|p| p.next_sequence());
    cluster.until_applied(1, next);
    let expected = cluster.messages(leader, 1);
    assert_eq!(expected.len() as u64, next.get() - 1);
    for id in nodes {
        assert!(
            cluster.messages(*id, 1) == expected,
            "messages of node {id} differ"
        );
        let same = cluster.partition_bytes(*id, 1) == cluster.partition_bytes(leader, 1);
        assert!(same, "state of node {id} differs");
    }
}

/// Every batch frame in the files of a node, as bytes, by log index.
fn batch_frames(cluster: &Cluster, on: u64) -> BTreeMap<u64, Bytes> {
    let disk = &cluster.node(on).disk;
    let mut frames = BTreeMap::new();
    for path in disk.files() {
        let of_group = path.to_string_lossy().contains(&group(1).to_hex());
        if !of_group || path.extension().is_none_or(|end| end != "seg") {
            continue;
        }
        let mut bytes = Bytes::from(disk.contents(&path).unwrap()).slice(4096..);
        while let Ok(frame) = Frame::decode(&mut bytes) {
            let mut encoded = BytesMut::new();
            frame.encode_into(&mut encoded);
            if frame.kind == FrameKind::Batch {
                frames.insert(frame.index.0, encoded.freeze());
            }
        }
    }
    frames
}

/// Waits until the leader's log begins behind an index.
fn until_purged(cluster: &Cluster, index: u64) {
    until("the leader has purged its log", || {
        (cluster.leader(1).replica.status().first.0 > index).then_some(())
    });
}

fn snapshots_installed(cluster: &Cluster, on: u64) -> u64 {
    cluster.counter(on, "ptah_snapshots_installed_total")
}

#[test]
fn a_follower_behind_the_purge_point_copies_segments_and_is_identical() {
    let mut cluster = Cluster::new(3, eager(), 1);
    cluster.create(1, &[1, 2, 3]);
    fill(&cluster, 20);
    cluster.until_applied(1, sequence(21));
    let away = if cluster.leader(1).on == 3 { 2 } else { 3 };
    cluster.stop(away);
    fill(&cluster, 600);
    until_purged(&cluster, 400);
    cluster.start(away);
    assert_identical(&cluster, &[1, 2, 3]);
    assert!(
        snapshots_installed(&cluster, away) > 0,
        "the log was purged, only a snapshot helps"
    );
    // It takes part again: it can lead, and it has the log to do so.
    let leader = cluster.leader(1);
    let moving = leader.replica.transfer_leader(common::replica(away));
    cluster.runtime(leader.on).block_on(moving).unwrap();
    until("the follower leads", || {
        (cluster.leader(1).on == away).then_some(())
    });
    fill(&cluster, 10);
    assert_identical(&cluster, &[1, 2, 3]);
    for id in 1..=3 {
        cluster.stop(id);
    }
    let (one, copied) = (batch_frames(&cluster, 1), batch_frames(&cluster, away));
    assert_eq!(one.len(), 630);
    assert!(one == copied, "frames are equal, byte for byte");
}

/// Whether a path lies where group 1 builds an install; its first data directory is `d1`.
fn is_staging(path: &str) -> bool {
    let hex = group(1).to_hex();
    let inside = path.split_once(&format!("{hex}/d")).map(|(_, rest)| rest);
    inside.is_some_and(|rest| !rest.starts_with("1/") && rest != "1" && rest != "amaged")
}

/// Message segments of a node by name, without the header that names the node.
fn message_segments(cluster: &Cluster, on: u64) -> BTreeMap<String, Vec<u8>> {
    let disk = &cluster.node(on).disk;
    let of_group = |path: &std::path::PathBuf| path.to_string_lossy().contains(&group(1).to_hex());
    let mut segments = BTreeMap::new();
    for path in disk.files().into_iter().filter(of_group) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with('m') && name.ends_with(".seg") {
            segments.insert(name, disk.contents(&path).unwrap().split_off(4096));
        }
    }
    segments
}

/// Where the power goes off: so many writes behind the first call on a path like that.
struct Cut {
    behind: &'static str,
    writes: u64,
}

fn a_follower_loses_power_in_an_install(seed: u64, cut: &Cut) {
    let mut cluster = Cluster::new(3, eager(), seed);
    cluster.create(1, &[1, 2, 3]);
    fill(&cluster, 20);
    let away = if cluster.leader(1).on == 3 { 2 } else { 3 };
    cluster.until_applied(1, sequence(21));
    cluster.stop(away);
    fill(&cluster, 400);
    until_purged(&cluster, 200);
    let disk = cluster.node(away).disk.clone();
    let armed = Arc::new(AtomicBool::new(false));
    let (seen, on, behind, writes) = (Arc::clone(&armed), disk.clone(), cut.behind, cut.writes);
    disk.set_hook(Some(Arc::new(move |_, path| {
        let path = path.to_string_lossy();
        if is_staging(&path) && path.contains(behind) && !seen.swap(true, Ordering::SeqCst) {
            on.crash_after_writes(writes);
        }
    })));
    cluster.start(away);
    until("the power is off", || disk.is_off().then_some(()));
    assert!(armed.load(Ordering::SeqCst), "the cut fell into the install");
    assert_eq!(snapshots_installed(&cluster, away), 0, "and before its end");
    disk.set_hook(None);
    cluster.power_off(away);
    cluster.start(away);
    assert_identical(&cluster, &[1, 2, 3]);
    for id in 1..=3 {
        cluster.stop(id);
    }
    let leader = if away == 3 { 2 } else { 3 };
    let (kept, copied) = (
        message_segments(&cluster, leader),
        message_segments(&cluster, away),
    );
    assert!(copied.len() > 3, "whole segments were copied");
    assert_eq!(kept.keys().collect::<Vec<_>>(), copied.keys().collect::<Vec<_>>());
    for (name, bytes) in &kept {
        assert!(copied[name] == *bytes, "segment {name} differs");
    }
    assert!(batch_frames(&cluster, leader) == batch_frames(&cluster, away));
}

#[test]
fn a_follower_that_loses_power_while_it_copies_segments_is_identical_in_the_end() {
    for (seed, writes) in [(1, 1), (2, 3), (3, 7), (4, 12), (5, 18), (6, 24)] {
        a_follower_loses_power_in_an_install(seed, &Cut { behind: "", writes });
    }
}

#[test]
fn a_follower_that_loses_power_at_the_switch_of_an_install_is_identical_in_the_end() {
    for (seed, writes) in [(11, 1), (12, 2), (13, 3), (14, 4), (15, 5), (16, 6)] {
        let behind = "ckpt-";
        a_follower_loses_power_in_an_install(seed, &Cut { behind, writes });
    }
}

/// Stops the first call on a node's disk that `is_meant`, until it is let go.
struct Gate {
    disk: ptah_segment_log::SimDisk,
    state: Arc<(Mutex<GateState>, Condvar)>,
}

#[derive(Default)]
struct GateState {
    reached: bool,
    open: bool,
    /// Calls that `is_foreign` while the gate was closed.
    foreign: Vec<String>,
}

impl Gate {
    fn close(
        disk: &ptah_segment_log::SimDisk,
        is_meant: impl Fn(SimOp, &str) -> bool + Send + Sync + 'static,
        is_foreign: impl Fn(SimOp, &str) -> bool + Send + Sync + 'static,
    ) -> Self {
        let state = Arc::new((Mutex::new(GateState::default()), Condvar::new()));
        let seen = Arc::clone(&state);
        disk.set_hook(Some(Arc::new(move |op, path| {
            let path = path.to_string_lossy();
            let (state, opened) = &*seen;
            let mut state = state.lock().unwrap();
            if state.reached && !state.open && is_foreign(op, &path) {
                state.foreign.push(format!("{op:?} {path}"));
            }
            if !state.reached && is_meant(op, &path) {
                state.reached = true;
                drop(opened.wait_while(state, |state| !state.open).unwrap());
            }
        })));
        Self {
            disk: disk.clone(),
            state,
        }
    }

    fn is_reached(&self) -> bool {
        self.state.0.lock().unwrap().reached
    }

    fn foreign(&self) -> Vec<String> {
        self.state.0.lock().unwrap().foreign.clone()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.state.0.lock().unwrap().open = true;
        self.state.1.notify_all();
        self.disk.set_hook(None);
    }
}

#[test]
fn an_offer_that_comes_while_an_abandoned_one_is_being_installed_is_refused_and_touches_nothing() {
    let mut cluster = Cluster::new(3, eager(), 1);
    cluster.create(1, &[1, 2, 3]);
    fill(&cluster, 20);
    cluster.until_applied(1, sequence(21));
    let leader = cluster.leader(1).on;
    let away = if leader == 3 { 2 } else { 3 };
    cluster.stop(away);
    fill(&cluster, 400);
    until_purged(&cluster, 200);
    cluster.proxies.insert(away, Proxy::new());
    // Everything is copied; the switch has not begun.
    let disk = cluster.node(away).disk.clone();
    let gate = Gate::close(
        &disk,
        |op, path| op == SimOp::Open && is_staging(path) && path.contains("/ckpt-"),
        |op, path| op == SimOp::Name && is_staging(path) && !path.contains("ckpt-"),
    );
    cluster.start(away);
    until("an install is under way", || gate.is_reached().then_some(()));
    // The connection breaks and the call ends with it; the leader offers again.
    cluster.proxies[&away].cut();
    until("another offer has come", || {
        let refused = cluster.counter(away, "ptah_snapshots_refused_total") > 0;
        (refused || !gate.foreign().is_empty()).then_some(())
    });
    assert_eq!(gate.foreign(), Vec::<String>::new(), "the staging area is in use");
    drop(gate);
    assert_identical(&cluster, &[1, 2, 3]);
    // What is on disk is whole.
    cluster.stop(away);
    cluster.start(away);
    assert_identical(&cluster, &[1, 2, 3]);
}

#[test]
fn a_follower_that_is_close_keeps_the_log_and_one_that_is_gone_does_not() {
    let mut cluster = Cluster::new(3, eager(), 1);
    cluster.create(1, &[1, 2, 3]);
    fill(&cluster, 20);
    cluster.until_applied(1, sequence(21));
    let away = if cluster.leader(1).on == 3 { 2 } else { 3 };
    cluster.stop(away);
    // Less than what is held for a follower that is close.
    fill(&cluster, 40);
    cluster.start(away);
    assert_identical(&cluster, &[1, 2, 3]);
    assert_eq!(snapshots_installed(&cluster, away), 0);
}

#[test]
fn a_follower_takes_in_a_state_that_is_larger_than_one_message() {
    let mut cluster = Cluster::new(3, eager(), 1);
    cluster.create(1, &[1, 2, 3]);
    fill(&cluster, 20);
    cluster.until_applied(1, sequence(21));
    let away = if cluster.leader(1).on == 3 { 2 } else { 3 };
    cluster.stop(away);
    fill(&cluster, 3000);
    // Every second message is acknowledged, by a hundred groups.
    let every_second: RangeSet = (1..1500)
        .map(|place| SequenceRange::single(sequence(2 * place)))
        .collect();
    for number in 1..=100 {
        let consumers = ConsumerGroupId::new(number).unwrap();
        let spec = GroupSpec {
            name: format!("readers-{number}").parse().unwrap(),
            start: StartAt::First,
            ack_deadline_ms: 30_000,
            max_in_flight: 10_000,
        };
        let ranges = every_second.clone();
        let commands = [
            Command::EnsureGroup {
                group: consumers,
                spec,
            },
            Command::Ack {
                group: consumers,
                ranges,
            },
        ];
        until("the commands are applied", || {
            cluster.leader(1).command(&commands).ok()
        });
    }
    let piece = ptah_types::limits::FRAGMENT_BYTES;
    assert!(
        cluster.partition_bytes(cluster.leader(1).on, 1).len() > piece,
        "one message would do"
    );
    until_purged(&cluster, 2000);
    cluster.start(away);
    assert_identical(&cluster, &[1, 2, 3]);
    assert!(snapshots_installed(&cluster, away) > 0);
}

#[test]
fn a_station_that_is_only_acknowledged_does_not_grow() {
    let mut cluster = Cluster::new(1, eager(), 1);
    cluster.create(1, &[1]);
    fill(&cluster, 64);
    let mut leader = cluster.leader(1);
    let consumers = ConsumerGroupId::new(1).unwrap();
    let spec = GroupSpec {
        name: "readers".parse().unwrap(),
        start: StartAt::First,
        ack_deadline_ms: 30_000,
        max_in_flight: 1000,
    };
    leader
        .command(&[Command::EnsureGroup {
            group: consumers,
            spec,
        }])
        .unwrap();
    let ack = |place: u64| Command::Ack {
        group: consumers,
        ranges: [SequenceRange::single(sequence(place))]
            .into_iter()
            .collect::<RangeSet>(),
    };
    let disk = cluster.node(1).disk.clone();
    let command_bytes = || -> usize {
        disk.files()
            .iter()
            .filter(|path| path.to_string_lossy().contains(&group(1).to_hex()))
            .map(|path| disk.contents(path).map_or(0, |bytes| bytes.len()))
            .sum()
    };
    let before = command_bytes();
    // Ten segments of commands, if they stayed.
    let written: usize = 10 * common::SEGMENT_BYTES as usize;
    let each = 256 * 40;
    for turn in 0..(written / each) {
        let commands: Vec<Command> = (0..256).map(|n| ack((turn as u64 * 256 + n) % 60 + 1)).collect();
        leader.command(&commands).unwrap();
    }
    until("what was purged is deleted", || {
        let grown = command_bytes().saturating_sub(before);
        (grown <= 4 * common::SEGMENT_BYTES as usize).then_some(())
    });
    assert!(cluster.replica(1, 1).status().last.0 > 60);
}
