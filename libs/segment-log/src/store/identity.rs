//! `node.meta`: whose data a directory holds.
//!
//! One block of 4 KiB with three copies, at 0, 1024 and 2048, so that a damaged one costs nothing.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `PTAHNODE` |
//! | 8 | 4 | CRC-32C of bytes 12..40 |
//! | 12 | 4 | format version of the directory |
//! | 16 | 16 | cluster |
//! | 32 | 8 | node |

use std::io;
use std::path::Path;

use ptah_types::{ClusterId, DISK_FORMAT, NodeId};

use crate::OpenError;
use crate::codec::{Reader, crc32c, put_u32, put_u64};
use crate::disk::{Disk, read_file, replace_file};
use crate::types::Identity;
use crate::wal::{BLOCK, FORMAT};

const MAGIC: u64 = u64::from_le_bytes(*b"PTAHNODE");
const LEN: usize = 40;
const COPIES: [usize; 3] = [0, 1024, 2048];
pub(crate) const FILE: &str = "node.meta";

fn encode(identity: &Identity, format: u32) -> [u8; BLOCK] {
    let mut out = [0; BLOCK];
    for copy in COPIES {
        let out = &mut out[copy..copy + LEN];
        put_u64(out, 0, MAGIC);
        put_u32(out, 12, format);
        out[16..32].copy_from_slice(identity.cluster.as_bytes());
        put_u64(out, 32, identity.node.get());
        let crc = crc32c(&out[12..]);
        put_u32(out, 8, crc);
    }
    out
}

fn decode(bytes: &[u8]) -> Option<(u32, Option<Identity>)> {
    let bytes = bytes.get(..LEN)?;
    let mut reader = Reader::new(bytes);
    if reader.u64().ok()? != MAGIC || reader.u32().ok()? != crc32c(&bytes[12..]) {
        return None;
    }
    let format = reader.u32().ok()?;
    let cluster: [u8; 16] = reader.take(16).ok()?.try_into().ok()?;
    let node = reader.u64().ok()?;
    let identity = ClusterId::from_bytes(cluster).ok().zip(NodeId::new(node).ok());
    Some((format, identity.map(|(cluster, node)| Identity { cluster, node })))
}

/// Reads the identity; `None` when there is none and the directory is empty or missing. Changes nothing.
pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Identity>, OpenError> {
    let path = dir.join(FILE);
    let bytes = match read_file(disk, &path, 64 << 10) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return if holds_data(disk, dir)? {
                Err(OpenError::IdentityMissing { path })
            } else {
                Ok(None)
            };
        }
        Err(error) => return Err(OpenError::io("read", path)(error)),
    };
    let valid = COPIES.iter().find_map(|copy| bytes.get(*copy..).and_then(decode));
    let Some((format, identity)) = valid else {
        let what = "no copy of the identity has the right checksum".to_owned();
        return Err(OpenError::StoreDamaged { path, what });
    };
    if format > DISK_FORMAT.max {
        return Err(OpenError::NewerFormat {
            path,
            found: format,
            readable: DISK_FORMAT.to_string(),
        });
    }
    match identity.filter(|_| DISK_FORMAT.contains(format)) {
        Some(identity) => Ok(Some(identity)),
        None => Err(OpenError::StoreDamaged {
            path,
            what: format!("format {format} or its ids are invalid"),
        }),
    }
}

fn holds_data(disk: &dyn Disk, dir: &Path) -> Result<bool, OpenError> {
    match disk.list(dir) {
        Ok(entries) => Ok(entries
            .iter()
            .any(|entry| matches!(entry.name.as_str(), "wal" | "g" | "groups.meta"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(OpenError::io("list", dir)(error)),
    }
}

/// Compares with what is configured.
pub(crate) fn check(dir: &Path, found: Identity, expected: Identity) -> Result<(), OpenError> {
    let path = dir.join(FILE);
    if found.cluster != expected.cluster {
        return Err(OpenError::OtherCluster {
            path,
            found: found.cluster,
            expected: expected.cluster,
        });
    }
    if found.node != expected.node {
        return Err(OpenError::OtherNode {
            path,
            found: found.node,
            expected: expected.node,
        });
    }
    Ok(())
}

/// Writes the identity of a new directory, durably.
pub(crate) fn write(disk: &dyn Disk, dir: &Path, identity: &Identity) -> Result<(), OpenError> {
    let path = dir.join(FILE);
    let block = encode(identity, FORMAT);
    replace_file(disk, &path, &[&block]).map_err(OpenError::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::identity;

    #[test]
    fn the_bytes_of_an_identity_are_fixed() {
        let block = encode(&identity(), 1);
        assert_eq!(&block[..16], b"PTAHNODE\x7d\x14\x1d\xc5\x01\x00\x00\x00");
        assert_eq!(
            &block[16..40],
            b"\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x01\0\0\0\0\0\0\0"
        );
        assert_eq!(block[..40], block[1024..1064]);
        assert_eq!(decode(&block), Some((1, Some(identity()))));
    }
}
