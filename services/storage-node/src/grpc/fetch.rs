//! Reading stored messages by sequence, in parts that share the wire with everything else.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::{Stream, stream};
use ptah_partition::SequenceRange;
use ptah_proto::storage::v1 as pb;
use ptah_types::limits::TARGET_BATCH_BYTES;
use ptah_types::{PartitionKey, RaftGroupId, Sequence};
use tonic::Status;

use super::convert::{id, partition_key, status};
use crate::deliver::{Part, StoredPieces};
use crate::leader::PartitionLeader;
use crate::node::Node;

/// What is to be read.
pub(super) struct FetchPlan {
    pub(super) key: PartitionKey,
    pub(super) group: RaftGroupId,
    /// `None` for the oldest that is kept.
    from: Option<Sequence>,
    max_messages: u64,
    max_bytes: u64,
}

impl TryFrom<pb::FetchRequest> for FetchPlan {
    type Error = Status;

    fn try_from(request: pb::FetchRequest) -> Result<Self, Status> {
        Ok(Self {
            key: partition_key(request.partition)?,
            group: id(request.group_id)?,
            from: Sequence::new(request.from_sequence),
            max_messages: u64::from(request.max_messages).max(1),
            max_bytes: request.max_bytes.max(1),
        })
    }
}

struct Fetching {
    node: Arc<Node>,
    leader: Arc<PartitionLeader>,
    /// What is left to read.
    rest: Option<SequenceRange>,
    bytes_left: u64,
    parts: VecDeque<Part>,
    done: bool,
}

/// Reads until the plan is done, the end is reached, or the leader is lost.
pub(super) fn fetch(
    node: Arc<Node>,
    leader: Arc<PartitionLeader>,
    plan: FetchPlan,
) -> impl Stream<Item = Result<pb::FetchResponse, Status>> {
    let (first, next) = bounds(&leader);
    let from = plan.from.unwrap_or(first).max(first);
    let upto = from.advance(plan.max_messages).unwrap_or(next).min(next);
    let last = Sequence::new(upto.get() - 1);
    let fetching = Fetching {
        node,
        leader,
        rest: last.and_then(|last| SequenceRange::new(from, last)),
        bytes_left: plan.max_bytes,
        parts: VecDeque::new(),
        done: false,
    };
    stream::unfold(fetching, |mut fetching| async move {
        let response = fetching.next().await?;
        if response.is_err() {
            fetching.done = true;
        }
        Some((response, fetching))
    })
}

impl Fetching {
    async fn next(&mut self) -> Option<Result<pb::FetchResponse, Status>> {
        if self.done {
            return None;
        }
        if self.parts.is_empty()
            && let Err(status) = self.read().await
        {
            return Some(Err(status));
        }
        let (first, next) = bounds(&self.leader);
        let mut response = self
            .parts
            .pop_front()
            .map_or_else(pb::FetchResponse::default, part_response);
        self.done = response.count == 0;
        response.first_sequence = first.get();
        response.next_sequence = next.get();
        Some(Ok(response))
    }

    /// Reads the next batches; nothing when the plan is done.
    async fn read(&mut self) -> Result<(), Status> {
        let Some(rest) = self.rest.filter(|_| self.bytes_left > 0) else {
            return Ok(());
        };
        let core = self.leader.core();
        if core.has_ended() {
            return Err(status(core.not_leader()));
        }
        let upto = rest.last().next().unwrap_or(rest.last());
        let max_bytes = self.bytes_left.min(TARGET_BATCH_BYTES as u64);
        let group = core.replica.group();
        let batches = core.replica.read(rest.first(), upto, max_bytes).await;
        let batches = batches.map_err(|error| status(self.node.read_error(&core.replica, error)))?;
        let read = StoredPieces::cut(group, batches, rest, self.bytes_left).map_err(status)?;
        self.bytes_left = self.bytes_left.saturating_sub(read.bytes);
        self.rest = read.rest.filter(|after| *after != rest);
        self.parts = read.parts;
        Ok(())
    }
}

fn bounds(leader: &PartitionLeader) -> (Sequence, Sequence) {
    let bounds =
        |partition: &ptah_partition::Partition| (partition.first_sequence(), partition.next_sequence());
    leader.core().replica.with_partition(bounds)
}

fn part_response(part: Part) -> pb::FetchResponse {
    pb::FetchResponse {
        base_sequence: part.base_sequence.get(),
        count: part.count,
        timestamp_ns: part.timestamp.0,
        crc32c: part.crc,
        payload: part.payload,
        total_bytes: part.total_bytes,
        offset: part.offset,
        first_sequence: 0,
        next_sequence: 0,
    }
}
