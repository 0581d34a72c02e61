//! A server that keeps messages in memory and breaks its word in one chosen way.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use parking_lot::Mutex;
use ptah_proto::api::v1 as pb;
use ptah_proto::api::v1::message_service_server::{MessageService, MessageServiceServer};
use ptah_proto::api::v1::station_service_server::{StationService, StationServiceServer};
use ptah_proto::common::v1 as common;
use ptah_rpc::RpcError;
use ptah_service::Tasks;
use ptah_types::ErrorKind;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// How the server breaks its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Acknowledges this message without keeping it.
    Lose(u64),
    /// Keeps this message twice.
    Double(u64),
    /// Flips a bit of this message.
    Damage(u64),
    /// Ends the stream when this message comes, without an answer to it.
    Cut(u64),
    /// Refuses this message.
    Refuse(u64),
    /// Says of this message that it is not known.
    Forget(u64),
    /// Ends a consume stream after every acknowledgement.
    EndStreams,
    /// Ends a consume stream instead of answering an acknowledgement.
    LoseAcks,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Partition 1 of the one station.
#[derive(Default)]
struct Log {
    messages: Vec<pb::NewMessage>,
    acked: BTreeMap<u64, ()>,
    taken: u64,
}

/// The server. All stations are the same one.
#[derive(Clone)]
pub(crate) struct Fake {
    fault: Fault,
    log: Arc<Mutex<Log>>,
    tasks: Tasks,
}

impl Fake {
    /// Starts a server and tells where it is.
    pub(crate) async fn start(fault: Fault) -> (Self, SocketAddr) {
        let fake = Self {
            fault,
            log: Arc::default(),
            tasks: Tasks::root(),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(StationServiceServer::new(fake.clone()))
            .add_service(MessageServiceServer::new(fake.clone()).max_decoding_message_size(66 << 20))
            .serve_with_incoming(TcpListenerStream::new(listener));
        fake.tasks.spawn("fake server", async move {
            let _ = server.await;
        });
        (fake, address)
    }

    /// Payloads in order.
    pub(crate) fn payloads(&self) -> Vec<String> {
        let log = self.log.lock();
        log.messages
            .iter()
            .map(|message| String::from_utf8_lossy(&message.payload).into_owned())
            .collect()
    }

    /// Keys in order.
    pub(crate) fn keys(&self) -> Vec<Option<String>> {
        let text = |key: &bytes::Bytes| String::from_utf8_lossy(key).into_owned();
        self.log
            .lock()
            .messages
            .iter()
            .map(|message| message.key.as_ref().map(text))
            .collect()
    }

    /// Sequences that were acknowledged.
    pub(crate) fn acked(&self) -> Vec<u64> {
        self.log.lock().acked.keys().copied().collect()
    }

    /// Takes a message that the stream numbers `number`; `None` cuts the stream.
    fn take(&self, number: u64, mut message: pb::NewMessage) -> Option<pb::ProduceResult> {
        let mut log = self.log.lock();
        let failed = |kind, text: &str| {
            let error = RpcError::new(kind, text).to_proto();
            Some(pb::ProduceResult {
                first: number,
                count: 1,
                outcome: Some(pb::produce_result::Outcome::Error(error)),
            })
        };
        match self.fault {
            Fault::Cut(at) if at == number => return None,
            Fault::Refuse(at) if at == number => {
                return failed(ErrorKind::Unavailable, "no leader for the moment");
            }
            Fault::Forget(at) if at == number => return failed(ErrorKind::OutcomeUnknown, "leader lost"),
            Fault::Damage(at) if at == number => {
                let mut bytes = message.payload.to_vec();
                *bytes.last_mut().unwrap() ^= 1;
                message.payload = bytes.into();
            }
            _ => {}
        }
        let first_sequence = log.messages.len() as u64 + 1;
        if self.fault == Fault::Double(number) {
            log.messages.push(message.clone());
        }
        if self.fault != Fault::Lose(number) {
            log.messages.push(message);
        }
        let stored = pb::Stored {
            partition: 1,
            first_sequence,
            timestamp_ns: 1,
            duplicate: false,
        };
        Some(pb::ProduceResult {
            first: number,
            count: 1,
            outcome: Some(pb::produce_result::Outcome::Stored(stored)),
        })
    }

    async fn answer_produce(
        self,
        mut requests: Streaming<pb::ProduceStreamRequest>,
        answers: mpsc::Sender<Result<pb::ProduceStreamResponse, Status>>,
    ) {
        use pb::produce_stream_request::Request as Asked;
        use pb::produce_stream_response::Response as Answer;
        let mut number = 0;
        while let Ok(Some(request)) = requests.message().await {
            let answer = match request.request {
                Some(Asked::Open(_)) => Answer::Opened(pb::ProduceStreamOpened {
                    partitions: 1,
                    max_message_bytes: 1 << 20,
                    max_in_flight: 10_000,
                }),
                Some(Asked::Batch(batch)) => {
                    let mut results: Vec<pb::ProduceResult> = Vec::new();
                    for message in batch.messages {
                        let Some(result) = self.take(number, message) else {
                            return;
                        };
                        number += 1;
                        push_joined(&mut results, result);
                    }
                    Answer::Results(pb::ProduceStreamResults { results })
                }
                None => return,
            };
            if answers
                .send(Ok(pb::ProduceStreamResponse {
                    response: Some(answer),
                }))
                .await
                .is_err()
            {
                return;
            }
        }
    }

    async fn answer_consume(
        self,
        mut requests: Streaming<pb::ConsumeRequest>,
        answers: mpsc::Sender<Result<pb::ConsumeResponse, Status>>,
    ) {
        use pb::consume_request::Request as Asked;
        use pb::consume_response::Response as Answer;
        let mut credit = 0;
        while let Ok(Some(request)) = requests.message().await {
            let mut replies = Vec::new();
            let is_ack = matches!(request.request, Some(Asked::Ack(_)));
            match request.request {
                Some(Asked::Ack(_)) if self.fault == Fault::LoseAcks => {}
                Some(Asked::Open(open)) => {
                    credit = open.credit.unwrap_or_default().messages;
                    let config = common::ConsumerGroupConfig {
                        ack_deadline_ms: 30_000,
                        ..Default::default()
                    };
                    replies.push(Answer::Opened(pb::ConsumeOpened {
                        partitions: vec![1],
                        config: Some(config),
                    }));
                }
                Some(Asked::Credit(more)) => credit += more.messages,
                Some(Asked::Ack(ack)) => {
                    let mut log = self.log.lock();
                    for range in ack.ranges {
                        log.acked
                            .extend((range.first..=range.last).map(|sequence| (sequence, ())));
                    }
                    replies.push(Answer::Acked(pb::ConsumeAcked {
                        confirm_id: ack.confirm_id,
                        error: None,
                    }));
                }
                None => return,
            }
            let is_over = is_ack && matches!(self.fault, Fault::EndStreams | Fault::LoseAcks);
            if !is_over {
                replies.extend(self.deliver(&mut credit));
            }
            for reply in replies {
                if answers
                    .send(Ok(pb::ConsumeResponse {
                        response: Some(reply),
                    }))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            if is_over {
                return;
            }
        }
    }

    fn deliver(&self, credit: &mut u32) -> Vec<pb::consume_response::Response> {
        let mut log = self.log.lock();
        let from = log.taken as usize;
        let messages: Vec<_> = log.messages[from..]
            .iter()
            .zip(from as u64 + 1..)
            .take(*credit as usize)
            .map(|(message, sequence)| stored_message(message, sequence, 1))
            .collect();
        *credit -= messages.len() as u32;
        log.taken += messages.len() as u64;
        let mut replies = Vec::new();
        if !messages.is_empty() {
            replies.push(pb::consume_response::Response::Batch(pb::ConsumeBatch {
                messages,
            }));
        }
        if log.taken == log.messages.len() as u64 {
            replies.push(pb::consume_response::Response::Idle(pb::ConsumeIdle {
                unacknowledged: 0,
            }));
        }
        replies
    }
}

fn push_joined(results: &mut Vec<pb::ProduceResult>, result: pb::ProduceResult) {
    use pb::produce_result::Outcome;
    if let Some(last) = results.last_mut()
        && let (Some(Outcome::Stored(a)), Some(Outcome::Stored(b))) = (&last.outcome, &result.outcome)
        && a.first_sequence + u64::from(last.count) == b.first_sequence
    {
        last.count += 1;
        return;
    }
    results.push(result);
}

fn stored_message(message: &pb::NewMessage, sequence: u64, delivery_count: u32) -> pb::Message {
    pb::Message {
        partition: 1,
        sequence,
        payload: message.payload.clone(),
        key: message.key.clone(),
        delivery_count,
        ..Default::default()
    }
}

fn station() -> pb::Station {
    pb::Station {
        name: "orders".to_owned(),
        id: 1,
        config: Some(pb::StationConfig {
            partitions: 1,
            replicas: 1,
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[tonic::async_trait]
impl StationService for Fake {
    async fn create_station(
        &self,
        _: Request<pb::CreateStationRequest>,
    ) -> Result<Response<pb::CreateStationResponse>, Status> {
        Ok(Response::new(pb::CreateStationResponse {
            station: Some(station()),
            created: true,
        }))
    }

    async fn get_station(
        &self,
        _: Request<pb::GetStationRequest>,
    ) -> Result<Response<pb::GetStationResponse>, Status> {
        let next_sequence = self.log.lock().messages.len() as u64 + 1;
        let partition = pb::PartitionStatus {
            partition: 1,
            first_sequence: 1,
            next_sequence,
            ..Default::default()
        };
        Ok(Response::new(pb::GetStationResponse {
            station: Some(station()),
            partitions: vec![partition],
        }))
    }

    async fn update_station(
        &self,
        request: Request<pb::UpdateStationRequest>,
    ) -> Result<Response<pb::UpdateStationResponse>, Status> {
        let mut updated = station();
        if let Some(config) = &mut updated.config {
            config.replicas = request.into_inner().replicas.unwrap_or(1);
        }
        Ok(Response::new(pb::UpdateStationResponse {
            station: Some(updated),
        }))
    }

    async fn list_stations(
        &self,
        _: Request<pb::ListStationsRequest>,
    ) -> Result<Response<pb::ListStationsResponse>, Status> {
        Ok(Response::new(pb::ListStationsResponse {
            stations: vec![station()],
            next_page_token: String::new(),
        }))
    }

    async fn delete_station(
        &self,
        _: Request<pb::DeleteStationRequest>,
    ) -> Result<Response<pb::DeleteStationResponse>, Status> {
        Ok(Response::new(pb::DeleteStationResponse {}))
    }
}

#[tonic::async_trait]
impl MessageService for Fake {
    type ProduceStreamStream = Answers<pb::ProduceStreamResponse>;
    type ConsumeStream = Answers<pb::ConsumeResponse>;

    async fn produce_stream(
        &self,
        request: Request<Streaming<pb::ProduceStreamRequest>>,
    ) -> Result<Response<Self::ProduceStreamStream>, Status> {
        let (answers, stream) = mpsc::channel(64);
        let serving = self.clone().answer_produce(request.into_inner(), answers);
        self.tasks.spawn("produce", serving);
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn consume(
        &self,
        request: Request<Streaming<pb::ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        let (answers, stream) = mpsc::channel(64);
        let serving = self.clone().answer_consume(request.into_inner(), answers);
        self.tasks.spawn("consume", serving);
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn read(&self, request: Request<pb::ReadRequest>) -> Result<Response<pb::ReadResponse>, Status> {
        let request = request.into_inner();
        let log = self.log.lock();
        let from = request.from_sequence.max(1);
        let messages = log
            .messages
            .iter()
            .zip(1..)
            .skip(from as usize - 1)
            .take(request.max_messages as usize);
        Ok(Response::new(pb::ReadResponse {
            messages: messages
                .map(|(message, sequence)| stored_message(message, sequence, 0))
                .collect(),
            first_sequence: 1,
            next_sequence: log.messages.len() as u64 + 1,
        }))
    }

    async fn produce(&self, _: Request<pb::ProduceRequest>) -> Result<Response<pb::ProduceResponse>, Status> {
        Err(Status::unimplemented("the command line streams"))
    }

    async fn pull(&self, _: Request<pb::PullRequest>) -> Result<Response<pb::PullResponse>, Status> {
        Err(Status::unimplemented("the command line streams"))
    }

    async fn ack(&self, _: Request<pb::AckRequest>) -> Result<Response<pb::AckResponse>, Status> {
        Err(Status::unimplemented("the command line streams"))
    }
}
