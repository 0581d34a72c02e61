//! Snapshot install, with the power cut at every write of it.

use std::sync::Arc;

use bytes::Bytes;
use ptah_types::{LogIndex, ReplicaId, Sequence, Term};

use super::harness::*;
use crate::testing::{batch, command_of, group_id, log_id, spec};
use crate::types::{Checkpoint, GroupCondition, RoundLimit, VoteRecord};
use crate::{Frame, GroupLog, Install, InstallError, SimDisk, Store};

const SEGMENT: u64 = 12 << 10;

fn frames(range: std::ops::Range<u64>) -> Vec<Frame> {
    range
        .map(|n| match n % 5 {
            4 => command_of(1, 1, n, 200),
            _ => batch(1, n, n - n / 5 + 1, 1, 700 + 30 * (n as usize % 9)),
        })
        .collect()
}

/// A leader with 60 entries, a checkpoint at 50, purged up to 45.
fn leader() -> (SimDisk, Store, Arc<GroupLog>) {
    let disk = SimDisk::new(2);
    let store = open(&disk);
    let group = store.create_group(spec(1, SEGMENT)).unwrap();
    for frame in frames(0..60) {
        append_now(&store, &group, vec![frame]);
    }
    group
        .write_checkpoint(log_id(1, 50), Bytes::from_static(b"state at 50"))
        .unwrap();
    group.purge(log_id(1, 45), Outcome::default().done());
    settle(&store);
    (disk, store, group)
}

/// A follower with the first `entries` entries and a vote.
fn follower(entries: u64) -> SimDisk {
    let disk = SimDisk::new(entries);
    let store = open(&disk);
    let group = store.create_group(spec(1, SEGMENT)).unwrap();
    for frame in frames(0..entries) {
        append_now(&store, &group, vec![frame]);
    }
    group.save_vote(vote(), Outcome::default().done());
    settle(&store);
    store.checkpoint_round(RoundLimit::default()).unwrap();
    store.close().unwrap();
    disk
}

fn vote() -> VoteRecord {
    VoteRecord {
        term: Term(3),
        voted_for: ReplicaId::new(9).ok(),
        committed: false,
    }
}

fn install(
    store: &Store,
    group: &Arc<GroupLog>,
    from: &GroupLog,
    checkpoint: Checkpoint,
) -> Result<(Outcome, u64), InstallError> {
    let mut install = group.begin_install(checkpoint)?;
    let mut fetched = 0;
    while let Some(range) = install.missing().first().copied() {
        let bytes = from
            .read_segment_range(range.segment, range.offset, range.len.min(3_000))
            .unwrap();
        fetched += bytes.len() as u64;
        install.write(range.segment, range.offset, &bytes)?;
    }
    let outcome = Outcome::default();
    install.finish(outcome.done())?;
    settle(store);
    Ok((outcome, fetched))
}

fn check_installed(group: &Arc<GroupLog>, last: u64) {
    assert_eq!(group.last_purged(), Some(log_id(1, 50)));
    assert_eq!(group.last_log_id(), Some(log_id(1, last)));
    assert_eq!(group.vote(), Some(vote()));
    assert_eq!(group.committed(), Some(log_id(1, 50)));
    assert_eq!(group.latest_checkpoint().unwrap().unwrap().state, "state at 50");
    let mut found = Vec::new();
    let mut at = group.first_sequence();
    while at < group.next_sequence() {
        found.extend(group.read_messages(at, group.next_sequence(), 5_000).unwrap());
        at = found.last().and_then(Frame::end_sequence).unwrap();
    }
    let wanted: Vec<Frame> = frames(0..last + 1)
        .into_iter()
        .filter(|frame| frame.base_sequence.is_some())
        .collect();
    assert_eq!(found, wanted);
    assert_eq!(group.first_sequence(), Sequence::FIRST);
}

#[test]
fn a_lagging_follower_gets_the_state_the_messages_and_goes_on() {
    let (_, leader_store, source) = leader();
    leader_store.checkpoint_round(RoundLimit::default()).unwrap();
    for entries in [0, 7, 30, 50, 58] {
        let disk = follower(entries);
        let store = open(&disk);
        let group = store.group(group_id(1)).unwrap();
        let checkpoint = source.latest_checkpoint().unwrap().unwrap();
        let total: u64 = checkpoint
            .manifest
            .segments
            .iter()
            .map(|segment| segment.length)
            .sum();
        let (outcome, fetched) = install(&store, &group, &source, checkpoint).unwrap();
        assert!(outcome.is_ok());
        // Entries above the checkpoint that belong to the same log stay; equal segments are not fetched.
        let last = if entries > 51 { entries - 1 } else { 50 };
        check_installed(&group, last);
        assert!(
            if entries > 51 {
                fetched == 0
            } else {
                entries == 0 || fetched < total || entries < 20
            },
            "{entries}: {fetched}"
        );
        let purged = Outcome::default();
        group.purge(log_id(1, 50), purged.done());
        assert!(purged.is_ok(), "openraft purges again after the install");
        for frame in frames(last + 1..60) {
            append_now(&store, &group, vec![frame]);
        }
        drop((group, store));
        power_cycle(&disk);
        let store = open(&disk);
        let group = store.group(group_id(1)).unwrap();
        check_installed(&group, 59);
        assert_eq!(
            group.read(LogIndex(51), LogIndex(60), 1 << 20).unwrap(),
            frames(51..60)
        );
        // Byte for byte what the leader has.
        store.checkpoint_round(RoundLimit::default()).unwrap();
        for segment in source.message_segments().iter().take(3) {
            let all = |log: &GroupLog| log.read_segment_range(segment.first_index, 0, u64::MAX).unwrap();
            assert_eq!(all(&source), all(&group));
        }
    }
}

#[test]
fn a_power_cut_at_any_write_of_an_install_leaves_the_old_or_the_new_state() {
    let (_, _leader_store, source) = leader();
    let checkpoint = source.latest_checkpoint().unwrap().unwrap();
    for entries in [0, 30, 58] {
        let base = follower(entries);
        let (mut old, mut new) = (0, 0);
        for cut in 1..200 {
            let disk = base.fork(cut);
            let store = open(&disk);
            let group = store.group(group_id(1)).unwrap();
            disk.crash_after_writes(cut);
            let result = install(&store, &group, &source, checkpoint.clone());
            let acknowledged = result.is_ok_and(|(outcome, _)| outcome.is_ok());
            let finished = !disk.is_off();
            drop((group, store));
            power_cycle(&disk);
            let store = open(&disk);
            assert!(
                store
                    .groups()
                    .iter()
                    .all(|info| info.condition == GroupCondition::Healthy),
                "cut at {cut}"
            );
            let group = store.group(group_id(1)).unwrap();
            if group.last_purged().is_some() {
                check_installed(&group, entries.max(51) - 1);
                new += 1;
            } else {
                assert!(!acknowledged, "cut at {cut}: an acknowledged install is gone");
                assert_eq!(
                    group.last_log_id(),
                    entries.checked_sub(1).map(|last| log_id(1, last))
                );
                assert_eq!(group.vote(), Some(vote()));
                assert_eq!(
                    group
                        .read(LogIndex(0), LogIndex(entries), u64::MAX)
                        .unwrap()
                        .first(),
                    frames(0..entries).first()
                );
                old += 1;
            }
            if finished {
                break;
            }
        }
        assert!(old > 5 && new > 1, "{old} old, {new} new");
    }
}

#[test]
fn what_arrives_damaged_is_refused_and_fetched_again() {
    let (_, _leader_store, source) = leader();
    let store = open(&follower(0));
    let group = store.group(group_id(1)).unwrap();
    let mut install = group
        .begin_install(source.latest_checkpoint().unwrap().unwrap())
        .unwrap();
    let first = install.missing()[0];
    let good = source.read_segment_range(first.segment, 0, first.len).unwrap();
    let mut bad = good.to_vec();
    bad[300] ^= 4;
    assert!(matches!(
        install.write(first.segment, 0, &bad),
        Err(InstallError::Damaged { .. })
    ));
    assert!(matches!(
        install.write(first.segment, 80, &good[80..]),
        Err(InstallError::OutOfOrder { .. })
    ));
    assert_eq!(install.missing()[0], first);
    install.write(first.segment, 0, &good).unwrap();
    assert_ne!(install.missing()[0], first);
    assert!(matches!(
        install.finish(Outcome::default().done()),
        Err(InstallError::Invalid(_))
    ));
    assert_eq!(group.last_purged(), None);
}

#[test]
fn a_conflicting_tail_is_replaced_by_the_snapshot() {
    let (_, _leader_store, source) = leader();
    let disk = follower(40);
    let store = open(&disk);
    let group = store.group(group_id(1)).unwrap();
    // Entries of a deposed leader, above and below the checkpoint.
    let base = group.next_sequence().get();
    for n in 0..20 {
        append_now(&store, &group, vec![batch(2, 40 + n, base + n, 1, 333)]);
    }
    group.truncate_after(Some(log_id(1, 39)), Outcome::default().done());
    settle(&store);
    install(
        &store,
        &group,
        &source,
        source.latest_checkpoint().unwrap().unwrap(),
    )
    .unwrap();
    check_installed(&group, 50);
}

#[test]
fn appends_wait_while_the_switch_is_pending() {
    let (_, _leader_store, source) = leader();
    let store = open(&follower(58));
    let group = store.group(group_id(1)).unwrap();
    let install = group
        .begin_install(source.latest_checkpoint().unwrap().unwrap())
        .unwrap();
    install.finish(Outcome::default().done()).unwrap();
    let refused = group
        .append(frames(58..59), Outcome::default().done())
        .unwrap_err();
    settle(&store);
    group.append(refused.frames, refused.done).unwrap();
}

/// Fetches what is missing.
fn fetch(install: &mut Install, from: &GroupLog) {
    while let Some(range) = install.missing().first().copied() {
        let bytes = from
            .read_segment_range(range.segment, range.offset, range.len.min(3_000))
            .unwrap();
        install.write(range.segment, range.offset, &bytes).unwrap();
    }
}

#[test]
fn a_second_install_does_no_harm_to_the_first() {
    let (_, _leader_store, source) = leader();
    let disk = follower(0);
    let store = open(&disk);
    let group = store.group(group_id(1)).unwrap();
    let checkpoint = source.latest_checkpoint().unwrap().unwrap();
    let mut first = group.begin_install(checkpoint.clone()).unwrap();
    fetch(&mut first, &source);
    // The leader offers again while the first one waits to be switched to.
    let second = group.begin_install(checkpoint.clone());
    assert!(matches!(second, Err(InstallError::Busy)));
    drop(second);
    let outcome = Outcome::default();
    first.finish(outcome.done()).unwrap();
    assert!(group.begin_install(checkpoint.clone()).is_err());
    settle(&store);
    assert!(outcome.is_ok());
    check_installed(&group, 50);
    drop((group, store));
    power_cycle(&disk);
    check_installed(&open(&disk).group(group_id(1)).unwrap(), 50);
}

#[test]
fn an_install_that_is_given_up_makes_room_for_another_and_its_files_go() {
    let (_, _leader_store, source) = leader();
    let disk = follower(0);
    let store = open(&disk);
    let group = store.group(group_id(1)).unwrap();
    let checkpoint = source.latest_checkpoint().unwrap().unwrap();
    let mut first = group.begin_install(checkpoint.clone()).unwrap();
    fetch(&mut first, &source);
    assert!(!files(&disk, "/d2/").is_empty());
    drop(first);
    let mut second = group.begin_install(checkpoint).unwrap();
    fetch(&mut second, &source);
    store.checkpoint_round(RoundLimit::default()).unwrap();
    assert!(files(&disk, "/d2/").is_empty(), "what was given up is removed");
    let outcome = Outcome::default();
    second.finish(outcome.done()).unwrap();
    settle(&store);
    assert!(outcome.is_ok());
    check_installed(&group, 50);
}

#[test]
fn files_that_are_missing_or_short_at_the_switch_leave_the_old_state() {
    let (_, _leader_store, source) = leader();
    for short in [false, true] {
        let disk = follower(7);
        let store = open(&disk);
        let group = store.group(group_id(1)).unwrap();
        let mut install = group
            .begin_install(source.latest_checkpoint().unwrap().unwrap())
            .unwrap();
        fetch(&mut install, &source);
        let path = files(&disk, "/d2/m-").pop().unwrap();
        if short {
            let len = disk.contents(&path).unwrap().len() as u64;
            assert!(disk.truncate(&path, len - 1));
        } else {
            disk.delete(&path);
        }
        let outcome = Outcome::default();
        install.finish(outcome.done()).unwrap();
        settle(&store);
        assert!(outcome.is_err() && store.failure().is_none());
        assert_eq!(
            (group.last_purged(), group.last_log_id()),
            (None, Some(log_id(1, 6)))
        );
        // The next one goes through.
        let (outcome, _) = install_from(&store, &group, &source);
        assert!(outcome.is_ok());
        check_installed(&group, 50);
    }
}

fn install_from(store: &Store, group: &Arc<GroupLog>, from: &GroupLog) -> (Outcome, u64) {
    install(store, group, from, from.latest_checkpoint().unwrap().unwrap()).unwrap()
}

#[test]
fn an_install_into_a_dropped_group_cannot_reach_the_group_that_follows() {
    let (_, _leader_store, source) = leader();
    let disk = follower(0);
    let store = open(&disk);
    let old = store.group(group_id(1)).unwrap();
    let checkpoint = source.latest_checkpoint().unwrap().unwrap();
    let mut stale = old.begin_install(checkpoint.clone()).unwrap();
    store.drop_group(group_id(1)).unwrap();
    let next = crate::GroupSpec {
        replica: ReplicaId::new(11).unwrap(),
        ..spec(1, SEGMENT)
    };
    let group = store.create_group(next).unwrap();
    let mut fresh = group.begin_install(checkpoint).unwrap();
    fetch(&mut fresh, &source);
    let before: Vec<_> = files(&disk, "/m-")
        .iter()
        .map(|path| disk.contents(path))
        .collect();
    let range = stale.missing()[0];
    let bytes = source.read_segment_range(range.segment, 0, 3_000).unwrap();
    assert!(stale.write(range.segment, 0, &bytes).is_err());
    drop(stale);
    let after: Vec<_> = files(&disk, "/m-")
        .iter()
        .map(|path| disk.contents(path))
        .collect();
    assert_eq!(after, before);
    assert!(
        group
            .begin_install(source.latest_checkpoint().unwrap().unwrap())
            .is_err()
    );
    let outcome = Outcome::default();
    fresh.finish(outcome.done()).unwrap();
    settle(&store);
    assert!(outcome.is_ok());
}

#[test]
fn a_segment_whose_sync_failed_while_it_arrived_is_fetched_again() {
    let (_, _leader_store, source) = leader();
    let disk = follower(0);
    let store = open(&disk);
    let group = store.group(group_id(1)).unwrap();
    let mut install = group
        .begin_install(source.latest_checkpoint().unwrap().unwrap())
        .unwrap();
    let first = install.missing()[0];
    disk.inject(crate::SimFault {
        op: crate::SimOp::Sync,
        path_contains: "/m-".to_owned(),
        after: 0,
        times: 1,
        error: std::io::ErrorKind::Other,
    });
    let bytes = source.read_segment_range(first.segment, 0, first.len).unwrap();
    assert!(install.write(first.segment, 0, &bytes).is_err());
    assert_eq!(install.missing()[0], first, "all of it");
    fetch(&mut install, &source);
    let outcome = Outcome::default();
    install.finish(outcome.done()).unwrap();
    settle(&store);
    assert!(outcome.is_ok());
    drop((group, store));
    power_cycle(&disk);
    check_installed(&open(&disk).group(group_id(1)).unwrap(), 50);
}
