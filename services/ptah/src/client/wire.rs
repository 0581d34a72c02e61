//! Batches of a produce stream as bytes.
//!
//! A message is written once, straight into the bytes that go on the wire, instead of into a tree of generated types
//! that is walked twice to be encoded. That keeps the client's share of a small message far below a microsecond. The
//! tests decode what is written here with the generated code, which is the contract.

use bytes::{BufMut as _, Bytes, BytesMut};
use ptah_proto::api::v1 as pb;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::ProstDecoder;

/// Field 2 of `ProduceStreamRequest`, length-delimited.
const REQUEST_BATCH: u8 = 0x12;
/// Field 1 of `ProduceStreamBatch`, length-delimited.
const BATCH_MESSAGE: u8 = 0x0a;
/// Fields of `NewMessage`: payload and key are length-delimited, the partition is a varint.
const MESSAGE_PAYLOAD: u8 = 0x0a;
const MESSAGE_KEY: u8 = 0x1a;
const MESSAGE_PARTITION: u8 = 0x20;
/// Grown by this much at a time; several batches that are ready leave in one write.
const BUFFER_BYTES: usize = 64 << 10;
const YIELD_BYTES: usize = 1 << 20;

/// Collects messages of one batch.
#[derive(Debug, Default)]
pub struct BatchEncoder {
    body: BytesMut,
    count: u32,
}

/// A batch that is ready to go.
#[derive(Debug, Clone)]
pub struct EncodedBatch {
    body: Bytes,
    count: u32,
}

impl BatchEncoder {
    /// Adds a message; partition 0 leaves the choice to the broker.
    pub fn push(&mut self, payload: &[u8], key: Option<&[u8]>, partition: u32) {
        let mut len = 1 + varint_len(payload.len() as u64) + payload.len();
        if let Some(key) = key {
            len += 1 + varint_len(key.len() as u64) + key.len();
        }
        if partition != 0 {
            len += 1 + varint_len(u64::from(partition));
        }
        self.body.reserve(1 + varint_len(len as u64) + len);
        self.body.put_u8(BATCH_MESSAGE);
        put_varint(&mut self.body, len as u64);
        put_field(&mut self.body, MESSAGE_PAYLOAD, payload);
        if let Some(key) = key {
            put_field(&mut self.body, MESSAGE_KEY, key);
        }
        if partition != 0 {
            self.body.put_u8(MESSAGE_PARTITION);
            put_varint(&mut self.body, u64::from(partition));
        }
        self.count += 1;
    }

    /// Messages so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bytes so far.
    pub fn size_bytes(&self) -> usize {
        self.body.len()
    }

    /// The batch; the encoder starts anew.
    pub fn finish(&mut self) -> EncodedBatch {
        let count = std::mem::take(&mut self.count);
        EncodedBatch {
            body: self.body.split().freeze(),
            count,
        }
    }
}

impl EncodedBatch {
    /// Messages.
    pub fn count(&self) -> u32 {
        self.count
    }

    fn encode(&self, buffer: &mut EncodeBuf<'_>) {
        buffer.reserve(1 + varint_len(self.body.len() as u64) + self.body.len());
        buffer.put_u8(REQUEST_BATCH);
        put_varint(buffer, self.body.len() as u64);
        buffer.put_slice(&self.body);
    }
}

/// What travels from the client on a produce stream.
#[derive(Debug)]
pub(super) enum Request {
    /// First.
    Open(pb::ProduceStreamOpen),
    /// Then batches.
    Batch(EncodedBatch),
}

/// Encodes [`Request`]s, decodes the answers with the generated code.
#[derive(Debug, Default)]
pub(super) struct ProduceCodec;

/// Writes [`Request`]s.
#[derive(Debug)]
pub(super) struct RequestEncoder;

impl Codec for ProduceCodec {
    type Encode = Request;
    type Decode = pb::ProduceStreamResponse;
    type Encoder = RequestEncoder;
    type Decoder = ProstDecoder<pb::ProduceStreamResponse>;

    fn encoder(&mut self) -> RequestEncoder {
        RequestEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::default())
    }
}

impl Encoder for RequestEncoder {
    type Item = Request;
    type Error = tonic::Status;

    fn encode(&mut self, item: Request, buffer: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        match item {
            Request::Batch(batch) => batch.encode(buffer),
            Request::Open(open) => {
                let request = pb::ProduceStreamRequest {
                    request: Some(pb::produce_stream_request::Request::Open(open)),
                };
                prost::Message::encode(&request, buffer)
                    .map_err(|error| tonic::Status::internal(format!("encode the opening: {error}")))?;
            }
        }
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }
}

fn put_field(buffer: &mut BytesMut, tag: u8, bytes: &[u8]) {
    buffer.put_u8(tag);
    put_varint(buffer, bytes.len() as u64);
    buffer.put_slice(bytes);
}

fn put_varint(buffer: &mut impl bytes::BufMut, mut value: u64) {
    while value >= 0x80 {
        buffer.put_u8((value as u8) | 0x80);
        value >>= 7;
    }
    buffer.put_u8(value as u8);
}

const fn varint_len(value: u64) -> usize {
    // Seven bits to a byte, and at least one byte.
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    fn decode(batch: &EncodedBatch) -> Vec<pb::NewMessage> {
        pb::ProduceStreamBatch::decode(batch.body.clone())
            .unwrap()
            .messages
    }

    #[test]
    fn the_generated_code_reads_what_the_encoder_writes() {
        let mut encoder = BatchEncoder::default();
        let long = vec![7_u8; 70_000];
        encoder.push(b"first", None, 0);
        encoder.push(&long, Some(b"key"), 300);
        encoder.push(b"", Some(b""), 1);
        let batch = encoder.finish();
        let messages = decode(&batch);
        let facts: Vec<_> = messages
            .iter()
            .map(|m| {
                (
                    m.payload.to_vec(),
                    m.key.as_ref().map(|k| k.to_vec()),
                    m.partition,
                )
            })
            .collect();
        let expected = vec![
            (b"first".to_vec(), None, 0),
            (long, Some(b"key".to_vec()), 300),
            (Vec::new(), Some(Vec::new()), 1),
        ];
        assert_eq!((facts, batch.count()), (expected, 3));
    }

    #[test]
    fn an_encoder_starts_anew_after_each_batch() {
        let mut encoder = BatchEncoder::default();
        encoder.push(b"a", None, 0);
        let first = encoder.finish();
        encoder.push(b"b", None, 0);
        let second = encoder.finish();
        assert_eq!((decode(&first).len(), decode(&second).len()), (1, 1));
        assert_eq!(&decode(&second)[0].payload[..], b"b");
    }

    #[test]
    fn the_frame_around_a_batch_is_a_stream_request() {
        let mut encoder = BatchEncoder::default();
        encoder.push(&[1; 200], None, 0);
        let batch = encoder.finish();
        let mut bytes = BytesMut::new();
        bytes.put_u8(REQUEST_BATCH);
        put_varint(&mut bytes, batch.body.len() as u64);
        bytes.put_slice(&batch.body);
        let request = pb::ProduceStreamRequest::decode(bytes.freeze()).unwrap();
        let Some(pb::produce_stream_request::Request::Batch(decoded)) = request.request else {
            panic!("a batch, not {request:?}");
        };
        assert_eq!(decoded.messages.len(), 1);
    }

    #[test]
    fn the_length_of_a_number_is_what_it_takes() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = BytesMut::new();
            put_varint(&mut bytes, value);
            assert_eq!(varint_len(value), bytes.len(), "{value}");
        }
    }
}
