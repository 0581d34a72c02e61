//! Counters of the storage node, under `ptah_storage`.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use ptah_service::Metrics;

/// Handles of all counters.
#[derive(Clone, Debug)]
pub(crate) struct NodeMetrics {
    /// Batches stored.
    pub(crate) append_batches: Counter,
    /// Messages stored.
    pub(crate) append_messages: Counter,
    /// Payload bytes stored.
    pub(crate) append_bytes: Counter,
    /// From proposing to applying.
    pub(crate) append_seconds: Histogram,
    /// Batches that had been stored before.
    pub(crate) appends_duplicate: Counter,
    /// Batches that were proposed and not stored, or nobody knows.
    pub(crate) appends_failed: Counter,
    /// Batches whose bytes were wrong.
    pub(crate) appends_invalid: Counter,
    /// Batches refused because `append.node_bytes` was reached.
    pub(crate) appends_refused_for_memory: Counter,
    /// Messages handed to gateways.
    pub(crate) delivered_messages: Counter,
    /// Bytes handed to gateways.
    pub(crate) delivered_bytes: Counter,
    /// Messages acknowledged.
    pub(crate) acked_messages: Counter,
    /// Acknowledgements without an answer whose pull was not known any more.
    pub(crate) acks_lost: Counter,
    /// Times that messages went out again because their ack deadline had passed.
    pub(crate) ack_deadlines_passed: Counter,
    /// Messages set aside for a consumer group because they cannot be read.
    pub(crate) set_aside_messages: Counter,
    /// Append streams open.
    pub(crate) append_streams: Gauge,
    /// Delivery streams open.
    pub(crate) deliver_streams: Gauge,
    /// Partitions led.
    pub(crate) partitions_led: Gauge,
    /// 1 while new messages are refused because the disk is nearly full.
    pub(crate) disk_full: Gauge,
    /// Free bytes on the data disk.
    pub(crate) disk_free_bytes: Gauge,
}

impl NodeMetrics {
    /// Registers all counters.
    pub(crate) fn register(metrics: &Metrics) -> Self {
        metrics.prefixed("ptah_storage").register(Self::register_in)
    }

    fn register_in(registry: &mut Registry) -> Self {
        // 100 us to 13 s: from a commit on a fast disk to the deadline of a slow one.
        let append_seconds = Histogram::new(exponential_buckets(0.000_1, 2.0, 18));
        registry.register(
            "append_seconds",
            "Time from proposing a batch to its answer",
            append_seconds.clone(),
        );
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let append_batches = counter("append_batches", "Batches stored");
        let append_messages = counter("append_messages", "Messages stored");
        let append_bytes = counter("append_bytes", "Payload bytes stored");
        let appends_duplicate = counter("appends_duplicate", "Batches that had been stored before");
        let appends_failed = counter("appends_failed", "Batches proposed and not known to be stored");
        let appends_invalid = counter("appends_invalid", "Batches whose bytes were wrong");
        let appends_refused_for_memory =
            counter("appends_refused_for_memory", "Batches refused for lack of memory");
        let delivered_messages = counter("delivered_messages", "Messages handed to gateways");
        let delivered_bytes = counter("delivered_bytes", "Payload bytes handed to gateways");
        let acked_messages = counter("acked_messages", "Messages acknowledged");
        let acks_lost = counter("acks_lost", "Acknowledgements for pulls that are not known");
        let ack_deadlines_passed = counter("ack_deadlines_passed", "Times that ack deadlines passed");
        let set_aside_messages = counter(
            "set_aside_messages",
            "Messages set aside for a consumer group because they cannot be read",
        );
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::<i64>::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        Self {
            append_streams: gauge("append_streams", "Append streams open"),
            deliver_streams: gauge("deliver_streams", "Delivery streams open"),
            partitions_led: gauge("partitions_led", "Partitions led by this node"),
            disk_full: gauge(
                "disk_full",
                "1 while messages are refused because the disk is nearly full",
            ),
            disk_free_bytes: gauge("disk_free_bytes", "Free bytes on the data disk"),
            append_batches,
            append_messages,
            append_bytes,
            append_seconds,
            appends_duplicate,
            appends_failed,
            appends_invalid,
            appends_refused_for_memory,
            delivered_messages,
            delivered_bytes,
            acked_messages,
            acks_lost,
            ack_deadlines_passed,
            set_aside_messages,
        }
    }
}
