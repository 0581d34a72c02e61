//! What the client does and checks: produces without retrying while faults happen, then reads everything back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use parking_lot::Mutex;
use ptah_proto::api::v1 as api;
use ptah_proto::api::v1::message_service_client::MessageServiceClient;
use ptah_proto::api::v1::station_service_client::StationServiceClient;
use ptah_proto::common::v1 as common;
use ptah_rpc::{Channels, RpcChannel};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use crate::follower::follow;
use crate::network::{SimNetwork, Wires};
use crate::readers;
use crate::trace::Trace;

pub(crate) const PASSWORD: &str = "simulated-password";
/// `root:simulated-password`.
const AUTHORIZATION: &str = "Basic cm9vdDpzaW11bGF0ZWQtcGFzc3dvcmQ=";
pub(crate) const STATION: &str = "orders";
pub(crate) const PARTITIONS: u32 = 2;
const BATCH: u64 = 10;
const WINDOW: usize = 100;
/// Pause between two answers, without which the client would produce millions of messages.
const PACE: Duration = Duration::from_millis(25);
/// Longest wait for an answer in simulated time: longer than any fault and the gateway's own retries.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How far the client is; shared with the faults.
#[derive(Default)]
pub(crate) struct Progress {
    producing: AtomicBool,
    faults_over: AtomicBool,
}

impl Progress {
    pub(crate) fn is_producing(&self) -> bool {
        self.producing.load(Ordering::SeqCst)
    }

    pub(crate) fn faults_are_over(&self) {
        self.faults_over.store(true, Ordering::SeqCst);
    }
}

/// A request with credentials.
pub(crate) fn authorized<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(
        "authorization",
        tonic::metadata::MetadataValue::from_static(AUTHORIZATION),
    );
    request
}

/// How many messages became what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbers {
    pub(crate) acknowledged: usize,
    pub(crate) unknown: usize,
    pub(crate) unanswered: usize,
}

/// Produces until the faults are over, reads back, compares.
pub(crate) async fn run(progress: &Progress, trace: &Trace) -> anyhow::Result<Numbers> {
    let channels = Channels::public(std::sync::Arc::new(SimNetwork(Wires::new(trace))));
    let channel = channels.to("gateway:5555")?;
    create_station(&channel).await?;
    trace.note("client: station is there");
    let goal = Mutex::default();
    let (numbers, ()) = tokio::try_join!(produce_and_compare(&channel, progress, &goal, trace), async {
        follow(&channel, &goal, trace).await.context("follow")
    },)?;
    Ok(numbers)
}

async fn produce_and_compare(
    channel: &RpcChannel,
    progress: &Progress,
    goal: &Mutex<Option<Stored>>,
    trace: &Trace,
) -> anyhow::Result<Numbers> {
    progress.producing.store(true, Ordering::SeqCst);
    let produced = produce(channel, progress, trace).await.context("produce")?;
    progress.producing.store(false, Ordering::SeqCst);
    let numbers = Numbers {
        acknowledged: produced.stored.len(),
        unknown: produced.unknown.len() - produced.unanswered,
        unanswered: produced.unanswered,
    };
    trace.note(format!("client: {numbers:?}"));
    let stored = readers::read(channel).await.context("read back")?;
    compare(&produced, &stored)?;
    trace.note(format!("client: {} stored", stored.len()));
    *goal.lock() = Some(stored.clone());
    readers::consume(channel, &stored).await.context("consume")?;
    trace.note("client: the consumer group has read everything");
    Ok(numbers)
}

async fn create_station(channel: &RpcChannel) -> anyhow::Result<()> {
    let mut client = StationServiceClient::new(channel.clone());
    let config = api::StationConfig {
        partitions: PARTITIONS,
        replicas: 3,
        ..Default::default()
    };
    let request = api::CreateStationRequest {
        name: STATION.into(),
        config: Some(config),
        ..Default::default()
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match client.create_station(authorized(request.clone())).await {
            Ok(_) => return Ok(()),
            Err(status) if tokio::time::Instant::now() < deadline => {
                tracing::debug!(target: "ptah_simulation", code = ?status.code(), "station is not there yet");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(status) => anyhow::bail!("create station: {status}"),
        }
    }
}

/// Payloads by partition and sequence.
pub(crate) type Stored = BTreeMap<(u32, u64), Bytes>;

#[derive(Default)]
struct Produced {
    stored: Stored,
    /// Said to be unknown, and those without an answer.
    unknown: Vec<Bytes>,
    /// How many of the unknown ones have no answer.
    unanswered: usize,
    /// First message of each stream. Order is promised within a stream.
    streams: Vec<u64>,
}

impl Produced {
    /// The stream of a message.
    fn stream_of(&self, number: u64) -> usize {
        self.streams.partition_point(|first| *first <= number)
    }
}

/// A produce stream and what is under way on it.
struct Stream {
    requests: mpsc::Sender<api::ProduceStreamRequest>,
    answers: tonic::Streaming<api::ProduceStreamResponse>,
    /// Number of the stream's first message in the order of production.
    base: u64,
    sent: BTreeMap<u64, Bytes>,
}

/// Produces on one stream after the other: a stream ends with its gateway.
async fn produce(channel: &RpcChannel, progress: &Progress, trace: &Trace) -> anyhow::Result<Produced> {
    let mut produced = Produced::default();
    let mut next = 0;
    loop {
        produced.streams.push(next);
        let mut stream = open_stream(channel, next).await?;
        let ended = produce_on(&mut stream, progress, &mut produced, &mut next).await?;
        let Some(why) = ended else {
            return Ok(produced);
        };
        trace.note(format!(
            "client: produce stream ended with {} messages under way: {why}",
            stream.sent.len()
        ));
        produced.unanswered += stream.sent.len();
        produced.unknown.extend(stream.sent.into_values());
    }
}

async fn open_stream(channel: &RpcChannel, base: u64) -> anyhow::Result<Stream> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let (requests, receiver) = mpsc::channel(64);
        let open = api::ProduceStreamOpen {
            station: STATION.into(),
            producer: "p".into(),
            ..Default::default()
        };
        requests
            .send(stream_request(api::produce_stream_request::Request::Open(open)))
            .await?;
        let mut client = MessageServiceClient::new(channel.clone());
        let opened = async {
            let request = authorized(ReceiverStream::new(receiver));
            let mut answers = client.produce_stream(request).await?.into_inner();
            answers.message().await?;
            Ok::<_, tonic::Status>(answers)
        };
        match opened.await {
            Ok(answers) => {
                return Ok(Stream {
                    requests,
                    answers,
                    base,
                    sent: BTreeMap::new(),
                });
            }
            Err(status) => {
                let may_retry = status.code() == tonic::Code::Unavailable;
                anyhow::ensure!(
                    may_retry && tokio::time::Instant::now() < deadline,
                    "open produce stream: {status}"
                );
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Produces on a stream until the faults are over; why the stream ended before that, if it did.
async fn produce_on(
    stream: &mut Stream,
    progress: &Progress,
    produced: &mut Produced,
    next: &mut u64,
) -> anyhow::Result<Option<String>> {
    loop {
        let over = progress.faults_over.load(Ordering::SeqCst);
        while !over && stream.sent.len() + BATCH as usize <= WINDOW {
            let request = next_batch(stream, next);
            if stream.requests.send(request).await.is_err() {
                break; // The answers tell why.
            }
        }
        if over && stream.sent.is_empty() {
            return Ok(None);
        }
        let answer = tokio::time::timeout(PATIENCE, stream.answers.message()).await;
        let answer = match answer.context("no answer")? {
            Ok(Some(answer)) => answer,
            Ok(None) => return Ok(Some("end".to_owned())),
            Err(status) => return Ok(Some(status.to_string())),
        };
        if let Some(api::produce_stream_response::Response::Results(results)) = answer.response {
            for result in results.results {
                take_result(result, stream.base, &mut stream.sent, produced)?;
            }
        }
        tokio::time::sleep(PACE).await;
    }
}

/// The next messages, which count as sent from now on.
fn next_batch(stream: &mut Stream, next: &mut u64) -> api::ProduceStreamRequest {
    let first = *next;
    *next += BATCH;
    let payloads: Vec<Bytes> = (first..*next).map(|n| Bytes::from(n.to_string())).collect();
    let partition = (first / BATCH % u64::from(PARTITIONS)) as u32 + 1;
    let messages = payloads
        .iter()
        .map(|payload| api::NewMessage {
            payload: payload.clone(),
            partition,
            ..Default::default()
        })
        .collect();
    stream.sent.extend((first..).zip(payloads));
    stream_request(api::produce_stream_request::Request::Batch(
        api::ProduceStreamBatch { messages },
    ))
}

fn stream_request(request: api::produce_stream_request::Request) -> api::ProduceStreamRequest {
    api::ProduceStreamRequest {
        request: Some(request),
    }
}

fn take_result(
    result: api::ProduceResult,
    base: u64,
    sent: &mut BTreeMap<u64, Bytes>,
    produced: &mut Produced,
) -> anyhow::Result<()> {
    for place in 0..u64::from(result.count) {
        let number = base + result.first + place;
        let payload = sent
            .remove(&number)
            .with_context(|| format!("message {number} was answered twice"))?;
        match &result.outcome {
            Some(api::produce_result::Outcome::Stored(stored)) => {
                let at = (stored.partition, stored.first_sequence + place);
                let other = produced.stored.insert(at, payload);
                anyhow::ensure!(other.is_none(), "{at:?} was acknowledged twice");
            }
            Some(api::produce_result::Outcome::Error(error))
                if error.kind() == common::ErrorKind::OutcomeUnknown =>
            {
                produced.unknown.push(payload);
            }
            other => tracing::debug!(target: "ptah_simulation", number, ?other, "refused"),
        }
    }
    Ok(())
}

/// Every acknowledged message is where it was said to be; sequences are dense; the rest may be what nobody knew.
/// The client sent each partition's messages in order, so those of one stream are stored in order.
fn compare(produced: &Produced, stored: &Stored) -> anyhow::Result<()> {
    for (at, payload) in &produced.stored {
        let found = stored
            .get(at)
            .with_context(|| format!("{at:?} was acknowledged and is lost"))?;
        anyhow::ensure!(
            found == payload,
            "{at:?} holds {found:?}, acknowledged was {payload:?}"
        );
    }
    let mut unknown: Vec<&Bytes> = produced.unknown.iter().collect();
    let mut expected: BTreeMap<u32, u64> = BTreeMap::new();
    let mut newest: BTreeMap<(u32, usize), u64> = BTreeMap::new();
    for (at, payload) in stored {
        let next = expected.entry(at.0).or_insert(1);
        anyhow::ensure!(
            at.1 == *next,
            "partition {}: {} is there where {next} was expected",
            at.0,
            at.1
        );
        *next += 1;
        let number = number_of(payload)?;
        if let Some(before) = newest.insert((at.0, produced.stream_of(number)), number) {
            anyhow::ensure!(
                before < number,
                "partition {}: message {number} is behind message {before}",
                at.0
            );
        }
        if !produced.stored.contains_key(at) {
            let place = unknown.iter().position(|other| *other == payload);
            unknown.swap_remove(
                place.with_context(|| format!("{at:?} holds {payload:?}, which nobody stored"))?,
            );
        }
    }
    Ok(())
}

/// The place of a message in the order of production.
fn number_of(payload: &Bytes) -> anyhow::Result<u64> {
    Ok(std::str::from_utf8(payload)?.parse()?)
}
