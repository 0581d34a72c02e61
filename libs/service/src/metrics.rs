//! Metrics: one registry per process, handed down with a prefix per component.
//!
//! A component makes its own struct of handles and registers it once. Several instances of a component in one
//! process (storage nodes of `ptah up`) register the same names under different labels; [`Metrics::render`] joins
//! them into one family each, because a family may be described only once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

/// Handle on the registry of the process. Clones and derived handles write to the same registry.
#[derive(Clone, Default)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    prefix: Option<Arc<str>>,
    labels: Arc<[(String, String)]>,
}

impl Metrics {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names registered through the result start with `prefix` and `_`.
    #[must_use]
    pub fn prefixed(&self, prefix: &str) -> Self {
        let prefix = match &self.prefix {
            Some(outer) => format!("{outer}_{prefix}").into(),
            None => prefix.into(),
        };
        Self {
            prefix: Some(prefix),
            ..self.clone()
        }
    }

    /// Metrics registered through the result carry the label.
    #[must_use]
    pub fn labelled(&self, name: &str, value: &str) -> Self {
        let added = (name.to_owned(), value.to_owned());
        Self {
            labels: self.labels.iter().cloned().chain([added]).collect(),
            ..self.clone()
        }
    }

    /// Lets `register` put metrics into the registry, under this handle's prefix and labels.
    pub fn register<R>(&self, register: impl FnOnce(&mut Registry) -> R) -> R {
        let mut root = self.registry.lock();
        let labels = self
            .labels
            .iter()
            .map(|(name, value)| (name.clone().into(), value.clone().into()));
        let labelled = root.sub_registry_with_labels(labels);
        match &self.prefix {
            Some(prefix) => register(labelled.sub_registry_with_prefix(prefix)),
            None => register(labelled),
        }
    }

    /// All metrics as OpenMetrics text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a `String` cannot fail; a metric that refuses to be written leaves the text short.
        if let Err(error) = encode(&mut text, &self.registry.lock()) {
            tracing::error!(%error, "metrics cannot be written");
        }
        join_families(&text)
    }
}

/// Puts the samples of equally named families behind the first description of the family.
fn join_families(text: &str) -> String {
    let mut order: Vec<&str> = Vec::new();
    let mut families: BTreeMap<&str, (String, String)> = BTreeMap::new();
    let mut current = "";
    for line in text.lines().filter(|line| *line != "# EOF") {
        let described = line.strip_prefix("# ").and_then(|rest| rest.split(' ').nth(1));
        if let Some(name) = described {
            current = name;
            if !families.contains_key(name) {
                order.push(name);
            }
        }
        let (head, samples) = families.entry(current).or_default();
        if described.is_none() {
            push_line(samples, line);
        } else if !head.lines().any(|known| same_kind(known, line)) {
            push_line(head, line);
        }
    }
    let mut joined = String::with_capacity(text.len());
    for name in order {
        if let Some((head, samples)) = families.get(name) {
            joined.push_str(head);
            joined.push_str(samples);
        }
    }
    joined.push_str("# EOF\n");
    joined
}

fn push_line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// Whether two description lines are of one kind: `HELP`, `TYPE` or `UNIT`.
fn same_kind(a: &str, b: &str) -> bool {
    a.split(' ').nth(1) == b.split(' ').nth(1)
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .field("prefix", &self.prefix)
            .field("labels", &self.labels)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    fn counter(metrics: &Metrics) -> Counter {
        let counter = Counter::default();
        metrics.register(|registry| registry.register("appends", "Appends", counter.clone()));
        counter
    }

    #[test]
    fn prefixes_and_labels_reach_the_text() {
        let metrics = Metrics::new();
        counter(&metrics.prefixed("ptah_storage").labelled("node", "1")).inc_by(3);
        let text = metrics.render();
        assert!(text.contains("# TYPE ptah_storage_appends counter\n"), "{text}");
        assert!(
            text.contains("ptah_storage_appends_total{node=\"1\"} 3\n"),
            "{text}"
        );
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_family_of_two_instances_is_described_once() {
        let metrics = Metrics::new();
        for node in ["1", "2"] {
            let node = metrics.prefixed("ptah_storage").labelled("node", node);
            counter(&node).inc();
        }
        let expected = "# HELP ptah_storage_appends Appends.\n\
                        # TYPE ptah_storage_appends counter\n\
                        ptah_storage_appends_total{node=\"1\"} 1\n\
                        ptah_storage_appends_total{node=\"2\"} 1\n\
                        # EOF\n";
        assert_eq!(metrics.render(), expected);
    }
}
