//! A producer: keeps the window full until every message has its answer.
//!
//! Batches form from the slots that answers free, so the server's pace decides their size. One loop per connection, no
//! task and no allocation per message: the client must cost far less than what it measures.

use std::collections::VecDeque;
use std::time::Duration;

use hdrhistogram::Histogram;
use ptah_types::ErrorKind;
use tokio::time::Instant;

use super::ledger::Ledger;
use super::payload::PayloadWriter;
use crate::client::{BatchEncoder, Client, ClientError, EncodedBatch, Outcome, ProduceStream};
use crate::failure::Failure;

/// Most payload bytes of one producer without an answer; a larger message travels alone.
const WINDOW_BYTES: u64 = 64 << 20;
/// Payload bytes at which a batch is closed.
const BATCH_BYTES: usize = 1 << 20;

/// What all producers of a run have in common.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) station: String,
    pub(super) run: u64,
    pub(super) size_bytes: usize,
    pub(super) window: u32,
    pub(super) batch: u32,
    /// Most messages a second of one producer.
    pub(super) rate: Option<f64>,
    pub(super) keys: Vec<Vec<u8>>,
}

/// What a producer did.
pub(super) struct Produced {
    pub(super) ledger: Ledger,
    pub(super) latency_ns: Histogram<u64>,
    pub(super) batches: u64,
    pub(super) started: Instant,
    pub(super) ended: Instant,
    /// Why it ended before everything was answered.
    pub(super) broke: Option<ClientError>,
}

/// Opens the stream of a producer and stores `total` messages.
pub(super) async fn produce(
    plan: &Plan,
    producer: u32,
    total: u64,
    client: &Client,
) -> Result<Produced, Failure> {
    let name = format!("bench-{producer}");
    let (sender, mut stream) = client.produce_stream(&plan.station, &name).await?;
    let mut work = Work::new(plan, producer, total, stream.opened().max_in_flight);
    let mut broke = None;
    while work.answered < total {
        let answer_until = work.last_answer + client.timeout();
        // Answers first: what they free together leaves together.
        let due = work.pace.due(work.next);
        let is_due = due <= Instant::now();
        let step = tokio::select! {
            biased;
            answer = tokio::time::timeout_at(answer_until, stream.next()), if work.is_waiting() => {
                take(&mut work, answer, client.timeout())
            }
            () = tokio::time::sleep_until(due), if work.may_send() && !is_due => Ok(()),
            room = sender.room(), if work.may_send() && is_due => match room {
                Ok(room) => {
                    room.send(work.batch());
                    Ok(())
                }
                Err(_) => end_of(&mut stream, client.timeout()).await,
            }
        };
        if let Err(error) = step {
            broke = Some(error);
            break;
        }
    }
    Ok(work.end(broke))
}

fn take(
    work: &mut Work<'_>,
    answer: Result<Result<Option<Vec<Outcome>>, ClientError>, tokio::time::error::Elapsed>,
    timeout: Duration,
) -> Result<(), ClientError> {
    match answer {
        Ok(Ok(Some(outcomes))) => work.take(&outcomes),
        Ok(Ok(None)) => Err(ClientError::new(
            ErrorKind::Unavailable,
            "the server ended the stream",
        )),
        Ok(Err(error)) => Err(error),
        Err(_) => {
            let message = format!("no answer within {} s", timeout.as_secs_f64());
            Err(ClientError::new(ErrorKind::OutcomeUnknown, message))
        }
    }
}

/// The stream takes nothing any more; its end says why.
async fn end_of(stream: &mut ProduceStream, timeout: Duration) -> Result<(), ClientError> {
    loop {
        if stream.next_within(timeout).await?.is_none() {
            return Err(ClientError::new(
                ErrorKind::Unavailable,
                "the server ended the stream",
            ));
        }
    }
}

/// When the next message may leave.
pub(super) struct Pace {
    started: Instant,
    per_second: Option<f64>,
}

impl Pace {
    /// From now on, so many a second; without a limit when it is `None`.
    pub(super) fn new(per_second: Option<f64>) -> Self {
        Self {
            started: Instant::now(),
            per_second,
        }
    }

    /// When message `number` may leave; numbers begin at 0.
    pub(super) fn due(&self, number: u64) -> Instant {
        match self.per_second {
            Some(rate) => self.started + Duration::from_secs_f64(number as f64 / rate),
            None => self.started,
        }
    }

    /// How many messages may have left at `now`; at least one.
    fn allowed(&self, now: Instant) -> u64 {
        match self.per_second {
            // The cast saturates.
            Some(rate) => ((now - self.started).as_secs_f64() * rate) as u64 + 1,
            None => u64::MAX,
        }
    }
}

/// A batch on its way.
struct Sent {
    end: u64,
    at: Instant,
    unanswered: u64,
}

struct Work<'a> {
    plan: &'a Plan,
    total: u64,
    window: u64,
    pace: Pace,
    next: u64,
    answered: u64,
    sent: VecDeque<Sent>,
    writer: PayloadWriter,
    encoder: BatchEncoder,
    ledger: Ledger,
    latency_ns: Histogram<u64>,
    batches: u64,
    started: Instant,
    last_answer: Instant,
}

impl<'a> Work<'a> {
    fn new(plan: &'a Plan, producer: u32, total: u64, max_in_flight: u32) -> Self {
        let by_bytes = (WINDOW_BYTES / plan.size_bytes as u64).max(1);
        let now = Instant::now();
        Self {
            plan,
            total,
            window: u64::from(plan.window.min(max_in_flight)).min(by_bytes),
            pace: Pace::new(plan.rate),
            next: 0,
            answered: 0,
            sent: VecDeque::new(),
            writer: PayloadWriter::new(plan.run, producer, plan.size_bytes),
            encoder: BatchEncoder::default(),
            ledger: Ledger::new(total),
            latency_ns: new_histogram(),
            batches: 0,
            started: now,
            last_answer: now,
        }
    }

    fn is_waiting(&self) -> bool {
        self.next > self.answered
    }

    fn may_send(&self) -> bool {
        self.next < self.total && self.next - self.answered < self.window
    }

    /// The next batch: as many messages as the window has room for.
    fn batch(&mut self) -> EncodedBatch {
        let now = Instant::now();
        if !self.is_waiting() {
            self.last_answer = now;
        }
        let free = self.window - (self.next - self.answered);
        let first = self.next;
        // The message that is due was allowed by the caller's clock, which may be a moment ahead of this one.
        let allowed = self.pace.allowed(now).max(first + 1);
        let end = self
            .total
            .min(first + free.min(u64::from(self.plan.batch)))
            .min(allowed);
        while self.next < end && (self.next == first || self.encoder.size_bytes() < BATCH_BYTES) {
            let keys = &self.plan.keys;
            let key = (!keys.is_empty()).then(|| keys[(self.next % keys.len() as u64) as usize].as_slice());
            self.encoder.push(self.writer.payload(self.next), key, 0);
            self.next += 1;
        }
        self.sent.push_back(Sent {
            end: self.next,
            at: now,
            unanswered: self.next - first,
        });
        self.batches += 1;
        self.encoder.finish()
    }

    fn take(&mut self, outcomes: &[Outcome]) -> Result<(), ClientError> {
        let now = Instant::now();
        self.last_answer = now;
        for outcome in outcomes {
            self.ledger
                .enter(outcome, self.next)
                .map_err(|what| ClientError::new(ErrorKind::Incompatible, what))?;
            self.answered += u64::from(outcome.count);
            self.time(outcome.first, u64::from(outcome.count), now);
        }
        Ok(())
    }

    /// Enters the time of every message that an answer is about, batch by batch.
    fn time(&mut self, first: u64, count: u64, now: Instant) {
        let end = first + count;
        let mut from = first;
        let mut index = self.sent.partition_point(|sent| sent.end <= first);
        while from < end && index < self.sent.len() {
            let sent = &mut self.sent[index];
            let upto = end.min(sent.end);
            let nanos = u64::try_from(now.saturating_duration_since(sent.at).as_nanos()).unwrap_or(u64::MAX);
            self.latency_ns.saturating_record_n(nanos, upto - from);
            sent.unanswered = sent.unanswered.saturating_sub(upto - from);
            from = upto;
            index += 1;
        }
        while self.sent.front().is_some_and(|sent| sent.unanswered == 0) {
            self.sent.pop_front();
        }
    }

    fn end(self, broke: Option<ClientError>) -> Produced {
        Produced {
            ledger: self.ledger,
            latency_ns: self.latency_ns,
            batches: self.batches,
            started: self.started,
            ended: self.last_answer,
            broke,
        }
    }
}

/// Times up to five minutes, three digits exact.
pub(super) fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 300_000_000_000, 3)
        .expect("the bounds are in order and 3 digits are allowed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Stored;

    fn plan(window: u32, batch: u32) -> Plan {
        Plan {
            station: "s".to_owned(),
            run: 1,
            size_bytes: 128,
            window,
            batch,
            rate: None,
            keys: Vec::new(),
        }
    }

    fn stored(first: u64, count: u32) -> Outcome {
        Outcome {
            first,
            count,
            result: Ok(Stored {
                partition: 1,
                first_sequence: first + 1,
            }),
        }
    }

    #[test]
    fn batches_form_from_what_the_window_has_room_for() {
        let plan = plan(10, 4);
        let mut work = Work::new(&plan, 0, 100, 1_000);
        let sizes: Vec<_> = std::iter::from_fn(|| work.may_send().then(|| work.batch().count())).collect();
        assert_eq!(sizes, [4, 4, 2]);
        work.take(&[stored(0, 4), stored(4, 3)]).unwrap();
        assert_eq!(work.batch().count(), 4);
        assert_eq!(work.batch().count(), 3);
        assert!(!work.may_send());
    }

    #[test]
    fn the_server_may_make_the_window_smaller() {
        let plan = plan(1_000, 1_000);
        let mut work = Work::new(&plan, 0, 100, 7);
        assert_eq!(work.batch().count(), 7);
        assert!(!work.may_send());
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_lets_messages_leave_when_they_are_due() {
        let plan = Plan {
            rate: Some(1_000.0),
            ..plan(100, 50)
        };
        let mut work = Work::new(&plan, 0, 1_000, 1_000);
        assert_eq!(work.batch().count(), 1);
        assert!(work.pace.due(work.next) > Instant::now());
        tokio::time::advance(Duration::from_millis(20)).await;
        assert_eq!(work.batch().count(), 20);
        assert_eq!(
            work.pace.due(work.next) - Instant::now(),
            Duration::from_millis(1)
        );
    }

    #[test]
    fn every_message_has_its_time_whatever_the_order_of_answers() {
        let plan = plan(12, 4);
        let mut work = Work::new(&plan, 0, 12, 1_000);
        while work.may_send() {
            work.batch();
        }
        work.take(&[stored(6, 4)]).unwrap();
        work.take(&[stored(0, 6), stored(10, 2)]).unwrap();
        assert_eq!(
            (work.latency_ns.len(), work.answered, work.sent.len()),
            (12, 12, 0)
        );
    }

    #[test]
    fn a_large_message_travels_alone() {
        let plan = Plan {
            size_bytes: 2 << 20,
            ..plan(100, 50)
        };
        let mut work = Work::new(&plan, 0, 100, 1_000);
        assert_eq!(work.batch().count(), 1);
        assert_eq!(work.window, 32);
    }
}
