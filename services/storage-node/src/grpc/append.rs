//! The append stream. One task per stream takes requests in and hands answers out: the answer of a batch is encoded by
//! the task that is woken when the batch is applied, and nothing is handed from task to task.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream;
use ptah_proto::storage::v1 as pb;
use ptah_proto::storage::v1::append_request::Request as Message;
use ptah_proto::storage::v1::append_result::Outcome;
use ptah_rpc::agree_wire;
use ptah_service::Stopping;
use tonic::{Status, Streaming};

use super::convert::{error, id, invalid, partition_key};
use super::inbound::{Inbound, REQUESTS_AT_ONCE};
use crate::append::{Answer, Answers, AppendSession, BatchPart, ChannelOpening};
use crate::node::Node;

/// Most answers in one message.
const ANSWERS_AT_ONCE: usize = 4_096;
/// One append stream.
pub(crate) struct AppendStream {
    node: Arc<Node>,
    inbound: Inbound<pb::AppendRequest>,
    session: Option<AppendSession>,
    answers: Answers,
    taken: Vec<Answer>,
    welcome: Option<pb::AppendWelcome>,
    ended: bool,
}

impl AppendStream {
    pub(super) fn new(node: Arc<Node>, inbound: Streaming<pb::AppendRequest>, stopping: Stopping) -> Self {
        node.shared.metrics.append_streams.inc();
        Self {
            node,
            inbound: Inbound::new(inbound, stopping),
            session: None,
            answers: Answers::default(),
            taken: Vec::new(),
            welcome: None,
            ended: false,
        }
    }

    /// Takes in what has arrived; true when more may be there.
    fn take_in(&mut self, cx: &mut Context<'_>) -> bool {
        for _ in 0..REQUESTS_AT_ONCE {
            if self.session.as_ref().is_some_and(|session| !session.may_read()) {
                return false;
            }
            let Some(request) = self.inbound.next(cx) else {
                return false;
            };
            if let Err(status) = self.request(request) {
                self.inbound.fail(status);
            }
        }
        true
    }

    fn request(&mut self, request: pb::AppendRequest) -> Result<(), Status> {
        let request = request
            .request
            .ok_or_else(|| invalid("append request is empty"))?;
        let Some(session) = &mut self.session else {
            let Message::Hello(hello) = request else {
                return Err(invalid(
                    "the first message of an append stream must be its greeting",
                ));
            };
            return self.hello(hello);
        };
        match request {
            Message::Hello(_) => Err(invalid("append stream was greeted twice")),
            Message::Open(open) => session.open(opening(open)?).map_err(invalid),
            Message::Batch(batch) => session.batch(part(batch)).map_err(invalid),
            Message::Fragment(part) => session.fragment(part.channel, &part.payload).map_err(invalid),
        }
    }

    fn hello(&mut self, hello: pb::AppendHello) -> Result<(), Status> {
        let wire_version = agree_wire(hello.wire).map_err(Status::from)?;
        let session = id(hello.session_id)?;
        tracing::debug!(gateway = %hello.gateway, %session, "append stream opened");
        self.session = Some(AppendSession::new(
            Arc::clone(&self.node),
            session,
            self.answers.clone(),
        ));
        self.welcome = Some(pb::AppendWelcome {
            wire_version,
            window_bytes: self.node.shared.limits.append_window_bytes,
        });
        Ok(())
    }

    fn hand_out(&mut self, cx: &Context<'_>) -> Poll<pb::AppendResponse> {
        if self.taken.is_empty()
            && self.answers.poll_take(cx, &mut self.taken).is_pending()
            && self.welcome.is_none()
        {
            return Poll::Pending;
        }
        let most = self.taken.len().min(ANSWERS_AT_ONCE);
        Poll::Ready(pb::AppendResponse {
            welcome: self.welcome.take(),
            results: self.taken.drain(..most).map(result).collect(),
        })
    }
}

impl Stream for AppendStream {
    type Item = Result<pb::AppendResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        loop {
            let more = this.take_in(cx);
            if let Poll::Ready(response) = this.hand_out(cx) {
                return Poll::Ready(Some(Ok(response)));
            }
            // What was accepted is answered before the stream ends.
            if this.inbound.is_over() && this.answers.held() == 0 {
                this.ended = true;
                return Poll::Ready(this.inbound.take_failure().map(Err));
            }
            if this.inbound.poll_stop(cx) {
                continue;
            }
            if !more {
                return Poll::Pending;
            }
        }
    }
}

impl Drop for AppendStream {
    fn drop(&mut self) {
        self.node.shared.metrics.append_streams.dec();
    }
}

fn opening(open: pb::AppendOpen) -> Result<ChannelOpening, Status> {
    Ok(ChannelOpening {
        channel: open.channel,
        key: partition_key(open.partition)?,
        group: id(open.group_id)?,
        generation: open.generation,
    })
}

fn part(batch: pb::AppendBatch) -> BatchPart {
    BatchPart {
        channel: batch.channel,
        number: batch.number,
        count: batch.count,
        crc: batch.crc32c,
        payload: batch.payload,
        total_bytes: batch.total_bytes,
    }
}

fn result(answer: Answer) -> pb::AppendResult {
    let outcome = match answer.outcome {
        Ok(stored) => Outcome::Stored(pb::AppendStored {
            base_sequence: stored.base_sequence.get(),
            timestamp_ns: stored.timestamp.0,
            duplicate: stored.duplicate,
        }),
        Err(refusal) => Outcome::Refused(pb::AppendRefused {
            expected_number: refusal.expected_number().unwrap_or(0),
            error: Some(error(*refusal)),
        }),
    };
    pb::AppendResult {
        channel: answer.channel,
        number: answer.number,
        outcome: Some(outcome),
    }
}
