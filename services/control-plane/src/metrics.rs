//! What the control plane counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use ptah_service::Metrics as Registry;
use ptah_types::{Boundary, Effect};

use crate::error::ControlError;

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByOutcome {
    outcome: &'static str,
}

/// Handles of all metrics.
#[derive(Clone)]
pub struct Metrics {
    decisions: Family<ByOutcome, Counter>,
    orders: Family<ByOutcome, Counter>,
    nodes_alive: Gauge,
}

impl Metrics {
    /// Registers everything under the service's prefix.
    pub fn new(registry: &Registry) -> Self {
        let this = Self {
            decisions: Family::default(),
            orders: Family::default(),
            nodes_alive: Gauge::default(),
        };
        registry.prefixed("ptah_control_plane").register(|registry| {
            registry.register(
                "decisions",
                "Management calls and registrations",
                this.decisions.clone(),
            );
            registry.register("orders", "Orders to storage nodes", this.orders.clone());
            let help = "Storage nodes that report to this control plane";
            registry.register("nodes_alive", help, this.nodes_alive.clone());
        });
        this
    }

    /// Counts a decision.
    pub(crate) fn decided(&self, error: Option<&ControlError>) {
        let outcome = match error.map(|error| error.kind().effect()) {
            None => "done",
            Some(Effect::None) => "refused",
            Some(Effect::Unknown) => "unknown",
        };
        self.decisions.get_or_create(&ByOutcome { outcome }).inc();
    }

    /// Counts an order.
    pub(crate) fn ordered(&self, taken: bool) {
        let outcome = if taken { "done" } else { "refused" };
        self.orders.get_or_create(&ByOutcome { outcome }).inc();
    }

    pub(crate) fn nodes_alive(&self, count: usize) {
        self.nodes_alive.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
