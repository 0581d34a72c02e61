//! Answering heartbeats: messages of many groups, several at once, none of them held up by a busy group.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::raft::AppendEntriesRequest;
use ptah_proto::raft::v1 as pb;
use ptah_types::NodeId;
use tokio::sync::mpsc;
use tonic::Status;

use super::convert::{InvalidMessage, beat_result_to_pb, raft_id_from_pb, route_from_pb, vote_from_pb};
use super::receive::append_outcome;
use crate::transport::Transport;
use crate::transport::beats::BeatAnswer;
use crate::transport::outbox::AppendOutcome;

/// Messages that are worked on at once per stream.
const MAX_BEAT_MESSAGES: usize = 64;

/// Answers messages of heartbeats, several at once.
pub(super) async fn answer_beats(
    transport: &Transport,
    from: NodeId,
    mut requests: tonic::Streaming<pb::HeartbeatRequest>,
    answers: mpsc::Sender<Result<pb::HeartbeatResponse, Status>>,
) {
    let mut working = FuturesUnordered::new();
    loop {
        let answer = tokio::select! {
            message = requests.message(), if working.len() < MAX_BEAT_MESSAGES => match message {
                Ok(Some(message)) => {
                    working.push(beats_result(transport, from, message));
                    continue;
                }
                Ok(None) | Err(_) => return,
            },
            Some(answer) = working.next(), if !working.is_empty() => answer,
        };
        if answers.send(Ok(answer)).await.is_err() {
            return;
        }
    }
}

async fn beats_result(
    transport: &Transport,
    from: NodeId,
    message: pb::HeartbeatRequest,
) -> pb::HeartbeatResponse {
    let beats = message
        .beats
        .into_iter()
        .map(|beat| beat_outcome(transport, from, beat));
    let outcomes = futures_util::future::join_all(beats).await;
    pb::HeartbeatResponse {
        welcome: None,
        number: message.number,
        results: outcomes.into_iter().map(beat_result_to_pb).collect(),
    }
}

async fn beat_outcome(transport: &Transport, from: NodeId, beat: pb::Beat) -> BeatAnswer {
    let answered = match tokio::time::timeout(
        transport.inner.options.beat_patience,
        take_beat(transport, from, beat),
    )
    .await
    {
        Ok(answered) => answered,
        Err(_) => Err("the replica is busy".to_owned()),
    };
    answered.unwrap_or_else(|why| BeatAnswer {
        outcome: AppendOutcome::Closed(why),
        quiesced: false,
    })
}

async fn take_beat(transport: &Transport, from: NodeId, beat: pb::Beat) -> Result<BeatAnswer, String> {
    let invalid = |error: InvalidMessage| error.to_string();
    let route = route_from_pb(beat.address).map_err(invalid)?;
    let running = transport.inner.directory.running(route, from)?;
    // A core that does not answer is not asked again and again.
    let turn = Arc::clone(&running.beats)
        .try_acquire_owned()
        .map_err(|_| "the replica is busy".to_owned())?;
    let request = AppendEntriesRequest {
        vote: vote_from_pb(beat.vote).map_err(invalid)?,
        prev_log_id: raft_id_from_pb(beat.previous),
        entries: Vec::new(),
        leader_commit: raft_id_from_pb(beat.committed),
    };
    let (previous, vote) = (request.prev_log_id, request.vote);
    let raft = running.raft;
    let call = async move {
        let response = raft.append_entries(request).await;
        drop(turn);
        response
    };
    let response = transport
        .unbroken("heartbeat of a busy replica", call)
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    use openraft::raft::AppendEntriesResponse as R;
    let result = match response {
        R::Success => Ok(previous),
        R::PartialSuccess(flushed) => Ok(flushed),
        R::Conflict => match previous {
            Some(previous) => Err(openraft::raft::StreamAppendError::Conflict(previous)),
            None => Ok(None),
        },
        R::HigherVote(vote) => Err(openraft::raft::StreamAppendError::HigherVote(vote)),
    };
    let rests = beat.quiesce && result == Ok(previous);
    Ok(BeatAnswer {
        outcome: append_outcome(result),
        quiesced: rests && transport.agree_to_rest(route, &vote, previous.as_ref()),
    })
}
