//! Flipped bits, cut, emptied and missing files: what is damaged is noticed, never served, never silently dropped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use ptah_types::{LogId, LogIndex, ReplicaId, Sequence, Term};

use super::harness::*;
use crate::testing::{batch, batch_of, command_of, group_id, log_id, spec};
use crate::types::{GroupCondition, RoundLimit, VoteRecord};
use crate::wal::{Record, Unit, UnitKind};
use crate::{Frame, GroupLog, OpenError, ReadError, SimDisk, Store};

const GROUPS: u64 = 3;

/// What a group acknowledged.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Content {
    vote: Option<VoteRecord>,
    last: Option<LogId>,
    purged: Option<LogId>,
    checkpoint: Option<Bytes>,
    frames: Vec<Frame>,
}

fn content(group: &GroupLog) -> Result<Content, ReadError> {
    let mut frames = Vec::new();
    let end = group.next_sequence();
    let mut at = group.first_sequence();
    while at < end {
        let some = group.read_messages(at, end, 20_000)?;
        at = some.last().and_then(Frame::end_sequence).unwrap();
        frames.extend(some);
    }
    let last = group.last_log_id().unwrap().index.next();
    let mut index = group.first_index();
    while index < last {
        let some = group.read(index, last, 20_000)?;
        index = some.last().unwrap().index.next();
        frames.extend(some);
    }
    Ok(Content {
        vote: group.vote(),
        last: group.last_log_id(),
        purged: group.last_purged(),
        checkpoint: group.latest_checkpoint()?.map(|checkpoint| checkpoint.state),
        frames,
    })
}

/// A store with every kind of file: sealed and open segments, commands, large frames, checkpoints, recycled log.
fn fill(disk: &SimDisk) -> BTreeMap<u64, Content> {
    let store = open(disk);
    let mut out = BTreeMap::new();
    for number in 1..=GROUPS {
        store.create_group(spec(number, 16 << 10)).unwrap();
    }
    for n in 0..40 {
        for number in 1..=GROUPS {
            let group = store.group(group_id(number)).unwrap();
            let len = if n % 11 == 7 {
                13_000
            } else {
                100 + 40 * n as usize
            };
            let base = group.next_sequence().get();
            let frame = if n % 4 == 3 {
                command_of(number, 2, n, 300)
            } else {
                batch_of(number, 2, n, base, 2, len)
            };
            append_now(&store, &group, vec![frame]);
            if n == 20 {
                group
                    .write_checkpoint(log_id(2, 18), Bytes::from_static(b"first"))
                    .unwrap();
            }
            if n == 30 && number != 3 {
                group
                    .write_checkpoint(log_id(2, 28), Bytes::from_static(b"second"))
                    .unwrap();
                group.purge(log_id(2, 22), Outcome::default().done());
            }
            let vote = VoteRecord {
                term: Term(n),
                voted_for: ReplicaId::new(5).ok(),
                committed: true,
            };
            group.save_vote(vote, Outcome::default().done());
        }
        if n == 33 || n == 35 {
            store.checkpoint_round(RoundLimit::default()).unwrap();
        }
    }
    settle(&store);
    // Quiet for a while.
    store.seal();
    for number in 1..=GROUPS {
        out.insert(number, content(&store.group(group_id(number)).unwrap()).unwrap());
    }
    out
}

/// Opens what was tampered with: a healthy group has everything or says `Damaged` when it is read.
fn judge(disk: &SimDisk, expected: &BTreeMap<u64, Content>, what: &str) -> (usize, usize) {
    let store = match open_with(disk, tiny()) {
        Ok(store) => store,
        Err(error) => {
            let fine = matches!(
                error,
                OpenError::StoreDamaged { .. } | OpenError::IdentityMissing { .. }
            );
            assert!(fine, "{what}: {error}");
            return (0, GROUPS as usize);
        }
    };
    let (mut whole, mut told) = (0, 0);
    for (number, expected) in expected {
        let Some(group) = store.group(group_id(*number)) else {
            let infos = store.groups();
            let info = infos.iter().find(|info| info.group == group_id(*number));
            let info = info.unwrap_or_else(|| panic!("{what}: group {number} vanished"));
            assert!(matches!(info.condition, GroupCondition::Damaged(_)), "{what}");
            told += 1;
            continue;
        };
        assert_eq!(
            (group.vote(), group.last_log_id()),
            (expected.vote, expected.last),
            "{what}: group {number}"
        );
        match content(&group) {
            Ok(found) => {
                assert_eq!(found.frames, expected.frames, "{what}: group {number}");
                let known = [Some("first"), Some("second"), None];
                let state = found
                    .checkpoint
                    .as_ref()
                    .map(|state| std::str::from_utf8(state).unwrap());
                assert!(known.contains(&state), "{what}");
                whole += 1;
            }
            Err(ReadError::Damaged(_)) => told += 1,
            Err(error) => panic!("{what}: group {number}: {error}"),
        }
    }
    (whole, told)
}

fn tampered(disk: &SimDisk) -> Vec<PathBuf> {
    disk.files()
        .into_iter()
        .filter(|path| !path.ends_with("LOCK"))
        .collect()
}

#[test]
fn a_flipped_bit_in_any_file_is_never_served_and_loses_nothing_in_silence() {
    let disk = SimDisk::new(5);
    let expected = fill(&disk);
    let mut totals: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for path in tampered(&disk) {
        let bits = disk.contents(&path).unwrap().len() as u64 * 8;
        for sample in 0..14u64 {
            // The first bytes of a file matter most; then all over it.
            let bit = if sample < 6 {
                sample * 67
            } else {
                (sample * 0x9e37_79b9_7f4a) % bits.max(1)
            };
            let copy = disk.fork(sample);
            if !copy.flip_bit(&path, bit) {
                continue;
            }
            let (whole, told) = judge(&copy, &expected, &format!("bit {bit} of {}", path.display()));
            let kind: String = path
                .file_name()
                .unwrap()
                .to_string_lossy()
                .chars()
                .filter(|c| !c.is_numeric())
                .collect();
            let total = totals.entry(kind).or_default();
            *total = (total.0 + whole, total.1 + told);
        }
    }
    // Files with copies lose nothing at all by one bit.
    for kind in ["node.meta", "meta.a", "meta.b", "groups.meta", "position"] {
        assert_eq!(totals[kind].1, 0, "{kind} has copies");
    }
    assert!(totals["m-.seg"].1 > 0 && totals["c-.seg"].1 > 0, "{totals:?}");
}

#[test]
fn a_cut_emptied_zeroed_or_missing_file_is_noticed() {
    let disk = SimDisk::new(6);
    let expected = fill(&disk);
    for path in tampered(&disk) {
        let bytes = disk.contents(&path).unwrap();
        let len = bytes.len() as u64;
        for cut in [0, 1, len / 2, len.saturating_sub(1)] {
            let copy = disk.fork(1);
            copy.truncate(&path, cut);
            judge(&copy, &expected, &format!("{} cut to {cut}", path.display()));
        }
        let copy = disk.fork(1);
        copy.overwrite(&path, vec![0; bytes.len()]);
        judge(&copy, &expected, &format!("{} zeroed", path.display()));
        let mut half = bytes.clone();
        half[bytes.len() / 2..].fill(0);
        copy.overwrite(&path, half);
        let copy = disk.fork(1);
        copy.delete(&path);
        judge(&copy, &expected, &format!("{} missing", path.display()));
    }
    for lost in ["wal", "g", "g/0000000000000002/d1"] {
        let copy = disk.fork(1);
        copy.delete(&dir().join(lost));
        let (_, told) = judge(&copy, &expected, lost);
        assert!(told > 0, "{lost}");
    }
}

fn wal_of(disk: &SimDisk) -> PathBuf {
    files(disk, ".wal").pop().unwrap()
}

/// Flips a bit in the block that holds `needle`'s bytes for the last time.
fn flip_at(disk: &SimDisk, path: &Path, needle: &[u8]) {
    let bytes = disk.contents(path).unwrap();
    let at = bytes
        .windows(needle.len())
        .rposition(|window| window == needle)
        .unwrap();
    assert!(disk.flip_bit(path, at as u64 * 8 + 3));
}

#[test]
fn a_bad_unit_in_the_middle_damages_only_the_groups_that_cannot_prove_their_numbers() {
    let disk = SimDisk::new(7);
    let store = open(&disk);
    for number in 1..=GROUPS {
        let group = store.create_group(spec(number, 16 << 10)).unwrap();
        append_now(&store, &group, vec![batch_of(number, 1, 0, 1, 1, 100)]);
    }
    let victim = batch_of(2, 1, 1, 2, 1, 100);
    append_now(&store, &store.group(group_id(2)).unwrap(), vec![victim.clone()]);
    append_now(
        &store,
        &store.group(group_id(1)).unwrap(),
        vec![batch_of(1, 1, 1, 2, 1, 100)],
    );
    drop(store);
    flip_at(&disk, &wal_of(&disk), &victim.encode_header());
    let store = open(&disk);
    // 1 continued behind the damage; 2 lost a record; 3 may have lost one, nothing proves the opposite.
    assert!(store.group(group_id(1)).is_some());
    assert!(store.group(group_id(2)).is_none() && store.group(group_id(3)).is_none());
    assert_eq!(store.groups().len(), 3);
}

#[test]
fn a_seal_behind_the_damage_proves_the_idle_groups() {
    let disk = SimDisk::new(7);
    let store = open(&disk);
    for number in 1..=GROUPS {
        let group = store.create_group(spec(number, 16 << 10)).unwrap();
        append_now(&store, &group, vec![batch_of(number, 1, 0, 1, 1, 100)]);
    }
    let victim = batch_of(2, 1, 1, 2, 1, 100);
    append_now(&store, &store.group(group_id(2)).unwrap(), vec![victim.clone()]);
    store.seal();
    drop(store);
    flip_at(&disk, &wal_of(&disk), &victim.encode_header());
    let store = open(&disk);
    assert!(store.group(group_id(1)).is_some() && store.group(group_id(3)).is_some());
    assert!(store.group(group_id(2)).is_none());
    drop(store);
    // It stays so, also when the evidence is recycled.
    assert!(open(&disk).group(group_id(2)).is_none());
}

#[test]
fn an_unsealed_last_unit_that_is_bad_is_a_torn_write_and_is_cut() {
    let disk = SimDisk::new(7);
    let store = open(&disk);
    let group = store.create_group(spec(1, 16 << 10)).unwrap();
    append_now(&store, &group, vec![batch(1, 0, 1, 1, 100)]);
    let torn = batch(1, 1, 2, 1, 100);
    append_now(&store, &group, vec![torn.clone()]);
    drop((group, store));
    flip_at(&disk, &wal_of(&disk), &torn.encode_header());
    let store = open(&disk);
    assert_eq!(
        store.group(group_id(1)).unwrap().last_log_id(),
        Some(log_id(1, 0))
    );
}

#[test]
fn a_flipped_bit_under_a_running_store_is_met_by_the_reader_and_others_go_on() {
    let disk = SimDisk::new(8);
    let store = open(&disk);
    let group = store.create_group(spec(1, 16 << 10)).unwrap();
    let other = store.create_group(spec(2, 16 << 10)).unwrap();
    for n in 0..30 {
        append_now(&store, &group, vec![batch(1, n, n + 1, 1, 1_500)]);
        append_now(&store, &other, vec![batch_of(2, 1, n, n + 1, 1, 1_500)]);
    }
    store.checkpoint_round(RoundLimit::default()).unwrap();
    let path = files(&disk, "0000000000000001/d1/m-").remove(0);
    disk.flip_bit(&path, 8 * (4096 + 2 * 1580 + 500));
    assert_eq!(group.read(LogIndex(0), LogIndex(2), 9999).unwrap().len(), 2);
    let Err(ReadError::Damaged(damage)) = group.read(LogIndex(2), LogIndex(3), 9999) else {
        panic!()
    };
    assert_eq!((damage.file, damage.position), (path, 4096 + 2 * 1580));
    let third = Sequence::new(3).unwrap();
    assert!(matches!(
        group.read_messages(third, third.next().unwrap(), 99),
        Err(ReadError::Damaged(_))
    ));
    assert!(matches!(
        group.read_segment_range(LogIndex(0), 0, 99_999),
        Err(ReadError::Damaged(_))
    ));
    assert!(matches!(
        group.verify(LogIndex(0), u64::MAX),
        Err(ReadError::Damaged(_))
    ));
    assert!(matches!(group.condition(), GroupCondition::Damaged(_)));
    assert_eq!(other.verify(LogIndex(0), u64::MAX).unwrap(), None);
    assert!(store.stats().damaged_reads >= 4);
    // Frames behind it, and new ones, are served.
    assert!(group.read(LogIndex(3), LogIndex(9), 9999).is_ok());
    append_now(&store, &group, vec![batch(1, 30, 31, 1, 100)]);
}

#[test]
fn old_units_in_a_recycled_file_are_never_taken_for_new_ones() {
    let disk = SimDisk::new(9);
    let store: Store = open(&disk);
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    for n in 0..120 {
        append_now(&store, &group, vec![batch(1, n, n + 1, 1, 3_000)]);
        if n % 10 == 0 {
            store.checkpoint_round(RoundLimit::default()).unwrap();
        }
    }
    assert!(store.stats().recycled_files > 0);
    // The last unit is lost: behind it lie units of the file's former life.
    let last = batch(1, 120, 121, 1, 3_000);
    append_now(&store, &group, vec![last.clone()]);
    drop((group, store));
    flip_at(&disk, &wal_of(&disk), &last.encode_header());
    let group = open(&disk).group(group_id(1)).unwrap();
    assert_eq!(group.last_log_id(), Some(log_id(1, 119)));
}

#[test]
fn a_damaged_checkpoint_is_passed_over_only_when_the_log_is_complete_without_it() {
    for purged in [false, true] {
        let disk = SimDisk::new(10);
        let store = open(&disk);
        let group = store.create_group(spec(1, 16 << 10)).unwrap();
        for n in 0..20 {
            append_now(&store, &group, vec![batch(1, n, n + 1, 1, 500)]);
        }
        group
            .write_checkpoint(log_id(1, 5), Bytes::from_static(b"old"))
            .unwrap();
        group
            .write_checkpoint(log_id(1, 15), Bytes::from_static(b"new"))
            .unwrap();
        let upto = if purged { 10 } else { 4 };
        group.purge(log_id(1, upto), Outcome::default().done());
        settle(&store);
        store.close().unwrap();
        drop((group, store));
        disk.flip_bit(&files(&disk, "ckpt-00000000000000000015").remove(0), 8 * 100);
        let store = open(&disk);
        match store.group(group_id(1)) {
            Some(group) => {
                assert!(!purged);
                assert_eq!(group.latest_checkpoint().unwrap().unwrap().state, "old");
            }
            None => assert!(purged),
        }
    }
}

#[test]
fn a_lost_meta_slot_is_made_up_for_by_the_log_or_reported() {
    let disk = SimDisk::new(11);
    let store = open(&disk);
    let group = store.create_group(spec(1, 16 << 10)).unwrap();
    let vote = VoteRecord {
        term: Term(3),
        voted_for: None,
        committed: false,
    };
    group.save_vote(vote, Outcome::default().done());
    append_now(&store, &group, vec![batch(1, 0, 1, 1, 100)]);
    store.checkpoint_round(RoundLimit::default()).unwrap();
    let newest = dir().join("g/0000000000000001").join("meta.b");
    // The log still has everything since the older slot.
    let copy = disk.fork(1);
    copy.delete(&newest);
    let rescued = open(&copy);
    assert_eq!(rescued.group(group_id(1)).unwrap().vote(), Some(vote));
    // Now it has not.
    let busy = store.create_group(spec(2, 64 << 10)).unwrap();
    for n in 0..200 {
        append_now(&store, &busy, vec![batch_of(2, 1, n, n + 1, 1, 3_000)]);
        if n % 20 == 0 {
            store.checkpoint_round(RoundLimit::default()).unwrap();
        }
    }
    disk.delete(&newest);
    drop((group, busy, store));
    let store = open(&disk);
    assert!(
        store.group(group_id(1)).is_none(),
        "its vote may be older than what was promised"
    );
    assert!(store.group(group_id(2)).is_some());
}

#[test]
fn a_unit_inside_a_payload_is_never_taken_for_one() {
    let disk = SimDisk::new(12);
    let store = open(&disk);
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    append_now(&store, &group, vec![batch(1, 0, 1, 1, 100)]);
    // Who knows the format and guesses the numbers: a vote, in the unit behind the next one.
    let mut forged = Unit::new();
    let vote = VoteRecord {
        term: Term(99),
        voted_for: ReplicaId::new(5).ok(),
        committed: true,
    };
    forged.push_record(1, 2, &Record::Vote(vote));
    let forged = forged
        .finish(&crate::wal::Epoch { number: 1, nonce: 0 }, 3, UnitKind::Data)
        .concat();
    // Placed so that it starts at a block of the file.
    let mut payload = vec![7; 4096 - 40 - 24 - crate::FRAME_HEADER_LEN];
    payload.extend_from_slice(&forged);
    payload.resize(9_000, 7);
    let crc = crate::crc32c(&payload);
    let (at, base) = (log_id(1, 1), Sequence::new(2).unwrap());
    let torn = Frame::batch(
        group_id(1),
        at,
        ptah_types::Timestamp(9),
        base,
        1,
        payload.into(),
        crc,
    );
    append_now(&store, &group, vec![torn.clone()]);
    drop((group, store));
    // The power cut tore the last unit.
    flip_at(&disk, &wal_of(&disk), &torn.encode_header());
    let store = open(&disk);
    let group = store.group(group_id(1)).expect("nothing acknowledged is missing");
    assert_eq!((group.vote(), group.last_log_id()), (None, Some(log_id(1, 0))));
}
