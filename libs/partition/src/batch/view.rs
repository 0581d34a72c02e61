//! Reading a batch: checked once as a whole, then read where it lies.

use std::ops::Range;

use bytes::Bytes;
use ptah_types::limits::{MAX_BATCH_BYTES, MAX_BATCH_MESSAGES, MAX_MESSAGE_BYTES, MAX_MESSAGE_META_BYTES};

use super::layout::{BatchHead, END_BYTES, FORMAT, HEAD_BYTES};
use super::message::MessageView;

/// Why bytes are not a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BatchError {
    /// Written by another version.
    #[error("batch has format {found}, this build reads {FORMAT}")]
    UnknownVersion {
        /// In the batch.
        found: u8,
    },
    /// Written by a newer version.
    #[error("batch has flags {found:#04x} that this build does not know")]
    UnknownFlags {
        /// In the batch.
        found: u8,
    },
    /// More bytes than a batch may have.
    #[error("batch has {bytes} bytes; at most {MAX_BATCH_BYTES} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// No messages, more than allowed, or more than the bytes can hold.
    #[error("batch claims {count} messages; 1 to {MAX_BATCH_MESSAGES} that fit into its bytes are allowed")]
    BadCount {
        /// In the batch.
        count: u32,
    },
    /// A field does not fit.
    #[error("batch is malformed: {what}{}", message.map_or(String::new(), |index| format!(" of message {index}")))]
    Malformed {
        /// Which field.
        what: &'static str,
        /// Of which message, counted from 0.
        message: Option<usize>,
    },
}

/// A batch whose every message is known to be well formed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BatchView {
    payload: Bytes,
    count: usize,
    /// Where the table of ends starts: also the end of the last message.
    table: usize,
}

impl BatchView {
    /// Checks the whole payload. Allocates nothing.
    pub fn parse(payload: Bytes) -> Result<Self, BatchError> {
        let head = BatchHead::read(&payload)?;
        let count = head.count as usize;
        let view = Self {
            table: payload.len() - count * END_BYTES,
            payload,
            count,
        };
        let mut start = HEAD_BYTES;
        for (index, end) in view.ends().enumerate() {
            view.check_message(start, end)
                .map_err(|what| BatchError::Malformed {
                    what,
                    message: Some(index),
                })?;
            start = end;
        }
        if start != view.table {
            return Err(BatchError::Malformed {
                what: "bytes behind the last message",
                message: None,
            });
        }
        Ok(view)
    }

    fn check_message(&self, start: usize, end: usize) -> Result<(), &'static str> {
        // Ends ascend, and the last one is the table's place: so none reaches into the table.
        let encoded = self.payload.get(start..end).ok_or("end")?;
        let message = MessageView::split(&self.payload, encoded)?;
        if !message.has_whole_headers() {
            return Err("headers");
        }
        if message.meta_len() > MAX_MESSAGE_META_BYTES {
            return Err("size of subject, headers, key and ids");
        }
        if message.payload().len() as u64 > MAX_MESSAGE_BYTES {
            return Err("payload size");
        }
        Ok(())
    }

    fn ends(&self) -> impl Iterator<Item = usize> {
        let (ends, _) = self
            .payload
            .get(self.table..)
            .unwrap_or_default()
            .as_chunks::<END_BYTES>();
        ends.iter().map(|end| u32::from_le_bytes(*end) as usize)
    }

    /// Where message `index` ends; `HEAD_BYTES` for the place before the first.
    fn end(&self, index: usize) -> Option<usize> {
        let at = self.table.checked_add(index.checked_mul(END_BYTES)?)?;
        let (end, _) = self.payload.get(at..)?.split_first_chunk::<END_BYTES>()?;
        Some(u32::from_le_bytes(*end) as usize)
    }

    fn encoded(&self, range: Range<usize>) -> Option<&[u8]> {
        let start = match range.start.checked_sub(1) {
            Some(before) => self.end(before)?,
            None => HEAD_BYTES,
        };
        let end = self.end(range.end.checked_sub(1)?)?;
        self.payload.get(start..end)
    }

    /// Number of messages; at least one.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Never: a batch has a message.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Number of messages and bytes.
    pub fn head(&self) -> BatchHead {
        BatchHead {
            count: self.count as u32,
            bytes: self.payload.len() as u64,
        }
    }

    /// The batch's bytes.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Message `index`, counted from 0.
    pub fn message(&self, index: usize) -> Option<MessageView<'_>> {
        let encoded = self.encoded(index..index.checked_add(1)?)?;
        MessageView::split(&self.payload, encoded).ok()
    }

    /// All messages in order.
    pub fn iter(&self) -> impl Iterator<Item = MessageView<'_>> {
        let mut start = HEAD_BYTES;
        self.ends().filter_map(move |end| {
            let encoded = self.payload.get(start..end)?;
            start = end;
            MessageView::split(&self.payload, encoded).ok()
        })
    }

    /// A batch of the messages in `range`; `None` if it is empty or reaches behind the end. The whole range shares
    /// this batch's memory.
    pub fn slice(&self, range: Range<usize>) -> Option<Bytes> {
        if range.is_empty() || range.end > self.count {
            return None;
        }
        if range.len() == self.count {
            return Some(self.payload.clone());
        }
        let messages = self.encoded(range.clone())?;
        let mut copy = Copied::new(messages.len(), range.len());
        for index in range {
            copy.ends_at(self.encoded(index..index + 1)?.len());
        }
        copy.bytes.extend_from_slice(messages);
        Some(copy.finish())
    }

    /// A batch of the messages at `indices`, in that order; `None` if there are none, more than a batch may have, or
    /// one does not exist.
    pub fn select(&self, indices: &[usize]) -> Option<Bytes> {
        if indices.is_empty() || indices.len() > MAX_BATCH_MESSAGES {
            return None;
        }
        let mut messages_len = 0;
        for index in indices.iter().copied().filter(|index| *index < self.count) {
            messages_len += self.encoded(index..index + 1)?.len();
        }
        if messages_len + HEAD_BYTES + indices.len() * END_BYTES > MAX_BATCH_BYTES {
            return None;
        }
        let mut copy = Copied::new(messages_len, indices.len());
        for index in indices.iter().copied() {
            if index >= self.count {
                return None;
            }
            let message = self.encoded(index..index + 1)?;
            copy.ends_at(message.len());
            copy.bytes.extend_from_slice(message);
        }
        Some(copy.finish())
    }
}

/// A batch that is put together from encoded messages.
struct Copied {
    bytes: Vec<u8>,
    ends: Vec<u8>,
    end: usize,
}

impl Copied {
    fn new(messages_len: usize, count: usize) -> Self {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + messages_len + count * END_BYTES);
        bytes.extend_from_slice(&[FORMAT, 0, 0, 0]);
        bytes.extend_from_slice(&(count as u32).to_le_bytes());
        Self {
            bytes,
            ends: Vec::with_capacity(count * END_BYTES),
            end: HEAD_BYTES,
        }
    }

    fn ends_at(&mut self, message_len: usize) {
        self.end += message_len;
        self.ends.extend_from_slice(&(self.end as u32).to_le_bytes());
    }

    fn finish(mut self) -> Bytes {
        self.bytes.extend_from_slice(&self.ends);
        self.bytes.into()
    }
}
