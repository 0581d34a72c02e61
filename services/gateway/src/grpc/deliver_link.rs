//! Delivery streams from storage nodes.

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use ptah_partition::SequenceRange;
use ptah_proto::storage::v1 as pb;
use ptah_proto::storage::v1::deliver_request::Request as Said;
use ptah_proto::storage::v1::deliver_response::Response as Told;
use ptah_rpc::clients::ConsumerGroupRef;
use ptah_rpc::{Channels, PartitionClient, RpcError, wire_range};
use tonic::Streaming;

use crate::consume::GroupOnPartition;
use crate::consume::link::{DeliverEvent, DeliverEvents, DeliverTransport, DeliveryPart};
use crate::consume::outbox::{CommandStream, DeliverCommand};

/// Opens delivery streams over gRPC.
pub struct GrpcDeliveries {
    /// Connections to nodes.
    pub channels: Channels,
    /// This gateway's name, for the nodes' logs.
    pub gateway: String,
}

impl DeliverTransport for GrpcDeliveries {
    fn open(
        &self,
        address: String,
        commands: CommandStream,
    ) -> BoxFuture<'_, Result<Box<dyn DeliverEvents>, RpcError>> {
        Box::pin(async move {
            let hello = Said::Hello(pb::DeliverHello {
                gateway: self.gateway.clone(),
                wire: Some(wire_range()),
            });
            let hello = futures_util::stream::once(async move { request(hello) });
            let requests = hello.chain(commands.map(command_to_proto));
            let client = PartitionClient::new(self.channels.to(&address)?);
            let responses = client.deliver(requests).await?;
            Ok(Box::new(GrpcDeliverEvents(responses)) as Box<dyn DeliverEvents>)
        })
    }
}

fn request(said: Said) -> pb::DeliverRequest {
    pb::DeliverRequest { request: Some(said) }
}

pub(super) fn group_ref(group: &GroupOnPartition) -> ConsumerGroupRef {
    ConsumerGroupRef {
        partition: group.partition.clone(),
        group: group.raft_group,
        consumer_group: group.consumer_group,
    }
}

fn ranges_to_proto(ranges: Vec<SequenceRange>) -> Vec<pb::SequenceRange> {
    let range = |range: SequenceRange| pb::SequenceRange {
        first: range.first().get(),
        last: range.last().get(),
    };
    ranges.into_iter().map(range).collect()
}

fn command_to_proto(command: DeliverCommand) -> pb::DeliverRequest {
    let messages = |messages: u64| u32::try_from(messages).unwrap_or(u32::MAX);
    request(match command {
        DeliverCommand::Open { pull, group, credit } => Said::Open(pb::DeliverOpen {
            pull_id: pull,
            group: Some((&group_ref(&group)).into()),
            credit_messages: messages(credit.messages),
            credit_bytes: credit.bytes,
        }),
        DeliverCommand::Credit { pull, amount } => Said::Credit(pb::DeliverCredit {
            pull_id: pull,
            messages: messages(amount.messages),
            bytes: amount.bytes,
        }),
        DeliverCommand::Ack {
            pull,
            ranges,
            confirm,
        } => Said::Ack(pb::DeliverAck {
            pull_id: pull,
            ranges: ranges_to_proto(ranges),
            confirm_id: confirm,
        }),
        DeliverCommand::Close { pull, unsent } => Said::Close(pb::DeliverClose {
            pull_id: pull,
            unsent: ranges_to_proto(unsent),
        }),
    })
}

struct GrpcDeliverEvents(Streaming<pb::DeliverResponse>);

impl DeliverEvents for GrpcDeliverEvents {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<DeliverEvent, RpcError>>> {
        Box::pin(async move {
            loop {
                match self.0.message().await {
                    Ok(None) => return None,
                    Err(status) => return Some(Err(RpcError::of_read(status))),
                    Ok(Some(response)) => {
                        // A kind of news that this build does not know does not concern it.
                        if let Some(event) = response.response.map(event) {
                            return Some(Ok(event));
                        }
                    }
                }
            }
        })
    }
}

fn event(told: Told) -> DeliverEvent {
    match told {
        Told::Welcome(_) => DeliverEvent::Welcome,
        Told::Delivery(delivery) => DeliverEvent::Delivery(
            delivery.pull_id,
            DeliveryPart {
                base_sequence: delivery.base_sequence,
                count: delivery.count,
                timestamp_ns: delivery.timestamp_ns,
                crc: delivery.crc32c,
                payload: delivery.payload,
                total_bytes: delivery.total_bytes,
                offset: delivery.offset,
                delivery_count: delivery.delivery_count,
            },
        ),
        Told::Acked(acked) => DeliverEvent::Acked(
            acked.pull_id,
            acked.confirm_id,
            acked.error.map(RpcError::from_proto),
        ),
        Told::Idle(idle) => DeliverEvent::Idle(idle.pull_id, idle.unacknowledged),
        Told::Closed(closed) => DeliverEvent::Closed(closed.pull_id, closed.error.map(RpcError::from_proto)),
    }
}
