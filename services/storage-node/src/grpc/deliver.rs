//! The delivery stream. Like the append stream, one task takes requests in and hands messages out; it reads messages only
//! when the stream has room for them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream;
use ptah_proto::storage::v1 as pb;
use ptah_proto::storage::v1::deliver_request::Request as Message;
use ptah_proto::storage::v1::deliver_response::Response as Answer;
use ptah_rpc::agree_wire;
use ptah_service::Stopping;
use tonic::{Status, Streaming};

use super::convert::{error, group_ref, invalid, ranges};
use super::inbound::{Inbound, REQUESTS_AT_ONCE};
use crate::deliver::{Credit, DeliverEvent, DeliverSession, Part, PullOpening};
use crate::node::Node;

/// One delivery stream.
pub(crate) struct DeliverStream {
    node: Arc<Node>,
    inbound: Inbound<pb::DeliverRequest>,
    session: DeliverSession,
    greeted: bool,
    welcome: Option<pb::DeliverWelcome>,
    ended: bool,
}

impl DeliverStream {
    pub(super) fn new(node: Arc<Node>, inbound: Streaming<pb::DeliverRequest>, stopping: Stopping) -> Self {
        node.shared.metrics.deliver_streams.inc();
        Self {
            session: DeliverSession::new(Arc::clone(&node)),
            node,
            inbound: Inbound::new(inbound, stopping),
            greeted: false,
            welcome: None,
            ended: false,
        }
    }

    /// Takes in what has arrived; true when more may be there.
    fn take_in(&mut self, cx: &mut Context<'_>) -> bool {
        for _ in 0..REQUESTS_AT_ONCE {
            if !self.session.may_read() {
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

    fn request(&mut self, request: pb::DeliverRequest) -> Result<(), Status> {
        let request = request
            .request
            .ok_or_else(|| invalid("deliver request is empty"))?;
        if !self.greeted {
            let Message::Hello(hello) = request else {
                return Err(invalid(
                    "the first message of a delivery stream must be its greeting",
                ));
            };
            let wire_version = agree_wire(hello.wire).map_err(Status::from)?;
            tracing::debug!(gateway = %hello.gateway, "delivery stream opened");
            self.welcome = Some(pb::DeliverWelcome { wire_version });
            self.greeted = true;
            return Ok(());
        }
        match request {
            Message::Hello(_) => return Err(invalid("delivery stream was greeted twice")),
            Message::Open(open) => self.session.open(opening(open)?).map_err(invalid)?,
            Message::Credit(credit) => {
                let more = Credit {
                    messages: u64::from(credit.messages),
                    bytes: credit.bytes,
                };
                self.session.credit(credit.pull_id, more);
            }
            Message::Ack(ack) => {
                let confirm_id = (ack.confirm_id != 0).then_some(ack.confirm_id);
                self.session.ack(ack.pull_id, ranges(&ack.ranges)?, confirm_id);
            }
            Message::Close(close) => self.session.close(close.pull_id, &ranges(&close.unsent)?),
        }
        Ok(())
    }

    fn hand_out(&mut self, cx: &mut Context<'_>) -> Poll<pb::DeliverResponse> {
        if let Some(welcome) = self.welcome.take() {
            return Poll::Ready(pb::DeliverResponse {
                response: Some(Answer::Welcome(welcome)),
            });
        }
        self.session.poll_event(cx).map(response)
    }
}

impl Stream for DeliverStream {
    type Item = Result<pb::DeliverResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        loop {
            let more = this.take_in(cx);
            if this.inbound.is_over() {
                // Without requests there is no more credit and nobody to acknowledge.
                this.ended = true;
                return Poll::Ready(this.inbound.take_failure().map(Err));
            }
            if let Poll::Ready(response) = this.hand_out(cx) {
                return Poll::Ready(Some(Ok(response)));
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

impl Drop for DeliverStream {
    fn drop(&mut self) {
        self.node.shared.metrics.deliver_streams.dec();
    }
}

fn opening(open: pb::DeliverOpen) -> Result<PullOpening, Status> {
    let group = group_ref(open.group)?;
    Ok(PullOpening {
        pull_id: open.pull_id,
        key: group.key,
        group: group.group,
        consumer_group: group.consumer_group,
        credit: Credit {
            messages: u64::from(open.credit_messages),
            bytes: open.credit_bytes,
        },
    })
}

fn response(event: DeliverEvent) -> pb::DeliverResponse {
    let answer = match event {
        DeliverEvent::Part(part) => Answer::Delivery(delivery(part)),
        DeliverEvent::Acked {
            pull_id,
            confirm_id,
            error: failed,
        } => Answer::Acked(pb::DeliverAcked {
            pull_id,
            confirm_id,
            error: failed.map(|failed| error(*failed)),
        }),
        DeliverEvent::Idle {
            pull_id,
            unacknowledged,
            next_sequence,
        } => Answer::Idle(pb::DeliverIdle {
            pull_id,
            unacknowledged,
            next_sequence: next_sequence.get(),
        }),
        DeliverEvent::Closed { pull_id, error: why } => Answer::Closed(pb::DeliverClosed {
            pull_id,
            error: why.map(|why| error(*why)),
        }),
    };
    pb::DeliverResponse {
        response: Some(answer),
    }
}

fn delivery(part: Part) -> pb::Delivery {
    pb::Delivery {
        pull_id: part.pull_id,
        base_sequence: part.base_sequence.get(),
        count: part.count,
        timestamp_ns: part.timestamp.0,
        crc32c: part.crc,
        payload: part.payload,
        total_bytes: part.total_bytes,
        offset: part.offset,
        delivery_count: part.delivery_count,
    }
}
