//! `PartitionService`: everything that gateways call.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use ptah_partition::GroupSpec;
use ptah_proto::common::v1 as common;
use ptah_proto::storage::v1 as pb;
use ptah_proto::storage::v1::partition_service_server::{PartitionService, PartitionServiceServer};
use ptah_rpc::MAX_RPC_MESSAGE_BYTES;
use ptah_service::Stopping;
use ptah_types::{ConsumerGroupId, GroupName, StartAt};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, Streaming};

use super::append::AppendStream;
use super::convert::{group_ref, id, invalid, ranges, status};
use super::deliver::DeliverStream;
use super::fetch::{FetchPlan, fetch};
use super::leaders::leaders;
use crate::deliver::AckReply;
use crate::error::PartitionError;
use crate::leader::PartitionState;
use crate::node::Node;

/// Most Raft groups that one call describes.
const MAX_DESCRIBED: usize = 16_384;

/// Serves gateways.
#[derive(Clone)]
pub(crate) struct PartitionGrpc {
    node: Arc<Node>,
    stopping: Stopping,
}

impl PartitionGrpc {
    /// A service that ends its streams when `stopping` says so.
    pub(crate) fn server(node: Arc<Node>, stopping: Stopping) -> PartitionServiceServer<Self> {
        PartitionServiceServer::new(Self { node, stopping })
            .max_decoding_message_size(MAX_RPC_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_RPC_MESSAGE_BYTES)
    }
}

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl PartitionService for PartitionGrpc {
    type AppendStream = AppendStream;
    type DeliverStream = DeliverStream;
    type FetchStream = ResponseStream<pb::FetchResponse>;
    type WatchLeadersStream = ResponseStream<pb::WatchLeadersResponse>;

    async fn append(
        &self,
        request: Request<Streaming<pb::AppendRequest>>,
    ) -> Result<Response<AppendStream>, Status> {
        let stream = AppendStream::new(
            Arc::clone(&self.node),
            request.into_inner(),
            self.stopping.clone(),
        );
        Ok(Response::new(stream))
    }

    async fn deliver(
        &self,
        request: Request<Streaming<pb::DeliverRequest>>,
    ) -> Result<Response<DeliverStream>, Status> {
        let stream = DeliverStream::new(
            Arc::clone(&self.node),
            request.into_inner(),
            self.stopping.clone(),
        );
        Ok(Response::new(stream))
    }

    async fn ensure_group(
        &self,
        request: Request<pb::EnsureGroupRequest>,
    ) -> Result<Response<pb::EnsureGroupResponse>, Status> {
        let request = request.into_inner();
        let group = group_ref(request.group)?;
        let config = request.config.ok_or_else(|| invalid("config is missing"))?;
        let spec = group_spec(&request.name, config)?;
        self.node
            .check_route(group.group, &group.key, None)
            .map_err(status)?;
        let leader = self.node.leader(group.group).map_err(status)?;
        leader
            .ensure_group(group.consumer_group, spec)
            .await
            .map_err(status)?;
        Ok(Response::new(pb::EnsureGroupResponse {}))
    }

    async fn ack_messages(
        &self,
        request: Request<pb::AckMessagesRequest>,
    ) -> Result<Response<pb::AckMessagesResponse>, Status> {
        let request = request.into_inner();
        let group = group_ref(request.group)?;
        let ranges = ranges(&request.ranges)?;
        self.node
            .check_route(group.group, &group.key, None)
            .map_err(status)?;
        let leader = self.node.leader(group.group).map_err(status)?;
        let deliveries = leader.group(group.consumer_group).map_err(status)?;
        let (sender, receiver) = oneshot::channel();
        deliveries.ack(ranges, Some(AckReply::Call(sender)));
        let unknown = PartitionError::OutcomeUnknown { group: group.group };
        let acked = tokio::time::timeout(self.node.shared.limits.append_deadline, receiver).await;
        acked
            .ok()
            .and_then(Result::ok)
            .unwrap_or(Err(unknown))
            .map_err(status)?;
        Ok(Response::new(pb::AckMessagesResponse {}))
    }

    async fn fetch(&self, request: Request<pb::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let plan = FetchPlan::try_from(request.into_inner())?;
        self.node
            .check_route(plan.group, &plan.key, None)
            .map_err(status)?;
        let leader = self.node.leader(plan.group).map_err(status)?;
        Ok(Response::new(Box::pin(fetch(
            Arc::clone(&self.node),
            leader,
            plan,
        ))))
    }

    async fn describe_partitions(
        &self,
        request: Request<pb::DescribePartitionsRequest>,
    ) -> Result<Response<pb::DescribePartitionsResponse>, Status> {
        let group_ids = request.into_inner().group_ids;
        if group_ids.len() > MAX_DESCRIBED {
            return Err(invalid(format!(
                "{} groups were asked for, at most {MAX_DESCRIBED} are described at once",
                group_ids.len()
            )));
        }
        let mut partitions = Vec::new();
        for group_id in group_ids {
            if let Ok(leader) = self.node.leader(id(group_id)?) {
                partitions.push(description(group_id, leader.describe()));
            }
        }
        Ok(Response::new(pb::DescribePartitionsResponse { partitions }))
    }

    async fn watch_leaders(
        &self,
        request: Request<pb::WatchLeadersRequest>,
    ) -> Result<Response<Self::WatchLeadersStream>, Status> {
        tracing::debug!(watcher = %request.into_inner().watcher, "leaders are watched");
        let watch = self.node.host.watch_leaders();
        Ok(Response::new(Box::pin(leaders(watch, self.stopping.clone()))))
    }
}

fn group_spec(name: &str, config: common::ConsumerGroupConfig) -> Result<GroupSpec, Status> {
    let start = match config.start_at() {
        common::StartAt::Unspecified | common::StartAt::First => StartAt::First,
        common::StartAt::End => StartAt::End,
    };
    if config.ack_deadline_ms == 0 || config.max_in_flight == 0 {
        return Err(invalid("ack_deadline_ms and max_in_flight must not be 0"));
    }
    Ok(GroupSpec {
        name: name.parse::<GroupName>().map_err(invalid)?,
        start,
        ack_deadline_ms: u64::from(config.ack_deadline_ms),
        max_in_flight: config.max_in_flight,
    })
}

fn description(group_id: u64, state: PartitionState) -> pb::PartitionDescription {
    let progress = |group: crate::leader::GroupProgress| pb::ConsumerGroupProgress {
        consumer_group_id: ConsumerGroupId::get(group.group),
        ack_floor: group.first_unacked.get(),
        delivered: group.next_undelivered.get(),
        pending: group.pending,
    };
    pb::PartitionDescription {
        group_id,
        first_sequence: state.first_sequence.get(),
        next_sequence: state.next_sequence.get(),
        groups: state.groups.into_iter().map(progress).collect(),
    }
}
