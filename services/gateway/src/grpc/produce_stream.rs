//! `MessageService.ProduceStream`: a task reads and submits, the response stream carries results as they come.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use ptah_partition::Door;
use ptah_proto::api::v1 as pb;
use ptah_proto::api::v1::produce_stream_request::Request as Said;
use ptah_proto::api::v1::produce_stream_response::Response as Answer;
use ptah_rpc::{CurrentMessage, IncomingMessages};
use ptah_service::{Stopping, TaskHandle};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::Status;

use super::Services;
use super::convert::{new_message, result_to_proto, status};
use crate::auth::SignedIn;
use crate::error::GatewayError;
use crate::metrics::ProduceMetrics;
use crate::produce::{ProduceCall, Replies};

/// A stream that does not say what it is for is ended after this time.
const OPENING_LIMIT: Duration = Duration::from_secs(30);
/// Results in one response; more follow in the next.
const RESULTS_PER_RESPONSE: usize = 4_096;

/// Results of a produce stream.
pub(super) struct ProduceStream {
    opening: Option<oneshot::Receiver<Result<Opened, GatewayError>>>,
    replies: Option<Arc<Replies>>,
    results: VecDeque<pb::ProduceResult>,
    reader: TaskHandle,
    metrics: ProduceMetrics,
    done: bool,
}

struct Opened {
    answer: pb::ProduceStreamOpened,
    replies: Arc<Replies>,
}

struct Reader {
    services: Arc<Services>,
    caller: SignedIn,
    permits: CurrentMessage,
    requests: IncomingMessages<pb::ProduceStreamRequest>,
    stopping: Stopping,
}

pub(super) fn serve(
    services: &Arc<Services>,
    caller: SignedIn,
    permits: CurrentMessage,
    requests: IncomingMessages<pb::ProduceStreamRequest>,
) -> ProduceStream {
    let reader = Reader {
        services: Arc::clone(services),
        caller,
        permits,
        requests,
        stopping: services.tasks.stopping(),
    };
    let (told, opening) = oneshot::channel();
    let metrics = services.produce_metrics.clone();
    metrics.streams.inc();
    ProduceStream {
        opening: Some(opening),
        replies: None,
        results: VecDeque::new(),
        reader: services.tasks.spawn("produce-stream", reader.run(told)),
        metrics,
        done: false,
    }
}

impl Reader {
    async fn run(mut self, told: oneshot::Sender<Result<Opened, GatewayError>>) {
        let mut call = match self.open().await {
            Ok(call) => call,
            Err(error) => {
                // Without a listener the client is gone.
                drop(told.send(Err(error)));
                return;
            }
        };
        let limit = self.services.producer.limit();
        let replies = Arc::clone(call.replies());
        let opened = Opened {
            answer: pb::ProduceStreamOpened {
                partitions: call.station().partitions.get(),
                max_message_bytes: call.station().record.max_message_bytes,
                max_in_flight: u32::try_from(limit.messages).unwrap_or(u32::MAX),
            },
            replies: Arc::clone(&replies),
        };
        if told.send(Ok(opened)).is_err() {
            return;
        }
        match self.read(&mut call).await {
            Ok(()) => replies.finish(),
            Err(error) => replies.fail(error),
        }
    }

    async fn open(&mut self) -> Result<ProduceCall, GatewayError> {
        let first = match timeout(OPENING_LIMIT, self.requests.message()).await {
            Ok(Ok(Some(first))) => first,
            Ok(Ok(None)) => return Err(GatewayError::invalid("the stream ended before its opening")),
            Ok(Err(broken)) => return Err(read_error(&broken)),
            Err(_) => return Err(GatewayError::invalid("the stream did not open within 30 s")),
        };
        let Some(Said::Open(open)) = first.request else {
            return Err(GatewayError::invalid("a produce stream begins with `open`"));
        };
        let tenant = self.caller.tenant(&open.tenant)?;
        let station = open.station.parse()?;
        let producer = &self.services.producer;
        producer
            .open(
                &self.caller.principal,
                &tenant,
                &station,
                &open.producer,
                Door::GRPC,
            )
            .await
    }

    async fn read(&mut self, call: &mut ProduceCall) -> Result<(), GatewayError> {
        loop {
            let next = tokio::select! {
                next = self.requests.message() => next,
                () = self.stopping.cancelled() => return Err(GatewayError::Stopping),
            };
            let batch = match next {
                Ok(None) => return Ok(()),
                Err(broken) => return Err(read_error(&broken)),
                Ok(Some(request)) => match request.request {
                    Some(Said::Batch(batch)) => batch,
                    Some(Said::Open(_)) => return Err(GatewayError::invalid("the stream is open already")),
                    None => return Err(GatewayError::invalid("a request is neither `open` nor `batch`")),
                },
            };
            let permit = self.permits.take();
            call.submit(batch.messages.into_iter().map(new_message).collect(), permit)
                .await?;
        }
    }
}

/// The request stream broke: the client went, or sent what cannot be read.
pub(super) fn read_error(broken: &Status) -> GatewayError {
    ptah_rpc::RpcError::of_read(broken.clone()).into()
}

impl ProduceStream {
    fn poll_opening(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<pb::ProduceStreamResponse, Status>>> {
        let Some(opening) = self.opening.as_mut() else {
            return Poll::Pending;
        };
        let told = match Pin::new(opening).poll(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(told) => told.unwrap_or(Err(GatewayError::Stopping)),
        };
        self.opening = None;
        Poll::Ready(Some(match told {
            Ok(opened) => {
                self.replies = Some(opened.replies);
                Ok(response(Answer::Opened(opened.answer)))
            }
            Err(error) => {
                self.done = true;
                Err(status(&error))
            }
        }))
    }
}

impl Stream for ProduceStream {
    type Item = Result<pb::ProduceStreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.done {
            return Poll::Ready(None);
        }
        if self.opening.is_some() {
            return self.poll_opening(cx);
        }
        if self.results.is_empty() {
            let Some(replies) = &self.replies else {
                return Poll::Ready(None);
            };
            match replies.poll_take(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(error))) => {
                    self.done = true;
                    return Poll::Ready(Some(Err(status(&error))));
                }
                Poll::Ready(Some(Ok(results))) => {
                    self.results.extend(results.into_iter().map(result_to_proto))
                }
            }
        }
        let count = self.results.len().min(RESULTS_PER_RESPONSE);
        let results = self.results.drain(..count).collect();
        Poll::Ready(Some(Ok(response(Answer::Results(pb::ProduceStreamResults {
            results,
        })))))
    }
}

impl Drop for ProduceStream {
    fn drop(&mut self) {
        // The client is gone: nothing more is read. What was submitted is stored all the same.
        self.reader.abort();
        self.metrics.streams.dec();
    }
}

fn response(answer: Answer) -> pb::ProduceStreamResponse {
    pb::ProduceStreamResponse {
        response: Some(answer),
    }
}
