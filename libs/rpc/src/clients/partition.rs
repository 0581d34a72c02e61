//! Client of a storage node's partitions, for gateways.

use std::time::Duration;

use ptah_proto::storage::v1 as pb;
use ptah_proto::storage::v1::partition_service_client::PartitionServiceClient;
use ptah_types::{ConsumerGroupId, GroupName, NodeId, PartitionKey, RaftGroupId, Sequence, Term};
use tokio_stream::Stream;
use tonic::Streaming;

use super::DEFAULT_DEADLINE;
use crate::convert::{partition_key, partition_key_to_proto, required};
use crate::records::ConsumerGroupConfig;
use crate::{CallEffect, ConversionError, MAX_RPC_MESSAGE_BYTES, RpcChannel, RpcError, begin, call};

/// Client of a node's partitions. Clones share the connection.
#[derive(Clone, Debug)]
pub struct PartitionClient {
    inner: PartitionServiceClient<RpcChannel>,
    deadline: Duration,
}

/// A consumer group on a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerGroupRef {
    /// Partition.
    pub partition: PartitionKey,
    /// Its Raft group.
    pub group: RaftGroupId,
    /// The consumer group.
    pub consumer_group: ConsumerGroupId,
}

/// Sequences from first to last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceRange {
    /// First.
    pub first: Sequence,
    /// Last; not before the first.
    pub last: Sequence,
}

/// State of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionDescription {
    /// Raft group.
    pub group: RaftGroupId,
    /// Sequence of the oldest message that is kept.
    pub first_sequence: Sequence,
    /// Sequence that the next message gets.
    pub next_sequence: Sequence,
    /// Consumer groups on it.
    pub consumer_groups: Vec<ConsumerGroupProgress>,
}

/// How far a consumer group is on a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsumerGroupProgress {
    /// The consumer group.
    pub consumer_group: ConsumerGroupId,
    /// Every message below is acknowledged.
    pub ack_floor: Sequence,
    /// Every message below was handed out at least once.
    pub delivered: Sequence,
    /// Messages that are not acknowledged.
    pub pending: u64,
}

/// Who leads a group, as a replica sees it. A higher term wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderInfo {
    /// Raft group.
    pub group: RaftGroupId,
    /// Term.
    pub term: Term,
    /// Node that leads, if one is known.
    pub leader: Option<NodeId>,
    /// True when the sender leads and takes writes.
    pub ready: bool,
}

/// The leader table of a node, or changes to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderUpdate {
    /// True for the first answer: what is not in it is not known there.
    pub full: bool,
    /// What the node knows of its groups.
    pub leaders: Vec<LeaderInfo>,
}

/// Leader tables as they change.
#[derive(Debug)]
pub struct LeaderStream(Streaming<pb::WatchLeadersResponse>);

impl PartitionClient {
    /// A client on `channel`.
    pub fn new(channel: RpcChannel) -> Self {
        let inner = PartitionServiceClient::new(channel)
            .max_decoding_message_size(MAX_RPC_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_RPC_MESSAGE_BYTES);
        Self {
            inner,
            deadline: DEFAULT_DEADLINE,
        }
    }

    /// With another deadline per call.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Opens the stream that stores batches. The deadline is that of its beginning, here and below.
    pub async fn append<S>(&self, requests: S) -> Result<Streaming<pb::AppendResponse>, RpcError>
    where
        S: Stream<Item = pb::AppendRequest> + Send + 'static,
    {
        let mut client = self.inner.clone();
        // Nothing was stored before the stream has begun.
        begin(self.deadline, client.append(requests)).await
    }

    /// Opens the stream that delivers messages.
    pub async fn deliver<S>(&self, requests: S) -> Result<Streaming<pb::DeliverResponse>, RpcError>
    where
        S: Stream<Item = pb::DeliverRequest> + Send + 'static,
    {
        let mut client = self.inner.clone();
        begin(self.deadline, client.deliver(requests)).await
    }

    /// Opens a stream of stored messages.
    pub async fn fetch(&self, request: pb::FetchRequest) -> Result<Streaming<pb::FetchResponse>, RpcError> {
        let mut client = self.inner.clone();
        begin(self.deadline, client.fetch(request)).await
    }

    /// Makes a consumer group on a partition, or finds that it is there. Doing it twice is the same as once.
    pub async fn ensure_group(
        &self,
        group: &ConsumerGroupRef,
        name: &GroupName,
        config: &ConsumerGroupConfig,
    ) -> Result<(), RpcError> {
        let mut client = self.inner.clone();
        let request = pb::EnsureGroupRequest {
            group: Some(group.into()),
            name: name.to_string(),
            config: Some(config.into()),
        };
        call(self.deadline, CallEffect::Write, request, |r| {
            client.ensure_group(r)
        })
        .await?;
        Ok(())
    }

    /// Acknowledges messages; answers after commit. Doing it twice is the same as once.
    pub async fn ack_messages(
        &self,
        group: &ConsumerGroupRef,
        ranges: &[SequenceRange],
    ) -> Result<(), RpcError> {
        let mut client = self.inner.clone();
        let request = pb::AckMessagesRequest {
            group: Some(group.into()),
            ranges: ranges.iter().map(|range| (*range).into()).collect(),
        };
        call(self.deadline, CallEffect::Write, request, |r| {
            client.ack_messages(r)
        })
        .await?;
        Ok(())
    }

    /// State of those of `groups` that the node leads.
    pub async fn describe_partitions(
        &self,
        groups: &[RaftGroupId],
    ) -> Result<Vec<PartitionDescription>, RpcError> {
        let mut client = self.inner.clone();
        let request = pb::DescribePartitionsRequest {
            group_ids: groups.iter().map(|group| group.get()).collect(),
        };
        let response = call(self.deadline, CallEffect::Read, request, |r| {
            client.describe_partitions(r)
        })
        .await?;
        let partitions = response
            .partitions
            .into_iter()
            .map(PartitionDescription::try_from);
        Ok(partitions.collect::<Result<_, _>>()?)
    }

    /// The node's leader table, then every change. `watcher` is for logs.
    pub async fn watch_leaders(&self, watcher: &str) -> Result<LeaderStream, RpcError> {
        let mut client = self.inner.clone();
        let request = pb::WatchLeadersRequest {
            watcher: watcher.to_owned(),
        };
        begin(self.deadline, client.watch_leaders(request))
            .await
            .map(LeaderStream)
    }
}

impl LeaderStream {
    /// The next update; `None` when the node ended the stream.
    pub async fn next(&mut self) -> Option<Result<LeaderUpdate, RpcError>> {
        match self.0.message().await {
            Ok(Some(response)) => Some(LeaderUpdate::try_from(response).map_err(Into::into)),
            Ok(None) => None,
            Err(status) => Some(Err(RpcError::of_read(status))),
        }
    }
}

fn sequence(field: &'static str, value: u64) -> Result<Sequence, ConversionError> {
    Sequence::new(value).ok_or_else(|| ConversionError::invalid(field, "sequences start at 1"))
}

impl From<&ConsumerGroupRef> for pb::ConsumerGroupRef {
    fn from(group: &ConsumerGroupRef) -> Self {
        Self {
            partition: Some(partition_key_to_proto(&group.partition)),
            group_id: group.group.get(),
            consumer_group_id: group.consumer_group.get(),
        }
    }
}

impl TryFrom<pb::ConsumerGroupRef> for ConsumerGroupRef {
    type Error = ConversionError;
    fn try_from(group: pb::ConsumerGroupRef) -> Result<Self, ConversionError> {
        Ok(Self {
            partition: partition_key(required("partition", group.partition)?)?,
            group: RaftGroupId::new(group.group_id)?,
            consumer_group: ConsumerGroupId::new(group.consumer_group_id)?,
        })
    }
}

impl From<SequenceRange> for pb::SequenceRange {
    fn from(range: SequenceRange) -> Self {
        Self {
            first: range.first.get(),
            last: range.last.get(),
        }
    }
}

impl TryFrom<pb::SequenceRange> for SequenceRange {
    type Error = ConversionError;
    fn try_from(range: pb::SequenceRange) -> Result<Self, ConversionError> {
        let (first, last) = (sequence("first", range.first)?, sequence("last", range.last)?);
        if last < first {
            return Err(ConversionError::invalid("last", "must not be before `first`"));
        }
        Ok(Self { first, last })
    }
}

impl From<&PartitionDescription> for pb::PartitionDescription {
    fn from(partition: &PartitionDescription) -> Self {
        let progress = |group: &ConsumerGroupProgress| pb::ConsumerGroupProgress {
            consumer_group_id: group.consumer_group.get(),
            ack_floor: group.ack_floor.get(),
            delivered: group.delivered.get(),
            pending: group.pending,
        };
        Self {
            group_id: partition.group.get(),
            first_sequence: partition.first_sequence.get(),
            next_sequence: partition.next_sequence.get(),
            groups: partition.consumer_groups.iter().map(progress).collect(),
        }
    }
}

impl TryFrom<pb::PartitionDescription> for PartitionDescription {
    type Error = ConversionError;
    fn try_from(partition: pb::PartitionDescription) -> Result<Self, ConversionError> {
        let mut consumer_groups = Vec::with_capacity(partition.groups.len());
        for group in partition.groups {
            consumer_groups.push(ConsumerGroupProgress {
                consumer_group: ConsumerGroupId::new(group.consumer_group_id)?,
                ack_floor: sequence("ack_floor", group.ack_floor)?,
                delivered: sequence("delivered", group.delivered)?,
                pending: group.pending,
            });
        }
        Ok(Self {
            group: RaftGroupId::new(partition.group_id)?,
            first_sequence: sequence("first_sequence", partition.first_sequence)?,
            next_sequence: sequence("next_sequence", partition.next_sequence)?,
            consumer_groups,
        })
    }
}

impl From<&LeaderUpdate> for pb::WatchLeadersResponse {
    fn from(update: &LeaderUpdate) -> Self {
        let leader = |info: &LeaderInfo| pb::LeaderInfo {
            group_id: info.group.get(),
            term: info.term.0,
            leader_node_id: info.leader.map_or(0, NodeId::get),
            ready: info.ready,
        };
        Self {
            full: update.full,
            leaders: update.leaders.iter().map(leader).collect(),
        }
    }
}

impl TryFrom<pb::WatchLeadersResponse> for LeaderUpdate {
    type Error = ConversionError;
    fn try_from(response: pb::WatchLeadersResponse) -> Result<Self, ConversionError> {
        let mut leaders = Vec::with_capacity(response.leaders.len());
        for info in response.leaders {
            leaders.push(LeaderInfo {
                group: RaftGroupId::new(info.group_id)?,
                term: Term(info.term),
                leader: NodeId::new(info.leader_node_id).ok(),
                ready: info.ready,
            });
        }
        Ok(Self {
            full: response.full,
            leaders,
        })
    }
}
