//! Building a batch: one growing buffer, one copy of each field.

use bytes::Bytes;
use ptah_types::limits::{
    MAX_BATCH_BYTES, MAX_BATCH_MESSAGES, MAX_MESSAGE_BYTES, MAX_MESSAGE_META_BYTES, TARGET_BATCH_BYTES,
};

use super::crc32c;
use super::layout::{Door, END_BYTES, FIXED_BYTES, FORMAT, HEAD_BYTES, HEADER_BYTES, field};
use crate::SessionNumber;

/// One message before it is encoded; headers are given beside it.
#[derive(Clone, Copy, Debug)]
pub struct MessageParts<'a> {
    /// Subject that it was sent to.
    pub subject: &'a str,
    /// Messages of the same key keep their order.
    pub key: Option<&'a [u8]>,
    /// Given by the producer to recognise the message.
    pub id: Option<&'a [u8]>,
    /// Name of the producer.
    pub producer: Option<&'a str>,
    /// Door that it came in by.
    pub door: Door,
    /// Schema that it was checked against.
    pub schema: Option<u64>,
    /// The producer's own session and number.
    pub session: Option<SessionNumber>,
    /// The content.
    pub payload: &'a [u8],
}

impl<'a> MessageParts<'a> {
    /// A message with nothing but subject and payload.
    pub fn new(door: Door, subject: &'a str, payload: &'a [u8]) -> Self {
        Self {
            subject,
            key: None,
            id: None,
            producer: None,
            door,
            schema: None,
            session: None,
            payload,
        }
    }

    fn fields(&self) -> u8 {
        let bit = |there: bool, bit: u8| if there { bit } else { 0 };
        bit(self.key.is_some(), field::KEY)
            | bit(self.id.is_some(), field::ID)
            | bit(self.producer.is_some(), field::PRODUCER)
            | bit(self.schema.is_some(), field::SCHEMA)
            | bit(self.session.is_some(), field::SESSION)
    }
}

/// Why a message did not get into a batch. The batch is as it was before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BuildError {
    /// It fits into a batch of its own, but not behind what is there: send that first.
    #[error("batch is full")]
    Full,
    /// The payload alone is too large.
    #[error("message payload has {bytes} bytes; send at most {MAX_MESSAGE_BYTES}")]
    PayloadTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Everything but the payload is too large.
    #[error(
        "subject, headers, key and ids of the message have more than {MAX_MESSAGE_META_BYTES} bytes together"
    )]
    MetaTooLarge,
}

/// A finished batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// Its bytes.
    pub payload: Bytes,
    /// Number of messages.
    pub count: u32,
    /// [`crc32c`] of the payload.
    pub crc: u32,
}

/// Collects messages into a batch.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    /// Head (count still zero) and messages; empty as long as there is no message.
    buffer: Vec<u8>,
    /// Where each message ends.
    ends: Vec<u32>,
    /// Size of the batch before: what the next one is likely to need.
    expected_len: usize,
}

impl BatchBuilder {
    /// An empty builder that has not allocated yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty builder with room for about `bytes` bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            buffer: Vec::with_capacity(bytes.min(MAX_BATCH_BYTES)),
            ends: Vec::new(),
            expected_len: 0,
        }
    }

    /// Number of messages.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no message.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes that the batch has when it is finished now; zero without messages.
    pub fn encoded_len(&self) -> usize {
        self.buffer.len() + self.ends.len() * END_BYTES
    }

    /// Adds a message. Headers keep their order; names and values are any bytes.
    pub fn push<'h, H>(&mut self, parts: &MessageParts<'_>, headers: H) -> Result<(), BuildError>
    where
        H: IntoIterator<Item = (&'h [u8], &'h [u8])>,
    {
        if parts.payload.len() as u64 > MAX_MESSAGE_BYTES {
            return Err(BuildError::PayloadTooLarge {
                bytes: parts.payload.len(),
            });
        }
        let lengths = Lengths::of(parts)?;
        let before = self.buffer.len();
        if self.ends.len() >= MAX_BATCH_MESSAGES || !self.has_room(lengths.known) {
            return Err(self.full());
        }
        if before == 0 {
            self.buffer.reserve(self.expected_len);
            self.buffer.extend_from_slice(&[FORMAT, 0, 0, 0, 0, 0, 0, 0]);
        }
        let written = self.write(parts, &lengths, headers);
        if written.is_err() {
            self.buffer.truncate(before);
        }
        written
    }

    /// Whether `more` bytes of message fit, with their place in the table.
    fn has_room(&self, more: usize) -> bool {
        self.buffer.len().max(HEAD_BYTES) + more + (self.ends.len() + 1) * END_BYTES <= MAX_BATCH_BYTES
    }

    /// A message that does not even fit alone cannot be: payload and the rest are within limits that a batch holds.
    fn full(&self) -> BuildError {
        if self.is_empty() {
            BuildError::MetaTooLarge
        } else {
            BuildError::Full
        }
    }

    fn write<'h, H>(
        &mut self,
        parts: &MessageParts<'_>,
        lengths: &Lengths,
        headers: H,
    ) -> Result<(), BuildError>
    where
        H: IntoIterator<Item = (&'h [u8], &'h [u8])>,
    {
        let start = self.buffer.len();
        self.buffer.reserve(lengths.known);
        self.buffer.extend_from_slice(&lengths.fixed(parts));
        if let Some(schema) = parts.schema {
            self.buffer.extend_from_slice(&schema.to_le_bytes());
        }
        if let Some(SessionNumber { session, number }) = parts.session {
            self.buffer.extend_from_slice(&session.get().to_le_bytes());
            self.buffer.extend_from_slice(&number.get().to_le_bytes());
        }
        self.buffer.extend_from_slice(parts.subject.as_bytes());
        self.write_headers(start, MAX_MESSAGE_META_BYTES - lengths.meta, headers)?;
        if !self.has_room(lengths.rest) {
            return Err(self.full());
        }
        self.buffer.extend_from_slice(parts.key.unwrap_or_default());
        self.buffer.extend_from_slice(parts.id.unwrap_or_default());
        self.buffer
            .extend_from_slice(parts.producer.unwrap_or_default().as_bytes());
        self.buffer.extend_from_slice(parts.payload);
        // A batch is shorter than 4 GiB.
        self.ends.push(self.buffer.len() as u32);
        Ok(())
    }

    /// Appends the headers and, if there are any, notes their number and size in the message that starts at `start`.
    fn write_headers<'h, H>(&mut self, start: usize, most: usize, headers: H) -> Result<(), BuildError>
    where
        H: IntoIterator<Item = (&'h [u8], &'h [u8])>,
    {
        let mut count = 0_u16;
        let headers_at = self.buffer.len();
        for (name, value) in headers {
            let used = self.buffer.len() - headers_at;
            let size = HEADER_BYTES
                .saturating_add(name.len())
                .saturating_add(value.len());
            if used.saturating_add(size) > most {
                return Err(BuildError::MetaTooLarge);
            }
            self.buffer.extend_from_slice(&length(name)?.to_le_bytes());
            self.buffer.extend_from_slice(&length(value)?.to_le_bytes());
            self.buffer.extend_from_slice(name);
            self.buffer.extend_from_slice(value);
            count = count.checked_add(1).ok_or(BuildError::MetaTooLarge)?;
        }
        if count == 0 {
            return Ok(());
        }
        let bytes = (self.buffer.len() - headers_at) as u32;
        if let Some(note) = self.buffer.get_mut(start + 10..start + FIXED_BYTES) {
            let (number, size) = note.split_at_mut(2);
            number.copy_from_slice(&count.to_le_bytes());
            size.copy_from_slice(&bytes.to_le_bytes());
        }
        Ok(())
    }

    /// The batch, or `None` if there is no message. The builder is empty afterwards and can be used again.
    pub fn finish(&mut self) -> Option<Batch> {
        let count = self.ends.len() as u32;
        if count == 0 {
            return None;
        }
        let mut payload = std::mem::take(&mut self.buffer);
        payload.reserve_exact(self.ends.len() * END_BYTES);
        for end in self.ends.drain(..) {
            payload.extend_from_slice(&end.to_le_bytes());
        }
        if let Some(place) = payload.get_mut(4..HEAD_BYTES) {
            place.copy_from_slice(&count.to_le_bytes());
        }
        self.expected_len = payload.len().min(TARGET_BATCH_BYTES);
        let crc = crc32c(&payload);
        Some(Batch {
            payload: payload.into(),
            count,
            crc,
        })
    }
}

/// Lengths of a message's fields, each within its limit.
struct Lengths {
    subject: u16,
    key: u16,
    id: u16,
    producer: u16,
    /// Subject, key, id and producer together.
    meta: usize,
    /// What is written behind the headers.
    rest: usize,
    /// The whole message without headers.
    known: usize,
}

impl Lengths {
    fn of(parts: &MessageParts<'_>) -> Result<Self, BuildError> {
        let subject = length(parts.subject.as_bytes())?;
        let key = length(parts.key.unwrap_or_default())?;
        let id = length(parts.id.unwrap_or_default())?;
        let producer = length(parts.producer.unwrap_or_default().as_bytes())?;
        let behind = usize::from(key) + usize::from(id) + usize::from(producer);
        let meta = usize::from(subject) + behind;
        if meta > MAX_MESSAGE_META_BYTES {
            return Err(BuildError::MetaTooLarge);
        }
        let numbers = usize::from(parts.schema.is_some()) * 8 + usize::from(parts.session.is_some()) * 16;
        Ok(Self {
            subject,
            key,
            id,
            producer,
            meta,
            rest: behind + parts.payload.len(),
            known: FIXED_BYTES + numbers + meta + parts.payload.len(),
        })
    }

    fn fixed(&self, parts: &MessageParts<'_>) -> [u8; FIXED_BYTES] {
        let [s0, s1] = self.subject.to_le_bytes();
        let [k0, k1] = self.key.to_le_bytes();
        let [i0, i1] = self.id.to_le_bytes();
        let [p0, p1] = self.producer.to_le_bytes();
        let (fields, door) = (parts.fields(), parts.door.number());
        [fields, door, s0, s1, k0, k1, i0, i1, p0, p1, 0, 0, 0, 0, 0, 0]
    }
}

fn length(bytes: &[u8]) -> Result<u16, BuildError> {
    u16::try_from(bytes.len()).map_err(|_| BuildError::MetaTooLarge)
}
