//! How fast the storage engine is on this disk, beside the bare minimum: one write and one fdatasync.
//!
//! `cargo run --release -p ptah-segment-log --example throughput -- <directory> [seconds per measurement]`

#![allow(clippy::print_stdout, reason = "a measurement is printed")]

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ptah_segment_log::{
    Disk, Frame, GroupLog, GroupSpec, Identity, Options, OsDisk, RoundLimit, Store, Work, crc32c,
};
use ptah_types::{
    ClusterId, LogId, LogIndex, NodeId, PartitionKey, PartitionNumber, RaftGroupId, ReplicaId, StationId,
    Term, Timestamp,
};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("name a directory to write to")?);
    let seconds = arguments.next().map_or(Ok(2), |text| text.parse())?;
    let time = Duration::from_secs(seconds);
    std::fs::create_dir_all(&dir)?;
    raw(&dir, 4 << 10, time)?;
    raw(&dir, 1 << 20, time)?;
    let bench = Bench::open(&dir.join("store"))?;
    bench.run("one at a time, 128 B", 1, 1, 128, time)?;
    bench.run("window 16, 1 group, 128 B", 1, 16, 128, time)?;
    bench.run("window 1000, 1 group, 128 B", 1, 1000, 128, time)?;
    bench.run("window 1000, 256 groups, 128 B", 256, 1000, 128, time)?;
    bench.run("window 16, 1 group, 64 KiB", 1, 16, 64 << 10, time)?;
    bench.run("window 4, 1 group, 1 MiB - 1", 1, 4, (1 << 20) - 1, time)?;
    bench.run("window 4, 4 groups, 8 MiB", 4, 4, 8 << 20, time)?;
    bench.cost_of_append()?;
    println!("{:?}", bench.store.stats());
    drop(bench);
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

/// What the disk gives: synced writes of `len` bytes into blocks that were written before.
fn raw(dir: &Path, len: usize, time: Duration) -> Result<(), Failure> {
    const FILE: u64 = 64 << 20;
    let file = OsDisk.create(&dir.join("raw"))?;
    let block = vec![7; len];
    for at in (0..FILE).step_by(len) {
        file.write_at(&mut [IoSlice::new(&block)], at)?;
    }
    file.sync_data()?;
    let mut took = Vec::new();
    let start = Instant::now();
    while start.elapsed() < time {
        let before = Instant::now();
        let at = (took.len() * len) as u64 % FILE;
        file.write_at(&mut [IoSlice::new(&block)], at)?;
        file.sync_data()?;
        took.push(before.elapsed());
    }
    report(
        &format!("raw write + fdatasync of {} KiB", len >> 10),
        &mut took,
        len,
        start.elapsed(),
    );
    std::fs::remove_file(dir.join("raw"))?;
    Ok(())
}

fn report(name: &str, took: &mut [Duration], len: usize, all: Duration) {
    took.sort();
    let at = |part: usize| took.get(took.len() * part / 100).copied().unwrap_or_default();
    let rate = took.len() as f64 / all.as_secs_f64();
    let bytes = rate * len as f64 / 1e6;
    println!(
        "{name:34} {rate:10.0}/s {bytes:8.1} MB/s  p50 {:?} p99 {:?}",
        at(50),
        at(99)
    );
}

struct Bench {
    store: Store,
    _drivers: ptah_segment_log::Drivers,
    groups: Vec<Arc<GroupLog>>,
}

impl Bench {
    fn open(dir: &Path) -> Result<Self, Failure> {
        let identity = Identity {
            cluster: ClusterId::from_random_bytes([5; 16]),
            node: NodeId::new(1)?,
        };
        let store = Store::open(Arc::new(OsDisk), dir, identity, Options::default())?;
        let (sender, receiver) = mpsc::sync_channel(1);
        store.set_waker(Arc::new(move |work| {
            if work == Work::Checkpoint {
                // A round that is asked for already is enough.
                let _ = sender.try_send(());
            }
        }));
        let for_rounds = store.clone();
        std::thread::spawn(move || {
            while receiver.recv().is_ok() {
                if let Err(error) = for_rounds.checkpoint_round(RoundLimit::default()) {
                    println!("checkpoint round: {error}");
                }
            }
        });
        let mut groups = Vec::new();
        for number in 1..=256 {
            let key = PartitionKey {
                tenant: "default".parse()?,
                station: StationId::new(number)?,
                partition: PartitionNumber::FIRST,
            };
            let (group, replica) = (RaftGroupId::new(number)?, ReplicaId::new(1)?);
            groups.push(store.create_group(GroupSpec {
                group,
                replica,
                key,
                segment_bytes: 64 << 20,
            })?);
        }
        let drivers = store.spawn_drivers()?;
        Ok(Self {
            store,
            _drivers: drivers,
            groups,
        })
    }

    fn frame(group: &GroupLog, payload: &Bytes, crc: u32) -> Frame {
        let index = group.last_log_id().map_or(0, |last| last.index.0 + 1);
        let id = LogId {
            term: Term(1),
            index: LogIndex(index),
        };
        Frame::batch(
            group.spec().group,
            id,
            Timestamp(index),
            group.next_sequence(),
            1,
            payload.clone(),
            crc,
        )
    }

    fn run(
        &self,
        name: &str,
        groups: usize,
        window: usize,
        len: usize,
        time: Duration,
    ) -> Result<(), Failure> {
        let payload = Bytes::from(vec![9; len]);
        let crc = crc32c(&payload);
        let (sender, receiver) = mpsc::channel();
        let mut took = Vec::new();
        let (mut sent, mut open) = (0, 0);
        let before = self.store.stats();
        let start = Instant::now();
        while start.elapsed() < time || open > 0 {
            while open < window && start.elapsed() < time {
                let group = &self.groups[sent % groups];
                let sender = sender.clone();
                let now = Instant::now();
                let done = Box::new(move |result: std::io::Result<()>| {
                    let _ = sender.send(result.map(|()| now.elapsed()));
                });
                if group
                    .append(vec![Self::frame(group, &payload, crc)], done)
                    .is_err()
                {
                    break;
                }
                sent += 1;
                open += 1;
            }
            if open == 0 {
                std::thread::yield_now();
                continue;
            }
            took.push(receiver.recv()??);
            open -= 1;
            while let Ok(result) = receiver.try_recv() {
                took.push(result?);
                open -= 1;
            }
        }
        report(name, &mut took, len, start.elapsed());
        let after = self.store.stats();
        let syncs = (after.wal_syncs - before.wal_syncs).max(1);
        println!(
            "{:34} {:.1} completions per sync",
            "",
            took.len() as f64 / syncs as f64
        );
        Ok(())
    }

    /// What the caller of `append` pays, without waiting.
    fn cost_of_append(&self) -> Result<(), Failure> {
        let payload = Bytes::from(vec![9; 128]);
        let crc = crc32c(&payload);
        let (sender, receiver) = mpsc::channel();
        let mut spent = Duration::ZERO;
        const COUNT: u32 = 200_000;
        for _ in 0..COUNT {
            let group = &self.groups[0];
            let sender = sender.clone();
            let frames = vec![Self::frame(group, &payload, crc)];
            let done = Box::new(move |result: std::io::Result<()>| {
                let _ = sender.send(result.is_ok());
            });
            let before = Instant::now();
            group.append(frames, done).map_err(|refused| refused.reason)?;
            spent += before.elapsed();
        }
        drop(sender);
        let durable = receiver.iter().filter(|ok| *ok).count();
        println!(
            "append of 128 B costs the caller {:?}; {durable} durable",
            spent / COUNT
        );
        Ok(())
    }
}
