//! A process that dies while the power stays on, and a power cut afterwards: what was read at the start counts as durable.

use std::io;

use bytes::Bytes;
use ptah_types::{LogIndex, Term};

use super::harness::*;
use crate::testing::{batch, batch_of, group_id, log_id, spec};
use crate::types::{CommitOutcome, GroupCondition, LargeOutcome, RoundLimit, VoteRecord};
use crate::{Options, SimDisk, SimFault, SimOp, Store};

fn one_failed_sync(disk: &SimDisk, path: &str) {
    disk.inject(SimFault {
        op: SimOp::Sync,
        path_contains: path.to_owned(),
        after: 0,
        times: 1,
        error: io::ErrorKind::Other,
    });
}

fn vote(term: u64) -> VoteRecord {
    VoteRecord {
        term: Term(term),
        voted_for: None,
        committed: true,
    }
}

/// Fills the write-ahead log from group 9, with rounds, until nothing of before is in it.
fn roll(store: &Store) {
    let filler = match store.group(group_id(9)) {
        Some(group) => group,
        None => store.create_group(spec(9, 64 << 10)).unwrap(),
    };
    let recycled = store.stats().recycled_files;
    while store.stats().recycled_files < recycled + 4 {
        for _ in 0..10 {
            let index = filler.last_log_id().map_or(0, |last| last.index.0 + 1);
            let base = filler.next_sequence().get();
            append_now(store, &filler, vec![batch_of(9, 1, index, base, 1, 9_000)]);
        }
        store.checkpoint_round(RoundLimit::default()).unwrap();
    }
}

fn check_healthy(store: &Store) {
    for info in store.groups() {
        assert_eq!(info.condition, GroupCondition::Healthy, "{}", info.group);
    }
}

#[test]
fn a_unit_whose_sync_failed_is_durable_once_it_was_recovered() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    append_now(&store, &group, vec![batch(1, 0, 1, 1, 100)]);
    one_failed_sync(&disk, ".wal");
    let failed = append(&group, vec![batch(1, 1, 2, 1, 100)]);
    assert!(matches!(store.commit_pending(), CommitOutcome::Failed(_)));
    assert!(failed.is_err());
    drop((group, store));
    disk.restart();
    // Again and again: every start has only the page cache to rely on.
    for _ in 0..3 {
        let store = open(&disk);
        let group = store.group(group_id(1)).unwrap();
        assert_eq!(group.flushed_log_id(), Some(log_id(1, 1)));
        drop((group, store));
        disk.restart();
    }
    assert!(files(&disk, ".wal").len() <= 2, "a start leaves no file behind");
    power_cycle(&disk);
    let store = open(&disk);
    check_healthy(&store);
    let group = store.group(group_id(1)).unwrap();
    assert_eq!(
        group.last_log_id(),
        Some(log_id(1, 1)),
        "it was counted as durable"
    );
    append_now(&store, &group, vec![batch(1, 2, 3, 1, 100)]);
}

#[test]
fn a_meta_slot_whose_sync_failed_is_not_relied_on_after_a_restart() {
    for kill in [false, true] {
        let disk = SimDisk::new(3);
        let store = open(&disk);
        let group = store.create_group(spec(1, 64 << 10)).unwrap();
        for term in 1..4 {
            group.save_vote(vote(term), Outcome::default().done());
            settle(&store);
            if term == 3 && kill {
                // Create, write; the sync does not happen any more.
                disk.crash_after_writes(3);
            } else if term == 3 {
                one_failed_sync(&disk, "meta.");
            }
            drop(store.checkpoint_round(RoundLimit::default()));
        }
        drop((group, store));
        disk.clear_faults();
        disk.restart();
        let store = open(&disk);
        assert_eq!(store.group(group_id(1)).unwrap().vote(), Some(vote(3)));
        roll(&store);
        drop(store);
        power_cycle(&disk);
        let store = open(&disk);
        check_healthy(&store);
        assert_eq!(store.group(group_id(1)).unwrap().vote(), Some(vote(3)));
    }
}

#[test]
fn a_slot_that_may_be_lost_is_written_again_before_the_other_one_is_touched() {
    for seed in 0..24 {
        let disk = SimDisk::new(seed);
        let store = open(&disk);
        let group = store.create_group(spec(1, 64 << 10)).unwrap();
        let save = |group: &std::sync::Arc<crate::GroupLog>, store: &Store, term| {
            let saved = Outcome::default();
            group.save_vote(vote(term), saved.done());
            settle(store);
            assert!(saved.is_ok());
        };
        for term in 1..4 {
            save(&group, &store, term);
            if term == 3 {
                one_failed_sync(&disk, "meta.");
            }
            store.checkpoint_round(RoundLimit::default()).unwrap();
            if term == 2 {
                // Nothing of before is in the log: it does not lead from the slot before this one to the next.
                roll(&store);
            }
        }
        drop((group, store));
        disk.restart();
        let store = open(&disk);
        save(&store.group(group_id(1)).unwrap(), &store, 4);
        disk.crash_after_writes(1 + seed % 6);
        drop(store.checkpoint_round(RoundLimit::default()));
        drop(store);
        power_cycle(&disk);
        let store = open(&disk);
        check_healthy(&store);
        assert_eq!(
            store.group(group_id(1)).unwrap().vote(),
            Some(vote(4)),
            "seed {seed}"
        );
    }
}

#[test]
fn a_segment_whose_sync_failed_is_written_again_with_its_header() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    append_now(&store, &group, vec![batch(1, 0, 1, 1, 100)]);
    one_failed_sync(&disk, "/m-");
    let report = store.checkpoint_round(RoundLimit::default()).unwrap();
    assert_eq!(report.failed.len(), 1);
    let report = store.checkpoint_round(RoundLimit::default()).unwrap();
    assert_eq!((report.groups, report.failed.len()), (1, 0));
    drop((group, store));
    power_cycle(&disk);
    let store = open(&disk);
    check_healthy(&store);
    let group = store.group(group_id(1)).unwrap();
    assert_eq!(group.read(LogIndex(0), LogIndex(1), 1).unwrap().len(), 1);
}

#[test]
fn a_failed_sync_of_its_segment_starts_a_large_frame_again() {
    let disk = SimDisk::new(1);
    let options = Options {
        queue_bytes: 8 << 20,
        unflushed_bytes: 8 << 20,
        ..tiny()
    };
    let store = open_with(&disk, options).unwrap();
    let group = store.create_group(spec(1, 64 << 20)).unwrap();
    append_now(&store, &group, vec![batch(1, 0, 1, 1, 100)]);
    let frame = batch(1, 1, 2, 1, 3 << 20);
    let large = append(&group, vec![frame.clone()]);
    assert_eq!(store.write_large_pending(), LargeOutcome::Progress);
    one_failed_sync(&disk, "/m-");
    let report = store.checkpoint_round(RoundLimit::default()).unwrap();
    assert_eq!(report.failed.len(), 1);
    settle(&store);
    assert!(large.is_ok());
    drop((group, store));
    power_cycle(&disk);
    let store = open(&disk);
    check_healthy(&store);
    let group = store.group(group_id(1)).unwrap();
    assert_eq!(group.read(LogIndex(1), LogIndex(2), 1).unwrap(), vec![frame]);
}

#[test]
fn a_process_that_dies_at_any_write_leaves_what_the_next_one_finds() {
    for cut in 1..400 {
        let disk = SimDisk::new(cut);
        let store = open(&disk);
        disk.crash_after_writes(cut);
        let _ = live(&store);
        let finished = !disk.is_off();
        drop(store);
        disk.restart();
        let store = open(&disk);
        check_healthy(&store);
        let found = store.group(group_id(1)).map(|group| {
            (
                group.vote(),
                group.last_log_id(),
                group.checkpoint_log_id(),
                group.last_purged(),
            )
        });
        drop(store);
        power_cycle(&disk);
        let store = open(&disk);
        check_healthy(&store);
        let again = store.group(group_id(1)).map(|group| {
            (
                group.vote(),
                group.last_log_id(),
                group.checkpoint_log_id(),
                group.last_purged(),
            )
        });
        assert_eq!(again, found, "cut at {cut}");
        if finished {
            return;
        }
    }
    panic!("the life must end");
}

/// A group's life up to its first purge.
fn live(store: &Store) -> Option<()> {
    let group = store.create_group(spec(1, 8 << 10)).ok()?;
    group.save_vote(vote(1), Outcome::default().done());
    for n in 0..4 {
        group
            .append(vec![batch(1, n, n + 1, 1, 5_000)], Outcome::default().done())
            .ok()?;
        settle(store);
        store.checkpoint_round(RoundLimit::default()).ok()?;
    }
    group
        .write_checkpoint(log_id(1, 3), Bytes::from_static(b"state"))
        .ok()?;
    group.purge(log_id(1, 2), Outcome::default().done());
    settle(store);
    store.checkpoint_round(RoundLimit::default()).ok()?;
    Some(())
}
