//! Checkpoint rounds while other things happen.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::harness::*;
use crate::testing::{batch_of, group_id, log_id, spec};
use crate::types::{RoundLimit, VoteRecord};
use crate::{SimDisk, SimOp, Store};

/// Runs `what` once, at the first write to a path that contains `part`.
fn at_first_write(disk: &SimDisk, part: &'static str, what: impl Fn() + Send + Sync + 'static) {
    let ran = AtomicBool::new(false);
    disk.set_hook(Some(Arc::new(move |op: SimOp, path: &Path| {
        let ours = op == SimOp::Write && path.to_string_lossy().contains(part);
        if ours && !ran.swap(true, Ordering::SeqCst) {
            what();
        }
    })));
}

/// Makes group 2, lets it vote and append, and fills the write-ahead log from group 3 until it rolled twice.
fn found_a_group_and_roll(store: &Store, vote: VoteRecord) {
    let fresh = store.create_group(spec(2, 64 << 10)).unwrap();
    let saved = Outcome::default();
    fresh.save_vote(vote, saved.done());
    append_now(store, &fresh, vec![batch_of(2, 1, 0, 1, 1, 100)]);
    assert!(saved.is_ok());
    let filler = store.group(group_id(3)).unwrap();
    let files = store.stats().wal_files;
    while store.stats().wal_files < files + 2 {
        let (index, base) = (
            filler.last_log_id().unwrap().index.0 + 1,
            filler.next_sequence().get(),
        );
        append_now(store, &filler, vec![batch_of(3, 1, index, base, 1, 9_000)]);
    }
}

#[test]
fn a_group_that_is_made_during_a_round_keeps_its_write_ahead_log() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let slow = store.create_group(spec(1, 64 << 10)).unwrap();
    let filler = store.create_group(spec(3, 64 << 10)).unwrap();
    append_now(&store, &slow, vec![batch_of(1, 1, 0, 1, 1, 100)]);
    append_now(&store, &filler, vec![batch_of(3, 1, 0, 1, 1, 100)]);
    let vote = VoteRecord {
        term: ptah_types::Term(7),
        voted_for: None,
        committed: true,
    };
    let inside = store.clone();
    at_first_write(&disk, "0000000000000001/d1/m-", move || {
        found_a_group_and_roll(&inside, vote);
    });
    let report = store.checkpoint_round(RoundLimit::default()).unwrap();
    disk.set_hook(None);
    assert_eq!(report.groups, 2);
    drop((slow, filler, store));
    power_cycle(&disk);
    let store = open(&disk);
    let fresh = store.group(group_id(2)).unwrap();
    assert_eq!(fresh.vote(), Some(vote));
    assert_eq!(fresh.last_log_id(), Some(log_id(1, 0)));
}
