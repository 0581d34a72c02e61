//! What the hot paths cost, best of several rounds. Compare only runs of the same machine in the same minute.

use std::io::Write;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ptah_partition::{
    BatchBuilder, BatchHead, BatchStamp, BatchView, Command, ConsumerId, Deliveries, Door, GroupSpec,
    MessageParts, Partition, SequenceRange, encode_commands,
};
use ptah_types::{ConsumerGroupId, StartAt, Timestamp};

const ROUNDS: usize = 9;

fn measure(what: &str, items: u64, mut work: impl FnMut()) -> std::io::Result<()> {
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        work();
        best = best.min(started.elapsed());
    }
    let each = best.as_nanos() as f64 / items as f64;
    writeln!(std::io::stdout(), "{each:>8.0} ns  {what}")
}

/// One batch of 1,000 messages.
fn build(builder: &mut BatchBuilder, with_header: bool) -> Bytes {
    let payload = [b'x'; 128];
    for _ in 0..1_000 {
        let parts = MessageParts::new(Door::SDK, "orders.eu", &payload);
        let header = (&b"trace"[..], &b"0123456789abcdef"[..]);
        builder
            .push(&parts, with_header.then_some(header))
            .expect("a thousand small messages fit");
    }
    builder.finish().expect("there are messages").payload
}

fn batches() -> std::io::Result<()> {
    let mut builder = BatchBuilder::new();
    measure("build a message of 128 bytes", 100_000, || {
        for _ in 0..100 {
            build(&mut builder, false);
        }
    })?;
    measure("build a message of 128 bytes with a header", 100_000, || {
        for _ in 0..100 {
            build(&mut builder, true);
        }
    })?;
    let payload = build(&mut builder, true);
    let parse = || BatchView::parse(payload.clone()).expect("just built");
    measure("check a message", 100_000, || {
        for _ in 0..100 {
            assert_eq!(parse().len(), 1_000);
        }
    })?;
    let view = parse();
    measure("read a message", 100_000, || {
        for _ in 0..100 {
            assert_eq!(
                view.iter().map(|message| message.payload().len()).sum::<usize>(),
                128_000
            );
        }
    })
}

/// A partition of `messages` messages with one group, and its deliveries.
fn leader(messages: u64) -> (Partition, Deliveries, ConsumerGroupId) {
    let mut partition = Partition::new();
    let group = ConsumerGroupId::new(1).expect("valid");
    let spec = GroupSpec {
        name: "audit".parse().expect("valid"),
        start: StartAt::First,
        ack_deadline_ms: 30_000,
        max_in_flight: 10_000,
    };
    partition.apply(&Command::EnsureGroup { group, spec }, Timestamp(0));
    for _ in 0..messages / 10_000 {
        let stamp = BatchStamp {
            base_sequence: partition.next_sequence(),
            count: 10_000,
            timestamp: Timestamp(0),
            session: None,
        };
        partition
            .apply_batch(
                &stamp,
                BatchHead {
                    count: 10_000,
                    bytes: 1,
                },
            )
            .expect("valid");
    }
    let mut deliveries = Deliveries::new(&partition, group, Timestamp(0)).expect("valid");
    deliveries.open(ConsumerId(1), u32::MAX).expect("valid");
    (partition, deliveries, group)
}

/// Leases and sends `run` messages at a time, acknowledges each message alone, replicates after each run.
fn deliver(messages: u64, run: u32, backwards: bool) {
    let (mut partition, mut deliveries, group) = leader(messages);
    let now = Timestamp(1);
    while deliveries.available() {
        for lease in deliveries.lease(now, run) {
            deliveries.mark_lease_sent(&lease, now);
            let mut places: Vec<_> = lease.range.iter().collect();
            if backwards {
                places.reverse();
            }
            for place in places {
                assert_eq!(deliveries.ack(&[SequenceRange::single(place)]).newly, 1);
            }
        }
        let round = deliveries.to_replicate().expect("valid");
        let entry = encode_commands(&round.commands).expect("valid");
        let applied = partition.apply_entry(&entry, now).expect("valid");
        deliveries.confirmed(round.round, &applied, now);
    }
    assert_eq!(
        partition.group(group).expect("valid").first_unacked(),
        partition.next_sequence()
    );
}

fn main() -> std::io::Result<()> {
    batches()?;
    for (what, run, backwards) in [
        ("deliver in runs of 500, ack one by one", 500, false),
        ("deliver in runs of 500, ack one by one backwards", 500, true),
        ("deliver, ack and replicate one at a time", 1, false),
    ] {
        measure(what, 100_000, || deliver(100_000, run, backwards))?;
    }
    Ok(())
}
