//! openraft's network: one light client per follower and purpose, over the shared streams of a node.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse, VoteRequest,
    VoteResponse,
};
use openraft::{OptionalSend, RPCTypes, RaftNetworkFactory};
use ptah_types::{RaftGroupId, ReplicaId};

use super::append_stream::{AppendItem, AppendStream, append_item, unreachable};
use super::beats::Beat;
use super::grpc::calls;
use super::outbox::{AppendHead, Route};
use super::{Peer, Transport};
use crate::holds::Holds;
use crate::snapshot::SnapshotData;
use crate::types::{HomeNode, Snapshot, TypeConfig, Vote};

/// Pause before a follower that refused a session is tried again.
const REPLICA_BACKOFF: Duration = Duration::from_millis(50);

/// Pause before a snapshot is offered again.
const SNAPSHOT_BACKOFF: Duration = Duration::from_millis(500);

/// Makes clients for one replica.
pub(crate) struct Factory {
    pub(crate) transport: Transport,
    pub(crate) group: RaftGroupId,
    pub(crate) from: ReplicaId,
    /// Told while a snapshot is sent, so that the log behind it is kept.
    pub(crate) holds: Arc<Holds>,
}

/// What a client is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Purpose {
    Entries,
    Beats,
    Snapshots,
}

/// A client to one replica.
pub(crate) struct Client {
    transport: Transport,
    /// `None` when the membership names a replica or node that cannot be.
    to: Option<(Arc<Peer>, Route)>,
    from: u64,
    target: u64,
    purpose: Purpose,
    holds: Arc<Holds>,
}

impl Factory {
    fn client(&self, target: u64, home: &HomeNode, purpose: Purpose) -> Client {
        let to = ReplicaId::new(target)
            .ok()
            .zip(home.node())
            .map(|(replica, node)| {
                let route = Route {
                    group: self.group,
                    from: self.from,
                    to: replica,
                };
                (self.transport.peer(node), route)
            });
        Client {
            transport: self.transport.clone(),
            to,
            from: self.from.get(),
            target,
            purpose,
            holds: Arc::clone(&self.holds),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &HomeNode) -> Client {
        self.client(target, node, Purpose::Entries)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &HomeNode) -> Client {
        self.client(target, node, Purpose::Beats)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &HomeNode) -> Client {
        self.client(target, node, Purpose::Snapshots)
    }
}

impl Client {
    fn to(&self) -> Result<(&Arc<Peer>, Route), RPCError<TypeConfig>> {
        match &self.to {
            Some((peer, route)) => Ok((peer, *route)),
            None => Err(unreachable("the membership names a replica without a node")),
        }
    }

    /// Sends the one heartbeat of `input`.
    async fn beat<S>(&self, mut input: S) -> Result<Option<AppendItem>, RPCError<TypeConfig>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let (peer, route) = self.to()?;
        let Some(request) = input.next().await else {
            return Ok(None);
        };
        drop(input);
        let beat = Beat {
            route,
            head: AppendHead {
                vote: request.vote,
                previous: request.prev_log_id,
                committed: request.leader_commit,
            },
            quiesce: false,
        };
        let answered = peer
            .beats
            .submit(beat)
            .ok_or_else(|| unreachable("there is no connection to the node"))?;
        let answer = answered
            .await
            .map_err(|_| unreachable("the connection to the node broke"))?;
        if let Some(cell) = self.transport.inner.directory.get(route.group) {
            cell.straggler_was_answered();
        }
        Ok(Some(append_item(answer.outcome)))
    }

    fn timeout(&self, action: RPCTypes, option: &RPCOption) -> RPCError<TypeConfig> {
        RPCError::Timeout(Timeout {
            action,
            id: self.from,
            target: self.target,
            timeout: option.soft_ttl(),
        })
    }

    async fn ask_vote(
        &self,
        request: VoteRequest<TypeConfig>,
        pre_vote: bool,
        option: &RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (peer, route) = self.to()?;
        let call = calls::vote(&self.transport, peer.node, route, request, pre_vote);
        match tokio::time::timeout(option.soft_ttl(), call).await {
            Ok(answer) => answer.map_err(unreachable),
            Err(_) => Err(self.timeout(RPCTypes::Vote, option)),
        }
    }
}

impl NetBackoff<TypeConfig> for Client {
    fn backoff(&self) -> Option<Backoff> {
        let pause = match self.purpose {
            // Sessions wait for the connection by themselves; what is left is a replica that is not there yet, or slow.
            Purpose::Entries | Purpose::Beats => REPLICA_BACKOFF,
            // Every attempt reads the checkpoint.
            Purpose::Snapshots => SNAPSHOT_BACKOFF,
        };
        Some(Backoff::new(std::iter::repeat(pause)))
    }
}

impl NetStreamAppend<TypeConfig> for Client {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, AppendItem>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let output: BoxStream<'s, AppendItem> = if self.purpose == Purpose::Beats {
                Box::pin(futures_util::stream::iter(self.beat(input).await?))
            } else {
                let (peer, route) = self.to()?;
                let window = self.transport.inner.options.append_window;
                Box::pin(AppendStream::new(Arc::clone(&peer.outbox), route, input, window))
            };
            Ok(output)
        })
    }
}

impl NetVote<TypeConfig> for Client {
    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(request, false, &option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(request, true, &option).await
    }
}

impl NetSnapshot<TypeConfig> for Client {
    type SnapshotData = SnapshotData;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let (peer, route) = self.to().map_err(streaming)?;
        // Copying segments may take minutes; a dead connection is noticed by its keep-alive, a new leader by `cancel`.
        let _hold = self.holds.hold(snapshot.snapshot.checkpoint.at);
        let call = calls::install_snapshot(
            &self.transport,
            peer.node,
            route,
            vote,
            snapshot.snapshot.checkpoint,
        );
        tokio::select! {
            answer = call => match answer {
                Ok(vote) => Ok(SnapshotResponse::new(vote)),
                Err(why) => Err(streaming(unreachable(why))),
            },
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }
}

fn streaming(error: RPCError<TypeConfig>) -> StreamingError<TypeConfig> {
    match error {
        RPCError::Timeout(error) => StreamingError::Timeout(error),
        RPCError::Unreachable(error) => StreamingError::Unreachable(error),
        RPCError::Network(error) => StreamingError::Network(error),
        RPCError::RemoteError(error) => StreamingError::Network(NetworkError::from_string(error)),
    }
}

impl NetTransferLeader<TypeConfig> for Client {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (peer, route) = self.to()?;
        let call = calls::transfer_leader(&self.transport, peer.node, route, request);
        match tokio::time::timeout(option.soft_ttl(), call).await {
            Ok(Ok(())) => Ok(Ok(())),
            Ok(Err(why)) => Err(unreachable(why)),
            Err(_) => Err(self.timeout(RPCTypes::TransferLeader, &option)),
        }
    }
}
