//! Generated transport messages from and to the types of the transport.

use ptah_proto::{common::v1 as common, raft::v1 as pb};
use ptah_types::{LogId, LogIndex, RaftGroupId, ReplicaId, Term};

use crate::transport::beats::BeatAnswer;
use crate::transport::outbox::{AppendHead, AppendOutcome, AppendPart, Route};
use crate::types::{RaftLogId, Vote, log_id, raft_log_id};

/// A message of a peer that makes no sense; it is refused and counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid transport message: {0}")]
pub(crate) struct InvalidMessage(pub(crate) &'static str);

pub(super) fn vote_to_pb(vote: &Vote) -> pb::Vote {
    pb::Vote {
        term: vote.leader_id.term,
        replica_id: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

pub(super) fn vote_from_pb(vote: Option<pb::Vote>) -> Result<Vote, InvalidMessage> {
    let vote = vote.ok_or(InvalidMessage("vote is missing"))?;
    let leader_id = openraft::impls::leader_id_std::LeaderId {
        term: vote.term,
        voted_for: vote.replica_id,
    };
    Ok(Vote {
        leader_id,
        committed: vote.committed,
    })
}

pub(super) fn id_to_pb(id: LogId) -> common::LogId {
    common::LogId {
        term: id.term.0,
        index: id.index.0,
    }
}

pub(super) fn id_from_pb(id: common::LogId) -> LogId {
    LogId {
        term: Term(id.term),
        index: LogIndex(id.index),
    }
}

pub(super) fn raft_id_to_pb(id: Option<&RaftLogId>) -> Option<common::LogId> {
    id.map(|id| id_to_pb(log_id(id)))
}

pub(super) fn raft_id_from_pb(id: Option<common::LogId>) -> Option<RaftLogId> {
    id.map(|id| raft_log_id(id_from_pb(id)))
}

pub(super) fn route_to_pb(route: Route) -> pb::GroupAddress {
    pb::GroupAddress {
        group_id: route.group.get(),
        from_replica_id: route.from.get(),
        to_replica_id: route.to.get(),
    }
}

pub(super) fn route_from_pb(address: Option<pb::GroupAddress>) -> Result<Route, InvalidMessage> {
    let address = address.ok_or(InvalidMessage("address is missing"))?;
    let replica = |id| ReplicaId::new(id).map_err(|_| InvalidMessage("replica id is zero"));
    Ok(Route {
        group: RaftGroupId::new(address.group_id).map_err(|_| InvalidMessage("group id is zero"))?,
        from: replica(address.from_replica_id)?,
        to: replica(address.to_replica_id)?,
    })
}

pub(super) fn part_to_pb(part: AppendPart) -> pb::Append {
    let head = part.head.as_ref();
    pb::Append {
        session: part.session,
        address: part.route.map(route_to_pb),
        close: part.close,
        vote: head.map(|head| vote_to_pb(&head.vote)),
        previous: head.and_then(|head| raft_id_to_pb(head.previous.as_ref())),
        committed: head.and_then(|head| raft_id_to_pb(head.committed.as_ref())),
        frames: part.frames,
        number: part.number,
        remaining_bytes: part.remaining,
    }
}

pub(super) fn part_from_pb(append: pb::Append) -> Result<AppendPart, InvalidMessage> {
    let head = match append.vote {
        None => None,
        vote => Some(AppendHead {
            vote: vote_from_pb(vote)?,
            previous: raft_id_from_pb(append.previous),
            committed: raft_id_from_pb(append.committed),
        }),
    };
    Ok(AppendPart {
        session: append.session,
        route: match append.address {
            None => None,
            address => Some(route_from_pb(address)?),
        },
        head,
        close: append.close,
        number: append.number,
        frames: append.frames,
        remaining: append.remaining_bytes,
    })
}

pub(super) fn result_to_pb(session: u64, outcome: AppendOutcome) -> pb::AppendResult {
    use pb::append_result::Outcome;
    let outcome = match outcome {
        AppendOutcome::Flushed(id) => Outcome::Flushed(pb::Flushed {
            log_id: id.map(id_to_pb),
        }),
        AppendOutcome::Conflict(id) => Outcome::Conflict(id_to_pb(id)),
        AppendOutcome::HigherVote(vote) => Outcome::HigherVote(vote_to_pb(&vote)),
        AppendOutcome::Closed(why) => Outcome::Closed(why),
    };
    pb::AppendResult {
        session,
        outcome: Some(outcome),
    }
}

pub(super) fn result_from_pb(result: pb::AppendResult) -> Result<(u64, AppendOutcome), InvalidMessage> {
    use pb::append_result::Outcome;
    let outcome = match result.outcome.ok_or(InvalidMessage("result is missing"))? {
        Outcome::Flushed(flushed) => AppendOutcome::Flushed(flushed.log_id.map(id_from_pb)),
        Outcome::Conflict(id) => AppendOutcome::Conflict(id_from_pb(id)),
        Outcome::HigherVote(vote) => AppendOutcome::HigherVote(vote_from_pb(Some(vote))?),
        Outcome::Closed(why) => AppendOutcome::Closed(why),
    };
    Ok((result.session, outcome))
}

pub(super) fn beat_result_to_pb(answer: BeatAnswer) -> pb::BeatResult {
    use pb::beat_result::Outcome;
    let outcome = match answer.outcome {
        AppendOutcome::Flushed(id) => Outcome::Flushed(pb::Flushed {
            log_id: id.map(id_to_pb),
        }),
        AppendOutcome::Conflict(id) => Outcome::Conflict(id_to_pb(id)),
        AppendOutcome::HigherVote(vote) => Outcome::HigherVote(vote_to_pb(&vote)),
        AppendOutcome::Closed(why) => Outcome::Unreachable(why),
    };
    pb::BeatResult {
        outcome: Some(outcome),
        quiesced: answer.quiesced,
    }
}

pub(super) fn beat_result_from_pb(result: pb::BeatResult) -> Result<BeatAnswer, InvalidMessage> {
    use pb::beat_result::Outcome;
    let outcome = match result.outcome.ok_or(InvalidMessage("result is missing"))? {
        Outcome::Flushed(flushed) => AppendOutcome::Flushed(flushed.log_id.map(id_from_pb)),
        Outcome::Conflict(id) => AppendOutcome::Conflict(id_from_pb(id)),
        Outcome::HigherVote(vote) => AppendOutcome::HigherVote(vote_from_pb(Some(vote))?),
        Outcome::Unreachable(why) => AppendOutcome::Closed(why),
    };
    Ok(BeatAnswer {
        outcome,
        quiesced: result.quiesced,
    })
}
