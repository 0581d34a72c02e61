//! A message as a line of output.

use serde::Serialize;

use crate::client::Message;
use crate::encoding::{base64, text_or_base64};

/// The JSON of a message. The field names stay as they are.
#[derive(Debug, Serialize)]
struct Record<'a> {
    partition: u32,
    sequence: u64,
    timestamp_ns: u64,
    payload: String,
    /// `utf8` or `base64`.
    payload_encoding: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_encoding: Option<&'static str>,
    headers: Vec<Header>,
    subject: &'a str,
    message_id: &'a str,
    producer: &'a str,
    door: &'static str,
    delivery_count: u32,
}

#[derive(Debug, Serialize)]
struct Header {
    name: String,
    value: String,
    /// How both are written.
    encoding: &'static str,
}

/// Appends the message as one line of JSON.
pub(super) fn write_json(message: &Message, buffer: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    let (payload, payload_encoding) = text_or_base64(&message.payload);
    let (key, key_encoding) = message.key.as_deref().map(text_or_base64).unzip();
    let record = Record {
        partition: message.partition,
        sequence: message.sequence,
        timestamp_ns: message.timestamp_ns,
        payload,
        payload_encoding,
        key,
        key_encoding,
        headers: message
            .headers
            .iter()
            .map(|(name, value)| header(name, value))
            .collect(),
        subject: &message.subject,
        message_id: &message.message_id,
        producer: &message.producer,
        door: message.door,
        delivery_count: message.delivery_count,
    };
    serde_json::to_writer(&mut *buffer, &record)?;
    buffer.push(b'\n');
    Ok(())
}

/// Appends the payload as it is, and a line feed.
pub(super) fn write_raw(message: &Message, buffer: &mut Vec<u8>) {
    buffer.extend_from_slice(&message.payload);
    buffer.push(b'\n');
}

fn header(name: &[u8], value: &[u8]) -> Header {
    match (std::str::from_utf8(name), std::str::from_utf8(value)) {
        (Ok(name), Ok(value)) => Header {
            name: name.to_owned(),
            value: value.to_owned(),
            encoding: "utf8",
        },
        _ => Header {
            name: base64(name),
            value: base64(value),
            encoding: "base64",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn message(payload: &'static [u8]) -> Message {
        Message {
            partition: 2,
            sequence: 7,
            timestamp_ns: 9,
            payload: Bytes::from_static(payload),
            headers: vec![(Bytes::from_static(b"A"), Bytes::from_static(b"\xff"))],
            key: None,
            subject: "orders".to_owned(),
            message_id: String::new(),
            producer: "cli".to_owned(),
            door: "grpc",
            delivery_count: 1,
        }
    }

    #[test]
    fn a_payload_leaves_byte_for_byte() {
        let mut buffer = Vec::new();
        write_raw(&message(b"\xff\x00\r"), &mut buffer);
        assert_eq!(buffer, b"\xff\x00\r\n");
    }

    #[test]
    fn json_has_the_documented_fields() {
        let mut buffer = Vec::new();
        write_json(&message(b"gr\xc3\xbcn"), &mut buffer).unwrap();
        let text = String::from_utf8(buffer).unwrap();
        assert_eq!(
            text,
            "{\"partition\":2,\"sequence\":7,\"timestamp_ns\":9,\"payload\":\"grün\",\"payload_encoding\":\"utf8\",\
             \"headers\":[{\"name\":\"QQ==\",\"value\":\"/w==\",\"encoding\":\"base64\"}],\"subject\":\"orders\",\
             \"message_id\":\"\",\"producer\":\"cli\",\"door\":\"grpc\",\"delivery_count\":1}\n"
        );
    }

    #[test]
    fn json_says_how_a_binary_payload_and_key_are_written() {
        let mut buffer = Vec::new();
        let binary = Message {
            key: Some(Bytes::from_static(b"k")),
            ..message(b"\xff")
        };
        write_json(&binary, &mut buffer).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&buffer).unwrap();
        assert_eq!(
            (&value["payload"], &value["payload_encoding"]),
            (&"/w==".into(), &"base64".into())
        );
        assert_eq!(
            (&value["key"], &value["key_encoding"]),
            (&"k".into(), &"utf8".into())
        );
    }
}
