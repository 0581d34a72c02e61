//! Counters of a server.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use ptah_service::Metrics;

/// Upper bounds in seconds, from a call in memory to one that waits for a disk under load.
const DURATION_BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0,
];

/// Handles on the counters. Clones count into the same.
#[derive(Clone)]
pub(super) struct ServerMetrics {
    calls: Family<CallLabels, Counter>,
    durations: Family<ServiceLabel, Histogram, fn() -> Histogram>,
    pub(super) connections: Gauge,
    pub(super) connections_refused: Counter,
    pub(super) panics: Counter,
    /// Services that are served. Anything else that callers ask for counts as `other`, so that they cannot make
    /// new label values.
    known: Arc<BTreeSet<&'static str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    service: &'static str,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabel {
    service: &'static str,
}

/// How a call began: errors of streams that come later are the service's to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Outcome {
    Answered,
    Failed,
    Refused,
}

impl EncodeLabelValue for Outcome {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        let text = match self {
            Self::Answered => "answered",
            Self::Failed => "failed",
            Self::Refused => "refused",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

fn histogram() -> Histogram {
    Histogram::new(DURATION_BUCKETS)
}

impl ServerMetrics {
    /// Counters of the server that listens at `listener`, under that label: one process may have several servers, and
    /// two samples of the same name and labels are not allowed on a metrics page.
    pub(super) fn new(metrics: Option<&Metrics>, listener: &str, services: &[&'static str]) -> Self {
        let made = Self {
            calls: Family::default(),
            durations: Family::new_with_constructor(histogram),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            panics: Counter::default(),
            known: Arc::new(services.iter().copied().collect()),
        };
        if let Some(metrics) = metrics {
            made.register(&metrics.labelled("listener", listener));
        }
        made
    }

    fn register(&self, metrics: &Metrics) {
        metrics.prefixed("ptah_rpc_server").register(|registry| {
            registry.register("calls", "Calls by how they began", self.calls.clone());
            registry.register(
                "call_duration_seconds",
                "Time until a handler answered or its stream began",
                self.durations.clone(),
            );
            registry.register("connections", "Open connections", self.connections.clone());
            registry.register(
                "connections_refused",
                "Connections closed because there were too many",
                self.connections_refused.clone(),
            );
            registry.register("panics", "Handlers that panicked", self.panics.clone());
        });
    }

    /// Counts a call of `path` (`/package.Service/Method`).
    pub(super) fn count(&self, path: &str, outcome: Outcome, took: Duration) {
        let asked = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        let service = self.known.get(asked).copied().unwrap_or("other");
        self.calls.get_or_create(&CallLabels { service, outcome }).inc();
        let label = ServiceLabel { service };
        self.durations.get_or_create(&label).observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_one_process_do_not_share_samples() {
        let metrics = Metrics::new();
        for listener in ["127.0.0.1:6222", "127.0.0.1:6224"] {
            let server = ServerMetrics::new(Some(&metrics), listener, &["ptah.test.v1.Test"]);
            server.count("/ptah.test.v1.Test/Call", Outcome::Answered, Duration::ZERO);
        }
        let text = metrics.render();
        let mut seen = BTreeSet::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let sample = line.rsplit_once(' ').unwrap().0;
            assert!(seen.insert(sample), "{sample} is there twice in\n{text}");
        }
        assert!(
            seen.contains("ptah_rpc_server_connections{listener=\"127.0.0.1:6222\"}"),
            "{text}"
        );
    }
}
