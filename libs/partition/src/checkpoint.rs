//! A partition's state as bytes: for checkpoints and for replicas that start from one.
//!
//! Layout: magic `PTHP`, format version (1 byte), body, CRC32C of everything before it (4 bytes, little endian).
//! Body: first sequence, next sequence, last timestamp, sizes, sessions, consumer groups. Equal states give equal
//! bytes.

use bytes::Bytes;
use ptah_types::Timestamp;

use crate::applied::Broken;
use crate::batch::crc32c;
use crate::codec::{Malformed, Reader, Writer};
use crate::command::{decode_group, decode_sequence};
use crate::group::ConsumerGroup;
use crate::partition::{MAX_GROUPS, Partition};
use crate::sessions::Sessions;
use crate::sizes::Sizes;

const MAGIC: &[u8] = b"PTHP";
/// Version of the layout that this build writes and reads.
const FORMAT: u8 = 1;
const CRC_BYTES: usize = 4;

/// A checkpoint that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Some other file.
    #[error("not a checkpoint of a partition")]
    NotACheckpoint,
    /// Written by another version.
    #[error("checkpoint has format {found}, this build reads {FORMAT}; start the version that wrote it")]
    UnknownVersion {
        /// In the checkpoint.
        found: u8,
    },
    /// Bytes changed after they were written.
    #[error("checkpoint is damaged: checksum is {computed:08x}, stored is {stored:08x}")]
    Damaged {
        /// Of the bytes as they are.
        computed: u32,
        /// Behind the bytes.
        stored: u32,
    },
    /// The checksum is right and the content is not.
    #[error("read checkpoint: {0}")]
    Malformed(#[from] Malformed),
    /// The content is readable and contradicts itself.
    #[error("checkpoint contradicts itself: {0}")]
    Broken(#[from] Broken),
}

impl Partition {
    /// The state as bytes.
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::default();
        writer.raw(MAGIC);
        writer.u8(FORMAT);
        writer.varint(self.first.get());
        writer.varint(self.next.get());
        writer.varint(self.last_timestamp.0);
        self.sizes.encode(&mut writer);
        self.sessions.encode(&mut writer);
        writer.varint(self.groups.len() as u64);
        for (id, group) in &self.groups {
            writer.varint(id.get());
            group.encode(&mut writer);
        }
        let crc = crc32c(writer.as_bytes());
        writer.u32(crc);
        writer.into_bytes().into()
    }

    /// Reads [`Partition::encode`] back. Nothing that breaks an invariant gets in.
    pub fn decode(bytes: &[u8]) -> Result<Self, CheckpointError> {
        let body = verified_body(bytes)?;
        let mut reader = Reader::new(body);
        let mut partition = Self {
            first: decode_sequence(&mut reader)?,
            next: decode_sequence(&mut reader)?,
            last_timestamp: Timestamp(reader.varint("time of the newest message")?),
            sizes: Sizes::decode(&mut reader)?,
            sessions: Sessions::decode(&mut reader)?,
            ..Self::new()
        };
        for _ in 0..reader.count(MAX_GROUPS, 10, "number of consumer groups")? {
            let id = decode_group(&mut reader)?;
            let group = ConsumerGroup::decode(&mut reader)?;
            if partition.groups.insert(id, group).is_some() {
                return Err(reader.malformed("consumer group twice").into());
            }
        }
        reader.end()?;
        partition.check()?;
        Ok(partition)
    }
}

fn verified_body(bytes: &[u8]) -> Result<&[u8], CheckpointError> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(CheckpointError::NotACheckpoint)?;
    let (&found, rest) = rest.split_first().ok_or(CheckpointError::NotACheckpoint)?;
    if found != FORMAT {
        return Err(CheckpointError::UnknownVersion { found });
    }
    let (body, stored) = rest
        .split_last_chunk::<CRC_BYTES>()
        .ok_or(CheckpointError::NotACheckpoint)?;
    let computed = crc32c(bytes.get(..bytes.len() - CRC_BYTES).unwrap_or_default());
    let stored = u32::from_le_bytes(*stored);
    if computed != stored {
        return Err(CheckpointError::Damaged { computed, stored });
    }
    Ok(body)
}

#[cfg(test)]
mod tests;
