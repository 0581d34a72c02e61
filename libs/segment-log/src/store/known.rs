//! `groups.meta`: every group that ever was on this node, and its newest replica.
//!
//! It tells a group that was never here from one whose directory is lost: a replica id is never used twice, because an
//! empty disk under an old id could vote a second time. Two copies in one file, replaced as a whole.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `PTAHGRPS` |
//! | 8 | 4 | CRC-32C of bytes 12.. of the copy |
//! | 12 | 4 | format version |
//! | 16 | 8 | number of entries |
//! | 24 | 24 each | group, replica, state (1 here, 2 dropped, 3 set aside) |

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use ptah_types::{RaftGroupId, ReplicaId};

use crate::codec::{Reader, crc32c, put_u32, put_u64};
use crate::disk::{Disk, read_file, replace_file};
use crate::wal::FORMAT;

const MAGIC: u64 = u64::from_le_bytes(*b"PTAHGRPS");
const HEADER_LEN: usize = 24;
const ENTRY_LEN: usize = 24;
pub(crate) const FILE: &str = "groups.meta";

/// What became of a group. Stored, never renumber.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub(crate) enum Presence {
    Here = 1,
    Dropped = 2,
    Aside = 3,
}

/// Newest replica of each group that ever was here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Known(pub(crate) BTreeMap<RaftGroupId, (ReplicaId, Presence)>);

impl Known {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER_LEN + self.0.len() * ENTRY_LEN];
        put_u64(&mut out, 0, MAGIC);
        put_u32(&mut out, 12, FORMAT);
        put_u64(&mut out, 16, self.0.len() as u64);
        for (number, (group, (replica, presence))) in self.0.iter().enumerate() {
            let at = HEADER_LEN + number * ENTRY_LEN;
            put_u64(&mut out, at, group.get());
            put_u64(&mut out, at + 8, replica.get());
            put_u64(&mut out, at + 16, *presence as u64);
        }
        let crc = crc32c(&out[12..]);
        put_u32(&mut out, 8, crc);
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let magic = reader.u64().ok()?;
        let crc = reader.u32().ok()?;
        let format = reader.u32().ok()?;
        let count = usize::try_from(reader.u64().ok()?).ok()?;
        let len = count.checked_mul(ENTRY_LEN)?.checked_add(HEADER_LEN)?;
        if magic != MAGIC || format != FORMAT || crc != crc32c(bytes.get(12..len)?) {
            return None;
        }
        let mut known = BTreeMap::new();
        for _ in 0..count {
            let group = RaftGroupId::new(reader.u64().ok()?).ok()?;
            let replica = ReplicaId::new(reader.u64().ok()?).ok()?;
            let presence = match reader.u64().ok()? {
                1 => Presence::Here,
                2 => Presence::Dropped,
                3 => Presence::Aside,
                _ => return None,
            };
            known.insert(group, (replica, presence));
        }
        Some(Self(known))
    }

    /// Reads the file: `Ok(None)` when it is missing, `Err` with a text when no copy is valid.
    pub(crate) fn load(disk: &dyn Disk, dir: &Path) -> io::Result<Result<Option<Self>, String>> {
        let bytes = match read_file(disk, &dir.join(FILE), 1 << 30) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ok(None)),
            Err(error) => return Err(error),
        };
        let second = bytes.get(bytes.len() / 2..).and_then(Self::decode);
        let known = Self::decode(&bytes).or(second);
        Ok(known
            .map(Some)
            .ok_or_else(|| "no copy of the list has the right checksum".to_owned()))
    }

    /// Replaces the file, durably.
    pub(crate) fn save(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        let copy = self.encode();
        replace_file(disk, &dir.join(FILE), &[&copy, &copy])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_survives_its_bytes_and_a_damaged_copy() {
        let mut known = Known::default();
        let group = RaftGroupId::new(5).unwrap();
        known
            .0
            .insert(group, (ReplicaId::new(9).unwrap(), Presence::Aside));
        let copy = known.encode();
        assert_eq!(
            &copy[24..48],
            b"\x05\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0"
        );
        assert_eq!(Known::decode(&copy), Some(known));
        let mut damaged = copy;
        damaged[30] ^= 1;
        assert_eq!(Known::decode(&damaged), None);
    }
}
