//! Bytes of checkpoints and commands: little endian, numbers of variable length, nothing that can panic.
//!
//! A reader never allocates for a count before it has checked it against the bytes that are left.

/// The bytes do not have the form they should have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what} at byte {position}")]
pub struct Malformed {
    /// What is wrong.
    pub what: &'static str,
    /// Where, counted from the start of the record.
    pub position: usize,
}

/// Writes one record.
#[derive(Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Seven bits a byte, lowest first; the high bit says that more follow.
    pub(crate) fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push((value as u8) | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    pub(crate) fn blob(&mut self, bytes: &[u8]) {
        self.varint(bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }
}

/// Reads one record.
pub(crate) struct Reader<'a> {
    all: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(all: &'a [u8]) -> Self {
        Self { all, position: 0 }
    }

    pub(crate) fn malformed(&self, what: &'static str) -> Malformed {
        Malformed {
            what,
            position: self.position,
        }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.all.len().saturating_sub(self.position)
    }

    pub(crate) fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let bytes = self
            .position
            .checked_add(len)
            .and_then(|end| self.all.get(self.position..end))
            .ok_or(self.malformed(what))?;
        self.position += len;
        Ok(bytes)
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        match self.take(1, what)? {
            [byte] => Ok(*byte),
            _ => Err(self.malformed(what)),
        }
    }

    pub(crate) fn varint(&mut self, what: &'static str) -> Result<u64, Malformed> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(what)?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(self.malformed(what));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.malformed(what))
    }

    pub(crate) fn varint_u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        let value = self.varint(what)?;
        u32::try_from(value).map_err(|_| self.malformed(what))
    }

    /// A count of items of at least `least` bytes each, of which there may be at most `most`.
    pub(crate) fn count(
        &mut self,
        most: usize,
        least: usize,
        what: &'static str,
    ) -> Result<usize, Malformed> {
        let count = self.varint(what)?;
        let fits = (self.remaining() / least.max(1)).min(most);
        usize::try_from(count)
            .ok()
            .filter(|count| *count <= fits)
            .ok_or(self.malformed(what))
    }

    pub(crate) fn blob(&mut self, most: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let len = self.count(most, 1, what)?;
        self.take(len, what)
    }

    pub(crate) fn end(&self) -> Result<(), Malformed> {
        if self.remaining() == 0 {
            return Ok(());
        }
        Err(self.malformed("bytes after the end"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_are_read_back(value: u64) {
            let mut writer = Writer::default();
            writer.varint(value);
            let bytes = writer.into_bytes();
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.varint("value"), Ok(value));
            prop_assert_eq!(reader.end(), Ok(()));
        }
    }

    #[test]
    fn a_number_of_more_than_64_bits_is_refused() {
        let mut reader = Reader::new(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]);
        assert!(reader.varint("value").is_err());
    }

    #[test]
    fn a_count_beyond_the_bytes_left_is_refused() {
        let mut reader = Reader::new(&[200, 1, 0, 0]);
        assert!(reader.count(1_000, 1, "items").is_err());
    }
}
