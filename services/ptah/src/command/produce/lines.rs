//! Lines of a file or of stdin, byte for byte, without ever holding a line that is too long to be a message.

use std::io::{self, BufRead};

use bytes::{Bytes, BytesMut};

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Number, counted from 1.
    pub(super) number: u64,
    /// What it says.
    pub(super) content: Content,
}

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// Its bytes, without the line feed.
    Bytes(Bytes),
    /// More bytes than the limit; this many were counted and thrown away.
    TooLong(u64),
}

/// Reads lines.
#[derive(Debug)]
pub(super) struct LineReader<R> {
    reader: R,
    limit_bytes: u64,
    number: u64,
    begun: Begun,
}

/// The part of a line that was read so far.
#[derive(Debug)]
enum Begun {
    Nothing,
    Bytes(BytesMut),
    TooLong(u64),
}

impl<R: BufRead> LineReader<R> {
    /// Lines of `reader`; what is longer than `limit_bytes` is not kept.
    pub(super) fn new(reader: R, limit_bytes: u64) -> Self {
        Self {
            reader,
            limit_bytes,
            number: 0,
            begun: Begun::Nothing,
        }
    }

    /// The lines that one read completes, and the bytes that they took; `None` at the end. A reader that delivers
    /// slowly is not made to wait for more lines.
    pub(super) fn next_chunk(&mut self) -> io::Result<Option<(Vec<Line>, u64)>> {
        let mut lines = Vec::new();
        let mut taken_bytes = 0;
        while lines.is_empty() {
            let buffer = match self.reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if buffer.is_empty() {
                lines.extend(end_line(&mut self.begun, &mut self.number));
                return Ok((!lines.is_empty()).then_some((lines, taken_bytes)));
            }
            let mut rest = buffer;
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                add(&mut self.begun, &rest[..end], self.limit_bytes);
                lines.extend(end_line(&mut self.begun, &mut self.number));
                rest = &rest[end + 1..];
            }
            if !rest.is_empty() {
                add(&mut self.begun, rest, self.limit_bytes);
            }
            let len = buffer.len();
            taken_bytes += len as u64;
            self.reader.consume(len);
        }
        Ok(Some((lines, taken_bytes)))
    }
}

fn add(begun: &mut Begun, part: &[u8], limit_bytes: u64) {
    let part_len = part.len() as u64;
    match begun {
        Begun::TooLong(len) => *len += part_len,
        Begun::Bytes(bytes) if bytes.len() as u64 + part_len > limit_bytes => {
            *begun = Begun::TooLong(bytes.len() as u64 + part_len);
        }
        Begun::Bytes(bytes) => bytes.extend_from_slice(part),
        Begun::Nothing if part_len > limit_bytes => *begun = Begun::TooLong(part_len),
        Begun::Nothing => *begun = Begun::Bytes(BytesMut::from(part)),
    }
}

/// Ends the line that was begun. Nothing begun is nothing to end: only at the end of the input, because a line feed
/// always begins its line.
fn end_line(begun: &mut Begun, number: &mut u64) -> Option<Line> {
    let content = match std::mem::replace(begun, Begun::Nothing) {
        Begun::Nothing => return None,
        Begun::Bytes(bytes) => Content::Bytes(bytes.freeze()),
        Begun::TooLong(len) => Content::TooLong(len),
    };
    *number += 1;
    Some(Line {
        number: *number,
        content,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    fn read(input: &[u8], limit: u64, buffer: usize) -> Vec<Line> {
        let mut reader = LineReader::new(BufReader::with_capacity(buffer, input), limit);
        let mut lines = Vec::new();
        let mut total = 0;
        while let Some((chunk, bytes)) = reader.next_chunk().unwrap() {
            lines.extend(chunk);
            total += bytes;
        }
        assert_eq!(total, input.len() as u64, "every byte is counted");
        lines
    }

    fn bytes(number: u64, text: &[u8]) -> Line {
        Line {
            number,
            content: Content::Bytes(Bytes::copy_from_slice(text)),
        }
    }

    #[test]
    fn lines_are_kept_byte_for_byte_for_every_size_of_buffer() {
        let input = b"a\n\n\xff\r\nlast";
        let expected = vec![
            bytes(1, b"a"),
            bytes(2, b""),
            bytes(3, b"\xff\r"),
            bytes(4, b"last"),
        ];
        for buffer in 1..12 {
            assert_eq!(read(input, 100, buffer), expected, "buffer of {buffer}");
        }
    }

    #[test]
    fn a_line_feed_at_the_end_begins_no_line() {
        assert_eq!(read(b"a\n", 10, 4), vec![bytes(1, b"a")]);
        assert_eq!(read(b"", 10, 4), vec![]);
        assert_eq!(read(b"\n", 10, 4), vec![bytes(1, b"")]);
    }

    #[test]
    fn a_line_above_the_limit_is_counted_and_the_next_one_is_read() {
        let expected = vec![
            Line {
                number: 1,
                content: Content::TooLong(6),
            },
            bytes(2, b"abc"),
            bytes(3, b"12345"),
        ];
        for buffer in 1..12 {
            assert_eq!(
                read(b"123456\nabc\n12345\n", 5, buffer),
                expected,
                "buffer of {buffer}"
            );
        }
    }
}
