//! The stream of lines: batches form from what has been read and fits the window, answers are matched to lines.

use std::collections::VecDeque;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use ptah_types::ErrorKind;
use ptah_types::limits::{MAX_BATCH_MESSAGES, TARGET_BATCH_BYTES};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::in_flight::InFlight;
use super::key::key_of;
use super::lines::{Content, Line};
use super::report::Summary;
use crate::args::ProduceArgs;
use crate::client::{BatchEncoder, ClientError, Outcome, ProduceSender, ProduceStream};
use crate::failure::Failure;
use crate::output::Output;
use crate::signals::EndSignals;
use crate::units::size_text;

/// Most payload bytes without an answer.
const WINDOW_BYTES: u64 = 32 << 20;

/// What the reader says.
pub(super) enum Chunk {
    /// Lines in order, and the bytes they took.
    Lines { lines: Vec<Line>, bytes: u64 },
    /// The input cannot be read any further.
    Broken(String),
}

/// Why no more lines are taken.
#[derive(Debug, Clone)]
enum End {
    Input,
    Broken(String),
    /// The station takes nothing from this caller any more.
    Refused(ClientError),
    Interrupted,
}

pub(super) struct Flow<'a> {
    args: &'a ProduceArgs,
    output: &'a Output,
    timeout: Duration,
    sender: Option<ProduceSender>,
    stream: ProduceStream,
    window: usize,
    pending: VecDeque<Line>,
    encoder: BatchEncoder,
    in_flight: InFlight,
    summary: Summary,
    last_answer: Instant,
    end: Option<End>,
    bar: ProgressBar,
    signals: EndSignals,
}

/// What happened while waiting.
enum Event {
    Chunk(Option<Chunk>),
    Sent,
    Answered(Result<Option<Vec<Outcome>>, ClientError>),
    Interrupted,
}

impl<'a> Flow<'a> {
    pub(super) fn new(
        args: &'a ProduceArgs,
        station: &str,
        timeout: Duration,
        sender: ProduceSender,
        stream: ProduceStream,
        output: &'a Output,
    ) -> Result<Self, Failure> {
        let window = args.window.min(stream.opened().max_in_flight) as usize;
        Ok(Self {
            args,
            output,
            timeout,
            sender: Some(sender),
            stream,
            window,
            pending: VecDeque::new(),
            encoder: BatchEncoder::default(),
            in_flight: InFlight::default(),
            summary: Summary::new(station),
            last_answer: Instant::now(),
            end: None,
            bar: ProgressBar::hidden(),
            signals: EndSignals::listen()?,
        })
    }

    /// Runs until every line that was taken has its answer, and prints the summary.
    pub(super) async fn run(
        mut self,
        mut chunks: mpsc::Receiver<Chunk>,
        size_bytes: Option<u64>,
    ) -> Result<(), Failure> {
        let started = Instant::now();
        if self.output.shows_progress() {
            self.bar = progress_bar(size_bytes);
        }
        let lost = loop {
            if matches!(self.end, Some(End::Refused(_))) {
                self.take_back_unsent();
            }
            self.encode_pending();
            if self.is_done() {
                break None;
            }
            match self.wait(&mut chunks).await {
                Event::Chunk(chunk) => self.take_chunk(chunk),
                Event::Sent => {}
                Event::Interrupted if matches!(self.end, Some(End::Interrupted)) => {
                    break Some(ClientError::new(
                        ErrorKind::OutcomeUnknown,
                        "interrupted before it was answered",
                    ));
                }
                Event::Interrupted => self.stop_reading(End::Interrupted),
                Event::Answered(Ok(Some(outcomes))) => {
                    if let Err(violation) = self.take_outcomes(outcomes) {
                        break Some(violation);
                    }
                }
                Event::Answered(Ok(None)) => {
                    break Some(ClientError::new(
                        ErrorKind::Unavailable,
                        "the server ended the stream",
                    ));
                }
                Event::Answered(Err(error)) => break Some(error),
            }
        };
        self.bar.finish_and_clear();
        self.finish(lost, started.elapsed())
    }

    fn is_done(&self) -> bool {
        self.end.is_some()
            && self.pending.is_empty()
            && self.encoder.count() == 0
            && self.in_flight.len() == 0
    }

    /// Waits for whatever comes first. Every branch may be dropped without losing anything.
    async fn wait(&mut self, chunks: &mut mpsc::Receiver<Chunk>) -> Event {
        let wants_lines = self.end.is_none() && self.pending.is_empty();
        let has_batch = self.encoder.count() > 0;
        let is_waiting = self.in_flight.len() > self.encoder.count() as usize;
        // Only what was handed over can be answered.
        let answer_until = self.last_answer + self.timeout;
        let sender = self.sender.as_ref();
        tokio::select! {
            chunk = chunks.recv(), if wants_lines => Event::Chunk(chunk),
            room = async { sender?.room().await.ok() }, if has_batch => match room {
                Some(room) => {
                    if !is_waiting {
                        self.last_answer = Instant::now();
                    }
                    room.send(self.encoder.finish());
                    Event::Sent
                }
                // The stream is over: its own end says why.
                None => Event::Answered(self.stream.next_within(self.timeout).await),
            },
            // Also when nothing is under way: a stream that ended takes no more lines.
            answer = async {
                if is_waiting {
                    tokio::time::timeout_at(answer_until, self.stream.next()).await
                } else {
                    Ok(self.stream.next().await)
                }
            } => Event::Answered(answer.unwrap_or_else(|_| Err(no_answer(self.timeout)))),
            _ = self.signals.next() => Event::Interrupted,
        }
    }

    fn take_chunk(&mut self, chunk: Option<Chunk>) {
        match chunk {
            Some(Chunk::Lines { lines, bytes }) => {
                self.pending.extend(lines);
                self.bar.inc(bytes);
            }
            Some(Chunk::Broken(why)) => self.stop_reading(End::Broken(why)),
            None => self.stop_reading(End::Input),
        }
    }

    fn stop_reading(&mut self, why: End) {
        if matches!(why, End::Interrupted | End::Refused(_)) {
            self.pending.clear();
        }
        self.end = Some(why);
    }

    /// Lines that were taken and not handed to the connection are certainly not stored.
    fn take_back_unsent(&mut self) {
        let unsent = self.encoder.count() as usize;
        if unsent == 0 {
            return;
        }
        drop(self.encoder.finish());
        let lines = self.in_flight.take_back(unsent);
        let error = ClientError::new(ErrorKind::Unavailable, "not sent");
        let told = self.summary.not_stored(&lines, &error);
        self.say(&told);
    }

    /// Moves lines into the batch while the window has room.
    fn encode_pending(&mut self) {
        while self.in_flight.len() < self.window
            && self.in_flight.payload_bytes() < WINDOW_BYTES
            && (self.encoder.count() as usize) < MAX_BATCH_MESSAGES
            && self.encoder.size_bytes() < TARGET_BATCH_BYTES
        {
            let Some(line) = self.pending.pop_front() else {
                return;
            };
            self.summary.line();
            if let Err(error) = self.encode(&line) {
                self.tell(line.number, &error);
            }
        }
    }

    fn encode(&mut self, line: &Line) -> Result<(), ClientError> {
        let limit_bytes = self.stream.opened().max_message_bytes;
        let payload = match &line.content {
            Content::Bytes(payload) if payload.len() as u64 <= limit_bytes => payload,
            Content::Bytes(payload) => return Err(too_large(payload.len() as u64, limit_bytes)),
            Content::TooLong(len) => return Err(too_large(*len, limit_bytes)),
        };
        let key = match &self.args.key_field {
            Some(field) => {
                let key = key_of(payload, field)
                    .map_err(|why| ClientError::new(ErrorKind::InvalidArgument, why))?;
                Some(key)
            }
            None => None,
        };
        self.encoder
            .push(payload, key.as_deref(), self.args.partition.unwrap_or(0));
        self.in_flight.push(line.number, payload.len() as u64);
        Ok(())
    }

    fn take_outcomes(&mut self, outcomes: Vec<Outcome>) -> Result<(), ClientError> {
        self.last_answer = Instant::now();
        for outcome in outcomes {
            let answered = self
                .in_flight
                .answer(outcome.first, outcome.count)
                .ok_or_else(|| {
                    ClientError::new(
                        ErrorKind::Incompatible,
                        "the server answered a message twice, or one that was not sent",
                    )
                })?;
            match outcome.result {
                Ok(_) => self.summary.stored(answered.count, answered.payload_bytes),
                Err(error) => {
                    let told = self.summary.not_stored(&answered.lines, &error);
                    self.say(&told);
                    if is_for_good(error.kind) && self.end.is_none() {
                        self.stop_reading(End::Refused(error));
                    }
                }
            }
        }
        self.bar
            .set_message(format!("{} stored", self.summary.stored_count()));
        Ok(())
    }

    fn tell(&mut self, line: u64, error: &ClientError) {
        let told = self.summary.not_stored(&[line..=line], error);
        self.say(&told);
    }

    fn say(&self, told: &[String]) {
        if self.output.is_json() {
            return; // The summary lists them.
        }
        self.bar
            .suspend(|| told.iter().for_each(|text| self.output.note(text)));
    }

    /// Tells what is left open when the stream broke, and sums up.
    fn finish(mut self, lost: Option<ClientError>, elapsed: Duration) -> Result<(), Failure> {
        let mut stopped = match &self.end {
            Some(End::Broken(why)) => Some(Failure::failed(format!(
                "{why}; the lines before it are answered for"
            ))),
            Some(End::Interrupted) => Some(Failure::failed(
                "interrupted; lines after the ones counted were not sent",
            )),
            Some(End::Refused(error)) => Some(Failure::of_kind(
                error.kind,
                format!(
                    "{}; lines after line {} were not read",
                    error.message,
                    self.summary.line_count()
                ),
            )),
            Some(End::Input) | None => None,
        };
        if let Some(error) = lost {
            self.take_back_unsent();
            let in_flight = std::mem::take(&mut self.in_flight).abandon();
            let unknown = ClientError::new(
                ErrorKind::OutcomeUnknown,
                format!("may or may not be stored: {}", error.message),
            );
            let told = self.summary.not_stored(&in_flight.lines, &unknown);
            self.say(&told);
            stopped = stopped.or_else(|| {
                let message = format!(
                    "{}; lines after line {} were not sent",
                    error.message,
                    self.summary.line_count()
                );
                Some(Failure::of_kind(error.kind, message))
            });
        }
        let is_refused = matches!(self.end, Some(End::Refused(_)));
        match (self.summary.finish(elapsed, self.output), stopped) {
            // Why all of them are refused says more than how many were.
            (Err(_), Some(stopped)) if is_refused => Err(stopped),
            (Ok(()), Some(stopped)) => Err(stopped),
            (result, _) => result,
        }
    }
}

/// Whether the same answer would come to every further line.
fn is_for_good(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::Unauthenticated
    )
}

fn too_large(len: u64, limit_bytes: u64) -> ClientError {
    let message = format!(
        "payload of {len} bytes exceeds the station's limit of {limit_bytes} ({})",
        size_text(limit_bytes)
    );
    ClientError::new(ErrorKind::TooLarge, message)
}

fn no_answer(waited: Duration) -> ClientError {
    let message = format!("no answer within {} s", waited.as_secs_f64());
    ClientError::new(ErrorKind::OutcomeUnknown, message)
}

fn progress_bar(size_bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match size_bytes {
        Some(size) => (
            ProgressBar::new(size),
            "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}",
        ),
        None => (
            ProgressBar::new_spinner(),
            "{spinner} {bytes} {bytes_per_sec} {msg}",
        ),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
