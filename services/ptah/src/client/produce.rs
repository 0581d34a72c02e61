//! A produce stream: batches out, one outcome for each message back.

use std::time::Duration;

use futures_util::StreamExt as _;
use http::uri::PathAndQuery;
use ptah_proto::api::v1 as pb;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::client::Grpc;

use super::connect::{Client, ServerAddress};
use super::error::{ClientError, Effect};
use super::wire::{EncodedBatch, ProduceCodec, Request};

const PATH: &str = "/ptah.api.v1.MessageService/ProduceStream";
/// Batches between the caller and the connection.
const QUEUED_BATCHES: usize = 8;

/// What the server said when the stream opened.
#[derive(Debug, Clone, Copy)]
pub struct Opened {
    /// Partitions of the station.
    pub partitions: u32,
    /// Largest payload of one message in bytes.
    pub max_message_bytes: u64,
    /// Most messages without an answer.
    pub max_in_flight: u32,
}

/// Messages are stored on a majority of replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Partition.
    pub partition: u32,
    /// Sequence of the first; the others follow without gap.
    pub first_sequence: u64,
}

/// What became of some messages in a row.
#[derive(Debug)]
pub struct Outcome {
    /// Number of the first along the stream, from 0.
    pub first: u64,
    /// How many.
    pub count: u32,
    /// Stored, or why not.
    pub result: Result<Stored, ClientError>,
}

/// Where batches go in. Dropping it says that no more come.
#[derive(Debug)]
pub struct ProduceSender {
    requests: mpsc::Sender<Request>,
}

/// Where outcomes come out.
#[derive(Debug)]
pub struct ProduceStream {
    server: ServerAddress,
    opened: Opened,
    responses: Streaming<pb::ProduceStreamResponse>,
}

impl Client {
    /// Opens a produce stream; answers when the station takes messages.
    pub async fn produce_stream(
        &self,
        station: &str,
        producer: &str,
    ) -> Result<(ProduceSender, ProduceStream), ClientError> {
        let (requests, queue) = mpsc::channel(QUEUED_BATCHES);
        let open = pb::ProduceStreamOpen {
            tenant: String::new(),
            station: station.to_owned(),
            producer: producer.to_owned(),
        };
        // The queue is new and has room.
        let _ = requests.try_send(Request::Open(open));
        let mut grpc = Grpc::new(self.channel.clone());
        let request = self.request(ReceiverStream::new(queue));
        let call = async {
            let not_ready = |error: tonic::transport::Error| tonic::Status::unavailable(error.to_string());
            grpc.ready().await.map_err(not_ready)?;
            grpc.streaming(request, PathAndQuery::from_static(PATH), ProduceCodec)
                .await
        };
        let mut responses = self.call(Effect::Read, call).await?;
        let first = tokio::time::timeout(self.timeout, responses.next())
            .await
            .map_err(|_| ClientError::timeout(&self.server, self.timeout.as_secs_f64(), Effect::Read))?;
        let opened = match first {
            None => return Err(ClientError::ended(&self.server)),
            Some(Err(status)) => return Err(ClientError::from_status(&self.server, status, Effect::Read)),
            Some(Ok(response)) => opening(&self.server, response)?,
        };
        let stream = ProduceStream {
            server: self.server.clone(),
            opened,
            responses,
        };
        Ok((ProduceSender { requests }, stream))
    }
}

fn opening(server: &ServerAddress, response: pb::ProduceStreamResponse) -> Result<Opened, ClientError> {
    match response.response {
        Some(pb::produce_stream_response::Response::Opened(opened)) => Ok(Opened {
            partitions: opened.partitions,
            max_message_bytes: opened.max_message_bytes,
            max_in_flight: opened.max_in_flight.max(1),
        }),
        _ => Err(ClientError::protocol(
            server,
            "the first answer on a produce stream is not its opening",
        )),
    }
}

impl ProduceSender {
    /// Waits for room for one batch. May be dropped at any time.
    pub async fn room(&self) -> Result<Room<'_>, Closed> {
        self.requests.reserve().await.map(Room).map_err(|_| Closed)
    }
}

/// Room for one batch.
#[derive(Debug)]
pub struct Room<'a>(mpsc::Permit<'a, Request>);

/// The stream is over; [`ProduceStream::next`] tells why.
#[derive(Debug, Clone, Copy)]
pub struct Closed;

impl Room<'_> {
    /// Hands the batch to the connection.
    pub fn send(self, batch: EncodedBatch) {
        self.0.send(Request::Batch(batch));
    }
}

impl ProduceStream {
    /// What the server said when the stream opened.
    pub fn opened(&self) -> Opened {
        self.opened
    }

    /// The next outcomes; `None` when the server has answered everything and ended the stream. May be dropped at any
    /// time without losing outcomes. After an error or `None`, messages without an outcome may or may not be stored.
    pub async fn next(&mut self) -> Result<Option<Vec<Outcome>>, ClientError> {
        let Some(response) = self.responses.next().await else {
            return Ok(None);
        };
        let response =
            response.map_err(|status| ClientError::from_status(&self.server, status, Effect::Write))?;
        match response.response {
            Some(pb::produce_stream_response::Response::Results(results)) => {
                let outcomes = results.results.into_iter().map(|result| self.outcome(result));
                outcomes.collect::<Result<Vec<_>, _>>().map(Some)
            }
            _ => Err(ClientError::protocol(
                &self.server,
                "an answer on a produce stream that is no result",
            )),
        }
    }

    /// Like [`ProduceStream::next`], but waits no longer than `longest`.
    pub async fn next_within(&mut self, longest: Duration) -> Result<Option<Vec<Outcome>>, ClientError> {
        let server = self.server.clone();
        match tokio::time::timeout(longest, self.next()).await {
            Ok(outcomes) => outcomes,
            Err(_) => Err(ClientError::timeout(
                &server,
                longest.as_secs_f64(),
                Effect::Write,
            )),
        }
    }

    fn outcome(&self, result: pb::ProduceResult) -> Result<Outcome, ClientError> {
        let outcome = match result.outcome {
            Some(pb::produce_result::Outcome::Stored(stored)) => Ok(Stored {
                partition: stored.partition,
                first_sequence: stored.first_sequence,
            }),
            Some(pb::produce_result::Outcome::Error(error)) => Err(ClientError::from_proto(error)),
            None => return Err(ClientError::protocol(&self.server, "a result without an outcome")),
        };
        Ok(Outcome {
            first: result.first,
            count: result.count,
            result: outcome,
        })
    }
}
