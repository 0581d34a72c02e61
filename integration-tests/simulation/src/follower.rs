//! A consumer group that reads and acknowledges while faults happen: at least once, and never again what is acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context;
use parking_lot::Mutex;
use ptah_proto::api::v1 as api;
use ptah_proto::api::v1::consume_response::Response;
use ptah_rpc::RpcChannel;
use tokio::time::Instant;

use crate::readers::{Opened, ack, credit, open};
use crate::trace::Trace;
use crate::workload::{PATIENCE, Stored};

const GROUP: &str = "followers";
/// A message may be under way again while its acknowledgement is stored, at most this long.
const UNDER_WAY: Duration = Duration::from_secs(10);
/// One of so many messages is not acknowledged when it comes for the first time.
const FORGOTTEN: u64 = 97;
/// How often the follower looks whether it has reached its goal.
const LOOK: Duration = Duration::from_millis(500);

/// What the follower knows.
#[derive(Default)]
struct Seen {
    messages: Stored,
    /// Acknowledgements that wait for their confirmation, by id.
    waiting: BTreeMap<u64, (u32, u64)>,
    confirmed: BTreeMap<(u32, u64), Instant>,
    /// Acknowledged on a stream that ended before the confirmation: stored, or the message comes again.
    doubtful: BTreeSet<(u32, u64)>,
    acks: u64,
    again: u64,
}

/// Reads until everything of `goal` was seen and acknowledged; the goal is known when the client has stopped producing.
pub(crate) async fn follow(
    channel: &RpcChannel,
    goal: &Mutex<Option<Stored>>,
    trace: &Trace,
) -> anyhow::Result<()> {
    let mut seen = Seen::default();
    let mut patience = Patience::default();
    loop {
        let mut stream = open(channel, GROUP).await?;
        let why = match read(&mut stream, &mut seen, goal, &mut patience).await? {
            Ended::Reached => break,
            Ended::Broken(why) => why,
        };
        trace.note(format!("follower: stream ended: {why}"));
        seen.stream_ended();
        patience.check(goal, &seen)?;
        tokio::time::sleep(LOOK).await;
    }
    let goal = goal.lock().take().context("the goal is known")?;
    anyhow::ensure!(
        seen.messages == goal,
        "the follower read something else than what is stored"
    );
    anyhow::ensure!(
        seen.again > 0,
        "no message came again, although some were not acknowledged"
    );
    trace.note(format!(
        "follower: everything read, {} messages more than once",
        seen.again
    ));
    Ok(())
}

enum Ended {
    Reached,
    Broken(String),
}

/// Reads one stream.
async fn read(
    stream: &mut Opened,
    seen: &mut Seen,
    goal: &Mutex<Option<Stored>>,
    patience: &mut Patience,
) -> anyhow::Result<Ended> {
    loop {
        let answer = match tokio::time::timeout(LOOK, stream.1.message()).await {
            Ok(Ok(Some(answer))) => answer.response,
            Ok(Ok(None)) => return Ok(Ended::Broken("end".to_owned())),
            Ok(Err(status)) => return Ok(Ended::Broken(status.to_string())),
            Err(_) => None,
        };
        match answer {
            Some(Response::Batch(batch)) => {
                for message in &batch.messages {
                    if let Some(ack) = seen.take(message)? {
                        stream.0.send(ack).await?;
                    }
                }
                stream.0.send(credit(&batch)).await?;
            }
            Some(Response::Acked(acked)) => seen.acked(&acked),
            Some(Response::Opened(_) | Response::Idle(_)) | None => {}
        }
        if goal.lock().as_ref().is_some_and(|goal| seen.is_through(goal)) {
            return Ok(Ended::Reached);
        }
        patience.check(goal, seen)?;
    }
}

impl Seen {
    /// Whether every message of the goal is acknowledged, as far as anybody can know.
    fn is_through(&self, goal: &Stored) -> bool {
        self.confirmed.len() + self.doubtful.len() >= goal.len()
    }

    fn stream_ended(&mut self) {
        let waiting = std::mem::take(&mut self.waiting).into_values();
        let open = waiting.filter(|at| !self.confirmed.contains_key(at));
        self.doubtful.extend(open);
    }

    /// Notes a message; its acknowledgement, unless it is one that the follower lets come again.
    fn take(&mut self, message: &api::Message) -> anyhow::Result<Option<api::ConsumeRequest>> {
        let at = (message.partition, message.sequence);
        if let Some(confirmed) = self.confirmed.get(&at) {
            anyhow::ensure!(
                confirmed.elapsed() < UNDER_WAY,
                "{at:?} came again {:?} after its acknowledgement was confirmed",
                confirmed.elapsed()
            );
        }
        match self.messages.insert(at, message.payload.clone()) {
            Some(before) => {
                self.again += 1;
                anyhow::ensure!(before == message.payload, "{at:?} came with two payloads");
            }
            None if message.sequence % FORGOTTEN == 0 => return Ok(None),
            None => {}
        }
        self.acks += 1;
        self.waiting.insert(self.acks, at);
        Ok(Some(ack(message.partition, message.sequence, self.acks)))
    }

    /// One that failed is acknowledged again when the message comes again.
    fn acked(&mut self, acked: &api::ConsumeAcked) {
        if let Some(at) = self.waiting.remove(&acked.confirm_id)
            && acked.error.is_none()
        {
            self.doubtful.remove(&at);
            self.confirmed.entry(at).or_insert_with(Instant::now);
        }
    }
}

/// Time that the follower has once its goal is known.
#[derive(Default)]
struct Patience(Option<Instant>);

impl Patience {
    fn check(&mut self, goal: &Mutex<Option<Stored>>, seen: &Seen) -> anyhow::Result<()> {
        let Some(wanted) = goal.lock().as_ref().map(Stored::len) else {
            return Ok(());
        };
        let since = self.0.get_or_insert_with(Instant::now);
        anyhow::ensure!(
            since.elapsed() < PATIENCE,
            "the follower has read {} and acknowledged {} of {wanted} messages",
            seen.messages.len(),
            seen.confirmed.len()
        );
        Ok(())
    }
}
