//! State commands and their bytes in the log.
//!
//! One log entry holds 1 to 256 commands, applied in order. Layout: format version (1 byte), number of commands,
//! then per command its kind (1 byte) and body. Numbers have variable length. The log's frame carries the checksum.

use bytes::Bytes;
use ptah_types::{ConsumerGroupId, GroupName, Sequence, StartAt};

use crate::codec::{Malformed, Reader, Writer};
use crate::{RangeSet, SequenceRange};

/// Version of the layout that this build writes and reads.
const FORMAT: u8 = 1;
/// Most commands in one log entry.
pub const MAX_ENTRY_COMMANDS: usize = 256;
/// Most ranges in one command.
pub const MAX_COMMAND_RANGES: usize = 16_384;

/// Stored, never renumber. 6 to 9 are kept for seek, pause, delay and termination of messages.
mod kind {
    pub(super) const ENSURE_GROUP: u8 = 1;
    pub(super) const DROP_GROUP: u8 = 2;
    pub(super) const ACK: u8 = 3;
    pub(super) const DELIVERED: u8 = 4;
    pub(super) const TRIM_TO: u8 = 5;
}

/// Stored, never renumber. 3 and 4 are kept for a sequence and a time.
mod start {
    pub(super) const FIRST: u8 = 1;
    pub(super) const END: u8 = 2;
}

/// A change of a partition's state other than an append.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Makes the consumer group, or gives it the settings that can change.
    EnsureGroup {
        /// The group.
        group: ConsumerGroupId,
        /// What it is to be.
        spec: GroupSpec,
    },
    /// Forgets the consumer group.
    DropGroup {
        /// The group.
        group: ConsumerGroupId,
    },
    /// Messages are done for the group. Acknowledging again changes nothing.
    Ack {
        /// The group.
        group: ConsumerGroupId,
        /// The messages.
        ranges: RangeSet,
    },
    /// Messages went out to consumers of the group. Never lowers anything.
    Delivered {
        /// The group.
        group: ConsumerGroupId,
        /// Everything up to here may have been delivered.
        watermark: Sequence,
        /// Which messages go out for the second time or more.
        counts: Vec<DeliveryCount>,
    },
    /// Messages before `first` are gone.
    TrimTo {
        /// Oldest message that is kept.
        first: Sequence,
    },
}

/// What a consumer group is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupSpec {
    /// Its name; never changes.
    pub name: GroupName,
    /// Where it started; never changes.
    pub start: StartAt,
    /// How long a consumer may take to acknowledge; kept between 1 ms and [`crate::MAX_ACK_DEADLINE_MS`].
    pub ack_deadline_ms: u64,
    /// Most messages delivered and not acknowledged; kept between 1 and [`crate::MAX_IN_FLIGHT`].
    pub max_in_flight: u32,
}

/// How often the messages of a range have been delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeliveryCount {
    /// The messages.
    pub range: SequenceRange,
    /// Deliveries, with the one about to happen.
    pub count: u32,
}

/// Commands that do not fit into an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EncodeError {
    /// Nothing, or more than an entry holds.
    #[error("log entry cannot hold {0} commands; use 1 to {MAX_ENTRY_COMMANDS}")]
    Commands(usize),
    /// More ranges than a command holds.
    #[error("command cannot hold {0} ranges; use at most {MAX_COMMAND_RANGES}")]
    Ranges(usize),
}

/// An entry that this build cannot apply. Nothing of it was applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommandError {
    /// Written by a newer version.
    #[error("commands have format {found}, this build reads {FORMAT}; start the newer version on this node")]
    UnknownVersion {
        /// In the entry.
        found: u8,
    },
    /// Written by a newer version.
    #[error("command kind {found} is not known to this build; start the newer version on this node")]
    UnknownKind {
        /// In the entry.
        found: u8,
    },
    /// Not commands, although the checksum was right.
    #[error("read commands: {0}")]
    Malformed(#[from] Malformed),
}

/// Bytes of one log entry.
pub fn encode_commands(commands: &[Command]) -> Result<Bytes, EncodeError> {
    if !(1..=MAX_ENTRY_COMMANDS).contains(&commands.len()) {
        return Err(EncodeError::Commands(commands.len()));
    }
    let mut writer = Writer::default();
    writer.u8(FORMAT);
    writer.varint(commands.len() as u64);
    for command in commands {
        encode_command(&mut writer, command)?;
    }
    Ok(writer.into_bytes().into())
}

fn encode_command(writer: &mut Writer, command: &Command) -> Result<(), EncodeError> {
    match command {
        Command::EnsureGroup { group, spec } => {
            writer.u8(kind::ENSURE_GROUP);
            writer.varint(group.get());
            spec.encode(writer);
        }
        Command::DropGroup { group } => {
            writer.u8(kind::DROP_GROUP);
            writer.varint(group.get());
        }
        Command::Ack { group, ranges } => {
            within_limit(ranges.len())?;
            writer.u8(kind::ACK);
            writer.varint(group.get());
            ranges.encode(writer, 0);
        }
        Command::Delivered {
            group,
            watermark,
            counts,
        } => {
            within_limit(counts.len())?;
            writer.u8(kind::DELIVERED);
            writer.varint(group.get());
            writer.varint(watermark.get());
            encode_counts(writer, counts);
        }
        Command::TrimTo { first } => {
            writer.u8(kind::TRIM_TO);
            writer.varint(first.get());
        }
    }
    Ok(())
}

fn within_limit(ranges: usize) -> Result<(), EncodeError> {
    if ranges > MAX_COMMAND_RANGES {
        return Err(EncodeError::Ranges(ranges));
    }
    Ok(())
}

fn encode_counts(writer: &mut Writer, counts: &[DeliveryCount]) {
    writer.varint(counts.len() as u64);
    for DeliveryCount { range, count } in counts {
        writer.varint(range.first().get());
        writer.varint(range.last().get() - range.first().get());
        writer.varint(u64::from(*count));
    }
}

/// Reads [`encode_commands`] back.
pub fn decode_commands(bytes: &[u8]) -> Result<Vec<Command>, CommandError> {
    let mut reader = Reader::new(bytes);
    let found = reader.u8("format version")?;
    if found != FORMAT {
        return Err(CommandError::UnknownVersion { found });
    }
    let count = reader.count(MAX_ENTRY_COMMANDS, 2, "number of commands")?;
    if count == 0 {
        return Err(reader.malformed("entry without command").into());
    }
    let mut commands = Vec::with_capacity(count);
    for _ in 0..count {
        commands.push(decode_command(&mut reader)?);
    }
    reader.end()?;
    Ok(commands)
}

fn decode_command(reader: &mut Reader<'_>) -> Result<Command, CommandError> {
    Ok(match reader.u8("command kind")? {
        kind::ENSURE_GROUP => Command::EnsureGroup {
            group: decode_group(reader)?,
            spec: GroupSpec::decode(reader)?,
        },
        kind::DROP_GROUP => Command::DropGroup {
            group: decode_group(reader)?,
        },
        kind::ACK => Command::Ack {
            group: decode_group(reader)?,
            ranges: RangeSet::decode(reader, 0, MAX_COMMAND_RANGES)?,
        },
        kind::DELIVERED => Command::Delivered {
            group: decode_group(reader)?,
            watermark: decode_sequence(reader)?,
            counts: decode_counts(reader)?,
        },
        kind::TRIM_TO => Command::TrimTo {
            first: decode_sequence(reader)?,
        },
        found => return Err(CommandError::UnknownKind { found }),
    })
}

fn decode_counts(reader: &mut Reader<'_>) -> Result<Vec<DeliveryCount>, Malformed> {
    let len = reader.count(MAX_COMMAND_RANGES, 3, "number of delivery counts")?;
    let mut counts = Vec::with_capacity(len);
    for _ in 0..len {
        let first = reader.varint("start of a range")?;
        let length = reader.varint("length of a range")?;
        let count = reader.varint_u32("delivery count")?;
        let range = first
            .checked_add(length)
            .and_then(|last| SequenceRange::from_numbers(first, last));
        let range = range.ok_or(reader.malformed("range of a delivery count"))?;
        counts.push(DeliveryCount { range, count });
    }
    Ok(counts)
}

pub(crate) fn decode_group(reader: &mut Reader<'_>) -> Result<ConsumerGroupId, Malformed> {
    let id = reader.varint("consumer group id")?;
    ConsumerGroupId::new(id).map_err(|_| reader.malformed("consumer group id is zero"))
}

pub(crate) fn decode_sequence(reader: &mut Reader<'_>) -> Result<Sequence, Malformed> {
    let sequence = Sequence::new(reader.varint("sequence")?);
    sequence.ok_or(reader.malformed("sequence is zero"))
}

impl GroupSpec {
    pub(crate) fn encode(&self, writer: &mut Writer) {
        writer.blob(self.name.as_str().as_bytes());
        writer.u8(match self.start {
            StartAt::First => start::FIRST,
            StartAt::End => start::END,
        });
        writer.varint(self.ack_deadline_ms);
        writer.varint(u64::from(self.max_in_flight));
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let name = reader.blob(ptah_types::limits::MAX_NAME_LEN, "consumer group name")?;
        let name = std::str::from_utf8(name).ok().and_then(|text| text.parse().ok());
        Ok(Self {
            name: name.ok_or(reader.malformed("consumer group name"))?,
            start: match reader.u8("start of a group")? {
                start::FIRST => StartAt::First,
                start::END => StartAt::End,
                _ => return Err(reader.malformed("start of a group is not known to this build")),
            },
            ack_deadline_ms: reader.varint("ack deadline")?,
            max_in_flight: reader.varint_u32("bound of messages in flight")?,
        })
    }
}

#[cfg(test)]
mod tests;
