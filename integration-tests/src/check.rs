//! Checkers: lost, doubled, reordered, phantom.

use std::collections::BTreeMap;

use anyhow::Context;
use bytes::Bytes;

use crate::client::{Received, StoredAt};

/// What was acknowledged, by place, and what was refused or is not known.
#[derive(Debug, Default)]
pub struct Produced {
    /// Acknowledged payloads by (partition, sequence).
    pub stored: BTreeMap<(u32, u64), Bytes>,
    /// Payloads whose outcome is not known: they may be there, once.
    pub unknown: Vec<Bytes>,
    /// Payloads that were refused: they must not be there.
    pub refused: Vec<Bytes>,
}

impl Produced {
    /// Notes an acknowledgement; two messages at one place are an error.
    pub fn acknowledged(&mut self, at: StoredAt, payload: Bytes) -> anyhow::Result<()> {
        let place = (at.partition, at.sequence);
        if let Some(other) = self.stored.insert(place, payload.clone()) {
            anyhow::ensure!(other == payload, "two messages were acknowledged at {place:?}");
            anyhow::bail!("{place:?} was acknowledged twice");
        }
        Ok(())
    }
}

impl Produced {
    /// What was acknowledged, by partition.
    pub fn by_partition(&self) -> BTreeMap<u32, Vec<(u64, Bytes)>> {
        let mut partitions: BTreeMap<u32, Vec<(u64, Bytes)>> = BTreeMap::new();
        for ((partition, sequence), payload) in &self.stored {
            let messages = partitions.entry(*partition).or_default();
            messages.push((*sequence, payload.clone()));
        }
        partitions
    }
}

/// Compares what was acknowledged with everything that is stored.
///
/// Every acknowledged message is at its place, byte for byte; sequences are dense from `first`; whatever else is there
/// had an unknown outcome, and is there once.
pub fn stored_equals_produced(
    produced: &Produced,
    read_back: &BTreeMap<u32, Vec<(u64, Bytes)>>,
) -> anyhow::Result<()> {
    let mut unknown: BTreeMap<&Bytes, usize> = BTreeMap::new();
    for payload in &produced.unknown {
        *unknown.entry(payload).or_default() += 1;
    }
    let mut seen = 0;
    for (partition, messages) in read_back {
        let mut expected = None;
        for (sequence, payload) in messages {
            anyhow::ensure!(
                expected.is_none_or(|expected| expected == *sequence),
                "partition {partition}: sequence {sequence} follows where {expected:?} was expected"
            );
            expected = Some(sequence + 1);
            match produced.stored.get(&(*partition, *sequence)) {
                Some(acknowledged) => {
                    anyhow::ensure!(
                        acknowledged == payload,
                        "partition {partition}: {sequence} holds other bytes"
                    );
                    seen += 1;
                }
                None => {
                    let left = unknown.get_mut(payload).filter(|left| **left > 0);
                    let left = left.ok_or_else(|| {
                        let shown = String::from_utf8_lossy(&payload[..payload.len().min(60)]).into_owned();
                        anyhow::anyhow!(
                            "partition {partition}: {sequence} holds {shown:?}, which nobody stored"
                        )
                    })?;
                    *left -= 1;
                }
            }
        }
    }
    anyhow::ensure!(
        seen == produced.stored.len(),
        "{} of {} acknowledged messages are there",
        seen,
        produced.stored.len()
    );
    Ok(())
}

/// Compares what a new group received with everything that is stored: every message of every partition, byte for byte,
/// once, in order.
pub fn received_equals_stored(
    received: &[Received],
    stored: &BTreeMap<u32, Vec<(u64, Bytes)>>,
) -> anyhow::Result<()> {
    let mut by_partition: BTreeMap<u32, Vec<(u64, Bytes)>> = BTreeMap::new();
    for message in received {
        by_partition
            .entry(message.partition)
            .or_default()
            .push((message.sequence, message.payload.clone()));
    }
    for (partition, messages) in stored {
        let got = by_partition.remove(partition).unwrap_or_default();
        if let Some((got, stored)) = got.iter().zip(messages).find(|(got, stored)| got != stored) {
            anyhow::bail!(
                "partition {partition}: {} was received where {} was expected, or its bytes differ",
                got.0,
                stored.0
            );
        }
        anyhow::ensure!(
            got.len() == messages.len(),
            "partition {partition}: {} of {} messages were received",
            got.len(),
            messages.len()
        );
    }
    anyhow::ensure!(
        by_partition.is_empty(),
        "messages came from partitions that the station does not have"
    );
    Ok(())
}

/// Order of production: the counters of one producer rise within each partition.
///
/// Payloads are those of [`crate::records::counted`].
pub fn in_order_of_production(stored: &BTreeMap<u32, Vec<(u64, Bytes)>>) -> anyhow::Result<()> {
    for (partition, messages) in stored {
        let mut last: BTreeMap<&str, u64> = BTreeMap::new();
        for (sequence, payload) in messages {
            let text = std::str::from_utf8(payload)?;
            let mut parts = text.split(':');
            let producer = parts.next().context("payload without a producer")?;
            let counter: u64 = parts.next().context("payload without a counter")?.parse()?;
            let before = last.insert(producer, counter);
            anyhow::ensure!(
                before.is_none_or(|before| before < counter),
                "partition {partition}: message {counter} of {producer} stands at {sequence}, behind {before:?}"
            );
        }
    }
    Ok(())
}
