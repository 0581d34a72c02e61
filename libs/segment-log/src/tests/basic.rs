//! One behaviour per test, without faults.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use ptah_types::{LogIndex, ReplicaId, Sequence, Term, Timestamp};

use super::harness::*;
use crate::testing::{batch, command_of, log_id, spec};
use crate::types::{CommitOutcome, LargeOutcome, RoundLimit, VoteRecord, Work};
use crate::{Options, ReadError, RefusedReason, SimDisk};

fn seq(number: u64) -> Sequence {
    Sequence::new(number).unwrap()
}

#[test]
fn appended_frames_are_readable_at_once_and_acknowledged_after_the_sync() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    let outcome = append(&group, vec![batch(1, 0, 1, 3, 100), command_of(1, 1, 1, 50)]);
    assert_eq!(group.read(LogIndex(0), LogIndex(9), 1 << 20).unwrap().len(), 2);
    assert_eq!(group.flushed_log_id(), None);
    assert!(outcome.is_open());
    settle(&store);
    assert!(outcome.is_ok());
    assert_eq!(group.flushed_log_id(), Some(log_id(1, 1)));
}

#[test]
fn one_sync_covers_everything_that_was_queued() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    append_now(&store, &group, vec![batch(1, 0, 1, 1, 10)]);
    let before = disk.syncs();
    let outcomes: Vec<_> = (1..50)
        .map(|n| append(&group, vec![batch(1, n, n + 1, 1, 100)]))
        .collect();
    let CommitOutcome::Committed {
        completions, more, ..
    } = store.commit_pending()
    else {
        panic!()
    };
    assert_eq!((completions, more), (49, false));
    assert_eq!(disk.syncs(), before + 1);
    assert!(outcomes.iter().all(Outcome::is_ok));
}

#[test]
fn a_seal_is_written_once_and_only_behind_an_unproven_unit() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    assert_eq!(store.seal(), CommitOutcome::Idle);
    append_now(&store, &group, vec![batch(1, 0, 1, 1, 10)]);
    assert!(matches!(store.seal(), CommitOutcome::Committed { .. }));
    assert_eq!(store.seal(), CommitOutcome::Idle);
    assert_eq!((store.stats().units, store.stats().seals), (1, 1));
}

#[test]
fn vote_log_and_purge_position_are_there_after_a_clean_restart() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let group = store.create_group(spec(1, 8 << 10)).unwrap();
    let vote = VoteRecord {
        term: Term(4),
        voted_for: ReplicaId::new(7).ok(),
        committed: true,
    };
    let saved = Outcome::default();
    group.save_vote(vote, saved.done());
    for n in 0..30 {
        append_now(&store, &group, vec![batch(2, n, n + 1, 1, 900)]);
    }
    group.save_committed(log_id(2, 25));
    group
        .write_checkpoint(log_id(2, 20), Bytes::from_static(b"state"))
        .unwrap();
    group.purge(log_id(2, 15), Outcome::default().done());
    store.close().unwrap();
    assert!(saved.is_ok());
    drop((group, store));
    let store = open(&disk);
    let group = store.group(crate::testing::group_id(1)).unwrap();
    assert_eq!(group.vote(), Some(vote));
    assert_eq!(group.committed(), Some(log_id(2, 25)));
    assert_eq!(group.last_purged(), Some(log_id(2, 15)));
    assert_eq!(group.last_log_id(), Some(log_id(2, 29)));
    assert_eq!(group.term_starts(), vec![log_id(2, 16)]);
    assert_eq!(group.latest_checkpoint().unwrap().unwrap().state, "state");
    // Purged from the log, still there as messages.
    assert!(matches!(
        group.read(LogIndex(15), LogIndex(20), 99),
        Err(ReadError::Purged { .. })
    ));
    assert_eq!(
        group.read_messages(seq(3), seq(4), 99).unwrap()[0].index,
        LogIndex(2)
    );
}

#[test]
fn a_read_gives_at_least_one_frame_and_respects_the_bytes() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    for n in 0..40 {
        append_now(&store, &group, vec![batch(1, n, 2 * n + 1, 2, 1000)]);
    }
    store.checkpoint_round(RoundLimit::default()).unwrap();
    for from in [0, 39] {
        assert_eq!(group.read(LogIndex(from), LogIndex(99), 1).unwrap().len(), 1);
    }
    assert_eq!(group.read(LogIndex(3), LogIndex(99), 5 * 1080).unwrap().len(), 5);
    assert_eq!(group.read(LogIndex(3), LogIndex(5), 1 << 20).unwrap().len(), 2);
    assert!(
        group
            .read(LogIndex(40), LogIndex(99), 1 << 20)
            .unwrap()
            .is_empty()
    );
    // The frame that contains the sequence comes first, also in its middle.
    let found = group.read_messages(seq(6), seq(9), 1 << 20).unwrap();
    assert_eq!(
        found.iter().map(|frame| frame.index.0).collect::<Vec<_>>(),
        [2, 3]
    );
    assert!(store.stats().reads_from_disk > 0 && store.stats().reads_from_memory > 0);
    assert!(group.read_cached(LogIndex(0), LogIndex(9), 99).is_none());
    assert_eq!(
        group.read_cached(LogIndex(39), LogIndex(99), 99).unwrap().len(),
        1
    );
}

#[test]
fn time_leads_to_the_first_message_at_or_after_it() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let group = store.create_group(spec(1, 8 << 10)).unwrap();
    for n in 0..40 {
        append_now(&store, &group, vec![batch(1, n, 2 * n + 1, 2, 1000)]);
    }
    store.checkpoint_round(RoundLimit::default()).unwrap();
    for (time, expected) in [
        (0, Some(1)),
        (1_000, Some(3)),
        (1_001, Some(5)),
        (39_000, Some(79)),
        (39_001, None),
    ] {
        assert_eq!(
            group.sequence_at(Timestamp(time)).unwrap(),
            expected.and_then(Sequence::new),
            "{time}"
        );
    }
}

#[test]
fn retention_drops_whole_purged_segments_and_deletes_their_files() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let group = store.create_group(spec(1, 8 << 10)).unwrap();
    for n in 0..40 {
        append_now(&store, &group, vec![batch(1, n, n + 1, 1, 1000)]);
    }
    assert_eq!(
        group.drop_messages_before(seq(30)),
        seq(1),
        "nothing is purged yet"
    );
    group.write_checkpoint(log_id(1, 39), Bytes::new()).unwrap();
    group.purge(log_id(1, 20), Outcome::default().done());
    settle(&store);
    let files_before = files(&disk, "/m-").len();
    assert_eq!(group.drop_messages_before(seq(30)), seq(22));
    assert!(matches!(
        group.read_messages(seq(3), seq(9), 99),
        Err(ReadError::Dropped { .. })
    ));
    settle(&store);
    let report = store.checkpoint_round(RoundLimit::default()).unwrap();
    assert_eq!(report.deleted, 3);
    assert_eq!(files(&disk, "/m-").len(), files_before - 3);
    drop((group, store));
    let store = open(&disk);
    let group = store.group(crate::testing::group_id(1)).unwrap();
    assert_eq!(group.first_sequence(), seq(22));
    assert_eq!(
        group.latest_checkpoint().unwrap().unwrap().manifest.segments[0].first_sequence,
        seq(22)
    );
}

#[test]
fn commands_vanish_from_the_disk_once_they_are_purged() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    for n in 0..60 {
        append_now(&store, &group, vec![command_of(1, 1, n, 1000)]);
    }
    store.checkpoint_round(RoundLimit::default()).unwrap();
    assert_eq!(files(&disk, "/c-").len(), 9);
    group.write_checkpoint(log_id(1, 59), Bytes::new()).unwrap();
    group.purge(log_id(1, 58), Outcome::default().done());
    settle(&store);
    store.checkpoint_round(RoundLimit::default()).unwrap();
    assert_eq!(files(&disk, "/c-").len(), 1);
}

#[test]
fn the_log_continues_behind_a_purge_above_its_end() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let group = store.create_group(spec(1, 8 << 10)).unwrap();
    append_now(&store, &group, vec![command_of(1, 1, 0, 10)]);
    group.purge(log_id(3, 20), Outcome::default().done());
    settle(&store);
    assert_eq!(group.last_log_id(), Some(log_id(3, 20)));
    let refused = group
        .append(vec![command_of(1, 3, 1, 10)], Outcome::default().done())
        .unwrap_err();
    assert!(matches!(refused.reason, RefusedReason::Gap { .. }));
    append_now(&store, &group, vec![command_of(1, 3, 21, 10)]);
    assert_eq!(group.read(LogIndex(21), LogIndex(22), 99).unwrap().len(), 1);
}

#[test]
fn frames_that_do_not_follow_are_refused_and_given_back() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let group = store.create_group(spec(1, 8 << 10)).unwrap();
    append_now(&store, &group, vec![batch(2, 0, 1, 2, 10)]);
    let bad = [
        vec![batch(2, 2, 3, 1, 10)],
        vec![batch(2, 1, 4, 1, 10)],
        vec![batch(1, 1, 3, 1, 10)],
        vec![crate::testing::batch_of(2, 2, 1, 3, 1, 10)],
        vec![batch(2, 1, 3, 1, 10), batch(2, 2, 3, 1, 10)],
    ];
    for frames in bad {
        let refused = group
            .append(frames.clone(), Outcome::default().done())
            .unwrap_err();
        assert_eq!(refused.frames, frames);
    }
    append_now(&store, &group, vec![batch(2, 1, 3, 1, 10)]);
}

#[test]
fn a_full_queue_refuses_and_tells_when_there_is_room() {
    let disk = SimDisk::new(1);
    let store = open_with(
        &disk,
        Options {
            queue_bytes: 20_000,
            ..tiny()
        },
    )
    .unwrap();
    let rooms = Arc::new(AtomicUsize::new(0));
    let counter = rooms.clone();
    store.set_waker(Arc::new(move |work| {
        counter.fetch_add(usize::from(work == Work::Room), Ordering::SeqCst);
    }));
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    let mut next = 0;
    let refused = loop {
        match group.append(
            vec![batch(1, next, next + 1, 1, 3_000)],
            Outcome::default().done(),
        ) {
            Ok(()) => next += 1,
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused.reason, RefusedReason::WouldExceed { .. }));
    assert!((5..8).contains(&next), "{next} were taken");
    assert_eq!(rooms.load(Ordering::SeqCst), 0);
    settle(&store);
    assert_eq!(rooms.load(Ordering::SeqCst), 1);
    group.append(refused.frames, refused.done).unwrap();
}

#[test]
fn memory_of_unflushed_frames_is_bounded_by_checkpoint_rounds() {
    let disk = SimDisk::new(1);
    let options = Options {
        unflushed_bytes: 100_000,
        recent_bytes: 20_000,
        ..tiny()
    };
    let store = open_with(&disk, options).unwrap();
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    let mut next = 0;
    let mut rounds = 0;
    while next < 300 {
        match group.append(
            vec![batch(1, next, next + 1, 1, 2_000)],
            Outcome::default().done(),
        ) {
            Ok(()) => next += 1,
            Err(_) => {
                assert!(store.needs_checkpoint());
                store.checkpoint_round(RoundLimit::default()).unwrap();
                rounds += 1;
            }
        }
        settle(&store);
        let stats = store.stats();
        assert!(
            stats.unflushed_bytes <= 100_000 && stats.unflushed_bytes + stats.recent_bytes <= 122_000,
            "{stats:?}"
        );
    }
    assert!(rounds >= 3);
    let mut at = 0;
    while at < 300 {
        at += group.read(LogIndex(at), LogIndex(300), u64::MAX).unwrap().len() as u64;
    }
    assert_eq!(at, 300);
}

#[test]
fn write_ahead_log_files_are_recycled_and_idle_groups_do_not_hold_them() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let idle = store.create_group(spec(2, 64 << 10)).unwrap();
    append_now(&store, &idle, vec![crate::testing::batch_of(2, 1, 0, 1, 1, 100)]);
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    for n in 0..400 {
        append_now(&store, &group, vec![batch(1, n, n + 1, 1, 3_000)]);
        if n % 20 == 0 {
            store.checkpoint_round(RoundLimit::default()).unwrap();
        }
    }
    let stats = store.stats();
    assert!(stats.recycled_files > 5 && stats.wal_files <= 3, "{stats:?}");
    assert!(stats.created_files <= 5, "files are used again: {stats:?}");
    power_cycle(&disk);
    drop((idle, group, store));
    let store = open(&disk);
    assert_eq!(
        store.group(crate::testing::group_id(1)).unwrap().last_log_id(),
        Some(log_id(1, 399))
    );
    assert_eq!(
        store.group(crate::testing::group_id(2)).unwrap().last_log_id(),
        Some(log_id(1, 0))
    );
}

#[test]
fn a_large_frame_does_not_delay_the_commits_of_other_groups() {
    let disk = SimDisk::new(1);
    let options = Options {
        large_bytes: 1 << 20,
        unit_bytes: 2 << 20,
        wal_file_bytes: 4 << 20,
        queue_bytes: 80 << 20,
        max_wal_bytes: 64 << 20,
        unflushed_bytes: 200 << 20,
        ..tiny()
    };
    let store = open_with(&disk, options).unwrap();
    let big = store.create_group(spec(1, 64 << 20)).unwrap();
    let small = store.create_group(spec(2, 64 << 20)).unwrap();
    let large = append(&big, vec![batch(1, 0, 1, 1, 5 << 20)]);
    let behind = append(&big, vec![batch(1, 1, 2, 1, 10)]);
    assert_eq!(store.write_large_pending(), LargeOutcome::Progress);
    let other = append(&small, vec![crate::testing::batch_of(2, 1, 0, 1, 1, 10)]);
    assert!(matches!(store.commit_pending(), CommitOutcome::Committed { .. }));
    assert!(other.is_ok() && large.is_open() && behind.is_open());
    // Five megabytes and a header are six pieces.
    for _ in 0..5 {
        assert_eq!(store.write_large_pending(), LargeOutcome::Progress);
    }
    assert!(large.is_open(), "the reference is not durable yet");
    assert!(matches!(store.commit_pending(), CommitOutcome::Committed { .. }));
    assert!(large.is_ok() && behind.is_ok());
    assert!(
        store.stats().wal_bytes < 64 << 10,
        "the payload does not go through the write-ahead log"
    );
    drop((big, small, store));
    power_cycle(&disk);
    let store = open(&disk);
    let big = store.group(crate::testing::group_id(1)).unwrap();
    assert_eq!(
        big.read(LogIndex(0), LogIndex(1), 1).unwrap()[0],
        batch(1, 0, 1, 1, 5 << 20)
    );
}

#[test]
fn segments_of_two_replicas_are_equal_behind_their_headers() {
    let contents = |node: u64, flush_every: u64, detour: bool| {
        let disk = SimDisk::new(node);
        let identity = crate::Identity {
            node: ptah_types::NodeId::new(node).unwrap(),
            ..crate::testing::identity()
        };
        let store = crate::Store::open(disk.as_disk(), &dir(), identity, tiny()).unwrap();
        let group = store.create_group(spec(1, 20 << 10)).unwrap();
        for n in 0..80 {
            if detour && n % 9 == 4 {
                // Entries that a later leader replaces.
                append_now(
                    &store,
                    &group,
                    vec![batch(1, n, n + 1, 7, 13_000), batch(1, n + 1, n + 8, 1, 900)],
                );
                if n % 2 == 0 {
                    store.checkpoint_round(RoundLimit::default()).unwrap();
                }
                group.truncate_after(Some(log_id(1, n - 1)), Outcome::default().done());
                settle(&store);
            }
            let len = if n % 13 == 5 {
                12_500
            } else {
                100 + 37 * (n as usize % 40)
            };
            append_now(&store, &group, vec![batch(1, n, n + 1, 1, len)]);
            if n % flush_every == 0 {
                store.checkpoint_round(RoundLimit::default()).unwrap();
            }
        }
        store.close().unwrap();
        let segments = files(&disk, "/m-");
        segments
            .into_iter()
            .map(|path| (disk.contents(&path).unwrap()[4096..].to_vec(), path))
            .collect::<Vec<_>>()
    };
    let reference = contents(1, 1000, false);
    assert!(reference.len() > 5);
    assert_eq!(reference, contents(2, 3, false));
    assert_eq!(reference, contents(3, 7, true));
}

#[test]
fn a_committed_hint_that_names_no_entry_of_the_log_is_passed_over() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let group = store.create_group(spec(1, 8 << 10)).unwrap();
    append_now(
        &store,
        &group,
        vec![command_of(1, 4, 0, 10), command_of(1, 4, 1, 10)],
    );
    for wrong in [log_id(5, 1), log_id(4, 2), log_id(3, 1)] {
        group.save_committed(wrong);
        assert_eq!(group.committed(), None, "{wrong}");
    }
    group.save_committed(log_id(4, 1));
    settle(&store);
    group.save_committed(log_id(4, 0));
    assert_eq!(group.committed(), Some(log_id(4, 1)));
}

#[test]
fn the_durable_end_is_known_after_a_truncation_behind_frames_that_left_memory() {
    let disk = SimDisk::new(1);
    let options = Options {
        recent_bytes_per_group: 0,
        ..tiny()
    };
    let store = open_with(&disk, options).unwrap();
    let group = store.create_group(spec(1, 256 << 10)).unwrap();
    append_now(&store, &group, vec![batch(1, 0, 1, 1, 100)]);
    store.checkpoint_round(RoundLimit::default()).unwrap();
    // A large frame is in its segment as soon as it is durable. A truncation behind it is queued before that.
    append(&group, vec![batch(1, 1, 2, 1, 14_000)]);
    while store.write_large_pending() == LargeOutcome::Progress {}
    for n in 2..9 {
        append(&group, vec![batch(1, n, n + 1, 1, 9_000)]);
    }
    group.truncate_after(Some(log_id(1, 5)), Outcome::default().done());
    // The first unit has the large frame, not the truncation; the second truncation lets the frame leave memory.
    assert!(matches!(
        store.commit_pending(),
        CommitOutcome::Committed { more: true, .. }
    ));
    let truncated = Outcome::default();
    group.truncate_after(Some(log_id(1, 1)), truncated.done());
    settle(&store);
    assert!(truncated.is_ok());
    assert_eq!(group.flushed_log_id(), Some(log_id(1, 1)));
    group.write_checkpoint(log_id(1, 1), Bytes::new()).unwrap();
}
