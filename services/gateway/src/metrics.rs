//! Counters of the gateway, under `ptah_gateway_`.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use ptah_service::Metrics;

/// All counters, handed out to the parts that count.
#[derive(Clone)]
pub struct GatewayMetrics {
    /// Sign-in.
    pub auth: AuthMetrics,
    /// Copy of the metadata.
    pub catalog: CatalogMetrics,
    /// Leader tables.
    pub routing: RoutingMetrics,
    /// Messages in.
    pub produce: ProduceMetrics,
    /// Batches to storage nodes.
    pub append: AppendMetrics,
    /// Messages out.
    pub consume: ConsumeMetrics,
}

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty = $metric:literal, $help:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Default)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $kind,)*
        }

        impl $name {
            fn register(registry: &mut Registry) -> Self {
                let metrics = Self::default();
                $(registry.register($metric, $help, metrics.$field.clone());)*
                metrics
            }
        }
    };
}

counters! {
    /// Sign-in.
    AuthMetrics {
        /// Passwords found in the cache.
        cached: Counter = "sign_ins_cached", "Sign-ins answered from the cache of verified passwords";
        /// Passwords verified by hash.
        verified: Counter = "sign_ins_verified", "Passwords verified by their hash";
        /// Refused.
        failed: Counter = "sign_ins_failed", "Sign-ins refused for wrong credentials";
        /// Too many at once.
        rejected: Counter = "sign_ins_rejected", "Sign-ins refused because too many wait";
    }
}

counters! {
    /// Copy of the metadata.
    CatalogMetrics {
        /// 1 while the watch is open.
        connected: Gauge = "catalog_connected", "Whether the metadata watch is open";
        /// Revision reached.
        revision: Gauge = "catalog_revision", "Metadata revision that the catalog has reached";
        /// Whole copies.
        loads: Counter = "catalog_loads", "Times that the whole catalog was listed";
        /// Changes taken in.
        changes: Counter = "catalog_changes", "Changed records taken in";
        /// Broken watches.
        failures: Counter = "catalog_failures", "Metadata connections that failed";
    }
}

counters! {
    /// Leader tables.
    RoutingMetrics {
        /// Nodes whose table is being received.
        connected_nodes: Gauge = "routing_connected_nodes", "Storage nodes whose leader table is being received";
        /// Claims taken in.
        changes: Counter = "routing_changes", "Leader claims taken in";
        /// Broken watches.
        failures: Counter = "routing_failures", "Leader watches that failed";
    }
}

counters! {
    /// Messages in.
    ProduceMetrics {
        /// Messages taken.
        messages: Counter = "produce_messages", "Messages taken from clients";
        /// Bytes taken.
        bytes: Counter = "produce_bytes", "Bytes of messages taken from clients";
        /// Refused before they were sent to a partition.
        refused: Counter = "produce_refused", "Groups of messages refused before they were sent to a partition";
        /// Produce streams now.
        streams: Gauge = "produce_streams", "Produce streams open now";
    }
}

/// Batches to storage nodes.
#[derive(Clone)]
pub struct AppendMetrics {
    /// Batches built.
    pub batches: Counter,
    /// Messages per batch.
    pub batch_messages: Histogram,
    /// Refusals of nodes.
    pub refusals: Counter,
    /// Batches given up with an unknown outcome.
    pub unknown: Counter,
    /// Answers out of order.
    pub out_of_order: Counter,
    /// Streams to nodes that ended.
    pub links_lost: Counter,
}

impl Default for AppendMetrics {
    fn default() -> Self {
        Self {
            batches: Counter::default(),
            batch_messages: Histogram::new([1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0]),
            refusals: Counter::default(),
            unknown: Counter::default(),
            out_of_order: Counter::default(),
            links_lost: Counter::default(),
        }
    }
}

impl AppendMetrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "append_batches",
            "Batches sent to partitions",
            metrics.batches.clone(),
        );
        let help = "Messages per batch";
        registry.register("append_batch_messages", help, metrics.batch_messages.clone());
        let help = "Batches and channels refused by storage nodes";
        registry.register("append_refusals", help, metrics.refusals.clone());
        let help = "Batches given up without knowing whether they are stored";
        registry.register("append_unknown_outcomes", help, metrics.unknown.clone());
        let help = "Answers of storage nodes that came out of order";
        registry.register("append_out_of_order_answers", help, metrics.out_of_order.clone());
        let help = "Append streams that ended or could not be opened";
        registry.register("append_links_lost", help, metrics.links_lost.clone());
        metrics
    }
}

counters! {
    /// Messages out.
    ConsumeMetrics {
        /// Messages handed to clients.
        messages: Counter = "consume_messages", "Messages handed to clients";
        /// Deliveries given back for want of memory.
        parked: Counter = "consume_parked", "Deliveries given back because buffers were full";
        /// Clients cut off.
        cut: Counter = "consume_clients_cut", "Clients cut off because they did not read while others waited for memory";
        /// Pulls opened.
        pulls: Counter = "consume_pulls", "Pulls opened at storage nodes";
        /// Acknowledged sequences forwarded.
        acks: Counter = "consume_acks", "Acknowledged sequences forwarded";
        /// Acknowledgements refused.
        acks_refused: Counter = "consume_acks_refused", "Acknowledgements without room to wait for their partitions";
        /// Consume streams now.
        streams: Gauge = "consume_streams", "Consume streams open now";
        /// Damaged deliveries.
        damaged: Counter = "consume_damaged", "Deliveries whose checksum or format was wrong";
    }
}

impl GatewayMetrics {
    /// Registers all counters.
    pub fn new(metrics: &Metrics) -> Self {
        metrics.prefixed("ptah_gateway").register(|registry| Self {
            auth: AuthMetrics::register(registry),
            catalog: CatalogMetrics::register(registry),
            routing: RoutingMetrics::register(registry),
            produce: ProduceMetrics::register(registry),
            append: AppendMetrics::register(registry),
            consume: ConsumeMetrics::register(registry),
        })
    }
}
