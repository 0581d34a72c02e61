//! A consume stream: messages in, credit and acknowledgements out.

use std::ops::RangeInclusive;
use std::time::Duration;

use futures_util::StreamExt as _;
use ptah_proto::api::v1 as pb;
use ptah_proto::api::v1::message_service_client::MessageServiceClient;
use ptah_rpc::MAX_RPC_MESSAGE_BYTES;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::connect::{Client, ServerAddress};
use super::error::{ClientError, Effect};
use super::types::{GroupConfig, Message};

/// Requests between the caller and the connection.
const QUEUED_REQUESTS: usize = 64;

/// What to read, and how.
#[derive(Debug, Clone)]
pub struct ConsumeOpening {
    /// Station.
    pub station: String,
    /// Consumer group.
    pub group: String,
    /// Settings if the group has to be made; `None` leaves them to the broker.
    pub config: Option<GroupConfig>,
    /// Messages that may come at first.
    pub credit_messages: u32,
    /// Payload bytes that may come at first.
    pub credit_bytes: u64,
}

/// What the broker says.
#[derive(Debug)]
pub enum ConsumeEvent {
    /// Messages; of each partition in order.
    Batch(Vec<Message>),
    /// An acknowledgement is stored, or refused.
    Acked {
        /// Which one.
        confirm_id: u64,
        /// Why not.
        refused: Option<ClientError>,
    },
    /// Every message so far was delivered.
    Idle {
        /// Messages of the group that were delivered, to whomever, and are not acknowledged.
        unacknowledged: u64,
    },
}

/// An open consume stream.
#[derive(Debug)]
pub struct ConsumeStream {
    server: ServerAddress,
    timeout: Duration,
    config: GroupConfig,
    requests: mpsc::Sender<pb::ConsumeRequest>,
    responses: Streaming<pb::ConsumeResponse>,
}

impl Client {
    /// Opens a consume stream; answers when it delivers.
    pub async fn consume(&self, opening: &ConsumeOpening) -> Result<ConsumeStream, ClientError> {
        let (requests, queue) = mpsc::channel(QUEUED_REQUESTS);
        let open = pb::ConsumeOpen {
            tenant: String::new(),
            station: opening.station.clone(),
            group: opening.group.clone(),
            config: opening.config.as_ref().map(Into::into),
            partitions: Vec::new(),
            credit: Some(pb::ConsumeCredit {
                messages: opening.credit_messages,
                bytes: opening.credit_bytes,
            }),
        };
        // The queue is new and has room.
        let _ = requests.try_send(request(pb::consume_request::Request::Open(open)));
        let mut service =
            MessageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_RPC_MESSAGE_BYTES);
        let stream = self.request(ReceiverStream::new(queue));
        let responses = self.call(Effect::Read, service.consume(stream)).await?;
        let mut stream = ConsumeStream {
            server: self.server.clone(),
            timeout: self.timeout,
            config: GroupConfig::default(),
            requests,
            responses,
        };
        match stream.response_within(self.timeout).await? {
            pb::consume_response::Response::Opened(opened) => {
                stream.config = opened.config.unwrap_or_default().into();
                Ok(stream)
            }
            _ => Err(ClientError::protocol(
                &self.server,
                "the first answer on a consume stream is not its opening",
            )),
        }
    }
}

impl ConsumeStream {
    /// Settings that the group has.
    pub fn config(&self) -> &GroupConfig {
        &self.config
    }

    /// What comes next. May be dropped at any time without losing anything.
    pub async fn next(&mut self) -> Result<ConsumeEvent, ClientError> {
        let response = self.response().await?;
        match response {
            pb::consume_response::Response::Batch(batch) => Ok(ConsumeEvent::Batch(
                batch.messages.into_iter().map(Message::from).collect(),
            )),
            pb::consume_response::Response::Acked(acked) => Ok(ConsumeEvent::Acked {
                confirm_id: acked.confirm_id,
                refused: acked.error.map(ClientError::from_proto),
            }),
            pb::consume_response::Response::Idle(idle) => Ok(ConsumeEvent::Idle {
                unacknowledged: idle.unacknowledged,
            }),
            pb::consume_response::Response::Opened(_) => Err(ClientError::protocol(
                &self.server,
                "a consume stream was opened twice",
            )),
        }
    }

    /// Lets more messages come.
    pub async fn credit(&self, messages: u32, bytes: u64) -> Result<(), ClientError> {
        let credit = pb::ConsumeCredit { messages, bytes };
        self.send(pb::consume_request::Request::Credit(credit)).await
    }

    /// Acknowledges messages of one partition; the confirmation comes as [`ConsumeEvent::Acked`].
    pub async fn ack(
        &self,
        partition: u32,
        ranges: &[RangeInclusive<u64>],
        confirm_id: u64,
    ) -> Result<(), ClientError> {
        let ranges = ranges
            .iter()
            .map(|range| pb::SequenceRange {
                first: *range.start(),
                last: *range.end(),
            })
            .collect();
        let ack = pb::ConsumeAck {
            partition,
            ranges,
            confirm_id,
        };
        self.send(pb::consume_request::Request::Ack(ack)).await
    }

    async fn send(&self, what: pb::consume_request::Request) -> Result<(), ClientError> {
        match tokio::time::timeout(self.timeout, self.requests.send(request(what))).await {
            // When the stream is over, its end is told by the side that reads.
            Ok(Ok(()) | Err(_)) => Ok(()),
            Err(_) => Err(ClientError::timeout(
                &self.server,
                self.timeout.as_secs_f64(),
                Effect::Read,
            )),
        }
    }

    async fn response_within(
        &mut self,
        longest: Duration,
    ) -> Result<pb::consume_response::Response, ClientError> {
        let server = self.server.clone();
        match tokio::time::timeout(longest, self.response()).await {
            Ok(response) => response,
            Err(_) => Err(ClientError::timeout(&server, longest.as_secs_f64(), Effect::Read)),
        }
    }

    async fn response(&mut self) -> Result<pb::consume_response::Response, ClientError> {
        match self.responses.next().await {
            None => Err(ClientError::ended(&self.server)),
            Some(Err(status)) => Err(ClientError::from_status(&self.server, status, Effect::Read)),
            Some(Ok(response)) => response
                .response
                .ok_or_else(|| ClientError::protocol(&self.server, "an empty answer on a consume stream")),
        }
    }
}

fn request(request: pb::consume_request::Request) -> pb::ConsumeRequest {
    pb::ConsumeRequest {
        request: Some(request),
    }
}
