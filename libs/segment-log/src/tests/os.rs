//! The real file system and the driver threads.

use std::sync::Arc;
use std::sync::mpsc;

use ptah_types::LogIndex;

use super::harness::tiny;
use crate::testing::{batch, batch_of, group_id, identity, log_id, spec};
use crate::types::RoundLimit;
use crate::{Disk, OpenError, Options, OsDisk, Store};

fn open(dir: &std::path::Path) -> Store {
    Store::open(
        Arc::new(OsDisk),
        dir,
        identity(),
        Options {
            reserve_bytes: Some(0),
            ..tiny()
        },
    )
    .unwrap()
}

#[test]
fn the_driver_threads_commit_write_large_frames_and_stop() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("new/data");
    let store = open(&dir);
    let drivers = store.spawn_drivers().unwrap();
    let (sender, receiver) = mpsc::channel();
    for number in 1..=4 {
        let group = store.create_group(spec(number, 64 << 10)).unwrap();
        for n in 0..50 {
            let len = if n % 10 == 9 { 20_000 } else { 200 };
            let sender = sender.clone();
            let done = Box::new(move |result: std::io::Result<()>| sender.send(result.is_ok()).unwrap());
            let mut frames = vec![batch_of(number, 1, n, n + 1, 1, len)];
            let mut done: crate::FlushDone = done;
            while let Err(refused) = group.append(frames, done) {
                (frames, done) = (refused.frames, refused.done);
                std::thread::yield_now();
            }
        }
    }
    drop(sender);
    assert_eq!(receiver.iter().filter(|ok| *ok).count(), 200);
    store.checkpoint_round(RoundLimit::default()).unwrap();
    drop(drivers);
    store.close().unwrap();
    drop(store);
    let store = open(&dir);
    for number in 1..=4 {
        let group = store.group(group_id(number)).unwrap();
        assert_eq!(group.last_log_id(), Some(log_id(1, 49)));
        assert_eq!(
            group.read(LogIndex(0), LogIndex(1), 1).unwrap()[0],
            batch_of(number, 1, 0, 1, 1, 200)
        );
    }
}

#[test]
fn the_driver_seals_after_a_quiet_moment() {
    let temporary = tempfile::tempdir().unwrap();
    let store = open(temporary.path());
    let _drivers = store.spawn_drivers().unwrap();
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    let (sender, receiver) = mpsc::channel();
    group
        .append(
            vec![batch(1, 0, 1, 1, 10)],
            Box::new(move |result| sender.send(result).unwrap()),
        )
        .unwrap();
    receiver.recv().unwrap().unwrap();
    while store.stats().seals == 0 {
        std::thread::yield_now();
    }
    assert_eq!(store.stats().seals, 1);
}

#[test]
fn another_process_that_holds_the_lock_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    let _store = open(temporary.path());
    let again = Store::open(Arc::new(OsDisk), temporary.path(), identity(), tiny());
    assert!(matches!(again, Err(OpenError::Locked { .. })));
}

#[test]
fn a_path_that_is_a_file_gives_a_clear_error() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("file");
    std::fs::write(&path, b"x").unwrap();
    let error = Store::open(Arc::new(OsDisk), &path, identity(), tiny())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&path.display().to_string()) && error.contains("check that"),
        "{error}"
    );
}

#[test]
fn a_vectored_write_of_many_slices_is_complete() {
    let temporary = tempfile::tempdir().unwrap();
    let file = OsDisk.create(&temporary.path().join("f")).unwrap();
    let pieces: Vec<Vec<u8>> = (0..3000u32).map(|n| vec![n as u8; 7]).collect();
    let mut slices: Vec<_> = pieces.iter().map(|piece| std::io::IoSlice::new(piece)).collect();
    file.write_at(&mut slices, 5).unwrap();
    assert_eq!(file.len().unwrap(), 21_005);
    let mut last = [0; 7];
    file.read_at(&mut last, 5 + 2999 * 7).unwrap();
    assert_eq!(last, [2999u32 as u8; 7]);
}

#[test]
fn bytes_handed_to_the_device_are_still_there_and_a_range_without_bytes_is_no_error() {
    let temporary = tempfile::tempdir().unwrap();
    let file = OsDisk.create(&temporary.path().join("f")).unwrap();
    let bytes = vec![7; 100_000];
    file.write_at(&mut [std::io::IoSlice::new(&bytes)], 3).unwrap();
    file.write_back(3, 100_000).unwrap();
    file.write_back(1 << 40, 1 << 20).unwrap();
    let mut read = vec![0; 100_000];
    assert_eq!(file.read_at(&mut read, 3).unwrap(), 100_000);
    assert_eq!(read, bytes);
}
