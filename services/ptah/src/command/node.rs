//! `ptah node`: list, drain and forget storage nodes.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::args::{Global, NodeArgs, NodeCommand, NodeDrainArgs};
use crate::client::{Client, ClusterStatus, NodeStatus};
use crate::failure::Failure;
use crate::output::{Output, table, table_text};

use super::cluster::node_state;
use super::station::counted;

/// How often a wait looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Serialize)]
struct Listed {
    nodes: Vec<NodeStatus>,
}

#[derive(Serialize)]
struct Done {
    node_id: u64,
    duty: &'static str,
    /// Replicas that are still placed on it; absent when nobody waited for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    placed_replicas: Option<u32>,
}

/// Runs the command.
pub async fn run(args: NodeArgs, global: &Global, output: &Output) -> Result<(), Failure> {
    let client = Client::from_options(global).await?;
    match args.command {
        NodeCommand::Ls => list(&client, output).await,
        NodeCommand::Drain(args) => drain(&client, &args, output).await,
        NodeCommand::Undrain { node } => {
            client.undrain_node(node).await?;
            done(node, "serving", None, output)
        }
        NodeCommand::Forget(args) => {
            client.forget_node(args.node, args.accept_loss).await?;
            done(args.node, "forgotten", None, output)
        }
    }
}

async fn list(client: &Client, output: &Output) -> Result<(), Failure> {
    let nodes = client.cluster_status().await?.nodes;
    output.result(&Listed { nodes }, |listed| {
        let mut table = table(["NODE", "NAME", "ADDRESS", "STATE", "DUTY", "PLACED", "LEADERS"]);
        for node in &listed.nodes {
            table.add_row([
                node.node_id.to_string(),
                node.name.clone(),
                node.address.clone(),
                node_state(node),
                node.duty.to_owned(),
                node.placed_replicas.to_string(),
                node.leaders.to_string(),
            ]);
        }
        table_text(&table)
    })
}

async fn drain(client: &Client, args: &NodeDrainArgs, output: &Output) -> Result<(), Failure> {
    client.drain_node(args.node).await?;
    if !args.wait {
        return done(args.node, "draining", None, output);
    }
    let deadline = Instant::now() + args.wait_timeout;
    let mut told = String::new();
    loop {
        let status = client.cluster_status().await?;
        let (replicas, leaders) = held(&status, args.node)?;
        if replicas == 0 && leaders == 0 {
            return done(args.node, "draining", Some(0), output);
        }
        let left = format!(
            "node {}: {} and {} left",
            args.node,
            counted(u64::from(replicas), "replica"),
            counted(u64::from(leaders), "leader")
        );
        if told != left {
            output.note(&left);
            told = left;
        }
        if Instant::now() + LOOK_INTERVAL > deadline {
            let why: Vec<_> = status.troubles.iter().map(String::as_str).collect();
            return Err(Failure::failed(format!(
                "{told} after {:?}; it goes on in the background ({})",
                args.wait_timeout,
                why.join("; ")
            )));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Replicas and leaders that a node still has.
fn held(status: &ClusterStatus, node: u64) -> Result<(u32, u32), Failure> {
    let found = status.nodes.iter().find(|status| status.node_id == node);
    found
        .map(|node| (node.placed_replicas, node.leaders))
        .ok_or_else(|| Failure::failed(format!("node {node} is not in the cluster any more")))
}

fn done(
    node_id: u64,
    duty: &'static str,
    placed_replicas: Option<u32>,
    output: &Output,
) -> Result<(), Failure> {
    let done = Done {
        node_id,
        duty,
        placed_replicas,
    };
    output.result(&done, |done| match (done.duty, done.placed_replicas) {
        ("draining", Some(_)) => format!("node {node_id} is drained"),
        (duty, _) => format!("node {node_id} is {duty}"),
    })
}
