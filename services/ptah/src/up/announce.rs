//! The ready line: where each door is.

use std::collections::BTreeMap;

use serde::Serialize;

use super::data_dir::DataDir;
use crate::output::{table, table_text};

/// What `ptah up` says when it is ready. The field names are the JSON output and stay as they are.
#[derive(Debug, Serialize)]
pub(super) struct Announcement {
    ready: bool,
    pid: u32,
    version: &'static str,
    cluster_id: String,
    data_dir: String,
    /// gRPC door for clients.
    grpc: String,
    /// Health and status, HTTP.
    monitor: String,
    /// Prometheus, HTTP.
    metrics: String,
    /// Cluster ports of the storage nodes in order.
    storage_nodes: Vec<String>,
}

impl Announcement {
    /// Out of the addresses that the services told.
    pub(super) fn of(data_dir: &DataDir, addresses: &BTreeMap<String, String>, cluster_id: &str) -> Self {
        let address = |name: &str| addresses.get(name).cloned().unwrap_or_default();
        let nodes = 1..=data_dir.storage_nodes();
        Self {
            ready: true,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION"),
            cluster_id: cluster_id.to_owned(),
            data_dir: data_dir.path().display().to_string(),
            grpc: address("gateway/grpc"),
            monitor: address("monitor"),
            metrics: address("metrics"),
            storage_nodes: nodes
                .map(|number| address(&format!("storage-node-{number}/grpc")))
                .collect(),
        }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut table = table(["DOOR", "ADDRESS", "FOR"]);
        table.add_row(["gRPC", &self.grpc, "clients, and this command (PTAH_SERVER)"]);
        table.add_row(["monitor", &format!("http://{}/status", self.monitor), "health"]);
        table.add_row([
            "metrics",
            &format!("http://{}/metrics", self.metrics),
            "Prometheus",
        ]);
        for (number, address) in (1..).zip(&self.storage_nodes) {
            table.add_row([&format!("storage node {number}"), address, "the cluster itself"]);
        }
        format!(
            "Ptah {} is ready: cluster {}, data in {}\n{}Ctrl-C stops it.\n",
            self.version,
            self.cluster_id,
            self.data_dir,
            table_text(&table)
        )
    }
}
