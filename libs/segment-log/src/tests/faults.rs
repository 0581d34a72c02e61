//! Disks that fail or are full.

use std::io;

use bytes::Bytes;
use ptah_types::{LogIndex, Term};

use super::harness::*;
use crate::testing::{batch, batch_of, group_id, log_id, spec};
use crate::types::{CommitOutcome, LargeOutcome, RoundLimit, VoteRecord};
use crate::{Options, RefusedReason, SimDisk, SimFault, SimOp};

fn fault(op: SimOp, path: &str, error: io::ErrorKind) -> SimFault {
    SimFault {
        op,
        path_contains: path.to_owned(),
        after: 0,
        times: u64::MAX,
        error,
    }
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_any_more() {
    for op in [SimOp::Sync, SimOp::Write] {
        let disk = SimDisk::new(1);
        let store = open(&disk);
        let group = store.create_group(spec(1, 8 << 10)).unwrap();
        append_now(&store, &group, vec![batch(1, 0, 1, 1, 100)]);
        let first = append(&group, vec![batch(1, 1, 2, 1, 100)]);
        // The sync works again afterwards: that must not help.
        disk.inject(SimFault {
            times: 1,
            ..fault(op, ".wal", io::ErrorKind::Other)
        });
        assert!(matches!(store.commit_pending(), CommitOutcome::Failed(_)));
        assert!(first.is_err());
        assert!(matches!(store.commit_pending(), CommitOutcome::Failed(_)));
        let refused = group
            .append(vec![batch(1, 2, 3, 1, 100)], Outcome::default().done())
            .unwrap_err();
        assert!(matches!(refused.reason, RefusedReason::Failed(_)));
        let vote = Outcome::default();
        group.save_vote(
            VoteRecord {
                term: Term(1),
                voted_for: None,
                committed: false,
            },
            vote.done(),
        );
        assert!(vote.is_err());
        assert!(store.failure().unwrap().contains("write-ahead log"));
        assert!(store.checkpoint_round(RoundLimit::default()).is_err());
        drop((group, store));
        power_cycle(&disk);
        let store = open(&disk);
        assert!(store.group(group_id(1)).unwrap().last_log_id() >= Some(log_id(1, 0)));
    }
}

#[test]
fn a_large_frame_that_cannot_be_written_fails_with_everything_behind_it() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    disk.inject(fault(SimOp::Sync, "/m-", io::ErrorKind::Other));
    let large = append(&group, vec![batch(1, 0, 1, 1, 14_000)]);
    let behind = append(&group, vec![batch(1, 1, 2, 1, 10)]);
    while store.write_large_pending() == LargeOutcome::Progress {}
    assert!(large.is_err() && behind.is_err());
    assert_eq!(store.pressure().queued_bytes, 0);
}

#[test]
fn a_group_whose_segment_cannot_be_written_keeps_its_log_and_others_go_on() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let sick = store.create_group(spec(1, 64 << 10)).unwrap();
    let well = store.create_group(spec(2, 64 << 10)).unwrap();
    append_now(&store, &sick, vec![batch(1, 0, 1, 1, 100)]);
    append_now(&store, &well, vec![batch_of(2, 1, 0, 1, 1, 100)]);
    disk.inject(fault(
        SimOp::Write,
        "0000000000000001/d1/m-",
        io::ErrorKind::Other,
    ));
    let report = store.checkpoint_round(RoundLimit::default()).unwrap();
    assert_eq!((report.groups, report.failed.len()), (1, 1));
    append_now(&store, &sick, vec![batch(1, 1, 2, 1, 100)]);
    disk.clear_faults();
    let report = store.checkpoint_round(RoundLimit::default()).unwrap();
    assert_eq!((report.groups, report.failed.len()), (1, 0));
    drop((sick, well, store));
    power_cycle(&disk);
    assert_eq!(
        open(&disk)
            .group(group_id(1))
            .unwrap()
            .read(LogIndex(0), LogIndex(9), 9999)
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn a_group_that_can_never_be_flushed_does_not_hold_the_log_for_ever() {
    let disk = SimDisk::new(1);
    let options = Options {
        max_wal_bytes: 1 << 20,
        ..tiny()
    };
    let store = open_with(&disk, options).unwrap();
    let sick = store.create_group(spec(1, 64 << 10)).unwrap();
    let well = store.create_group(spec(2, 64 << 10)).unwrap();
    append_now(&store, &sick, vec![batch(1, 0, 1, 1, 100)]);
    disk.inject(fault(
        SimOp::Write,
        "0000000000000001/d1/m-",
        io::ErrorKind::Other,
    ));
    for n in 0..1000 {
        let outcome = Outcome::default();
        well.append(vec![batch_of(2, 1, n, n + 1, 1, 3_000)], outcome.done())
            .unwrap();
        settle(&store);
        if n % 10 == 0 {
            store.checkpoint_round(RoundLimit::default()).unwrap();
        }
    }
    assert!(store.stats().wal_files <= 7, "{:?}", store.stats());
    let condition = store.groups()[0].condition.clone();
    assert!(
        matches!(condition, crate::GroupCondition::Damaged(_)),
        "it is given up and says so"
    );
    assert!(
        sick.append(vec![batch(1, 1, 2, 1, 10)], Outcome::default().done())
            .is_err()
    );
    drop((sick, well, store));
    power_cycle(&disk);
    let store = open(&disk);
    assert!(store.group(group_id(1)).is_none() && store.group(group_id(2)).is_some());
}

#[test]
fn appends_are_refused_before_the_disk_is_full_while_votes_and_checkpoints_still_fit() {
    let disk = SimDisk::new(1);
    let options = Options {
        reserve_bytes: Some(600_000),
        ..tiny()
    };
    disk.set_capacity(2_000_000);
    let store = open_with(&disk, options.clone()).unwrap();
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    let mut next = 0;
    let reason = loop {
        match group.append(
            vec![batch(1, next, next + 1, 1, 4_000)],
            Outcome::default().done(),
        ) {
            Ok(()) => next += 1,
            Err(refused) => break refused.reason,
        }
        settle(&store);
        store.checkpoint_round(RoundLimit::default()).unwrap();
    };
    assert!(matches!(reason, RefusedReason::DiskFull { .. }), "{reason}");
    assert!(next > 50 && store.failure().is_none());
    assert!(store.space().unwrap().available_bytes > 300_000);
    let vote = Outcome::default();
    group.save_vote(
        VoteRecord {
            term: Term(9),
            voted_for: None,
            committed: false,
        },
        vote.done(),
    );
    settle(&store);
    assert!(vote.is_ok());
    group
        .write_checkpoint(log_id(1, next - 1), Bytes::from(vec![1; 10_000]))
        .unwrap();
    store.checkpoint_round(RoundLimit::default()).unwrap();
    disk.set_capacity(9_000_000);
    append_now(&store, &group, vec![batch(1, next, next + 1, 1, 4_000)]);
}

#[test]
fn an_error_while_reading_is_told_and_may_be_retried() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    for n in 0..20 {
        append_now(&store, &group, vec![batch(1, n, n + 1, 1, 2_000)]);
    }
    store.checkpoint_round(RoundLimit::default()).unwrap();
    disk.inject(fault(SimOp::Read, "/m-", io::ErrorKind::Other));
    let error = group.read(LogIndex(0), LogIndex(5), 9999).unwrap_err();
    assert!(matches!(error, crate::ReadError::Io { .. }), "{error}");
    disk.clear_faults();
    assert!(group.read(LogIndex(0), LogIndex(5), 9999).is_ok());
    assert_eq!(group.condition(), crate::GroupCondition::Healthy);
}

#[test]
fn a_power_cut_between_the_data_of_a_large_frame_and_its_reference_leaves_no_trace() {
    let disk = SimDisk::new(4);
    let store = open(&disk);
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    append_now(&store, &group, vec![batch(1, 0, 1, 1, 100)]);
    let large = append(&group, vec![batch(1, 1, 2, 1, 14_000)]);
    while store.write_large_pending() == LargeOutcome::Progress {}
    assert!(large.is_open());
    drop((group, store));
    power_cycle(&disk);
    let store = open(&disk);
    let group = store.group(group_id(1)).unwrap();
    assert_eq!(group.last_log_id(), Some(log_id(1, 0)));
    // Something else takes its place.
    append_now(&store, &group, vec![batch(2, 1, 2, 3, 15_000)]);
    drop((group, store));
    power_cycle(&disk);
    let group = open(&disk).group(group_id(1)).unwrap();
    assert_eq!(
        group.read(LogIndex(1), LogIndex(2), 1).unwrap(),
        vec![batch(2, 1, 2, 3, 15_000)]
    );
}

#[test]
fn a_write_ahead_log_file_that_does_not_fit_leaves_nothing_behind() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    // The spare file goes into use; there is no room to make another one.
    append_now(&store, &group, vec![batch(1, 0, 1, 1, 100)]);
    let names = |part| files(&disk, part).len();
    let used: u64 = disk
        .files()
        .iter()
        .map(|path| disk.contents(path).unwrap().len() as u64)
        .sum();
    disk.set_capacity(used + 100_000);
    for _ in 0..3 {
        assert!(store.checkpoint_round(RoundLimit::default()).is_err());
        assert_eq!((names("/new-"), names("/spare-")), (0, 0));
    }
    disk.set_capacity(9_000_000);
    store.checkpoint_round(RoundLimit::default()).unwrap();
    assert_eq!((names("/new-"), names("/spare-")), (0, 1));
}
