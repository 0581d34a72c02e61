//! Bytes of the write-ahead log.
//!
//! A file starts with a header block of 4 KiB; commit units follow, each padded to 4 KiB. All numbers little endian.
//!
//! | file header | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `PTAHWAL1` |
//! | 8 | 4 | CRC-32C of bytes 12..80 |
//! | 12 | 4 | format version |
//! | 16 | 16 | cluster |
//! | 32 | 8 | node |
//! | 40 | 8 | number of the file: its name |
//! | 48 | 8 | epoch: one per opening of the store |
//! | 56 | 8 | sequence of the first unit |
//! | 64 | 8 | size of the file |
//! | 72 | 8 | nonce of the epoch, random |
//!
//! The block holds the header twice; the second copy starts in its middle.
//!
//! | unit header | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `PWU1` |
//! | 4 | 4 | CRC-32C of the epoch's nonce (8 bytes), bytes 8..40 and the records |
//! | 8 | 8 | epoch |
//! | 16 | 8 | sequence; the next unit has the next one |
//! | 24 | 4 | bytes of records |
//! | 28 | 4 | number of records |
//! | 32 | 4 | 1 data, 2 seal |
//! | 36 | 4 | 0 |
//!
//! | record header | bytes | field |
//! |---|---|---|
//! | 0 | 1 | kind |
//! | 1 | 3 | 0 |
//! | 4 | 4 | bytes of the body |
//! | 8 | 8 | Raft group |
//! | 16 | 8 | number of the record within its group, without gaps |
//!
//! A unit is written only after the one before was synced. So a valid unit proves every earlier one. The nonce keeps bytes
//! that a client chose, and that a torn write laid bare, from passing for a unit.

use ptah_types::{ClusterId, NodeId};

use crate::codec::{Reader, RunningCrc, crc32c, put_u32, put_u64};
use crate::types::Identity;

/// Bytes that are written at once and never again while they hold something acknowledged.
pub(crate) const BLOCK: usize = 4096;
pub(crate) const FILE_HEADER_LEN: usize = 80;
pub(crate) const UNIT_HEADER_LEN: usize = 40;
const FILE_MAGIC: u64 = u64::from_le_bytes(*b"PTAHWAL1");
const UNIT_MAGIC: u32 = u32::from_le_bytes(*b"PWU1");
/// Format version of the files of this crate.
pub(crate) const FORMAT: u32 = ptah_types::DISK_FORMAT.max;

/// Bytes that a unit of `records` bytes takes in the file.
pub(crate) fn padded(records: usize) -> u64 {
    (UNIT_HEADER_LEN + records).next_multiple_of(BLOCK) as u64
}

/// One opening of the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Epoch {
    pub(crate) number: u64,
    /// Random: nobody who does not read the disk can make a unit of this epoch.
    pub(crate) nonce: u64,
}

impl Epoch {
    /// A unit's checksum begins with this.
    pub(crate) fn start_crc(&self) -> RunningCrc {
        let mut crc = RunningCrc::default();
        crc.extend(&self.nonce.to_le_bytes());
        crc
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FileHeader {
    pub(crate) identity: Identity,
    pub(crate) number: u64,
    pub(crate) epoch: Epoch,
    pub(crate) first_seq: u64,
    pub(crate) file_bytes: u64,
}

impl FileHeader {
    pub(crate) fn encode(&self) -> [u8; BLOCK] {
        let mut out = [0; BLOCK];
        put_u64(&mut out, 0, FILE_MAGIC);
        put_u32(&mut out, 12, FORMAT);
        out[16..32].copy_from_slice(self.identity.cluster.as_bytes());
        put_u64(&mut out, 32, self.identity.node.get());
        put_u64(&mut out, 40, self.number);
        put_u64(&mut out, 48, self.epoch.number);
        put_u64(&mut out, 56, self.first_seq);
        put_u64(&mut out, 64, self.file_bytes);
        put_u64(&mut out, 72, self.epoch.nonce);
        let crc = crc32c(&out[12..FILE_HEADER_LEN]);
        put_u32(&mut out, 8, crc);
        out.copy_within(..FILE_HEADER_LEN, BLOCK / 2);
        out
    }

    /// `None` when the block has no valid header of this format.
    pub(crate) fn decode(block: &[u8]) -> Option<Self> {
        Self::decode_copy(block).or_else(|| Self::decode_copy(block.get(BLOCK / 2..)?))
    }

    fn decode_copy(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..FILE_HEADER_LEN)?;
        let mut reader = Reader::new(bytes);
        let magic = reader.u64().ok()?;
        let crc = reader.u32().ok()?;
        let format = reader.u32().ok()?;
        if magic != FILE_MAGIC || crc != crc32c(&bytes[12..]) || format != FORMAT {
            return None;
        }
        let cluster = reader.take(16).ok()?.try_into().ok()?;
        let identity = Identity {
            cluster: ClusterId::from_bytes(cluster).ok()?,
            node: NodeId::new(reader.u64().ok()?).ok()?,
        };
        let (number, epoch) = (reader.u64().ok()?, reader.u64().ok()?);
        let (first_seq, file_bytes) = (reader.u64().ok()?, reader.u64().ok()?);
        let nonce = reader.u64().ok()?;
        Some(Self {
            identity,
            number,
            epoch: Epoch { number: epoch, nonce },
            first_seq,
            file_bytes,
        })
    }
}

/// Kind of a commit unit. Stored, never renumber.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum UnitKind {
    Data = 1,
    /// Proves that everything before it was synced, and lists the last record numbers of recent groups.
    Seal = 2,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct UnitHeader {
    pub(crate) crc: u32,
    pub(crate) epoch: u64,
    pub(crate) seq: u64,
    pub(crate) len: u32,
    pub(crate) records: u32,
    pub(crate) kind: UnitKind,
}

impl UnitHeader {
    pub(crate) fn encode_into(&self, out: &mut [u8]) {
        out[..UNIT_HEADER_LEN].fill(0);
        put_u32(out, 0, UNIT_MAGIC);
        put_u32(out, 4, self.crc);
        put_u64(out, 8, self.epoch);
        put_u64(out, 16, self.seq);
        put_u32(out, 24, self.len);
        put_u32(out, 28, self.records);
        put_u32(out, 32, self.kind as u32);
    }

    /// Reads the fields; the checksum needs the records too.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes.get(..UNIT_HEADER_LEN)?);
        if reader.u32().ok()? != UNIT_MAGIC {
            return None;
        }
        Some(Self {
            crc: reader.u32().ok()?,
            epoch: reader.u64().ok()?,
            seq: reader.u64().ok()?,
            len: reader.u32().ok()?,
            records: reader.u32().ok()?,
            kind: match reader.u32().ok()? {
                1 => UnitKind::Data,
                2 => UnitKind::Seal,
                _ => return None,
            },
        })
    }
}
