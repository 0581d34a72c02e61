//! What a run found, for people and for machines.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::cpu::Used;
use super::verify::Verdict;
use crate::units::{count_text, nanos_text, size_text};

/// The result of `ptah bench produce`. The field names are the JSON output and stay as they are.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) station: String,
    pub(super) partitions: u32,
    pub(super) replicas: u32,
    pub(super) messages: u64,
    pub(super) size_bytes: u64,
    pub(super) connections: u32,
    /// Messages without an answer, per connection; 1 with `--latency`.
    pub(super) window: u32,
    pub(super) keys: Option<u32>,
    /// Messages that the server acknowledged.
    pub(super) stored: u64,
    /// Messages that it refused.
    pub(super) refused: u64,
    /// Messages whose outcome is not known.
    pub(super) unknown: u64,
    /// Errors in words, and how many messages each was about.
    pub(super) errors: BTreeMap<String, u64>,
    /// From the first message to the last answer.
    pub(super) seconds: f64,
    pub(super) messages_per_second: f64,
    /// Payload only; a megabyte is 1,000,000 bytes.
    pub(super) megabytes_per_second: f64,
    /// From handing a message to the connection to its answer.
    pub(super) latency: Latency,
    /// One synced write of the same size, measured beside each message.
    pub(super) disk: Option<Latency>,
    /// Requests that carried the messages.
    pub(super) batches: u64,
    /// CPU time of this client.
    pub(super) client_cpu: Used,
    /// CPU time of the given processes.
    pub(super) server_cpu: Option<ServerCpu>,
    pub(super) fsyncs: Option<Fsyncs>,
    pub(super) verified: Verdict,
    /// Reading back and comparing.
    pub(super) verify_seconds: f64,
    pub(super) verify_messages_per_second: f64,
}

/// Times in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Latency {
    pub(super) samples: u64,
    pub(super) mean_us: f64,
    pub(super) p50_us: f64,
    pub(super) p90_us: f64,
    pub(super) p99_us: f64,
    pub(super) p999_us: f64,
    pub(super) max_us: f64,
}

/// CPU time of the servers.
#[derive(Debug, Serialize)]
pub(super) struct ServerCpu {
    pub(super) processes: Vec<Used>,
    pub(super) cpu_seconds: f64,
    pub(super) us_per_message: f64,
}

/// How often the servers waited for the disk.
#[derive(Debug, Serialize)]
pub(super) struct Fsyncs {
    pub(super) count: f64,
    pub(super) messages_per_fsync: f64,
}

impl Latency {
    pub(super) fn of(histogram: &Histogram<u64>) -> Self {
        let us = |nanos: u64| nanos as f64 / 1e3;
        Self {
            samples: histogram.len(),
            mean_us: histogram.mean() / 1e3,
            p50_us: us(histogram.value_at_quantile(0.5)),
            p90_us: us(histogram.value_at_quantile(0.9)),
            p99_us: us(histogram.value_at_quantile(0.99)),
            p999_us: us(histogram.value_at_quantile(0.999)),
            max_us: us(histogram.max()),
        }
    }

    fn text(&self) -> String {
        let time = |us: f64| nanos_text((us * 1e3) as u64);
        format!(
            "p50 {}, p99 {}, p99.9 {}, max {}",
            time(self.p50_us),
            time(self.p99_us),
            time(self.p999_us),
            time(self.max_us)
        )
    }
}

impl ServerCpu {
    pub(super) fn of(processes: Vec<Used>) -> Self {
        Self {
            cpu_seconds: processes.iter().map(|used| used.cpu_seconds).sum(),
            us_per_message: processes.iter().map(|used| used.us_per_message).sum(),
            processes,
        }
    }
}

impl Report {
    pub(super) fn text(&self) -> String {
        let mut lines = vec![
            format!(
                "{} messages of {} to `{}` ({} partitions, {} replicas), {} connections, window {}",
                count_text(self.messages),
                size_text(self.size_bytes),
                self.station,
                self.partitions,
                self.replicas,
                self.connections,
                self.window
            ),
            format!(
                "stored    {} in {:.2} s: {} msg/s, {:.1} MB/s, {} batches",
                count_text(self.stored),
                self.seconds,
                count_text(self.messages_per_second as u64),
                self.megabytes_per_second,
                count_text(self.batches)
            ),
            format!("latency   {}", self.latency.text()),
        ];
        if let Some(disk) = &self.disk {
            lines.push(format!(
                "disk      {} (one synced write of the same size)",
                disk.text()
            ));
        }
        lines.push(format!(
            "client    {:.2} us of CPU per message",
            self.client_cpu.us_per_message
        ));
        if let Some(cpu) = &self.server_cpu {
            lines.extend(self.cpu_lines(cpu));
        }
        if let Some(fsyncs) = &self.fsyncs {
            lines.push(format!(
                "fsyncs    {}, {:.1} messages for each",
                count_text(fsyncs.count as u64),
                fsyncs.messages_per_fsync
            ));
        }
        if self.refused + self.unknown > 0 {
            lines.push(format!(
                "refused   {}, outcome unknown {}",
                self.refused, self.unknown
            ));
            lines.extend(
                self.errors
                    .iter()
                    .map(|(text, count)| format!("          {count} x {text}")),
            );
        }
        lines.extend(self.verdict_lines());
        lines.join("\n")
    }

    fn cpu_lines(&self, cpu: &ServerCpu) -> Vec<String> {
        let mut lines = vec![format!(
            "server    {:.2} us of CPU per message",
            cpu.us_per_message
        )];
        for process in &cpu.processes {
            lines.push(format!(
                "          {:.2} us {} ({})",
                process.us_per_message, process.name, process.pid
            ));
        }
        lines
    }

    fn verdict_lines(&self) -> Vec<String> {
        let verdict = &self.verified;
        let word = if verdict.is_good() {
            "every acknowledged message once and in order"
        } else {
            "VIOLATIONS"
        };
        let mut lines = vec![format!(
            "verified  {} read back in {:.2} s ({} msg/s): {word}",
            count_text(verdict.read),
            self.verify_seconds,
            count_text(self.verify_messages_per_second as u64)
        )];
        lines.extend(verdict.violations.iter().map(|text| format!("          {text}")));
        lines
    }
}
