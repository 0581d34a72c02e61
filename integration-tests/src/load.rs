//! A producer that never retries and keeps a window of unanswered messages, while a test does harm.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use ptah_proto::api::v1 as api;
use tokio::time::Instant;

use crate::check::Produced;
use crate::client::{Client, StoredAt, message};
use crate::records::counted;

/// Messages per request.
const BATCH: u64 = 50;
/// Unanswered messages at most.
const WINDOW: u64 = 1_000;

/// How a producer is doing; shared with the test.
#[derive(Debug, Default)]
pub struct Progress {
    acknowledged: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    /// Messages acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// One more was acknowledged.
    pub fn acknowledge(&self) {
        self.acknowledged.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether the producer was asked to end.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Asks the producer to end after what it has sent is answered.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Waits until more than `count` messages are acknowledged, and tells how long that took.
    pub async fn beyond(&self, count: u64, limit: Duration) -> anyhow::Result<Duration> {
        let start = Instant::now();
        while self.acknowledged() <= count {
            anyhow::ensure!(
                start.elapsed() < limit,
                "no acknowledgement within {limit:?} after {count} messages"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(start.elapsed())
    }
}

/// Produces counted messages of `size` bytes on one stream, to `partition` or in turn when it is 0, until it is told to
/// stop. Everything that was sent is accounted for in the result.
pub async fn produce_until_stopped(
    client: Client,
    station: String,
    producer: String,
    partition: u32,
    size: usize,
    progress: Arc<Progress>,
) -> anyhow::Result<Produced> {
    let mut stream = client
        .produce_stream(&station, &producer)
        .await
        .context("open produce stream")?;
    let mut sent: BTreeMap<u64, Bytes> = BTreeMap::new();
    let mut produced = Produced::default();
    let mut counter = 0;
    loop {
        let stopping = progress.stop.load(Ordering::SeqCst);
        while !stopping && (sent.len() as u64) + BATCH <= WINDOW {
            let messages: Vec<api::NewMessage> = (counter..counter + BATCH)
                .map(|number| api::NewMessage {
                    partition,
                    ..message(counted(&producer, number, size))
                })
                .collect();
            let payloads: Vec<Bytes> = messages.iter().map(|message| message.payload.clone()).collect();
            let first = stream.send(messages).await?;
            sent.extend((first..).zip(payloads));
            counter += BATCH;
        }
        if stopping && sent.is_empty() {
            return Ok(produced);
        }
        let answers = tokio::time::timeout(crate::SOON, stream.results())
            .await
            .context("no answer")?;
        let answers = answers
            .context("produce stream broke")?
            .context("produce stream ended")?;
        take_answers(answers, &mut sent, &mut produced, &progress)?;
    }
}

fn take_answers(
    answers: Vec<(u64, Result<StoredAt, ptah_proto::common::v1::Error>)>,
    sent: &mut BTreeMap<u64, Bytes>,
    produced: &mut Produced,
    progress: &Progress,
) -> anyhow::Result<()> {
    for (number, outcome) in answers {
        let payload = sent
            .remove(&number)
            .with_context(|| format!("message {number} was answered twice"))?;
        match outcome {
            Ok(at) => {
                produced.acknowledged(at, payload)?;
                progress.acknowledged.fetch_add(1, Ordering::SeqCst);
            }
            Err(error) if error.kind() == ptah_proto::common::v1::ErrorKind::OutcomeUnknown => {
                produced.unknown.push(payload);
            }
            Err(_) => produced.refused.push(payload),
        }
    }
    Ok(())
}
