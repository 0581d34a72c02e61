//! `ptah cluster status`: nodes, and how many partitions are well.

use crate::args::{ClusterArgs, ClusterCommand, Global};
use crate::client::{Client, ClusterStatus, NodeStatus};
use crate::failure::Failure;
use crate::output::{Output, table, table_text};
use crate::units::{nanos_text, size_text};

use super::station::counted;

/// Runs the command.
pub async fn run(args: ClusterArgs, global: &Global, output: &Output) -> Result<(), Failure> {
    let ClusterCommand::Status = args.command;
    let client = Client::from_options(global).await?;
    let status = client.cluster_status().await?;
    output.result(&status, status_text)
}

fn status_text(status: &ClusterStatus) -> String {
    let mut text = format!(
        "cluster {} (gateway {}): {}, {}",
        known(&status.cluster_id),
        status.version,
        counted(status.stations, "station"),
        counted(status.partitions, "partition"),
    );
    if status.partitions_without_leader > 0 {
        text.push_str(&format!(", {} without leader", status.partitions_without_leader));
    }
    if status.partitions_under_replicated > 0 {
        text.push_str(&format!(
            ", {} under-replicated",
            status.partitions_under_replicated
        ));
    }
    text.push('\n');
    let mut table = table([
        "NODE",
        "NAME",
        "ADDRESS",
        "STATE",
        "REPLICAS",
        "LEADERS",
        "DISK FREE",
        "VERSION",
    ]);
    for node in &status.nodes {
        table.add_row([
            node.node_id.to_string(),
            node.name.clone(),
            node.address.clone(),
            node_state(node),
            node.replicas.to_string(),
            node.leaders.to_string(),
            disk_text(node),
            known(&node.version).to_owned(),
        ]);
    }
    text.push_str(&table_text(&table));
    for trouble in &status.troubles {
        text.push_str(&format!("trouble: {trouble}\n"));
    }
    for node in &status.nodes {
        for trouble in &node.troubles {
            text.push_str(&format!("trouble on node {}: {trouble}\n", node.node_id));
        }
    }
    text
}

/// A text that the gateway may not know.
fn known(text: &str) -> &str {
    if text.is_empty() { "?" } else { text }
}

fn disk_text(node: &NodeStatus) -> String {
    match (node.disk_free_bytes, node.disk_total_bytes) {
        (Some(free), Some(total)) => format!("{} of {}", size_text(free), size_text(total)),
        _ => "?".to_owned(),
    }
}

pub(super) fn node_state(node: &NodeStatus) -> String {
    if node.alive {
        return "alive".to_owned();
    }
    if node.last_seen_ms_ago == 0 {
        return "never seen".to_owned();
    }
    format!(
        "silent for {}",
        nanos_text(node.last_seen_ms_ago.saturating_mul(1_000_000))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn troubles_of_the_cluster_and_of_nodes_are_shown() {
        let node = NodeStatus {
            node_id: 2,
            name: "storage-2".to_owned(),
            address: "127.0.0.1:6223".to_owned(),
            alive: false,
            version: "0.1.0".to_owned(),
            replicas: 1,
            leaders: 0,
            disk_free_bytes: Some(1 << 30),
            disk_total_bytes: Some(2 << 30),
            last_seen_ms_ago: 12_000,
            troubles: vec!["replica damaged".to_owned()],
            duty: "serving",
            placed_replicas: 1,
        };
        let status = ClusterStatus {
            cluster_id: "c".to_owned(),
            version: "0.1.0".to_owned(),
            nodes: vec![node],
            stations: 1,
            partitions: 2,
            partitions_without_leader: 1,
            partitions_under_replicated: 0,
            troubles: vec!["node 2 is silent".to_owned()],
        };
        let text = status_text(&status);
        for part in [
            "1 without leader",
            "silent for 12.00 s",
            "trouble: node 2",
            "trouble on node 2: replica damaged",
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        assert!(!text.contains("under-replicated"));
    }

    #[test]
    fn what_is_not_known_is_a_question_mark_and_no_number() {
        let node = NodeStatus {
            node_id: 1,
            name: "storage-1".to_owned(),
            address: "127.0.0.1:6222".to_owned(),
            alive: true,
            version: String::new(),
            replicas: 0,
            leaders: 0,
            disk_free_bytes: None,
            disk_total_bytes: None,
            last_seen_ms_ago: 0,
            troubles: Vec::new(),
            duty: "serving",
            placed_replicas: 0,
        };
        let status = ClusterStatus {
            cluster_id: String::new(),
            version: "0.1.0".to_owned(),
            nodes: vec![node],
            stations: 0,
            partitions: 0,
            partitions_without_leader: 0,
            partitions_under_replicated: 0,
            troubles: Vec::new(),
        };
        let text = status_text(&status);
        assert!(text.starts_with("cluster ? "), "{text}");
        let row = text.lines().find(|line| line.contains("storage-1")).unwrap();
        assert_eq!(row.matches('?').count(), 2, "{text}");
        assert!(!text.contains("0 B"), "{text}");
    }
}
