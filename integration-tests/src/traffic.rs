//! Clients that live through outages: a producer and a consumer that go to another gateway when theirs fails or is
//! silent, and account for every message.
//!
//! The producer never sends a message again: what was unanswered when its stream broke is noted as unknown. The consumer
//! confirms what it has; whatever was confirmed must not come again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use ptah_proto::api::v1 as api;
use ptah_proto::common::v1 as common;
use tokio::time::{Instant, sleep, timeout};

use crate::check::Produced;
use crate::client::{Client, ConsumeStream, ProduceStream, Received, keyed};
use crate::load::Progress;
use crate::records::Record;

/// Messages per request.
const BATCH: usize = 20;
/// Unanswered messages at most.
const WINDOW: usize = 200;
/// Silence after which another gateway is tried.
const PATIENCE: Duration = Duration::from_secs(4);
/// Pause between two attempts to find a gateway.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest time without any gateway.
const LIMIT: Duration = Duration::from_secs(60);

/// Gateways by address, tried in turn.
#[derive(Clone, Debug)]
pub struct Gateways {
    addresses: Vec<String>,
    next: usize,
}

impl Gateways {
    /// Beginning with the first one.
    pub fn new(addresses: Vec<String>) -> Self {
        Self { addresses, next: 0 }
    }

    async fn connect(&mut self) -> anyhow::Result<Client> {
        let address = self.addresses[self.next % self.addresses.len()].clone();
        self.next += 1;
        timeout(PATIENCE, Client::connect(&address))
            .await
            .context("no answer")?
    }
}

/// Produces the records again and again, each line behind `producer:counter:`, until `progress` says stop and everything
/// that was sent is answered or given up.
pub async fn produce(
    mut gateways: Gateways,
    station: String,
    producer: String,
    records: Vec<Record>,
    progress: Arc<Progress>,
) -> anyhow::Result<Produced> {
    let mut source = Source {
        producer: producer.clone(),
        records,
        counter: 0,
    };
    let mut produced = Produced::default();
    let mut since = Instant::now();
    while !progress.is_stopped() {
        anyhow::ensure!(since.elapsed() < LIMIT, "no gateway takes messages for {LIMIT:?}");
        let opened = async {
            let client = gateways.connect().await?;
            let opened = timeout(PATIENCE, client.produce_stream(&station, &producer)).await;
            anyhow::Ok(opened.context("no answer")??)
        };
        match opened.await {
            Ok(stream) => {
                let before = progress.acknowledged();
                produce_on(stream, &mut source, &mut produced, &progress).await?;
                if progress.acknowledged() > before {
                    since = Instant::now();
                }
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
    Ok(produced)
}

struct Source {
    producer: String,
    records: Vec<Record>,
    counter: usize,
}

impl Source {
    fn next(&mut self) -> api::NewMessage {
        let record = &self.records[self.counter % self.records.len()];
        let payload = format!("{}:{}:{}", self.producer, self.counter, record.line);
        self.counter += 1;
        keyed(&record.key, payload)
    }
}

/// Produces on one stream until it breaks or the producer is told to stop. Only what cannot be is an error.
async fn produce_on(
    mut stream: ProduceStream,
    source: &mut Source,
    produced: &mut Produced,
    progress: &Progress,
) -> anyhow::Result<()> {
    let mut sent: BTreeMap<u64, Bytes> = BTreeMap::new();
    loop {
        while !progress.is_stopped() && sent.len() + BATCH <= WINDOW {
            let messages: Vec<_> = (0..BATCH).map(|_| source.next()).collect();
            let payloads: Vec<Bytes> = messages.iter().map(|message| message.payload.clone()).collect();
            match stream.send(messages).await {
                Ok(first) => sent.extend((first..).zip(payloads)),
                Err(_) => {
                    produced.unknown.extend(payloads);
                    break;
                }
            }
        }
        if sent.is_empty() {
            return Ok(());
        }
        let Ok(Ok(Some(answers))) = timeout(PATIENCE, stream.results()).await else {
            produced.unknown.extend(sent.into_values());
            return Ok(());
        };
        for (number, outcome) in answers {
            let payload = sent.remove(&number).context("a message was answered twice")?;
            match outcome {
                Ok(at) => {
                    produced.acknowledged(at, payload)?;
                    progress.acknowledge();
                }
                Err(error) if error.kind() == common::ErrorKind::OutcomeUnknown => {
                    produced.unknown.push(payload);
                }
                Err(_) => produced.refused.push(payload),
            }
        }
    }
}

/// What a group got.
#[derive(Debug, Default)]
pub struct Consumed {
    /// Every message once, by partition and sequence.
    pub messages: BTreeMap<(u32, u64), Bytes>,
    confirmed: BTreeSet<(u32, u64)>,
    /// Deliveries of messages that had come before, without having been confirmed.
    pub repeated: u64,
}

impl Consumed {
    fn take(&mut self, message: &Received) -> anyhow::Result<()> {
        let place = (message.partition, message.sequence);
        anyhow::ensure!(
            !self.confirmed.contains(&place),
            "{place:?} was confirmed and came again"
        );
        if let Some(before) = self.messages.insert(place, message.payload.clone()) {
            anyhow::ensure!(before == message.payload, "{place:?} came with other bytes");
            self.repeated += 1;
        }
        Ok(())
    }
}

/// Consumes as a member of a group until `progress` says stop and the group has everything.
pub async fn consume(
    mut gateways: Gateways,
    station: String,
    group: String,
    progress: Arc<Progress>,
) -> anyhow::Result<Consumed> {
    let mut consumed = Consumed::default();
    let mut since = Instant::now();
    loop {
        anyhow::ensure!(since.elapsed() < LIMIT, "no gateway delivers for {LIMIT:?}");
        let config = common::ConsumerGroupConfig {
            ack_deadline_ms: 5_000,
            ..common::ConsumerGroupConfig::default()
        };
        let opened = async {
            let client = gateways.connect().await?;
            let opening = client.consume_stream_with(&station, &group, 2_000, config);
            anyhow::Ok(timeout(PATIENCE, opening).await.context("no answer")??)
        };
        let Ok(stream) = opened.await else {
            sleep(PAUSE).await;
            continue;
        };
        let before = consumed.messages.len();
        if consume_on(stream, &mut consumed, &progress).await? {
            return Ok(consumed);
        }
        if consumed.messages.len() > before {
            since = Instant::now();
        }
    }
}

/// Consumes on one stream; true when the group has everything and nothing more will come.
async fn consume_on(
    mut stream: ConsumeStream,
    consumed: &mut Consumed,
    progress: &Progress,
) -> anyhow::Result<bool> {
    let mut confirms = 0;
    let mut waiting: BTreeMap<u64, Vec<(u32, u64)>> = BTreeMap::new();
    loop {
        let stopped = progress.is_stopped();
        let Ok(Ok(Some(said))) = timeout(PATIENCE, stream.next()).await else {
            return Ok(false);
        };
        match said {
            api::consume_response::Response::Batch(batch) => {
                let messages: Vec<Received> = batch.messages.into_iter().map(Received::from).collect();
                let mut by_partition: BTreeMap<u32, Vec<Received>> = BTreeMap::new();
                let bytes = messages.iter().map(|message| message.payload.len() as u64).sum();
                let count = messages.len() as u32;
                for message in messages {
                    consumed.take(&message)?;
                    by_partition.entry(message.partition).or_default().push(message);
                }
                for messages in by_partition.into_values() {
                    confirms += 1;
                    let places = messages
                        .iter()
                        .map(|message| (message.partition, message.sequence));
                    waiting.insert(confirms, places.collect());
                    if stream.acknowledge(&messages, confirms).await.is_err() {
                        return Ok(false);
                    }
                }
                if stream.credit(count, bytes).await.is_err() {
                    return Ok(false);
                }
            }
            api::consume_response::Response::Acked(acked) => {
                let places = waiting.remove(&acked.confirm_id).unwrap_or_default();
                if acked.error.is_none() {
                    consumed.confirmed.extend(places);
                }
            }
            api::consume_response::Response::Idle(idle)
                if stopped && waiting.is_empty() && idle.unacknowledged == 0 =>
            {
                return Ok(true);
            }
            _ => {}
        }
    }
}
