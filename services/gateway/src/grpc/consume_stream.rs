//! `MessageService.Consume`: a task reads credit and acknowledgements, the response stream carries messages.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use ptah_proto::api::v1 as pb;
use ptah_proto::api::v1::consume_request::Request as Said;
use ptah_proto::api::v1::consume_response::Response as Answer;
use ptah_rpc::{ConnectionCut, CurrentMessage};
use ptah_service::{Stopping, TaskHandle};
use ptah_types::PartitionNumber;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::Services;
use super::convert::{error_to_proto, group_config, group_config_to_proto, push_messages, ranges, status};
use super::message::group_request;
use super::outgoing::Held;
use super::produce_stream::read_error;
use crate::auth::SignedIn;
use crate::consume::budget::ConsumeBudget;
use crate::consume::{Amount, ConsumeEvent, GroupRequest, ReadyGroup, Session};
use crate::error::GatewayError;
use crate::metrics::ConsumeMetrics;

/// A stream that does not say what it is for is ended after this time.
const OPENING_LIMIT: Duration = Duration::from_secs(30);
/// First credit of a stream that names no bytes.
const DEFAULT_CREDIT_BYTES: u64 = 8 << 20;

/// Messages of a consume stream.
pub(super) struct ConsumeStream {
    opening: Option<oneshot::Receiver<Result<Opened, GatewayError>>>,
    session: Option<Arc<Session>>,
    /// Where the memory of an answer goes, to leave with its bytes.
    held: Held,
    budget: ConsumeBudget,
    cut: ConnectionCut,
    reader: TaskHandle,
    metrics: ConsumeMetrics,
    done: bool,
}

struct Opened {
    answer: pb::ConsumeOpened,
    session: Closing,
}

/// Closes a session that nobody took over.
struct Closing(Option<Arc<Session>>);

impl Drop for Closing {
    fn drop(&mut self) {
        if let Some(session) = &self.0 {
            session.close();
        }
    }
}

struct Reader {
    services: Arc<Services>,
    caller: SignedIn,
    permits: CurrentMessage,
    requests: Streaming<pb::ConsumeRequest>,
    stopping: Stopping,
}

pub(super) fn serve(
    services: &Arc<Services>,
    caller: SignedIn,
    cut: ConnectionCut,
    held: Held,
    (permits, requests): (CurrentMessage, Streaming<pb::ConsumeRequest>),
) -> ConsumeStream {
    let reader = Reader {
        services: Arc::clone(services),
        caller,
        permits,
        requests,
        stopping: services.tasks.stopping(),
    };
    let (told, opening) = oneshot::channel();
    let metrics = services.consume_metrics.clone();
    metrics.streams.inc();
    ConsumeStream {
        opening: Some(opening),
        session: None,
        held,
        budget: services.consumer.budget().clone(),
        cut,
        reader: services.tasks.spawn("consume-stream", reader.run(told)),
        metrics,
        done: false,
    }
}

impl Reader {
    async fn run(mut self, told: oneshot::Sender<Result<Opened, GatewayError>>) {
        let (ready, credit) = match self.open().await {
            Ok(opened) => opened,
            Err(error) => {
                // Without a listener the client is gone.
                drop(told.send(Err(error)));
                return;
            }
        };
        let session = self.services.consumer.open(&ready);
        session.add_credit(credit);
        let opened = Opened {
            answer: pb::ConsumeOpened {
                partitions: ready
                    .partitions
                    .iter()
                    .map(|group| group.partition.partition.get())
                    .collect(),
                config: Some(group_config_to_proto(ready.config)),
            },
            session: Closing(Some(Arc::clone(&session))),
        };
        if told.send(Ok(opened)).is_err() {
            return;
        }
        if let Err(error) = self.read(&session).await {
            session.fail(error);
        }
    }

    async fn open(&mut self) -> Result<(ReadyGroup, Amount), GatewayError> {
        let first = match timeout(OPENING_LIMIT, self.requests.message()).await {
            Ok(Ok(Some(first))) => first,
            Ok(Ok(None)) => return Err(GatewayError::invalid("the stream ended before its opening")),
            Ok(Err(broken)) => return Err(read_error(&broken)),
            Err(_) => return Err(GatewayError::invalid("the stream did not open within 30 s")),
        };
        let Some(Said::Open(open)) = first.request else {
            return Err(GatewayError::invalid("a consume stream begins with `open`"));
        };
        let request = GroupRequest {
            config: group_config(open.config)?,
            partitions: open.partitions,
            ..group_request(&self.caller, &open.tenant, &open.station, &open.group)?
        };
        let credit = open.credit.unwrap_or_default();
        let credit = Amount {
            messages: credit.messages.into(),
            bytes: match credit.bytes {
                0 => DEFAULT_CREDIT_BYTES,
                bytes => bytes,
            },
        };
        let ready = self.services.consumer.ready(&self.caller.principal, &request);
        tokio::select! {
            ready = ready => Ok((ready?, credit)),
            () = self.stopping.cancelled() => Err(GatewayError::Stopping),
        }
    }

    /// Reads until the client has nothing more to say; it may still be sent messages then.
    async fn read(&mut self, session: &Session) -> Result<(), GatewayError> {
        loop {
            let next = async {
                session.answers_taken().await;
                self.requests.message().await
            };
            let next = tokio::select! {
                next = next => next,
                () = self.stopping.cancelled() => return Err(GatewayError::Stopping),
            };
            match next {
                Ok(None) => return Ok(()),
                Err(broken) => return Err(read_error(&broken)),
                Ok(Some(request)) => take(session, request)?,
            }
            // It is kept in another form, and the client may leave its answers unread for long.
            drop(self.permits.take());
        }
    }
}

fn take(session: &Session, request: pb::ConsumeRequest) -> Result<(), GatewayError> {
    match request.request {
        Some(Said::Credit(credit)) => {
            session.add_credit(Amount {
                messages: credit.messages.into(),
                bytes: credit.bytes,
            });
            Ok(())
        }
        Some(Said::Ack(ack)) => {
            let partition = PartitionNumber::new(ack.partition);
            let partition = partition.map_err(|error| GatewayError::invalid(error.to_string()))?;
            session.ack(partition, ranges(ack.ranges)?, ack.confirm_id)
        }
        Some(Said::Open(_)) => Err(GatewayError::invalid("the stream is open already")),
        None => Err(GatewayError::invalid(
            "a request is none of `open`, `credit` and `ack`",
        )),
    }
}

impl ConsumeStream {
    fn poll_opening(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<pb::ConsumeResponse, Status>>> {
        let Some(opening) = self.opening.as_mut() else {
            return Poll::Pending;
        };
        let told = match Pin::new(opening).poll(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(told) => told.unwrap_or(Err(GatewayError::Stopping)),
        };
        self.opening = None;
        Poll::Ready(Some(match told {
            Ok(mut opened) => {
                self.session = opened.session.0.take();
                Ok(response(Answer::Opened(opened.answer)))
            }
            Err(error) => {
                self.done = true;
                Err(status(&error))
            }
        }))
    }

    fn answer(&mut self, event: ConsumeEvent) -> Answer {
        match event {
            ConsumeEvent::Batch(runs) => {
                let mut messages = Vec::with_capacity(runs.iter().map(|run| run.range.len()).sum());
                let mut memory = Vec::with_capacity(runs.len());
                for run in runs {
                    push_messages(&run, &mut messages);
                    memory.push(run.reservation);
                }
                self.held.add(self.budget.hand_over(memory, self.cut.clone()));
                Answer::Batch(pb::ConsumeBatch { messages })
            }
            ConsumeEvent::Acked { confirm_id, error } => Answer::Acked(pb::ConsumeAcked {
                confirm_id,
                error: error.as_ref().map(error_to_proto),
            }),
            ConsumeEvent::Idle { unacknowledged } => Answer::Idle(pb::ConsumeIdle { unacknowledged }),
        }
    }
}

impl Stream for ConsumeStream {
    type Item = Result<pb::ConsumeResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.done {
            return Poll::Ready(None);
        }
        if self.opening.is_some() {
            return self.poll_opening(cx);
        }
        let Some(session) = self.session.clone() else {
            return Poll::Ready(None);
        };
        match session.poll_event(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => {
                self.done = true;
                Poll::Ready(Some(Err(status(&error))))
            }
            Poll::Ready(Some(Ok(event))) => Poll::Ready(Some(Ok(response(self.answer(event))))),
        }
    }
}

impl Drop for ConsumeStream {
    fn drop(&mut self) {
        self.reader.abort();
        if let Some(session) = &self.session {
            session.close();
        }
        self.metrics.streams.dec();
    }
}

fn response(answer: Answer) -> pb::ConsumeResponse {
    pb::ConsumeResponse {
        response: Some(answer),
    }
}
