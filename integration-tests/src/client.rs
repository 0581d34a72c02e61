//! A client of the public API that never retries: what it is told is what happened.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use ptah_proto::api::v1 as api;
use ptah_proto::api::v1::cluster_service_client::ClusterServiceClient;
use ptah_proto::api::v1::message_service_client::MessageServiceClient;
use ptah_proto::api::v1::station_service_client::StationServiceClient;
use ptah_proto::common::v1 as common;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

/// Largest message that the client takes.
const MAX_MESSAGE_BYTES: usize = 68 << 20;

type Authorized = InterceptedService<Channel, Credentials>;

/// Adds user and password to every call.
#[derive(Clone)]
pub struct Credentials(MetadataValue<tonic::metadata::Ascii>);

impl tonic::service::Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

impl Credentials {
    /// Basic credentials.
    pub fn basic(user: &str, password: &str) -> anyhow::Result<Self> {
        let text = format!("Basic {}", base64(format!("{user}:{password}").as_bytes()));
        Ok(Self(text.parse().context("credentials are not a header value")?))
    }
}

/// Place of a stored message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoredAt {
    /// Partition.
    pub partition: u32,
    /// Sequence.
    pub sequence: u64,
}

/// A message as a group received it.
#[derive(Debug, Clone)]
pub struct Received {
    /// Partition.
    pub partition: u32,
    /// Sequence.
    pub sequence: u64,
    /// Body.
    pub payload: Bytes,
    /// Key.
    pub key: Option<Bytes>,
    /// How many times it was handed out.
    pub delivery_count: u32,
}

/// The client.
#[derive(Clone)]
pub struct Client {
    /// Stations.
    pub stations: StationServiceClient<Authorized>,
    /// Messages.
    pub messages: MessageServiceClient<Authorized>,
    /// Cluster.
    pub cluster: ClusterServiceClient<Authorized>,
}

impl Client {
    /// Connects as root with the password of examples.
    pub async fn connect(address: &str) -> anyhow::Result<Self> {
        Self::connect_as(address, "root", "memphis").await
    }

    /// Connects with credentials.
    pub async fn connect_as(address: &str, user: &str, password: &str) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(Duration::from_secs(10))
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .tcp_nodelay(true);
        let channel = endpoint
            .connect()
            .await
            .with_context(|| format!("connect to {address}"))?;
        let credentials = Credentials::basic(user, password)?;
        let authorized = InterceptedService::new(channel, credentials);
        Ok(Self {
            stations: StationServiceClient::new(authorized.clone()),
            messages: MessageServiceClient::new(authorized.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
            cluster: ClusterServiceClient::new(authorized),
        })
    }

    /// Makes a station.
    pub async fn create_station(
        &self,
        name: &str,
        partitions: u32,
        replicas: u32,
    ) -> Result<api::Station, Status> {
        let config = api::StationConfig {
            partitions,
            replicas,
            ..Default::default()
        };
        let request = api::CreateStationRequest {
            name: name.into(),
            config: Some(config),
            ..Default::default()
        };
        let made = self.stations.clone().create_station(request).await?.into_inner();
        made.station
            .ok_or_else(|| Status::internal("answer without a station"))
    }

    /// Shows a station.
    pub async fn station(&self, name: &str) -> Result<api::GetStationResponse, Status> {
        let request = api::GetStationRequest {
            name: name.into(),
            ..Default::default()
        };
        Ok(self.stations.clone().get_station(request).await?.into_inner())
    }

    /// Stores a batch and tells what became of each message, in order.
    pub async fn produce(
        &self,
        station: &str,
        messages: Vec<api::NewMessage>,
    ) -> Result<Vec<Result<StoredAt, common::Error>>, Status> {
        let count = messages.len();
        let request = api::ProduceRequest {
            station: station.into(),
            messages,
            ..Default::default()
        };
        let answer = self.messages.clone().produce(request).await?.into_inner();
        let mut outcomes = BTreeMap::new();
        for result in answer.results {
            unfold(result, |number, outcome| {
                outcomes.insert(number, outcome);
            });
        }
        if outcomes.len() != count {
            return Err(Status::internal(format!(
                "{} results for {count} messages",
                outcomes.len()
            )));
        }
        Ok(outcomes.into_values().collect())
    }

    /// Opens a produce stream.
    pub async fn produce_stream(&self, station: &str, producer: &str) -> Result<ProduceStream, Status> {
        let (sender, receiver) = mpsc::channel(64);
        let open = api::ProduceStreamOpen {
            station: station.into(),
            producer: producer.into(),
            ..Default::default()
        };
        let first = api::ProduceStreamRequest {
            request: Some(api::produce_stream_request::Request::Open(open)),
        };
        sender
            .send(first)
            .await
            .map_err(|_| Status::internal("stream is closed"))?;
        let answers = self
            .messages
            .clone()
            .produce_stream(ReceiverStream::new(receiver))
            .await?
            .into_inner();
        let mut stream = ProduceStream {
            sender,
            answers,
            next: 0,
        };
        match stream.answers.message().await?.and_then(|answer| answer.response) {
            Some(api::produce_stream_response::Response::Opened(_)) => Ok(stream),
            other => Err(Status::internal(format!("stream opened with {other:?}"))),
        }
    }

    /// Opens a consume stream with the group's default settings, from the oldest message.
    pub async fn consume_stream(
        &self,
        station: &str,
        group: &str,
        credit: u32,
    ) -> Result<ConsumeStream, Status> {
        self.consume_stream_with(station, group, credit, common::ConsumerGroupConfig::default())
            .await
    }

    /// Opens a consume stream with settings for a group that has to be made.
    pub async fn consume_stream_with(
        &self,
        station: &str,
        group: &str,
        credit: u32,
        config: common::ConsumerGroupConfig,
    ) -> Result<ConsumeStream, Status> {
        let (sender, receiver) = mpsc::channel(64);
        let open = api::ConsumeOpen {
            station: station.into(),
            group: group.into(),
            config: Some(config),
            credit: Some(api::ConsumeCredit {
                messages: credit,
                bytes: 0,
            }),
            ..Default::default()
        };
        let first = api::ConsumeRequest {
            request: Some(api::consume_request::Request::Open(open)),
        };
        sender
            .send(first)
            .await
            .map_err(|_| Status::internal("stream is closed"))?;
        let answers = self
            .messages
            .clone()
            .consume(ReceiverStream::new(receiver))
            .await?
            .into_inner();
        let mut stream = ConsumeStream { sender, answers };
        match stream.next().await? {
            Some(api::consume_response::Response::Opened(_)) => Ok(stream),
            other => Err(Status::internal(format!("stream opened with {other:?}"))),
        }
    }

    /// Receives and acknowledges until the station has nothing more for the group.
    pub async fn drain(&self, station: &str, group: &str) -> anyhow::Result<Vec<Received>> {
        let mut stream = self
            .consume_stream(station, group, 4_096)
            .await
            .context("open consume stream")?;
        let mut received = Vec::new();
        let limit = Duration::from_secs(60);
        while let Some(said) = tokio::time::timeout(limit, stream.next())
            .await
            .context("nothing came for 60 s")??
        {
            match said {
                api::consume_response::Response::Batch(batch) => {
                    let messages: Vec<Received> = batch.messages.into_iter().map(Received::from).collect();
                    stream.acknowledge(&messages, 0).await?;
                    stream
                        .credit(
                            messages.len() as u32,
                            messages.iter().map(|m| m.payload.len() as u64).sum(),
                        )
                        .await?;
                    received.extend(messages);
                }
                api::consume_response::Response::Idle(_) => break,
                _ => {}
            }
        }
        // The last acknowledgements are confirmed, so that the group is where the caller thinks it is.
        stream.confirm(&received).await?;
        Ok(received)
    }

    /// Reads everything that a partition holds.
    pub async fn read_partition(&self, station: &str, partition: u32) -> Result<Vec<(u64, Bytes)>, Status> {
        let mut messages = Vec::new();
        let mut from_sequence = 0;
        loop {
            let request = api::ReadRequest {
                station: station.into(),
                partition,
                from_sequence,
                max_messages: 5_000,
                ..Default::default()
            };
            let answer = self.messages.clone().read(request).await?.into_inner();
            let Some(last) = answer.messages.last() else {
                return Ok(messages);
            };
            from_sequence = last.sequence + 1;
            messages.extend(
                answer
                    .messages
                    .into_iter()
                    .map(|message| (message.sequence, message.payload)),
            );
            if from_sequence >= answer.next_sequence {
                return Ok(messages);
            }
        }
    }

    /// Reads everything that a station holds.
    pub async fn read_station(&self, station: &str) -> Result<BTreeMap<u32, Vec<(u64, Bytes)>>, Status> {
        let partitions = self.station(station).await?.partitions;
        let mut read = BTreeMap::new();
        for status in partitions {
            read.insert(
                status.partition,
                self.read_partition(station, status.partition).await?,
            );
        }
        Ok(read)
    }
}

/// A produce stream. Messages are numbered from 0.
pub struct ProduceStream {
    sender: mpsc::Sender<api::ProduceStreamRequest>,
    answers: Streaming<api::ProduceStreamResponse>,
    next: u64,
}

impl ProduceStream {
    /// Sends messages and returns the number of the first.
    pub async fn send(&mut self, messages: Vec<api::NewMessage>) -> anyhow::Result<u64> {
        let first = self.next;
        self.next += messages.len() as u64;
        let batch = api::ProduceStreamBatch { messages };
        let request = api::ProduceStreamRequest {
            request: Some(api::produce_stream_request::Request::Batch(batch)),
        };
        self.sender
            .send(request)
            .await
            .ok()
            .context("produce stream is closed")?;
        Ok(first)
    }

    /// Waits for the next results: (number, outcome). `None` when the server ended the stream.
    pub async fn results(&mut self) -> Result<Option<Vec<(u64, Result<StoredAt, common::Error>)>>, Status> {
        let Some(answer) = self.answers.message().await? else {
            return Ok(None);
        };
        let mut outcomes = Vec::new();
        if let Some(api::produce_stream_response::Response::Results(results)) = answer.response {
            for result in results.results {
                unfold(result, |number, outcome| outcomes.push((number, outcome)));
            }
        }
        Ok(Some(outcomes))
    }
}

/// A consume stream.
pub struct ConsumeStream {
    sender: mpsc::Sender<api::ConsumeRequest>,
    answers: Streaming<api::ConsumeResponse>,
}

impl ConsumeStream {
    /// What the broker says next; `None` when it ended the stream.
    pub async fn next(&mut self) -> Result<Option<api::consume_response::Response>, Status> {
        Ok(self.answers.message().await?.and_then(|answer| answer.response))
    }

    /// Acknowledges messages.
    pub async fn acknowledge(&mut self, messages: &[Received], confirm_id: u64) -> anyhow::Result<()> {
        let mut by_partition: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for message in messages {
            by_partition
                .entry(message.partition)
                .or_default()
                .push(message.sequence);
        }
        for (partition, mut sequences) in by_partition {
            sequences.sort_unstable();
            let ack = api::ConsumeAck {
                partition,
                ranges: ranges(&sequences),
                confirm_id,
            };
            self.say(api::consume_request::Request::Ack(ack)).await?;
        }
        Ok(())
    }

    /// Gives credit.
    pub async fn credit(&mut self, messages: u32, bytes: u64) -> anyhow::Result<()> {
        self.say(api::consume_request::Request::Credit(api::ConsumeCredit {
            messages,
            bytes,
        }))
        .await
    }

    /// Acknowledges the newest message of each partition once more and waits until that is stored.
    pub async fn confirm(&mut self, messages: &[Received]) -> anyhow::Result<()> {
        let mut newest: BTreeMap<u32, u64> = BTreeMap::new();
        for message in messages {
            newest.insert(message.partition, message.sequence);
        }
        let mut waiting = 0;
        for (partition, sequence) in newest {
            let ranges = vec![api::SequenceRange {
                first: sequence,
                last: sequence,
            }];
            waiting += 1;
            let ack = api::ConsumeAck {
                partition,
                ranges,
                confirm_id: waiting,
            };
            self.say(api::consume_request::Request::Ack(ack)).await?;
        }
        while waiting > 0 {
            let said = tokio::time::timeout(crate::SOON, self.next())
                .await
                .context("no confirmation came")??;
            match said.context("stream ended before the confirmation")? {
                api::consume_response::Response::Acked(acked) => {
                    anyhow::ensure!(
                        acked.error.is_none(),
                        "acknowledgement refused: {:?}",
                        acked.error
                    );
                    waiting -= 1;
                }
                _ => continue,
            }
        }
        Ok(())
    }

    async fn say(&mut self, request: api::consume_request::Request) -> anyhow::Result<()> {
        let request = api::ConsumeRequest {
            request: Some(request),
        };
        self.sender
            .send(request)
            .await
            .ok()
            .context("consume stream is closed")
    }
}

impl From<api::Message> for Received {
    fn from(message: api::Message) -> Self {
        Self {
            partition: message.partition,
            sequence: message.sequence,
            payload: message.payload,
            key: message.key,
            delivery_count: message.delivery_count,
        }
    }
}

/// A message with a payload and nothing else.
pub fn message(payload: impl Into<Bytes>) -> api::NewMessage {
    api::NewMessage {
        payload: payload.into(),
        ..Default::default()
    }
}

/// A message with a key.
pub fn keyed(key: &str, payload: impl Into<Bytes>) -> api::NewMessage {
    api::NewMessage {
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        ..message(payload)
    }
}

fn unfold(result: api::ProduceResult, mut take: impl FnMut(u64, Result<StoredAt, common::Error>)) {
    for place in 0..u64::from(result.count) {
        let outcome = match &result.outcome {
            Some(api::produce_result::Outcome::Stored(stored)) => Ok(StoredAt {
                partition: stored.partition,
                sequence: stored.first_sequence + place,
            }),
            Some(api::produce_result::Outcome::Error(error)) => Err(error.clone()),
            None => Err(common::Error {
                message: "result without an outcome".into(),
                ..Default::default()
            }),
        };
        take(result.first + place, outcome);
    }
}

fn ranges(sequences: &[u64]) -> Vec<api::SequenceRange> {
    let mut ranges: Vec<api::SequenceRange> = Vec::new();
    for sequence in sequences {
        match ranges.last_mut() {
            Some(range) if range.last + 1 == *sequence => range.last = *sequence,
            _ => ranges.push(api::SequenceRange {
                first: *sequence,
                last: *sequence,
            }),
        }
    }
    ranges
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk
            .iter()
            .fold(0u32, |word, byte| (word << 8) | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let letter = ALPHABET[(word >> (18 - 6 * place)) as usize & 63] as char;
            text.push(if place <= chunk.len() { letter } else { '=' });
        }
    }
    text
}
