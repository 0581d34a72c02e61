//! How many bytes are stored, without a record per batch.
//!
//! Appended bytes are summed in buckets of a growing size. A trim inside a bucket takes a share of it, so the figure
//! is exact as long as trims fall on bucket edges and off by less than one bucket (1/128 of everything) otherwise.

use std::collections::VecDeque;

use ptah_types::Sequence;

use crate::applied::Broken;
use crate::codec::{Malformed, Reader, Writer};

const MAX_BUCKETS: usize = 256;
const SMALLEST_BUCKET_BYTES: u64 = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Bucket {
    messages: u64,
    bytes: u64,
}

/// Bytes by place, oldest first; the buckets together hold exactly the messages that are kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Sizes {
    buckets: VecDeque<Bucket>,
    bytes: u64,
    /// A bucket that holds this much is closed.
    bucket_bytes: u64,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            buckets: VecDeque::new(),
            bytes: 0,
            bucket_bytes: SMALLEST_BUCKET_BYTES,
        }
    }
}

impl Sizes {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn append(&mut self, messages: u64, bytes: u64) {
        let bytes = bytes.min(u64::MAX - self.bytes);
        self.bytes += bytes;
        match self.buckets.back_mut() {
            Some(open) if open.bytes < self.bucket_bytes => {
                open.messages += messages;
                open.bytes += bytes;
            }
            _ => self.buckets.push_back(Bucket { messages, bytes }),
        }
        if self.buckets.len() > MAX_BUCKETS {
            self.halve();
        }
    }

    /// Joins buckets two by two.
    fn halve(&mut self) {
        self.bucket_bytes = self.bucket_bytes.saturating_mul(2);
        let mut joined = VecDeque::with_capacity(MAX_BUCKETS);
        while let Some(mut bucket) = self.buckets.pop_front() {
            if let Some(next) = self.buckets.pop_front() {
                bucket.messages += next.messages;
                bucket.bytes += next.bytes;
            }
            joined.push_back(bucket);
        }
        self.buckets = joined;
    }

    /// Takes the `messages` oldest messages out.
    pub(crate) fn trim(&mut self, mut messages: u64) {
        while messages > 0
            && let Some(oldest) = self.buckets.front_mut()
        {
            if oldest.messages <= messages {
                messages -= oldest.messages;
                self.bytes -= oldest.bytes;
                self.buckets.pop_front();
                continue;
            }
            let share = u128::from(oldest.bytes) * u128::from(messages) / u128::from(oldest.messages);
            let share = u64::try_from(share).unwrap_or(oldest.bytes);
            oldest.messages -= messages;
            oldest.bytes -= share;
            self.bytes -= share;
            return;
        }
    }

    pub(crate) fn check(&self, first: Sequence, next: Sequence) -> Result<(), Broken> {
        let sum = |of: fn(&Bucket) -> u64| self.buckets.iter().map(|b| u128::from(of(b))).sum::<u128>();
        Broken::unless(
            sum(|b| b.messages) == u128::from(next.distance_from(first)),
            || "buckets hold other messages than the partition".into(),
        )?;
        Broken::unless(sum(|b| b.bytes) == u128::from(self.bytes), || {
            "bytes of buckets do not add up".into()
        })?;
        let bounded = self.buckets.len() <= MAX_BUCKETS && self.buckets.iter().all(|b| b.messages > 0);
        Broken::unless(bounded, || "too many or empty buckets".into())
    }

    pub(crate) fn encode(&self, writer: &mut Writer) {
        writer.varint(self.bucket_bytes);
        writer.varint(self.buckets.len() as u64);
        for bucket in &self.buckets {
            writer.varint(bucket.messages);
            writer.varint(bucket.bytes);
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut sizes = Self {
            bucket_bytes: reader.varint("bucket size")?,
            ..Self::default()
        };
        for _ in 0..reader.count(MAX_BUCKETS, 2, "number of buckets")? {
            let messages = reader.varint("messages of a bucket")?;
            let bytes = reader.varint("bytes of a bucket")?;
            let sum = sizes.bytes.checked_add(bytes);
            sizes.bytes = sum.ok_or(reader.malformed("bytes of a bucket"))?;
            sizes.buckets.push_back(Bucket { messages, bytes });
        }
        Ok(sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_trimmed_leaves_no_bytes() {
        let mut sizes = Sizes::default();
        for _ in 0..10_000 {
            sizes.append(10, 300_000);
        }
        assert_eq!(sizes.bytes(), 3_000_000_000);
        assert!(sizes.buckets.len() <= MAX_BUCKETS);
        sizes.trim(100_000);
        assert_eq!((sizes.bytes(), sizes.buckets.len()), (0, 0));
    }

    #[test]
    fn a_trim_in_the_middle_is_off_by_less_than_one_bucket() {
        let mut sizes = Sizes::default();
        for batch in 0..10_000_u64 {
            sizes.append(1, 1_000_000 + batch % 7);
        }
        let before = sizes.bytes();
        sizes.trim(3_333);
        let removed = before - sizes.bytes();
        let exact: u64 = (0..3_333_u64).map(|batch| 1_000_000 + batch % 7).sum();
        assert!(
            removed.abs_diff(exact) < before / 128,
            "{removed} instead of {exact}"
        );
    }
}
