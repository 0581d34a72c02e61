//! The transport service of a node.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use openraft::raft::{TransferLeaderRequest, VoteRequest};
use ptah_proto::raft::v1 as pb;
use ptah_proto::raft::v1::raft_transport_service_server::{RaftTransportService, RaftTransportServiceServer};
use ptah_rpc::{MAX_RPC_MESSAGE_BYTES, RpcError, agree_wire};
use ptah_segment_log::Checkpoint;
use ptah_types::{ErrorKind, LogIndex, NodeId, RaftGroupId};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::beats::answer_beats;
use super::convert::{
    InvalidMessage, id_to_pb, raft_id_from_pb, raft_id_to_pb, route_from_pb, vote_from_pb, vote_to_pb,
};
use super::pings::listen;
use super::receive::Receiver;
use crate::checkpoint_codec::decode_offer;
use crate::detector::Belief;
use crate::install::{self, ReceiveError};
use crate::transport::{GREETING_DEADLINE, Transport};
use crate::types::TypeConfig;

/// The gRPC service for the node's cluster listener.
pub type TransportService = RaftTransportServiceServer<TransportServer>;

/// Answers that wait for the connection.
const ANSWERS_AHEAD: usize = 16;
/// Bytes of a segment that are read from the disk at once, and sent in one message.
const READ_BYTES: u64 = 1 << 20;
const PIECE_BYTES: usize = ptah_types::limits::FRAGMENT_BYTES;
/// How long a vote may take here; the caller's deadline is shorter.
const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// How long the next part of an offer may take.
const OFFER_PIECE_DEADLINE: Duration = Duration::from_secs(30);
/// Offers share this much memory (1 GiB, counted in KiB); that is also the largest one, many times what the limits of
/// groups and acknowledgements allow a state to be.
const OFFER_UNIT: u64 = 1 << 10;
const OFFER_UNITS: u32 = 1 << 20;

/// Serves the other nodes.
pub struct TransportServer {
    transport: Transport,
    offers: Semaphore,
}

impl Transport {
    pub(crate) fn service(&self) -> TransportService {
        RaftTransportServiceServer::new(TransportServer {
            transport: self.clone(),
            offers: Semaphore::new(OFFER_UNITS as usize),
        })
        .max_decoding_message_size(MAX_RPC_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_RPC_MESSAGE_BYTES)
    }
}

impl From<InvalidMessage> for Status {
    fn from(error: InvalidMessage) -> Self {
        RpcError::new(ErrorKind::InvalidArgument, error.to_string()).into()
    }
}

fn unavailable(why: impl ToString) -> Status {
    RpcError::new(ErrorKind::Unavailable, why.to_string()).into()
}

fn incompatible(why: String) -> Status {
    RpcError::new(ErrorKind::Incompatible, why).into()
}

impl TransportServer {
    /// Verifies who talks; answers the other node and the wire version.
    fn greet(&self, hello: Option<pb::Hello>) -> Result<(NodeId, u32), Status> {
        let result = self.verify(hello);
        if result.is_err() {
            self.transport.inner.metrics.greetings_refused.inc();
        }
        result
    }

    fn verify(&self, hello: Option<pb::Hello>) -> Result<(NodeId, u32), Status> {
        let hello = hello.ok_or(InvalidMessage("greeting is missing"))?;
        let own = self.transport.inner.identity;
        if hello.cluster_id != own.cluster.to_string() {
            return Err(incompatible(format!(
                "this node belongs to cluster {}, the caller to cluster {:?}",
                own.cluster, hello.cluster_id
            )));
        }
        if hello.to_node_id != own.node.get() {
            return Err(incompatible(format!(
                "this is node {}, the caller means node {}",
                own.node, hello.to_node_id
            )));
        }
        let from = NodeId::new(hello.from_node_id).map_err(|_| InvalidMessage("node id is zero"))?;
        let version = agree_wire(hello.wire).map_err(Status::from)?;
        Ok((from, version))
    }

    /// Reads an offer to its end; the second is its share of the memory for offers.
    async fn read_offer(
        &self,
        first: pb::InstallSnapshotRequest,
        requests: &mut tonic::Streaming<pb::InstallSnapshotRequest>,
    ) -> Result<(Checkpoint, SemaphorePermit<'_>), ReceiveError> {
        let invalid = |why: &str| ReceiveError::Offer(why.to_owned());
        let length = first
            .remaining_bytes
            .saturating_add(first.checkpoint.len() as u64);
        let room = u32::try_from(length.div_ceil(OFFER_UNIT))
            .ok()
            .filter(|units| *units <= OFFER_UNITS)
            .ok_or_else(|| invalid("it is larger than any offer may be"))?;
        let room = self
            .offers
            .try_acquire_many(room)
            .map_err(|_| ReceiveError::Busy)?;
        let mut offer = BytesMut::new();
        let mut piece = first;
        loop {
            offer.extend_from_slice(&piece.checkpoint);
            let expected = length.checked_sub(offer.len() as u64);
            if expected != Some(piece.remaining_bytes) {
                return Err(invalid("its parts do not fit together"));
            }
            if piece.remaining_bytes == 0 {
                break;
            }
            piece = tokio::time::timeout(OFFER_PIECE_DEADLINE, requests.message())
                .await
                .map_err(|_| invalid("the sender stalled"))?
                .map_err(|status| invalid(status.message()))?
                .filter(|piece| !piece.checkpoint.is_empty())
                .ok_or_else(|| invalid("it ends early"))?;
        }
        let checkpoint = decode_offer(&offer.freeze()).map_err(|error| invalid(&error.to_string()))?;
        Ok((checkpoint, room))
    }

    /// Reads the greeting off a stream.
    async fn greeting<T>(&self, requests: &mut tonic::Streaming<T>) -> Result<T, Status> {
        tokio::time::timeout(GREETING_DEADLINE, requests.message())
            .await
            .map_err(|_| unavailable("no greeting arrived"))??
            .ok_or_else(|| InvalidMessage("greeting is missing").into())
    }
}

#[tonic::async_trait]
impl RaftTransportService for TransportServer {
    type ReplicateStream = ReceiverStream<Result<pb::ReplicateResponse, Status>>;
    type HeartbeatStream = ReceiverStream<Result<pb::HeartbeatResponse, Status>>;
    type PingStream = ReceiverStream<Result<pb::PingResponse, Status>>;
    type ReadSegmentStream = ReceiverStream<Result<pb::ReadSegmentResponse, Status>>;

    async fn replicate(
        &self,
        request: Request<tonic::Streaming<pb::ReplicateRequest>>,
    ) -> Result<Response<Self::ReplicateStream>, Status> {
        let mut requests = request.into_inner();
        let first = self.greeting(&mut requests).await?;
        let (from, wire_version) = self.greet(first.hello)?;
        let (send, answers) = mpsc::channel(ANSWERS_AHEAD);
        let welcome = pb::ReplicateResponse {
            welcome: Some(pb::Welcome { wire_version }),
            results: Vec::new(),
        };
        // The receiver is right here.
        let _ = send.try_send(Ok(welcome));
        let inner = &self.transport.inner;
        let receiver = Receiver {
            from,
            directory: Arc::clone(&inner.directory),
            metrics: Arc::clone(&inner.metrics),
            tasks: inner.tasks.clone(),
        };
        let stopping = inner.tasks.stopping();
        inner
            .tasks
            .spawn(format!("entries from node {from}"), async move {
                tokio::select! {
                    () = stopping.cancelled() => {}
                    () = receiver.run(requests, send) => {}
                }
            });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn heartbeat(
        &self,
        request: Request<tonic::Streaming<pb::HeartbeatRequest>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        let mut requests = request.into_inner();
        let first = self.greeting(&mut requests).await?;
        let (from, wire_version) = self.greet(first.hello)?;
        let (send, answers) = mpsc::channel(ANSWERS_AHEAD);
        let welcome = pb::HeartbeatResponse {
            welcome: Some(pb::Welcome { wire_version }),
            number: 0,
            results: Vec::new(),
        };
        // The receiver is right here.
        let _ = send.try_send(Ok(welcome));
        let transport = self.transport.clone();
        let stopping = transport.inner.tasks.stopping();
        let tasks = transport.inner.tasks.clone();
        tasks.spawn(format!("heartbeats from node {from}"), async move {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = answer_beats(&transport, from, requests, send) => {}
            }
            // A stream that ends without being told to is the first sign of a dead node.
            transport.inner.directory.stream_lost(from);
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn ping(
        &self,
        request: Request<tonic::Streaming<pb::PingRequest>>,
    ) -> Result<Response<Self::PingStream>, Status> {
        let mut requests = request.into_inner();
        let first = self.greeting(&mut requests).await?;
        let (from, wire_version) = self.greet(first.hello)?;
        let (send, answers) = mpsc::channel(1);
        let welcome = pb::PingResponse {
            welcome: Some(pb::Welcome { wire_version }),
        };
        // The receiver is right here.
        let _ = send.try_send(Ok(welcome));
        let transport = self.transport.clone();
        let stopping = transport.inner.tasks.stopping();
        let tasks = transport.inner.tasks.clone();
        tasks.spawn(format!("pings from node {from}"), async move {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = listen(&transport, from, first.incarnation, requests, send) => {}
            }
            transport.inner.directory.stream_lost(from);
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn survey(
        &self,
        request: Request<pb::SurveyRequest>,
    ) -> Result<Response<pb::SurveyResponse>, Status> {
        let request = request.into_inner();
        self.greet(request.hello)?;
        let suspect = NodeId::new(request.suspect_node_id).map_err(|_| InvalidMessage("node id is zero"))?;
        let inner = &self.transport.inner;
        let end = |id: u64| {
            let cell = inner.directory.get(RaftGroupId::new(id).ok()?)?;
            let last = cell.with_running(|running| running.log.last_log_id())?;
            Some(pb::LogEnd {
                group_id: id,
                replica_id: cell.replica.get(),
                last: last.map(id_to_pb),
            })
        };
        Ok(Response::new(pb::SurveyResponse {
            suspected: suspect != inner.identity.node && inner.detector.belief(suspect) != Belief::Alive,
            ends: request.group_ids.into_iter().filter_map(end).collect(),
        }))
    }

    async fn check_quiet(
        &self,
        request: Request<pb::CheckQuietRequest>,
    ) -> Result<Response<pb::CheckQuietResponse>, Status> {
        let request = request.into_inner();
        self.greet(request.hello)?;
        let directory = &self.transport.inner.directory;
        let leads = |group: &pb::QuietGroup| {
            let id = RaftGroupId::new(group.group_id).ok();
            id.and_then(|id| directory.get(id)).is_some_and(|cell| {
                let now = cell.leadership();
                now.leader_replica == Some(cell.replica) && now.term.0 == group.term
            })
        };
        let others = request.groups.into_iter().filter(|group| !leads(group));
        Ok(Response::new(pb::CheckQuietResponse {
            group_ids: others.map(|group| group.group_id).collect(),
        }))
    }

    async fn vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteResponse>, Status> {
        let request = request.into_inner();
        let (from, _) = self.greet(request.hello)?;
        let route = route_from_pb(request.address)?;
        let raft = self
            .transport
            .inner
            .directory
            .raft(route, from)
            .map_err(unavailable)?;
        let ask = VoteRequest {
            vote: vote_from_pb(request.vote)?,
            last_log_id: raft_id_from_pb(request.last_log_id),
            leadership_transfer: request.leader_transfer,
        };
        let call = async move {
            if request.pre_vote {
                raft.pre_vote(ask).await
            } else {
                raft.vote(ask).await
            }
        };
        let answer = self
            .transport
            .to_the_end("vote", CALL_DEADLINE, call)
            .await
            .map_err(unavailable)?
            .map_err(unavailable)?;
        Ok(Response::new(pb::VoteResponse {
            vote: Some(vote_to_pb(&answer.vote)),
            granted: answer.vote_granted,
            last_log_id: raft_id_to_pb(answer.last_log_id.as_ref()),
        }))
    }

    async fn transfer_leader(
        &self,
        request: Request<pb::TransferLeaderRequest>,
    ) -> Result<Response<pb::TransferLeaderResponse>, Status> {
        let request = request.into_inner();
        let (from, _) = self.greet(request.hello)?;
        let route = route_from_pb(request.address)?;
        let raft = self
            .transport
            .inner
            .directory
            .raft(route, from)
            .map_err(unavailable)?;
        let ask = TransferLeaderRequest::<TypeConfig>::new(
            vote_from_pb(request.vote)?,
            request.to_replica_id,
            raft_id_from_pb(request.last_log_id),
        );
        let call = async move { raft.handle_transfer_leader(ask).await };
        let answer = self
            .transport
            .to_the_end("leadership transfer", CALL_DEADLINE, call)
            .await
            .map_err(unavailable)?
            .map_err(unavailable)?;
        Ok(Response::new(pb::TransferLeaderResponse {
            accepted: answer.is_ok(),
        }))
    }

    async fn install_snapshot(
        &self,
        request: Request<tonic::Streaming<pb::InstallSnapshotRequest>>,
    ) -> Result<Response<pb::InstallSnapshotResponse>, Status> {
        let mut requests = request.into_inner();
        let mut first = self.greeting(&mut requests).await?;
        let (from, _) = self.greet(first.hello.take())?;
        let route = route_from_pb(first.address)?;
        let vote = vote_from_pb(first.vote)?;
        let inner = &self.transport.inner;
        let replica = inner.directory.running(route, from).map_err(unavailable)?;
        let taken = async {
            // Nothing is read for an offer that is refused anyway.
            let turn = install::turn(&replica)?;
            let (checkpoint, _room) = self.read_offer(first, &mut requests).await?;
            install::receive(&self.transport, &replica, turn, from, route, vote, checkpoint).await
        };
        let answer = taken.await.map_err(|error| {
            inner.metrics.snapshots_refused.inc();
            tracing::warn!(group = %route.group.to_hex(), %from, %error, "snapshot was not installed");
            unavailable(error)
        })?;
        Ok(Response::new(pb::InstallSnapshotResponse {
            vote: Some(vote_to_pb(&answer)),
        }))
    }

    async fn read_segment(
        &self,
        request: Request<pb::ReadSegmentRequest>,
    ) -> Result<Response<Self::ReadSegmentStream>, Status> {
        let mut request = request.into_inner();
        let (from, _) = self.greet(request.hello.take())?;
        let route = route_from_pb(request.address)?;
        let replica = self
            .transport
            .inner
            .directory
            .running(route, from)
            .map_err(unavailable)?;
        let (send, pieces) = mpsc::channel(2);
        let stopping = self.transport.inner.tasks.stopping();
        let name = format!("segment of group {} to node {from}", route.group.to_hex());
        self.transport.inner.tasks.spawn(name, async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = send_segment(replica, request, send) => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(pieces)))
    }
}

/// Sends the bytes asked for, verified frame by frame, in pieces.
async fn send_segment(
    replica: install::Running,
    request: pb::ReadSegmentRequest,
    send: mpsc::Sender<Result<pb::ReadSegmentResponse, Status>>,
) {
    let segment = LogIndex(request.segment);
    let mut offset = request.offset;
    let end = request.offset.saturating_add(request.length);
    while offset < end {
        let log = Arc::clone(&replica.log);
        let len = (end - offset).min(READ_BYTES);
        let read = replica
            .blocking
            .run(move || log.read_segment_range(segment, offset, len))
            .await;
        let mut bytes = match read {
            Ok(Ok(bytes)) if !bytes.is_empty() => bytes,
            Ok(Ok(_)) => return,
            Ok(Err(error)) => {
                // The receiver of the error may be gone.
                let _ = send.send(Err(ptah_rpc::to_status(&error))).await;
                return;
            }
            Err(error) => {
                let _ = send.send(Err(unavailable(error))).await;
                return;
            }
        };
        offset += bytes.len() as u64;
        while !bytes.is_empty() {
            let data = bytes.split_to(bytes.len().min(PIECE_BYTES));
            if send.send(Ok(pb::ReadSegmentResponse { data })).await.is_err() {
                return;
            }
        }
    }
}
