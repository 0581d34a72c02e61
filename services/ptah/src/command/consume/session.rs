//! One consume stream: write, flush, acknowledge, give credit, in this order.

use std::io::{self, Write as _};
use std::time::Duration;

use tokio::time::Instant;

use super::acks::{Unconfirmed, ranges_of};
use super::record;
use crate::client::{ClientError, ConsumeEvent, ConsumeStream, Message};
use crate::failure::Failure;
use crate::output::write_failure;
use crate::signals::EndSignals;

/// How a session ended.
pub(super) enum Ended {
    /// Everything that was wanted is written and acknowledged.
    Done,
    /// It makes no sense to go on.
    Failed(Failure),
    /// The connection or the stream broke.
    Lost(ClientError),
}

pub(super) struct Session {
    stream: ConsumeStream,
    is_json: bool,
    follows: bool,
    timeout: Duration,
    /// Messages still to write; `None` without an end.
    left: Option<u64>,
    /// Messages that the broker may still send.
    credit: u64,
    unconfirmed: Unconfirmed,
    /// No more messages are wanted: only confirmations are waited for.
    is_ending: bool,
    refused: Option<ClientError>,
    /// Messages that were delivered to others, or to a reader that is gone, when everything else was delivered.
    with_others: u64,
    /// When something was heard last.
    heard: Instant,
}

enum Event {
    Stream(Result<ConsumeEvent, ClientError>),
    Signal,
    Silent,
}

impl Session {
    pub(super) fn new(
        stream: ConsumeStream,
        is_json: bool,
        follows: bool,
        timeout: Duration,
        left: Option<u64>,
    ) -> Self {
        Self {
            stream,
            is_json,
            follows,
            timeout,
            left,
            credit: 0,
            unconfirmed: Unconfirmed::default(),
            is_ending: false,
            refused: None,
            with_others: 0,
            heard: Instant::now(),
        }
    }

    /// The stream was opened with this much credit.
    pub(super) fn given(&mut self, messages: u32) {
        self.credit = u64::from(messages);
    }

    /// Messages still wanted.
    pub(super) fn left(&self) -> Option<u64> {
        self.left
    }

    /// Messages that are neither here nor acknowledged, as the broker counted them at the end.
    pub(super) fn with_others(&self) -> u64 {
        self.with_others
    }

    pub(super) async fn run(&mut self, signals: &mut EndSignals) -> Ended {
        loop {
            if self.is_ending && self.unconfirmed.is_empty() {
                return match self.refused.take() {
                    Some(error) => Ended::Failed(error.into()),
                    None => Ended::Done,
                };
            }
            let event = self.wait(signals).await;
            let step = match event {
                Event::Stream(Ok(event)) => self.take(event, signals).await,
                // Everything that was wanted is written; a new connection could only bring it again.
                Event::Stream(Err(_)) if self.is_ending => Err(Ended::Failed(self.unconfirmed_failure())),
                Event::Stream(Err(error)) => Err(Ended::Lost(error)),
                Event::Signal if self.is_ending => Err(Ended::Failed(self.unconfirmed_failure())),
                Event::Signal => {
                    self.is_ending = true;
                    Ok(())
                }
                Event::Silent => Err(self.silent()),
            };
            if let Err(ended) = step {
                return ended;
            }
        }
    }

    /// Waits for what comes first. Without `--follow`, silence has a bound: the broker says when all is delivered.
    async fn wait(&mut self, signals: &mut EndSignals) -> Event {
        let is_bounded = self.is_ending || !self.follows || !self.unconfirmed.is_empty();
        let until = self.heard + self.timeout;
        tokio::select! {
            event = self.stream.next() => {
                self.heard = Instant::now();
                Event::Stream(event)
            }
            _ = signals.next() => Event::Signal,
            () = tokio::time::sleep_until(until), if is_bounded => Event::Silent,
        }
    }

    async fn take(&mut self, event: ConsumeEvent, signals: &mut EndSignals) -> Result<(), Ended> {
        match event {
            ConsumeEvent::Batch(_) if self.is_ending => Ok(()), // Not written, so not acknowledged.
            ConsumeEvent::Batch(messages) => {
                // A reader that stands still must not keep the command from ending. What it did not read is not
                // acknowledged.
                let written = tokio::select! {
                    written = write(messages, self.is_json) => written.map_err(Ended::Failed)?,
                    _ = signals.next() => return Err(Ended::Failed(Failure::reader_gone())),
                };
                self.settle(written).await
            }
            ConsumeEvent::Acked { confirm_id, refused } => {
                let count = self.unconfirmed.end(confirm_id);
                if let Some(error) = refused {
                    let message = match error.kind.effect() {
                        ptah_types::Effect::Unknown => format!(
                            "{count} messages are written and may or may not be acknowledged; they may come again: {}",
                            error.message
                        ),
                        _ => format!(
                            "{count} messages are written but not acknowledged and will come again: {}",
                            error.message
                        ),
                    };
                    self.refused = Some(ClientError { message, ..error });
                    self.is_ending = true;
                }
                Ok(())
            }
            ConsumeEvent::Idle { unacknowledged } => {
                self.with_others = unacknowledged.saturating_sub(self.unconfirmed.message_count());
                self.is_ending |= !self.follows;
                Ok(())
            }
        }
    }

    /// Acknowledges written messages and lets as many more come.
    async fn settle(&mut self, messages: Vec<Message>) -> Result<(), Ended> {
        self.credit = self.credit.saturating_sub(messages.len() as u64);
        self.heard = Instant::now(); // Writing may have taken long, and is not the broker's silence.
        let count = messages.len() as u64;
        let payload_bytes = messages.iter().map(|message| message.payload.len() as u64).sum();
        self.left = self.left.map(|left| left.saturating_sub(count));
        for (partition, ranges) in ranges_of(&messages) {
            let acked = ranges.iter().map(|range| range.end() - range.start() + 1).sum();
            let confirm_id = self.unconfirmed.begin(acked);
            self.stream
                .ack(partition, &ranges, confirm_id)
                .await
                .map_err(Ended::Lost)?;
        }
        if self.left == Some(0) {
            self.is_ending = true;
            return Ok(());
        }
        let wanted = self
            .left
            .map_or(count, |left| count.min(left.saturating_sub(self.credit)));
        if wanted > 0 || payload_bytes > 0 {
            let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
            self.stream
                .credit(wanted, payload_bytes)
                .await
                .map_err(Ended::Lost)?;
            self.credit += u64::from(wanted);
        }
        Ok(())
    }

    fn silent(&self) -> Ended {
        if !self.unconfirmed.is_empty() {
            return Ended::Failed(self.unconfirmed_failure());
        }
        Ended::Lost(ClientError::new(
            ptah_types::ErrorKind::DeadlineExceeded,
            format!(
                "neither a message nor the end within {} s; look with `ptah station info` whether every partition has a leader",
                self.timeout.as_secs_f64()
            ),
        ))
    }

    fn unconfirmed_failure(&self) -> Failure {
        let count = self.unconfirmed.message_count();
        Failure::of_kind(
            ptah_types::ErrorKind::OutcomeUnknown,
            format!("{count} written messages may or may not be acknowledged; they may come again"),
        )
    }
}

/// Writes messages and flushes, on a thread where a slow reader of stdout stops nothing else.
async fn write(messages: Vec<Message>, is_json: bool) -> Result<Vec<Message>, Failure> {
    let written = tokio::task::spawn_blocking(move || {
        let mut buffer = Vec::new();
        for message in &messages {
            if is_json {
                record::write_json(message, &mut buffer).map_err(io::Error::from)?;
            } else {
                record::write_raw(message, &mut buffer);
            }
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(&buffer)?;
        stdout.flush()?;
        Ok(messages)
    });
    match written.await {
        Ok(Ok(messages)) => Ok(messages),
        Ok(Err(error)) => {
            let error: io::Error = error;
            Err(write_failure(&error))
        }
        Err(error) => Err(Failure::failed(format!("write to stdout: {error}"))),
    }
}
