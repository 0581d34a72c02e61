//! One append stream: channels, batches in parts, checks before the leader sees a batch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ptah_partition::{AppendHead, BatchView, SessionNumber, crc32c};
use ptah_types::limits::MAX_BATCH_BYTES;
use ptah_types::{PartitionKey, RaftGroupId, SessionId};

use super::answers::{Answers, Lane, Reply};
use super::assembly::{Assembly, Progress};
use crate::budget::Permit;
use crate::error::PartitionError;
use crate::leader::{NewAppend, PartitionLeader};
use crate::node::Node;

/// Channels that a stream may open in its life. A gateway opens a new one after each change of a leader.
const MAX_CHANNELS: usize = 65_536;
/// Answers that may wait for the gateway to read them before the stream is not read any more.
const MAX_HELD_ANSWERS: usize = 16_384;

/// What a gateway routes by when it binds a channel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ChannelOpening {
    /// The channel.
    pub(crate) channel: u32,
    /// The partition.
    pub(crate) key: PartitionKey,
    /// Its Raft group.
    pub(crate) group: RaftGroupId,
    /// Generation of the partition count.
    pub(crate) generation: u64,
}

/// A batch, or its first part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct BatchPart {
    /// The channel.
    pub(crate) channel: u32,
    /// Number within session and partition.
    pub(crate) number: u64,
    /// Messages.
    pub(crate) count: u32,
    /// CRC-32C of the whole payload.
    pub(crate) crc: u32,
    /// The payload, or its first part.
    pub(crate) payload: Bytes,
    /// Bytes of the whole payload.
    pub(crate) total_bytes: u32,
}

/// The stream does not follow the protocol; it cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum OpenRefused {
    /// A channel was opened twice.
    #[error("channel {0} is open already; use each channel number once per stream")]
    Twice(u32),
    /// More channels than a stream may have.
    #[error("stream has opened {MAX_CHANNELS} channels; open a new stream")]
    TooMany,
    /// A batch began before the last one of the channel was complete.
    #[error("channel {0} began a batch before the last one was complete")]
    Interleaved(u32),
    /// A fragment that belongs to nothing.
    #[error("channel {0} sent a fragment without a batch")]
    StrayFragment(u32),
    /// More bytes than announced.
    #[error("channel {0} sent more bytes than the batch announced")]
    Overflow(u32),
}

/// One gateway's append stream.
pub(crate) struct AppendSession {
    node: Arc<Node>,
    session: SessionId,
    answers: Answers,
    channels: BTreeMap<u32, Channel>,
    /// Batches of which parts are missing. The stream must be read on while there are any.
    assembling: usize,
}

struct Channel {
    lane: Lane,
    opening: ChannelOpening,
    /// False when the opening was refused: what comes is dropped without an answer.
    open: bool,
    leader: Option<Arc<PartitionLeader>>,
    incoming: Option<Incoming>,
}

enum Incoming {
    Assembling(Box<Partial>),
    /// The batch is refused already; so many bytes of it are still to come.
    Discarding {
        missing_bytes: usize,
    },
}

struct Partial {
    assembly: Assembly,
    pending: Pending,
}

/// A batch that has to be answered.
struct Pending {
    reply: Reply,
    permit: Permit,
    number: u64,
    count: u32,
    crc: u32,
}

impl AppendSession {
    /// A stream of `session`, which answers through `answers`.
    pub(crate) fn new(node: Arc<Node>, session: SessionId, answers: Answers) -> Self {
        Self {
            node,
            session,
            answers,
            channels: BTreeMap::new(),
            assembling: 0,
        }
    }

    /// Whether the stream may be read: what it holds is within its bounds. A batch that is being put together is
    /// always read on, else it could never be answered.
    pub(crate) fn may_read(&self) -> bool {
        if self.assembling > 0 {
            return true;
        }
        self.answers.held() < MAX_HELD_ANSWERS
            && self.answers.unanswered_bytes() < self.node.shared.limits.append_window_bytes
    }

    /// Binds a channel.
    pub(crate) fn open(&mut self, opening: ChannelOpening) -> Result<(), OpenRefused> {
        let number = opening.channel;
        if self.channels.contains_key(&number) {
            return Err(OpenRefused::Twice(number));
        }
        if self.channels.len() >= MAX_CHANNELS {
            return Err(OpenRefused::TooMany);
        }
        let checked = self
            .node
            .check_route(opening.group, &opening.key, Some(opening.generation));
        let channel = Channel {
            lane: self.answers.open_lane(number),
            opening,
            open: checked.is_ok(),
            leader: None,
            incoming: None,
        };
        self.channels.insert(number, channel);
        if let Err(error) = checked {
            self.answers.refuse(number, 0, error);
        }
        Ok(())
    }

    /// Takes a batch, or its first part.
    pub(crate) fn batch(&mut self, part: BatchPart) -> Result<(), OpenRefused> {
        let Some(channel) = self.channels.get_mut(&part.channel) else {
            let error = PartitionError::Invalid(format!("channel {} is not open", part.channel));
            self.answers.refuse(part.channel, part.number, error);
            return Ok(());
        };
        if channel.incoming.is_some() {
            return Err(OpenRefused::Interleaved(part.channel));
        }
        let total_bytes = part.total_bytes as usize;
        let Some(missing_bytes) = total_bytes.checked_sub(part.payload.len()) else {
            return Err(OpenRefused::Overflow(part.channel));
        };
        let pending = match channel.admit(&self.node, &self.answers, &part) {
            Some(pending) => pending,
            None => {
                if missing_bytes > 0 {
                    channel.incoming = Some(Incoming::Discarding { missing_bytes });
                    self.assembling += 1;
                }
                return Ok(());
            }
        };
        if missing_bytes == 0 {
            let crc = crc32c(&part.payload);
            channel.submit(&self.node, self.session, pending, part.payload, crc);
            return Ok(());
        }
        let mut assembly = Assembly::new(total_bytes);
        let _ = assembly.add(&part.payload);
        channel.incoming = Some(Incoming::Assembling(Box::new(Partial { assembly, pending })));
        self.assembling += 1;
        Ok(())
    }

    /// Takes a further part of the batch that is under way on `channel`.
    pub(crate) fn fragment(&mut self, number: u32, payload: &[u8]) -> Result<(), OpenRefused> {
        let stray = OpenRefused::StrayFragment(number);
        let channel = self.channels.get_mut(&number).ok_or(stray)?;
        match channel.incoming.take() {
            None => return Err(stray),
            Some(Incoming::Discarding { missing_bytes }) => {
                let left = missing_bytes
                    .checked_sub(payload.len())
                    .ok_or(OpenRefused::Overflow(number))?;
                if left > 0 {
                    channel.incoming = Some(Incoming::Discarding { missing_bytes: left });
                    return Ok(());
                }
            }
            Some(Incoming::Assembling(mut partial)) => match partial.assembly.add(payload) {
                Progress::Overflow => return Err(OpenRefused::Overflow(number)),
                Progress::Incomplete => {
                    channel.incoming = Some(Incoming::Assembling(partial));
                    return Ok(());
                }
                Progress::Complete { payload, crc } => {
                    channel.submit(&self.node, self.session, partial.pending, payload, crc);
                }
            },
        }
        self.assembling -= 1;
        Ok(())
    }
}

impl Channel {
    /// Checks what can be checked before the bytes are there, and takes them from the budgets. `None`: answered.
    fn admit(&self, node: &Node, answers: &Answers, part: &BatchPart) -> Option<Pending> {
        if !self.open {
            return None;
        }
        let group = self.opening.group;
        let total_bytes = u64::from(part.total_bytes);
        let lost = PartitionError::OutcomeUnknown { group };
        let reply = answers.expect(self.lane, part.number, total_bytes, lost);
        if total_bytes > MAX_BATCH_BYTES as u64 {
            reply.refuse(PartitionError::TooLarge {
                what: "batch",
                size_bytes: total_bytes,
                limit_bytes: MAX_BATCH_BYTES as u64,
            });
            return None;
        }
        if node.shared.disk.is_full() {
            let replica = node.host.replica(group);
            reply.refuse(
                replica.map_or(PartitionError::UnknownReplica { group }, |replica| {
                    PartitionError::DiskFull { node: replica.node() }
                }),
            );
            return None;
        }
        let Some(permit) = node.append_budget.try_take(total_bytes) else {
            node.shared.metrics.appends_refused_for_memory.inc();
            reply.refuse(PartitionError::Exhausted {
                what: "this node holds as many bytes of unanswered appends as it may (`append.node_bytes`)",
                retry_after: Duration::from_millis(20),
            });
            return None;
        };
        Some(Pending {
            reply,
            permit,
            number: part.number,
            count: part.count,
            crc: part.crc,
        })
    }

    fn submit(&mut self, node: &Arc<Node>, session: SessionId, pending: Pending, payload: Bytes, crc: u32) {
        let leader = match self.leader(node) {
            Ok(leader) => leader,
            Err(error) => return pending.reply.refuse(error),
        };
        let checked = check(
            &pending,
            &payload,
            crc,
            leader.core().settings.max_message_bytes(),
        );
        let session = match checked {
            Ok(number) => SessionNumber { session, number },
            Err(error) => {
                node.shared.metrics.appends_invalid.inc();
                return pending.reply.refuse(error);
            }
        };
        leader.append(NewAppend {
            head: AppendHead {
                session: Some(session),
                count: pending.count,
            },
            payload,
            crc,
            reply: pending.reply,
            permit: pending.permit,
        });
    }

    fn leader(&mut self, node: &Arc<Node>) -> Result<&Arc<PartitionLeader>, PartitionError> {
        if self
            .leader
            .as_ref()
            .is_none_or(|leader| leader.core().has_ended())
        {
            self.leader = Some(node.leader(self.opening.group)?);
        }
        self.leader.as_ref().ok_or(PartitionError::UnknownReplica {
            group: self.opening.group,
        })
    }
}

/// Whether the payload is what its head says, and its messages are within the station's limit.
fn check(
    pending: &Pending,
    payload: &Bytes,
    crc: u32,
    max_message_bytes: u64,
) -> Result<std::num::NonZeroU64, PartitionError> {
    let number = std::num::NonZeroU64::new(pending.number)
        .ok_or_else(|| PartitionError::Invalid("append number is 0; numbers start at 1".to_owned()))?;
    if crc != pending.crc {
        return Err(PartitionError::Invalid(format!(
            "payload of append {number} has checksum {crc:08x}, {:08x} was announced; it was damaged on its way",
            pending.crc
        )));
    }
    let view =
        BatchView::parse(payload.clone()).map_err(|error| PartitionError::Invalid(error.to_string()))?;
    if view.len() as u64 != u64::from(pending.count) {
        return Err(PartitionError::Invalid(format!(
            "append {number} announced {} messages, its payload has {}",
            pending.count,
            view.len()
        )));
    }
    // Only a payload above the limit can hold a message above it.
    if payload.len() as u64 > max_message_bytes
        && let Some(message) = view
            .iter()
            .find(|message| message.payload().len() as u64 > max_message_bytes)
    {
        return Err(PartitionError::TooLarge {
            what: "message",
            size_bytes: message.payload().len() as u64,
            limit_bytes: max_message_bytes,
        });
    }
    Ok(number)
}
