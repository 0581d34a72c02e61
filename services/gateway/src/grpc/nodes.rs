//! Single calls to storage nodes, and their leader tables.

use std::sync::Arc;

use bytes::BytesMut;
use futures_util::future::BoxFuture;
use ptah_partition::{BatchView, SequenceRange, crc32c};
use ptah_proto::storage::v1 as pb;
use ptah_rpc::clients::{LeaderStream as RpcLeaderStream, SequenceRange as RpcRange};
use ptah_rpc::convert::partition_key_to_proto;
use ptah_rpc::records::ConsumerGroupConfig;
use ptah_rpc::{Channels, PartitionClient, RpcError};
use ptah_service::long_step;
use ptah_types::limits::MAX_BATCH_BYTES;
use ptah_types::{ErrorKind, GroupName, RaftGroupId};

use super::deliver_link::group_ref;
use crate::consume::{GroupOnPartition, StoredMessages};
use crate::leaders::{NodeCalls, PartitionState, ReadRange};
use crate::routing::Claim;
use crate::routing::watch_nodes::{LeaderNews, LeaderSource, LeaderStream};

/// Storage nodes over gRPC.
#[derive(Clone)]
pub struct GrpcNodes {
    /// Connections.
    pub channels: Channels,
    /// This gateway's name, for the nodes' logs.
    pub gateway: String,
}

impl GrpcNodes {
    fn client(&self, address: &str) -> Result<PartitionClient, RpcError> {
        Ok(PartitionClient::new(self.channels.to(address)?))
    }
}

impl NodeCalls for GrpcNodes {
    fn ensure_group(
        &self,
        address: String,
        group: GroupOnPartition,
        name: GroupName,
        config: ConsumerGroupConfig,
    ) -> BoxFuture<'_, Result<(), RpcError>> {
        Box::pin(async move {
            self.client(&address)?
                .ensure_group(&group_ref(&group), &name, &config)
                .await
        })
    }

    fn ack(
        &self,
        address: String,
        group: GroupOnPartition,
        ranges: Vec<SequenceRange>,
    ) -> BoxFuture<'_, Result<(), RpcError>> {
        Box::pin(async move {
            let range = |range: SequenceRange| RpcRange {
                first: range.first(),
                last: range.last(),
            };
            let ranges: Vec<_> = ranges.into_iter().map(range).collect();
            self.client(&address)?
                .ack_messages(&group_ref(&group), &ranges)
                .await
        })
    }

    fn read(&self, address: String, range: ReadRange) -> BoxFuture<'_, Result<StoredMessages, RpcError>> {
        Box::pin(async move {
            let request = pb::FetchRequest {
                partition: Some(partition_key_to_proto(&range.partition)),
                group_id: range.group.get(),
                from_sequence: range.from_sequence,
                max_messages: range.max_messages,
                max_bytes: range.max_bytes,
            };
            let mut responses = self.client(&address)?.fetch(request).await?;
            let mut reading = Reading::default();
            while let Some(response) = responses.message().await.map_err(RpcError::of_read)? {
                reading.take(response)?;
            }
            Ok(reading.stored)
        })
    }

    fn describe(
        &self,
        address: String,
        groups: Vec<RaftGroupId>,
    ) -> BoxFuture<'_, Result<Vec<PartitionState>, RpcError>> {
        Box::pin(async move {
            let described = self.client(&address)?.describe_partitions(&groups).await?;
            let state = |partition: ptah_rpc::clients::PartitionDescription| PartitionState {
                group: partition.group,
                first_sequence: partition.first_sequence.get(),
                next_sequence: partition.next_sequence.get(),
            };
            Ok(described.into_iter().map(state).collect())
        })
    }
}

/// Batches of a read, put together from their parts.
#[derive(Default)]
struct Reading {
    stored: StoredMessages,
    parts: BytesMut,
}

impl Reading {
    fn take(&mut self, response: pb::FetchResponse) -> Result<(), RpcError> {
        self.stored.first_sequence = response.first_sequence;
        self.stored.next_sequence = response.next_sequence;
        if response.count == 0 {
            return Ok(());
        }
        let total = response.total_bytes as usize;
        let fits = response.offset as usize == self.parts.len()
            && self.parts.len() + response.payload.len() <= total;
        if total > MAX_BATCH_BYTES || !fits {
            return Err(RpcError::new(
                ErrorKind::Internal,
                "the node sent parts of a batch that do not fit together",
            ));
        }
        let whole = if self.parts.is_empty() && response.payload.len() == total {
            response.payload
        } else {
            self.parts.reserve(total - self.parts.len());
            self.parts.extend_from_slice(&response.payload);
            if self.parts.len() < total {
                return Ok(());
            }
            self.parts.split().freeze()
        };
        let damaged =
            |why: String| RpcError::new(ErrorKind::DataDamaged, format!("batch read from a node: {why}"));
        if long_step(whole.len(), || crc32c(&whole)) != response.crc32c {
            return Err(damaged("the checksum does not match".to_owned()));
        }
        let view = BatchView::parse(whole).map_err(|error| damaged(error.to_string()))?;
        self.stored
            .batches
            .push((response.base_sequence, response.timestamp_ns, Arc::new(view)));
        Ok(())
    }
}

impl LeaderSource for GrpcNodes {
    fn watch(&self, address: String) -> BoxFuture<'_, Result<Box<dyn LeaderStream>, RpcError>> {
        Box::pin(async move {
            let stream = self.client(&address)?.watch_leaders(&self.gateway).await?;
            Ok(Box::new(GrpcLeaders(stream)) as Box<dyn LeaderStream>)
        })
    }
}

struct GrpcLeaders(RpcLeaderStream);

impl LeaderStream for GrpcLeaders {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<LeaderNews, RpcError>>> {
        Box::pin(async move {
            let update = match self.0.next().await? {
                Ok(update) => update,
                Err(error) => return Some(Err(error)),
            };
            let claim = |info: ptah_rpc::clients::LeaderInfo| {
                let claim = Claim {
                    term: info.term.0,
                    leader: info.leader,
                    ready: info.ready,
                };
                (info.group, claim)
            };
            Some(Ok(LeaderNews {
                full: update.full,
                claims: update.leaders.into_iter().map(claim).collect(),
            }))
        })
    }
}
