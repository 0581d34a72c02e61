//! Replicas move while messages pass: dead nodes, lost disks, other numbers of replicas, drained nodes.
#![allow(clippy::disallowed_methods)] // the test owns its tasks and waits for them

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context;
use ptah_integration_tests::check;
use ptah_integration_tests::client::Client;
use ptah_integration_tests::cluster::{Cluster, Layout};
use ptah_integration_tests::load::{Progress, produce_until_stopped};
use ptah_integration_tests::process::{output, programs};
use ptah_integration_tests::{SOON, until};
use serde_json::Value;
use tokio::process::Command;

const STATION: &str = "orders";
const PARTITIONS: u32 = 4;
/// Nodes that are silent for 2 s are replaced.
const EAGER: &str =
    "node_alive_window_ms = 1000\nreport_interval_ms = 200\n[replicas]\nreplace_after_ms = 2000\n";

/// A cluster with a station, and a producer that goes on whatever happens.
struct World {
    cluster: Cluster,
    client: Client,
    progress: Arc<Progress>,
    producing: tokio::task::JoinHandle<anyhow::Result<check::Produced>>,
}

impl World {
    async fn start(nodes: usize, replicas: u32) -> anyhow::Result<Self> {
        let layout = Layout {
            nodes,
            control_config: EAGER.to_owned(),
            ..Layout::default()
        };
        Self::of(layout, replicas).await
    }

    async fn of(layout: Layout, replicas: u32) -> anyhow::Result<Self> {
        let cluster = Cluster::of(layout).await?;
        let client = cluster.client().await?;
        client.create_station(STATION, PARTITIONS, replicas).await?;
        let progress = Arc::new(Progress::default());
        let producing = produce_until_stopped(
            client.clone(),
            STATION.into(),
            "p".into(),
            0,
            256,
            Arc::clone(&progress),
        );
        let world = Self {
            cluster,
            client,
            producing: tokio::spawn(producing),
            progress,
        };
        world.more().await?;
        Ok(world)
    }

    /// Waits until messages still pass.
    async fn more(&self) -> anyhow::Result<()> {
        let now = self.progress.acknowledged();
        self.progress.beyond(now + 2_000, SOON).await?;
        Ok(())
    }

    /// Runs `ptah` and reads its answer.
    async fn ptah(&self, line: &str) -> anyhow::Result<Value> {
        let mut command = Command::new(programs()?.join("ptah"));
        command.args(line.split_whitespace());
        command.args(["--json", "--server", self.cluster.gateway_address()?]);
        let output = output(command, SOON).await?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("ptah {line}"))
    }

    /// What `ptah node ls` shows of a node.
    async fn node(&self, index: usize) -> anyhow::Result<Value> {
        let listed = self.ptah("node ls").await?;
        let nodes = listed["nodes"].as_array().context("no nodes")?;
        let found = nodes.iter().find(|node| node["node_id"] == index as u64 + 1);
        found.cloned().context("the node is not there")
    }

    /// Waits until every partition has `replicas` healthy replicas, none of them on `without`, and nothing changes.
    async fn settled(&self, replicas: usize, without: Option<usize>) -> anyhow::Result<()> {
        until("the replicas are where they are to be", SOON, || async {
            let answer = self
                .client
                .station(STATION)
                .await
                .map_err(|status| status.to_string())?;
            let banned = without.map(|index| index as u64 + 1);
            let is_well = |partition: &ptah_proto::api::v1::PartitionStatus| {
                let nodes: BTreeSet<u64> = partition.replica_node_ids.iter().copied().collect();
                partition.change.is_empty()
                    && nodes.len() == replicas
                    && partition.healthy_replicas == Some(replicas as u32)
                    && partition.leader_node_id != 0
                    && banned
                        .is_none_or(|banned| !nodes.contains(&banned) && partition.leader_node_id != banned)
            };
            match answer
                .partitions
                .into_iter()
                .find(|partition| !is_well(partition))
            {
                None => Ok(()),
                Some(partition) => Err(format!("{partition:?}")),
            }
        })
        .await
    }

    /// Waits until a node that was killed counts as gone.
    async fn silent(&self, index: usize) -> anyhow::Result<()> {
        until("the node is silent", SOON, || async {
            let node = self.node(index).await.map_err(|error| format!("{error:#}"))?;
            match node["alive"].as_bool() {
                Some(false) => Ok(()),
                _ => Err(node.to_string()),
            }
        })
        .await
    }

    /// Waits until a node that is alive reports so many replicas.
    async fn reports(&self, index: usize, replicas: u64) -> anyhow::Result<()> {
        until("the node has the replicas that it is to have", SOON, || async {
            let node = self.node(index).await.map_err(|error| format!("{error:#}"))?;
            match (node["alive"].as_bool(), node["replicas"].as_u64()) {
                (Some(true), Some(count)) if count == replicas => Ok(()),
                _ => Err(node.to_string()),
            }
        })
        .await
    }

    /// Waits until a node has removed all of its replicas.
    async fn emptied(&self, index: usize) -> anyhow::Result<()> {
        self.reports(index, 0).await
    }

    /// Ends the load: nothing acknowledged is missing, doubled or out of order, and a consumer gets all of it.
    async fn finish(self) -> anyhow::Result<()> {
        self.more().await?;
        self.progress.stop();
        let produced = self.producing.await.context("producer panicked")??;
        assert!(
            produced.refused.is_empty() && produced.unknown.is_empty(),
            "the gateway retries by itself: {} refused, {} unknown",
            produced.refused.len(),
            produced.unknown.len()
        );
        let stored = self.client.read_station(STATION).await?;
        check::stored_equals_produced(&produced, &stored)?;
        check::in_order_of_production(&stored)?;
        let received = self.client.drain(STATION, "audit").await?;
        check::received_equals_stored(&received, &stored)?;
        self.cluster.finish().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_is_replaced_and_what_it_had_is_removed_when_it_returns() -> anyhow::Result<()> {
    let mut world = World::start(4, 3).await?;
    let dead = world.cluster.leader(&world.client, STATION, 1).await?;
    world.cluster.nodes[dead].kill().await?;
    world.settled(3, Some(dead)).await?;
    world.more().await?;
    world.cluster.restart_node(dead).await?;
    world.emptied(dead).await?;
    world.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_new_disk_gets_new_replicas_that_count() -> anyhow::Result<()> {
    let mut world = World::start(3, 3).await?;
    world.cluster.nodes[1].kill().await?;
    // A second process under the id of a node that may still be there is refused.
    world.silent(1).await?;
    let dir = world.cluster.node_dir(1);
    std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    world.cluster.restart_node(1).await?;
    world.settled(3, None).await?;
    world.more().await?;
    // With another node gone there is no majority without the new replicas.
    world.cluster.nodes[2].kill().await?;
    world.more().await?;
    world.cluster.restart_node(2).await?;
    world.cluster.ready().await?;
    world.settled(3, None).await?;
    world.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_station_goes_from_1_to_3_to_5_to_3_to_1_replicas_while_it_is_used() -> anyhow::Result<()> {
    let world = World::start(5, 1).await?;
    for replicas in [3, 5, 3, 1] {
        world
            .ptah(&format!(
                "station update {STATION} --replicas {replicas} --wait --wait-timeout 50s"
            ))
            .await?;
        world.settled(replicas, None).await?;
        world.more().await?;
    }
    world.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_leads_and_holds_nothing_and_takes_part_again_afterwards() -> anyhow::Result<()> {
    let world = World::start(4, 3).await?;
    let drained = world.cluster.leader(&world.client, STATION, 1).await?;
    let id = drained + 1;
    world
        .ptah(&format!("node drain {id} --wait --wait-timeout 50s"))
        .await?;
    world.settled(3, Some(drained)).await?;
    world.emptied(drained).await?;
    assert_eq!(world.node(drained).await?["duty"], "draining");
    let refused = world
        .ptah(&format!("node forget {id}"))
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("it is alive"), "{refused}");
    world.ptah(&format!("node undrain {id}")).await?;
    world.client.create_station("later", 4, 3).await?;
    let later = world.client.station("later").await?;
    let used =
        |partition: &ptah_proto::api::v1::PartitionStatus| partition.replica_node_ids.contains(&(id as u64));
    assert!(later.partitions.iter().any(used), "it takes replicas again");
    world.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_during_a_deletion_removes_the_station_when_it_returns() -> anyhow::Result<()> {
    let mut world = World::start(3, 3).await?;
    world.client.create_station("short-lived", 3, 3).await?;
    let all = u64::from(PARTITIONS) + 3;
    world.reports(2, all).await?;
    world.cluster.nodes[2].kill().await?;
    world.ptah("station rm short-lived --yes").await?;
    world.reports(0, u64::from(PARTITIONS)).await?;
    world.cluster.restart_node(2).await?;
    world.reports(2, u64::from(PARTITIONS)).await?;
    world.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_was_paused_while_another_one_took_over_changes_nothing() -> anyhow::Result<()> {
    let layout = Layout {
        nodes: 3,
        controls: 2,
        control_config: format!("lease_ttl_ms = 2000\n{EAGER}"),
        ..Layout::default()
    };
    let world = World::of(layout, 3).await?;
    world.client.create_station("short-lived", 3, 3).await?;
    let decides = |index: usize| -> anyhow::Result<bool> {
        let log = world.cluster.path().join(format!("control-{}/log", index + 1));
        Ok(std::fs::read_to_string(log)?.contains("this control plane decides"))
    };
    let holder = if decides(0)? { 0 } else { 1 };
    assert!(!decides(1 - holder)?, "one of them decides");
    world.cluster.controls[holder].signal("STOP").await?;
    // Only the other one can do that, and the paused one still believes that the station is there.
    world.ptah("station rm short-lived --yes").await?;
    assert!(decides(1 - holder)?);
    world.client.create_station("later", 2, 3).await?;
    for node in 0..3 {
        world.reports(node, u64::from(PARTITIONS) + 2).await?;
    }
    world.cluster.controls[holder].signal("CONT").await?;
    until("the paused one notices", SOON, || async {
        let log = world.cluster.path().join(format!("control-{}/log", holder + 1));
        let log = std::fs::read_to_string(log).unwrap_or_default();
        let noticed = ["another control plane decides now", "the lease is lost"];
        match noticed.iter().any(|line| log.contains(line)) {
            true => Ok(()),
            false => Err("it has not said so"),
        }
    })
    .await?;
    world.more().await?;
    for node in 0..3 {
        world.reports(node, u64::from(PARTITIONS) + 2).await?;
    }
    assert!(
        world.client.station("short-lived").await.is_err(),
        "it stays deleted"
    );
    assert!(world.client.station("later").await.is_ok());
    world.finish().await
}
