//! Checkers: lost, doubled, reordered, phantom.

use std::collections::BTreeMap;

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

/// Order within each partition of what one group received first: sequences rise by one, nothing is left out.
pub fn received_once_in_order(received: &[Received]) -> anyhow::Result<()> {
    let mut last: BTreeMap<u32, u64> = BTreeMap::new();
    for message in received {
        let previous = last.insert(message.partition, message.sequence);
        let expected = previous.map_or(message.sequence, |previous| previous + 1);
        anyhow::ensure!(
            message.sequence == expected,
            "partition {}: {} was received where {expected} was expected",
            message.partition,
            message.sequence
        );
    }
    Ok(())
}
