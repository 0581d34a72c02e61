//! What became of the lines: told while it happens, and summed up at the end.

use std::ops::RangeInclusive;
use std::time::Duration;

use ptah_types::ErrorKind;
use serde::Serialize;

use super::super::station::counted;
use crate::client::ClientError;
use crate::failure::Failure;
use crate::output::Output;
use crate::units::{count_text, size_text};

/// Most failures in the JSON summary; the counts are about all.
const MAX_LISTED: usize = 10_000;

/// The summary. Its field names are the JSON output and stay as they are.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    /// Station.
    station: String,
    /// Lines that were taken from the input.
    lines: u64,
    /// Messages stored on a majority.
    stored: u64,
    /// Lines that are certainly not stored.
    failed: u64,
    /// Lines that may or may not be stored.
    unknown: u64,
    /// Payload bytes of stored messages.
    payload_bytes: u64,
    /// From the first byte to the last answer.
    seconds: f64,
    /// Stored messages per second.
    messages_per_second: f64,
    /// Lines that are not known to be stored; the first 10,000 groups of neighbours with the same reason.
    failures: Vec<FailedLines>,
    /// Groups that are left out of `failures`.
    failures_omitted: u64,
    /// Of the lines that are not stored; one that may pass on another try gives way to one that will not.
    #[serde(skip)]
    worst: Option<ErrorKind>,
}

#[derive(Debug, Serialize)]
struct FailedLines {
    first_line: u64,
    last_line: u64,
    kind: &'static str,
    message: String,
}

impl Summary {
    pub(super) fn new(station: &str) -> Self {
        Self {
            station: station.to_owned(),
            lines: 0,
            stored: 0,
            failed: 0,
            unknown: 0,
            payload_bytes: 0,
            seconds: 0.0,
            messages_per_second: 0.0,
            failures: Vec::new(),
            failures_omitted: 0,
            worst: None,
        }
    }

    pub(super) fn line(&mut self) {
        self.lines += 1;
    }

    /// Lines taken so far, which is the number of the last one.
    pub(super) fn line_count(&self) -> u64 {
        self.lines
    }

    pub(super) fn stored_count(&self) -> u64 {
        self.stored
    }

    pub(super) fn stored(&mut self, count: u64, payload_bytes: u64) {
        self.stored += count;
        self.payload_bytes += payload_bytes;
    }

    /// Lines that are not stored, or not known to be. Returns what a person is told.
    pub(super) fn not_stored(&mut self, lines: &[RangeInclusive<u64>], error: &ClientError) -> Vec<String> {
        let mut told = Vec::with_capacity(lines.len());
        if self.worst.is_none_or(|worst| worst.is_retryable()) {
            self.worst = Some(error.kind);
        }
        for range in lines {
            let count = range.end() - range.start() + 1;
            if error.kind.effect() == ptah_types::Effect::Unknown {
                self.unknown += count;
            } else {
                self.failed += count;
            }
            told.push(format!("{}: {}", range_text(range), error.message));
            if self.failures.len() == MAX_LISTED {
                self.failures_omitted += 1;
                continue;
            }
            self.failures.push(FailedLines {
                first_line: *range.start(),
                last_line: *range.end(),
                kind: error.kind.code(),
                message: error.message.clone(),
            });
        }
        told
    }

    /// Prints the summary; a line that is not stored makes the command fail.
    pub(super) fn finish(mut self, elapsed: Duration, output: &Output) -> Result<(), Failure> {
        self.seconds = elapsed.as_secs_f64();
        self.messages_per_second = self.stored as f64 / self.seconds.max(1e-9);
        output.result(&self, Self::text)?;
        if self.unknown > 0 {
            return Err(Failure::of_kind(
                ErrorKind::OutcomeUnknown,
                format!(
                    "{} may or may not be stored in `{}`; look with `ptah station info` before you repeat them",
                    counted(self.unknown, "line"),
                    self.station
                ),
            ));
        }
        if self.failed > 0 {
            let failed = counted(self.failed, "line");
            return Err(Failure::partial(
                self.worst.unwrap_or(ErrorKind::Internal),
                format!("{failed} not stored in `{}`", self.station),
            ));
        }
        Ok(())
    }

    fn text(&self) -> String {
        let mut text = format!(
            "stored {} in {} ({}, {:.2} s, {}/s)",
            counted(self.stored, "message"),
            self.station,
            size_text(self.payload_bytes),
            self.seconds,
            count_text(self.messages_per_second as u64),
        );
        if self.failed > 0 {
            text.push_str(&format!(", {} not stored", self.failed));
        }
        if self.unknown > 0 {
            text.push_str(&format!(", {} unknown", self.unknown));
        }
        text
    }
}

fn range_text(range: &RangeInclusive<u64>) -> String {
    if range.start() == range.end() {
        return format!("line {}", range.start());
    }
    format!("lines {}-{}", range.start(), range.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_names_its_lines() {
        let mut summary = Summary::new("orders");
        let error = ClientError::new(ErrorKind::TooLarge, "too large");
        let told = summary.not_stored(&[3..=3, 7..=9], &error);
        assert_eq!(told, ["line 3: too large", "lines 7-9: too large"]);
        assert_eq!((summary.failed, summary.unknown), (4, 0));
    }

    #[test]
    fn an_unknown_outcome_is_never_counted_as_failed() {
        let mut summary = Summary::new("orders");
        summary.not_stored(&[1..=2], &ClientError::new(ErrorKind::OutcomeUnknown, "lost"));
        summary.not_stored(&[3..=3], &ClientError::new(ErrorKind::Unavailable, "no leader"));
        assert_eq!((summary.failed, summary.unknown), (1, 2));
        let failure = summary
            .finish(Duration::from_secs(1), &Output::new(false))
            .unwrap_err();
        assert_eq!(failure.exit().code(), 8);
    }
}
