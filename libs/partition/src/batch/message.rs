//! One message of a batch, read where it lies.

use std::num::NonZeroU64;

use bytes::Bytes;
use ptah_types::SessionId;

use super::layout::{Door, FIXED_BYTES, HEADER_BYTES, field};
use crate::SessionNumber;

/// Takes `len` bytes off the front.
fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, behind) = rest.split_at_checked(len)?;
    *rest = behind;
    Some(taken)
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    let (number, behind) = rest.split_first_chunk::<8>()?;
    *rest = behind;
    Some(u64::from_le_bytes(*number))
}

/// A message's fields as slices of its batch.
#[derive(Clone, Copy, Debug)]
pub struct MessageView<'a> {
    batch: &'a Bytes,
    encoded: &'a [u8],
    fields: u8,
    door: Door,
    header_count: u16,
    schema: u64,
    session: Option<SessionNumber>,
    subject: &'a str,
    headers: &'a [u8],
    key: &'a [u8],
    id: &'a [u8],
    producer: &'a str,
    payload: &'a [u8],
}

impl<'a> MessageView<'a> {
    /// Finds the fields of an encoded message. `Err` names what does not fit. Headers are not walked.
    pub(super) fn split(batch: &'a Bytes, encoded: &'a [u8]) -> Result<Self, &'static str> {
        let (fixed, mut rest) = encoded.split_first_chunk::<FIXED_BYTES>().ok_or("message head")?;
        let [
            fields,
            door,
            s0,
            s1,
            k0,
            k1,
            i0,
            i1,
            p0,
            p1,
            n0,
            n1,
            h0,
            h1,
            h2,
            h3,
        ] = *fixed;
        if fields & !field::ALL != 0 {
            return Err("unknown field");
        }
        let len = |low, high| usize::from(u16::from_le_bytes([low, high]));
        let absent = |bit: u8, len: usize| fields & bit == 0 && len != 0;
        let (key, id, producer) = (len(k0, k1), len(i0, i1), len(p0, p1));
        if absent(field::KEY, key) || absent(field::ID, id) || absent(field::PRODUCER, producer) {
            return Err("length of an absent field");
        }
        let mut schema = 0;
        if fields & field::SCHEMA != 0 {
            schema = take_u64(&mut rest).ok_or("schema id")?;
        }
        let mut session = None;
        if fields & field::SESSION != 0 {
            session = Some(take_session(&mut rest).ok_or("session")?);
        }
        let subject = take(&mut rest, len(s0, s1)).ok_or("subject")?;
        let headers = take(&mut rest, u32::from_le_bytes([h0, h1, h2, h3]) as usize).ok_or("headers")?;
        let key = take(&mut rest, key).ok_or("key")?;
        let id = take(&mut rest, id).ok_or("message id")?;
        let producer = take(&mut rest, producer).ok_or("producer")?;
        Ok(Self {
            batch,
            encoded,
            fields,
            door: Door::new(door).ok_or("door")?,
            header_count: u16::from_le_bytes([n0, n1]),
            schema,
            session,
            subject: std::str::from_utf8(subject).map_err(|_| "subject")?,
            headers,
            key,
            id,
            producer: std::str::from_utf8(producer).map_err(|_| "producer")?,
            payload: rest,
        })
    }

    /// Whether the headers are exactly as many, and as long, as the message says.
    pub(super) fn has_whole_headers(&self) -> bool {
        let mut headers = self.headers();
        let count = headers.by_ref().count();
        count == usize::from(self.header_count) && headers.rest.is_empty()
    }

    /// Bytes of everything but the payload and the fixed fields.
    pub(super) fn meta_len(&self) -> usize {
        self.subject.len() + self.headers.len() + self.key.len() + self.id.len() + self.producer.len()
    }

    /// Subject that it was sent to.
    pub fn subject(&self) -> &'a str {
        self.subject
    }

    /// Names and values in the order in which they were sent.
    pub fn headers(&self) -> Headers<'a> {
        Headers { rest: self.headers }
    }

    /// Number of headers.
    pub fn header_count(&self) -> usize {
        usize::from(self.header_count)
    }

    /// Key, if it has one.
    pub fn key(&self) -> Option<&'a [u8]> {
        self.has(field::KEY).then_some(self.key)
    }

    /// Message id, if it has one.
    pub fn id(&self) -> Option<&'a [u8]> {
        self.has(field::ID).then_some(self.id)
    }

    /// Name of the producer, if it is known.
    pub fn producer(&self) -> Option<&'a str> {
        self.has(field::PRODUCER).then_some(self.producer)
    }

    /// Door that it came in by.
    pub fn door(&self) -> Door {
        self.door
    }

    /// Schema that it was checked against, if it was.
    pub fn schema(&self) -> Option<u64> {
        self.has(field::SCHEMA).then_some(self.schema)
    }

    /// The producer's own session and number, if it has one.
    pub fn session(&self) -> Option<SessionNumber> {
        self.session
    }

    /// The content.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The content, sharing the batch's memory.
    pub fn payload_bytes(&self) -> Bytes {
        self.batch.slice_ref(self.payload)
    }

    /// Bytes of the message in its batch.
    pub fn encoded_len(&self) -> usize {
        self.encoded.len()
    }

    fn has(&self, bit: u8) -> bool {
        self.fields & bit != 0
    }
}

fn take_session(rest: &mut &[u8]) -> Option<SessionNumber> {
    let session = SessionId::new(take_u64(rest)?).ok()?;
    let number = NonZeroU64::new(take_u64(rest)?)?;
    Some(SessionNumber { session, number })
}

/// Headers of a message in their order.
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (lengths, mut behind) = self.rest.split_first_chunk::<HEADER_BYTES>()?;
        let [n0, n1, v0, v1] = *lengths;
        let name = take(&mut behind, usize::from(u16::from_le_bytes([n0, n1])))?;
        let value = take(&mut behind, usize::from(u16::from_le_bytes([v0, v1])))?;
        self.rest = behind;
        Some((name, value))
    }
}
