//! Counts the lists of a message while its bytes come in, in whatever pieces they come.
//!
//! Reads tags and lengths and passes over everything else. What it cannot follow it refuses, so that nothing is decoded
//! that was not counted.

use ptah_types::ErrorKind;

use super::limits::{Kind, RequestShape, Shape, Shapes};

/// A tag and the number or length behind it.
const HEADER_BYTES: usize = 20;
/// Messages within messages; the decoder goes no deeper.
const DEEPEST: usize = 100;
/// Longest number of a packed list.
const LONGEST_NUMBER: u64 = 10;

/// Why the scan stops. Small, because everything returns it.
#[derive(Clone, Copy)]
enum Stop {
    /// More elements than that list may have.
    TooMany(u32),
    Malformed,
    NoForm,
    TooLong,
    TooDeep,
}

/// Why a message is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) kind: ErrorKind,
    pub(super) why: String,
}

/// The count of one message, and of the next ones of its stream after [`Scan::begin`].
pub(super) struct Scan {
    request: RequestShape,
    tally: Tally,
    /// The message that the next byte is in.
    inner: Open,
    /// Messages around it, outermost first.
    around: Vec<Open>,
    /// Bytes that were taken in, those of a header that is not complete not counted.
    at: u64,
    /// Bytes from there that say nothing.
    skip: u64,
    /// A header of which bytes are missing.
    partial: [u8; HEADER_BYTES],
    partial_bytes: usize,
}

/// What was counted.
struct Tally {
    /// Elements of each list.
    elements: Vec<u32>,
    memory: u64,
}

/// A message of which bytes are missing.
#[derive(Clone, Copy)]
struct Open {
    shape: u32,
    end: u64,
}

/// What stands before a value.
#[derive(Clone, Copy)]
enum Header {
    /// Tag, number or length behind it, and the length of both.
    Whole(u64, u64, usize),
    /// There is more of it.
    Partial,
    /// It is none.
    Malformed,
}

impl Scan {
    pub(super) fn new(request: RequestShape) -> Self {
        let tally = Tally {
            elements: vec![0; request.shapes.lists.len()],
            memory: 0,
        };
        let inner = Open {
            shape: request.root,
            end: 0,
        };
        Self {
            request,
            tally,
            inner,
            around: Vec::new(),
            at: 0,
            skip: 0,
            partial: [0; HEADER_BYTES],
            partial_bytes: 0,
        }
    }

    /// A message of that many bytes is to come.
    pub(super) fn begin(&mut self, bytes: usize) {
        self.tally.elements.fill(0);
        self.tally.memory = 0;
        self.around.clear();
        self.inner = Open {
            shape: self.request.root,
            end: bytes as u64,
        };
        (self.at, self.skip, self.partial_bytes) = (0, 0, 0);
    }

    /// About what the message takes in memory when it is decoded, beyond the bytes themselves.
    pub(super) fn memory(&self) -> u64 {
        self.tally.memory
    }

    /// Takes the next bytes in.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.read(bytes).map_err(|stop| self.refusal(stop))
    }

    #[cold]
    fn refusal(&self, stop: Stop) -> Refusal {
        let why = match stop {
            Stop::TooMany(place) => {
                let list = &self.request.shapes.lists[place as usize];
                return Refusal {
                    kind: ErrorKind::TooLarge,
                    why: format!(
                        "the request has more than {} elements in `{}`; send less at a time",
                        list.limit, list.name
                    ),
                };
            }
            Stop::Malformed => "a tag or a length is malformed",
            Stop::NoForm => "it has a field of an unknown form",
            Stop::TooLong => "a field is longer than what it is in",
            Stop::TooDeep => "messages are nested too deep",
        };
        Refusal {
            kind: ErrorKind::InvalidArgument,
            why: format!("the message cannot be read: {why}"),
        }
    }

    fn read(&mut self, mut bytes: &[u8]) -> Result<(), Stop> {
        loop {
            let skipped = self.skip.min(bytes.len() as u64);
            self.skip -= skipped;
            self.at += skipped;
            bytes = &bytes[skipped as usize..];
            if bytes.is_empty() {
                return Ok(());
            }
            while self.at == self.inner.end
                && let Some(outer) = self.around.pop()
            {
                self.inner = outer;
            }
            let header = if self.partial_bytes == 0 {
                header(bytes)
            } else {
                self.complete(&mut bytes)
            };
            match header {
                Header::Whole(tag, value, length) => {
                    if self.partial_bytes == 0 {
                        bytes = &bytes[length..];
                    }
                    self.partial_bytes = 0;
                    self.at += length as u64;
                    bytes = self.value(tag, value, bytes)?;
                }
                Header::Partial => {
                    if self.partial_bytes == 0 {
                        self.partial[..bytes.len()].copy_from_slice(bytes);
                        self.partial_bytes = bytes.len();
                    }
                    return Ok(());
                }
                Header::Malformed => return Err(Stop::Malformed),
            }
        }
    }

    /// Reads a header that began in earlier bytes, and takes what belongs to it off `bytes`.
    fn complete(&mut self, bytes: &mut &[u8]) -> Header {
        let known = self.partial_bytes;
        let more = bytes.len().min(HEADER_BYTES - known);
        self.partial[known..known + more].copy_from_slice(&bytes[..more]);
        let header = header(&self.partial[..known + more]);
        match header {
            Header::Whole(_, _, length) => *bytes = &bytes[length - known..],
            Header::Partial => self.partial_bytes = known + more,
            Header::Malformed => {}
        }
        header
    }

    /// Takes a field in whose header was read, and a message that is there as a whole off `bytes`.
    fn value<'a>(&mut self, tag: u64, value: u64, bytes: &'a [u8]) -> Result<&'a [u8], Stop> {
        let length = length(tag, value).ok_or(Stop::NoForm)?;
        let end = self.at.checked_add(length).filter(|end| *end <= self.inner.end);
        let end = end.ok_or(Stop::TooLong)?;
        let shapes = &self.request.shapes;
        let shape = shapes.shape(self.inner.shape);
        let within = self.tally.field(shapes, shape, tag, length)?;
        let Some(shape) = within else {
            self.skip = length;
            return Ok(bytes);
        };
        if let Some((message, rest)) = split(bytes, length) {
            self.tally.whole(shapes, shape, message, self.around.len())?;
            self.at = end;
            return Ok(rest);
        }
        if self.around.len() >= DEEPEST {
            return Err(Stop::TooDeep);
        }
        self.around.push(self.inner);
        self.inner = Open { shape, end };
        Ok(bytes)
    }
}

impl Tally {
    /// Counts a message that is there as a whole.
    fn whole(&mut self, shapes: &Shapes, shape: u32, mut bytes: &[u8], depth: usize) -> Result<(), Stop> {
        if depth >= DEEPEST {
            return Err(Stop::TooDeep);
        }
        let shape = shapes.shape(shape);
        while !bytes.is_empty() {
            let Header::Whole(tag, value, header_bytes) = header(bytes) else {
                return Err(Stop::Malformed);
            };
            let length = length(tag, value).ok_or(Stop::NoForm)?;
            let (content, rest) = split(&bytes[header_bytes..], length).ok_or(Stop::TooLong)?;
            bytes = rest;
            if let Some(within) = self.field(shapes, shape, tag, length)? {
                self.whole(shapes, within, content, depth + 1)?;
            }
        }
        Ok(())
    }

    /// Counts a field. Gives the shape of its content if that is a message.
    #[inline(always)]
    fn field(&mut self, shapes: &Shapes, shape: &Shape, tag: u64, length: u64) -> Result<Option<u32>, Stop> {
        let Some(field) = shape.field(tag >> 3) else {
            return Ok(None);
        };
        let has_length = tag & 7 == 2;
        if let Some(place) = field.list {
            let list = &shapes.lists[place as usize];
            let mut elements = 1;
            let mut memory = list.element_bytes;
            if has_length && field.kind == Kind::Number {
                // Packed: at least so many, and in memory at most one for each byte.
                elements = u32::try_from(length.div_ceil(LONGEST_NUMBER)).unwrap_or(u32::MAX);
                memory *= length;
            }
            self.memory += memory;
            let counted = &mut self.elements[place as usize];
            *counted = counted.saturating_add(elements);
            if *counted > list.limit {
                return Err(Stop::TooMany(place));
            }
        }
        match field.kind {
            Kind::Message(shape) if has_length => return Ok(Some(shape)),
            Kind::Text => self.memory += length,
            _ => {}
        }
        Ok(None)
    }
}

/// Bytes behind the header of a field.
#[inline]
fn length(tag: u64, value: u64) -> Option<u64> {
    match tag & 7 {
        0 => Some(0),
        1 => Some(8),
        2 => Some(value),
        5 => Some(4),
        _ => None,
    }
}

#[inline]
fn split(bytes: &[u8], length: u64) -> Option<(&[u8], &[u8])> {
    bytes.split_at_checked(usize::try_from(length).ok()?)
}

#[inline]
fn header(bytes: &[u8]) -> Header {
    match *bytes {
        // Small numbers, small lengths, which almost all are.
        [tag, value, ..] if tag < 0x80 && tag & 7 == 2 && tag > 7 && value < 0x80 => {
            Header::Whole(u64::from(tag), u64::from(value), 2)
        }
        [tag, low, high, ..] if tag < 0x80 && tag & 7 == 2 && tag > 7 && high < 0x80 => {
            Header::Whole(u64::from(tag), u64::from(low & 0x7f) | u64::from(high) << 7, 3)
        }
        _ => any_header(bytes),
    }
}

#[inline(never)]
fn any_header(bytes: &[u8]) -> Header {
    let (tag, tag_bytes) = match number(bytes) {
        Ok(Some(tag)) => tag,
        Ok(None) => return Header::Partial,
        Err(()) => return Header::Malformed,
    };
    if tag > u64::from(u32::MAX) || tag < 8 {
        return Header::Malformed;
    }
    // A number of fixed size has nothing between itself and its tag.
    if !matches!(tag & 7, 0 | 2) {
        return Header::Whole(tag, 0, tag_bytes);
    }
    match number(&bytes[tag_bytes..]) {
        Ok(Some((value, value_bytes))) => Header::Whole(tag, value, tag_bytes + value_bytes),
        Ok(None) => Header::Partial,
        Err(()) => Header::Malformed,
    }
}

/// A number and its length; `None` when bytes of it are missing.
fn number(bytes: &[u8]) -> Result<Option<(u64, usize)>, ()> {
    let mut value = 0;
    for (place, byte) in bytes.iter().take(LONGEST_NUMBER as usize).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(Some((value, place + 1)));
        }
    }
    if bytes.len() < LONGEST_NUMBER as usize {
        return Ok(None);
    }
    Err(())
}

#[cfg(test)]
mod tests;
