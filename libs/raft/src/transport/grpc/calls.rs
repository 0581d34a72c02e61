//! Single calls to a node: votes, leadership transfer, snapshots, and reading segments.

use std::fmt::Display;

use bytes::Bytes;
use openraft::raft::{TransferLeaderRequest, VoteRequest, VoteResponse};
use ptah_proto::raft::v1 as pb;
use ptah_rpc::Channels;
use ptah_segment_log::{Checkpoint, MissingRange};
use ptah_types::limits::FRAGMENT_BYTES;
use ptah_types::{LogId, NodeId, RaftGroupId, ReplicaId, Term};

use super::convert::{id_from_pb, raft_id_from_pb, raft_id_to_pb, route_to_pb, vote_from_pb, vote_to_pb};
use super::{TransportClient, client};
use crate::checkpoint_codec::encode_offer;
use crate::transport::{Route, Transport};
use crate::types::{TypeConfig, Vote};

/// Why a call gave no answer, for people.
type CallError = String;

fn failed(error: impl Display) -> CallError {
    error.to_string()
}

impl Transport {
    fn line(&self, channels: &Channels, node: NodeId) -> Result<TransportClient, CallError> {
        let address = self
            .address(node)
            .ok_or_else(|| format!("the address of node {node} is not known"))?;
        channels.to(&address).map(client).map_err(failed)
    }
}

pub(crate) async fn vote(
    transport: &Transport,
    node: NodeId,
    route: Route,
    request: VoteRequest<TypeConfig>,
    pre_vote: bool,
) -> Result<VoteResponse<TypeConfig>, CallError> {
    let mut line = transport.line(&transport.inner.lines.votes, node)?;
    let request = pb::VoteRequest {
        hello: Some(transport.hello(node)),
        address: Some(route_to_pb(route)),
        vote: Some(vote_to_pb(&request.vote)),
        last_log_id: raft_id_to_pb(request.last_log_id.as_ref()),
        leader_transfer: request.leadership_transfer,
        pre_vote,
    };
    let response = line.vote(request).await.map_err(failed)?.into_inner();
    Ok(VoteResponse {
        vote: vote_from_pb(response.vote).map_err(failed)?,
        vote_granted: response.granted,
        last_log_id: raft_id_from_pb(response.last_log_id),
    })
}

pub(crate) async fn transfer_leader(
    transport: &Transport,
    node: NodeId,
    route: Route,
    request: TransferLeaderRequest<TypeConfig>,
) -> Result<(), CallError> {
    let mut line = transport.line(&transport.inner.lines.votes, node)?;
    let request = pb::TransferLeaderRequest {
        hello: Some(transport.hello(node)),
        address: Some(route_to_pb(route)),
        vote: Some(vote_to_pb(request.from_leader())),
        to_replica_id: *request.to_node_id(),
        last_log_id: raft_id_to_pb(request.last_log_id()),
    };
    let response = line.transfer_leader(request).await.map_err(failed)?.into_inner();
    if response.accepted {
        Ok(())
    } else {
        Err("the replica does not take leadership".to_owned())
    }
}

/// What a survivor says.
pub(crate) struct SurveyAnswer {
    /// It does not hear the suspect either.
    pub(crate) suspected: bool,
    /// Where the logs of its replicas end.
    pub(crate) ends: Vec<((RaftGroupId, ReplicaId), Option<LogId>)>,
}

/// Asks a node about a suspect and groups that it led.
pub(crate) async fn survey(
    transport: &Transport,
    node: NodeId,
    suspect: NodeId,
    groups: Vec<RaftGroupId>,
) -> Result<SurveyAnswer, CallError> {
    let mut line = transport.line(&transport.inner.lines.pings, node)?;
    let request = pb::SurveyRequest {
        hello: Some(transport.hello(node)),
        suspect_node_id: suspect.get(),
        group_ids: groups.into_iter().map(RaftGroupId::get).collect(),
    };
    let response = line.survey(request).await.map_err(failed)?.into_inner();
    let end = |end: pb::LogEnd| {
        let group = RaftGroupId::new(end.group_id).map_err(failed)?;
        let replica = ReplicaId::new(end.replica_id).map_err(failed)?;
        Ok(((group, replica), end.last.map(id_from_pb)))
    };
    Ok(SurveyAnswer {
        suspected: response.suspected,
        ends: response
            .ends
            .into_iter()
            .map(end)
            .collect::<Result<_, CallError>>()?,
    })
}

/// Asks a node about idle groups that it led in these terms; answers those that it does not lead so.
pub(crate) async fn check_quiet(
    transport: &Transport,
    node: NodeId,
    groups: &[(RaftGroupId, Term)],
) -> Result<Vec<RaftGroupId>, CallError> {
    let mut line = transport.line(&transport.inner.lines.pings, node)?;
    let group = |(group, term): &(RaftGroupId, Term)| pb::QuietGroup {
        group_id: group.get(),
        term: term.0,
    };
    let request = pb::CheckQuietRequest {
        hello: Some(transport.hello(node)),
        groups: groups.iter().map(group).collect(),
    };
    let response = line.check_quiet(request).await.map_err(failed)?.into_inner();
    let ids = response.group_ids.into_iter();
    ids.map(|id| RaftGroupId::new(id).map_err(failed)).collect()
}

/// Offers a snapshot and waits until the follower has copied and installed it, which may take minutes.
pub(crate) async fn install_snapshot(
    transport: &Transport,
    node: NodeId,
    route: Route,
    vote: Vote,
    checkpoint: Checkpoint,
) -> Result<Vote, CallError> {
    let mut line = transport.line(&transport.inner.lines.snapshots, node)?;
    let first = pb::InstallSnapshotRequest {
        hello: Some(transport.hello(node)),
        address: Some(route_to_pb(route)),
        vote: Some(vote_to_pb(&vote)),
        checkpoint: Bytes::new(),
        remaining_bytes: 0,
    };
    let offer = futures_util::stream::iter(offer_messages(first, encode_offer(&checkpoint)));
    let response = line.install_snapshot(offer).await.map_err(failed)?.into_inner();
    vote_from_pb(response.vote).map_err(failed)
}

/// An offer of any size, as messages of a bounded one.
fn offer_messages(
    first: pb::InstallSnapshotRequest,
    mut offer: Bytes,
) -> impl Iterator<Item = pb::InstallSnapshotRequest> {
    let mut head = Some(first);
    std::iter::from_fn(move || {
        if offer.is_empty() {
            return None;
        }
        let mut message = head.take().unwrap_or_default();
        message.checkpoint = offer.split_to(offer.len().min(FRAGMENT_BYTES));
        message.remaining_bytes = offer.len() as u64;
        Some(message)
    })
}

/// A segment on its way from another node.
pub(crate) struct SegmentReader(tonic::Streaming<pb::ReadSegmentResponse>);

impl SegmentReader {
    pub(crate) async fn open(
        transport: &Transport,
        node: NodeId,
        route: Route,
        range: MissingRange,
    ) -> Result<Self, CallError> {
        let mut line = transport.line(&transport.inner.lines.snapshots, node)?;
        let request = pb::ReadSegmentRequest {
            hello: Some(transport.hello(node)),
            address: Some(route_to_pb(route)),
            segment: range.segment.0,
            offset: range.offset,
            length: range.len,
        };
        let response = line.read_segment(request).await.map_err(failed)?;
        Ok(Self(response.into_inner()))
    }

    /// The next piece; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        let message = self.0.message().await.map_err(failed)?;
        Ok(message.map(|piece| piece.data))
    }
}
