//! A driver that panics: nobody waits for ever.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::harness::*;
use crate::testing::{batch, batch_of, identity, spec};
use crate::types::{CommitOutcome, RoundLimit};
use crate::{FlushDone, RefusedReason, SimDisk, SimOp, Store};

fn panic_at(disk: &SimDisk, panics: SimOp, part: &'static str) {
    disk.set_hook(Some(Arc::new(move |op: SimOp, path: &Path| {
        assert!(
            op != panics || !path.to_string_lossy().contains(part),
            "as the test wants"
        );
    })));
}

fn check_failed(store: &Store, group: &Arc<crate::GroupLog>, next: u64) {
    assert!(store.failure().is_some_and(|text| text.contains("panic")));
    let refused = group
        .append(vec![batch(1, next, next + 1, 1, 10)], Outcome::default().done())
        .unwrap_err();
    assert!(
        matches!(refused.reason, RefusedReason::Failed(_)),
        "{}",
        refused.reason
    );
    assert!(matches!(store.commit_pending(), CommitOutcome::Failed(_)));
}

#[test]
fn a_panic_while_a_unit_is_written_fails_everything_that_waits() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    let other = store.create_group(spec(2, 64 << 10)).unwrap();
    let in_unit = append(&group, vec![batch(1, 0, 1, 1, 100)]);
    let large = append(&other, vec![batch_of(2, 1, 0, 1, 1, 14_000)]);
    let behind_large = append(&other, vec![batch_of(2, 1, 1, 2, 1, 100)]);
    let later: Vec<_> = (1..9)
        .map(|n| append(&group, vec![batch(1, n, n + 1, 1, 9_000)]))
        .collect();
    panic_at(&disk, SimOp::Sync, ".wal");
    assert!(catch_unwind(AssertUnwindSafe(|| store.commit_pending())).is_err());
    disk.set_hook(None);
    assert!(in_unit.is_err(), "it was in the unit");
    assert!(later.iter().all(Outcome::is_err), "they were queued");
    assert!(large.is_err() && behind_large.is_err());
    check_failed(&store, &group, 9);
}

#[test]
fn a_panic_of_a_completion_fails_the_others() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    let bad: FlushDone = Box::new(|_| panic!("as the test wants"));
    group.append(vec![batch(1, 0, 1, 1, 100)], bad).unwrap();
    let after = append(&group, vec![batch(1, 1, 2, 1, 100)]);
    assert!(catch_unwind(AssertUnwindSafe(|| store.commit_pending())).is_err());
    assert!(after.is_err());
    check_failed(&store, &group, 2);
}

#[test]
fn a_panic_of_the_large_writer_or_of_a_round_stops_the_store() {
    for round in [false, true] {
        let disk = SimDisk::new(1);
        let store = open(&disk);
        let group = store.create_group(spec(1, 64 << 10)).unwrap();
        append_now(&store, &group, vec![batch(1, 0, 1, 1, 100)]);
        let large = append(&group, vec![batch(1, 1, 2, 1, 14_000)]);
        let behind = append(&group, vec![batch(1, 2, 3, 1, 100)]);
        panic_at(&disk, SimOp::Write, "/m-");
        let driver = || {
            if round {
                drop(store.checkpoint_round(RoundLimit::default()));
            } else {
                store.write_large_pending();
            }
        };
        assert!(catch_unwind(AssertUnwindSafe(driver)).is_err());
        disk.set_hook(None);
        assert!(large.is_err() && behind.is_err());
        check_failed(&store, &group, 3);
    }
}

#[test]
fn a_driver_thread_that_panics_leaves_no_append_waiting() {
    let disk = SimDisk::new(1);
    let store = Store::open(disk.as_disk(), &dir(), identity(), tiny()).unwrap();
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    panic_at(&disk, SimOp::Sync, ".wal");
    let _drivers = store.spawn_drivers().unwrap();
    let (sender, receiver) = mpsc::channel();
    let done = Box::new(move |result: io::Result<()>| sender.send(result.is_err()).unwrap());
    group.append(vec![batch(1, 0, 1, 1, 100)], done).unwrap();
    assert_eq!(receiver.recv_timeout(Duration::from_secs(20)), Ok(true));
    // The answer may be there a moment before the store has failed.
    while store.failure().is_none() {
        std::thread::yield_now();
    }
    let late = Outcome::default();
    group.save_vote(
        crate::VoteRecord {
            term: ptah_types::Term(1),
            voted_for: None,
            committed: false,
        },
        late.done(),
    );
    assert!(late.is_err());
}
