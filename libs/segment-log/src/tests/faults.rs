//! Disks that fail or are full.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use ptah_types::{LogIndex, Term};

use super::harness::*;
use crate::testing::{batch, batch_of, group_id, log_id, spec};
use crate::types::{CommitOutcome, LargeOutcome, RoundLimit, VoteRecord, Work};
use crate::{GroupLog, Options, RefusedReason, SimDisk, SimFault, SimOp, Store};

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

/// Appends one frame to `group`, if it is taken.
fn try_append(store: &Store, group: &Arc<GroupLog>, len: usize) -> Result<(), RefusedReason> {
    let index = group.last_log_id().map_or(0, |last| last.index.0 + 1);
    let (number, base) = (group.spec().group.get(), group.next_sequence().get());
    let outcome = Outcome::default();
    let taken = group.append(vec![batch_of(number, 1, index, base, 1, len)], outcome.done());
    settle(store);
    assert!(taken.is_err() || outcome.is_ok());
    taken.map_err(|refused| refused.reason)
}

fn entries(group: &Arc<GroupLog>) -> u64 {
    let end = group.last_log_id().unwrap().index.next();
    let mut at = LogIndex(0);
    while at < end {
        at = group.read(at, end, 99_999).unwrap().last().unwrap().index.next();
    }
    at.0
}

#[test]
fn a_group_whose_files_cannot_be_written_for_long_loses_nothing_and_goes_on_later() {
    for error in [io::ErrorKind::StorageFull, io::ErrorKind::Other] {
        let disk = SimDisk::new(1);
        let options = Options {
            max_wal_bytes: 1 << 20,
            ..tiny()
        };
        let mut store = open_with(&disk, options.clone()).unwrap();
        store.create_group(spec(1, 64 << 10)).unwrap();
        store.create_group(spec(2, 64 << 10)).unwrap();
        let group = |store: &Store, number| store.group(group_id(number)).unwrap();
        try_append(&store, &group(&store, 1), 100).unwrap();
        disk.inject(fault(SimOp::Write, "0000000000000001/d1/m-", error));
        // The other group goes on until the log is full: it cannot be recycled without losing the first group's frames.
        let reason = (0..1_000).find_map(|_| {
            store.checkpoint_round(RoundLimit::default()).unwrap();
            try_append(&store, &group(&store, 2), 3_000).err()
        });
        assert!(
            matches!(reason, Some(RefusedReason::WouldExceed { .. })),
            "{reason:?}"
        );
        assert!((7..=9).contains(&store.stats().wal_files), "{:?}", store.stats());
        let refused = try_append(&store, &group(&store, 1), 10).unwrap_err();
        assert!(matches!(refused, RefusedReason::Unwritable { .. }), "{refused}");
        for restart in [true, false] {
            if restart {
                drop(store);
                disk.restart();
                store = open_with(&disk, options.clone()).unwrap();
            } else {
                disk.clear_faults();
            }
            let report = store.checkpoint_round(RoundLimit::default()).unwrap();
            assert_eq!(report.failed.len(), usize::from(restart));
            assert_eq!(entries(&group(&store, 1)), 1);
        }
        let before = entries(&group(&store, 2));
        for number in 1..=2 {
            try_append(&store, &group(&store, number), 10).unwrap();
        }
        drop(store);
        power_cycle(&disk);
        let store = open(&disk);
        assert_eq!(entries(&group(&store, 1)), 2);
        assert_eq!(entries(&group(&store, 2)), before + 1);
    }
}

#[test]
fn a_group_that_is_held_up_goes_on_with_the_round_that_writes_it() {
    let disk = SimDisk::new(1);
    let options = Options {
        unflushed_bytes: 100_000,
        ..tiny()
    };
    let store = open_with(&disk, options).unwrap();
    let rooms = Arc::new(AtomicUsize::new(0));
    let counter = rooms.clone();
    store.set_waker(Arc::new(move |work| {
        counter.fetch_add(usize::from(work == Work::Room), Ordering::SeqCst);
    }));
    let sick = store.create_group(spec(1, 64 << 10)).unwrap();
    let well = store.create_group(spec(2, 64 << 10)).unwrap();
    disk.inject(fault(SimOp::Sync, "0000000000000001/d1/m-", io::ErrorKind::Other));
    // It must not take all the memory for unflushed frames from the others.
    let reason = (0..1_000).find_map(|_| {
        store.checkpoint_round(RoundLimit::default()).unwrap();
        try_append(&store, &sick, 3_000).err()
    });
    assert!(
        matches!(reason, Some(RefusedReason::Unwritable { .. })),
        "{reason:?}"
    );
    for _ in 0..100 {
        try_append(&store, &well, 3_000).unwrap();
        store.checkpoint_round(RoundLimit::default()).unwrap();
    }
    disk.clear_faults();
    assert!(try_append(&store, &sick, 10).is_err());
    let told = rooms.load(Ordering::SeqCst);
    store.checkpoint_round(RoundLimit::default()).unwrap();
    assert_eq!(rooms.load(Ordering::SeqCst), told + 1);
    try_append(&store, &sick, 10).unwrap();
}

#[test]
fn a_group_whose_segment_is_damaged_does_not_hold_the_log_for_ever() {
    let disk = SimDisk::new(1);
    let options = Options {
        max_wal_bytes: 1 << 20,
        open_files: 1,
        ..tiny()
    };
    let store = open_with(&disk, options).unwrap();
    let sick = store.create_group(spec(1, 64 << 10)).unwrap();
    let well = store.create_group(spec(2, 64 << 10)).unwrap();
    for group in [&sick, &well] {
        try_append(&store, group, 100).unwrap();
        store.checkpoint_round(RoundLimit::default()).unwrap();
    }
    assert!(disk.flip_bit(&files(&disk, "0000000000000001/d1/m-")[0], 3));
    try_append(&store, &sick, 100).unwrap();
    for n in 0..1000 {
        try_append(&store, &well, 3_000).unwrap();
        if n % 10 == 0 {
            store.checkpoint_round(RoundLimit::default()).unwrap();
        }
    }
    assert!(store.stats().wal_files <= 7, "{:?}", store.stats());
    assert!(matches!(
        store.groups()[0].condition,
        crate::GroupCondition::Damaged(_)
    ));
    assert!(matches!(
        try_append(&store, &sick, 10),
        Err(RefusedReason::Failed(_))
    ));
    drop((sick, well, store));
    power_cycle(&disk);
    let store = open(&disk);
    assert!(store.group(group_id(1)).is_none() && store.group(group_id(2)).is_some());
}

#[test]
fn a_start_that_must_flush_and_cannot_damages_no_group() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    for _ in 0..40 {
        try_append(&store, &group, 9_000).unwrap();
    }
    drop((group, store));
    disk.restart();
    let small = Options {
        unflushed_bytes: 50_000,
        recent_bytes: 10_000,
        ..tiny()
    };
    disk.inject(fault(SimOp::Write, "/m-", io::ErrorKind::StorageFull));
    let refused = open_with(&disk, small.clone()).unwrap_err();
    assert!(matches!(refused, crate::OpenError::Io { .. }), "{refused}");
    disk.clear_faults();
    let store = open_with(&disk, small).unwrap();
    assert_eq!(entries(&store.group(group_id(1)).unwrap()), 40);
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
