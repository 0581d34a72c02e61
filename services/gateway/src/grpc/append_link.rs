//! Append streams to storage nodes.

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use ptah_proto::storage::v1 as pb;
use ptah_proto::storage::v1::append_request::Request as Said;
use ptah_proto::storage::v1::append_result::Outcome;
use ptah_rpc::convert::partition_key_to_proto;
use ptah_rpc::{Channels, PartitionClient, RpcError, wire_range};
use ptah_types::{ErrorKind, SessionId};
use tonic::Streaming;

use crate::append::link::{AppendAnswer, AppendEvent, AppendEvents, AppendRefusal, AppendTransport};
use crate::append::pipeline::StoredAt;
use crate::append::queue::{AppendFrame, FrameStream};

/// Opens append streams over gRPC.
pub struct GrpcAppends {
    /// Connections to nodes.
    pub channels: Channels,
    /// This gateway's name, for the nodes' logs.
    pub gateway: String,
}

impl AppendTransport for GrpcAppends {
    fn open(
        &self,
        address: String,
        session: SessionId,
        frames: FrameStream,
    ) -> BoxFuture<'_, Result<Box<dyn AppendEvents>, RpcError>> {
        Box::pin(async move {
            let hello = Said::Hello(pb::AppendHello {
                session_id: session.get(),
                gateway: self.gateway.clone(),
                wire: Some(wire_range()),
            });
            let hello = futures_util::stream::once(async move { request(hello) });
            let requests = hello.chain(frames.map(frame_to_proto));
            let client = PartitionClient::new(self.channels.to(&address)?);
            let responses = client.append(requests).await?;
            Ok(Box::new(GrpcAppendEvents(responses)) as Box<dyn AppendEvents>)
        })
    }
}

fn request(said: Said) -> pb::AppendRequest {
    pb::AppendRequest { request: Some(said) }
}

fn frame_to_proto(frame: AppendFrame) -> pb::AppendRequest {
    request(match frame {
        AppendFrame::Open(opening) => Said::Open(pb::AppendOpen {
            channel: opening.channel,
            partition: Some(partition_key_to_proto(&opening.partition)),
            group_id: opening.group.get(),
            generation: opening.generation,
        }),
        AppendFrame::Batch {
            channel,
            number,
            count,
            crc,
            payload,
            total_bytes,
        } => Said::Batch(pb::AppendBatch {
            channel,
            number,
            count,
            crc32c: crc,
            payload,
            total_bytes,
        }),
        AppendFrame::Fragment { channel, payload } => Said::Fragment(pb::AppendFragment { channel, payload }),
    })
}

struct GrpcAppendEvents(Streaming<pb::AppendResponse>);

impl AppendEvents for GrpcAppendEvents {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<AppendEvent, RpcError>>> {
        Box::pin(async move {
            match self.0.message().await {
                Ok(Some(response)) => Some(Ok(event(response))),
                Ok(None) => None,
                Err(status) => Some(Err(status.into())),
            }
        })
    }
}

fn event(response: pb::AppendResponse) -> AppendEvent {
    AppendEvent {
        window_bytes: response.welcome.map(|welcome| welcome.window_bytes),
        answers: response.results.into_iter().map(answer).collect(),
    }
}

fn answer(result: pb::AppendResult) -> AppendAnswer {
    let outcome = match result.outcome {
        Some(Outcome::Stored(stored)) => Ok(StoredAt {
            base_sequence: stored.base_sequence,
            timestamp_ns: stored.timestamp_ns,
            duplicate: stored.duplicate,
        }),
        Some(Outcome::Refused(refused)) => Err(refusal(refused)),
        None => Err(refusal(pb::AppendRefused::default())),
    };
    AppendAnswer {
        channel: result.channel,
        number: result.number,
        outcome,
    }
}

fn refusal(refused: pb::AppendRefused) -> AppendRefusal {
    let unclear = || RpcError::new(ErrorKind::OutcomeUnknown, "the node answered without an outcome");
    let error = refused.error.map_or_else(unclear, RpcError::from_proto);
    AppendRefusal {
        kind: error.kind,
        message: error.message,
        leader: error.leader.map(|(node, _)| node),
        retry_after: error.retry_after,
        expected_number: refused.expected_number,
    }
}
