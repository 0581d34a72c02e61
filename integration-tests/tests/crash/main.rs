//! Real processes killed without warning, again and again: one node, then all nodes at once.
#![allow(clippy::disallowed_methods)] // the test owns its tasks and waits for them

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ptah_integration_tests::check::{self, Produced};
use ptah_integration_tests::client::Client;
use ptah_integration_tests::cluster::Cluster;
use ptah_integration_tests::load::{Progress, produce_until_stopped};
use tokio::task::JoinHandle;

const ROUNDS: u64 = 8;
const PATIENCE: Duration = Duration::from_secs(60);

struct Producer {
    station: &'static str,
    progress: Arc<Progress>,
    task: JoinHandle<anyhow::Result<Produced>>,
}

impl Producer {
    fn start(client: &Client, station: &'static str) -> Self {
        let progress = Arc::new(Progress::default());
        let producing = produce_until_stopped(
            client.clone(),
            station.into(),
            station.into(),
            0,
            200,
            progress.clone(),
        );
        Self {
            station,
            progress,
            task: tokio::spawn(producing),
        }
    }

    async fn goes_on(&self, count: u64) -> anyhow::Result<()> {
        let before = self.progress.acknowledged();
        self.progress
            .beyond(before + count, PATIENCE)
            .await
            .with_context(|| self.station)?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_killed_one_by_one_and_all_at_once_keep_everything_acknowledged() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let client = cluster.client().await?;
    client.create_station("single", 4, 1).await?;
    client.create_station("triple", 4, 3).await?;
    let producers = [
        Producer::start(&client, "single"),
        Producer::start(&client, "triple"),
    ];

    for round in 0..ROUNDS {
        for producer in &producers {
            // Another amount of work before each kill, so that it hits another moment.
            producer.goes_on(300 + 170 * round).await?;
        }
        let victims: Vec<usize> = if round % 2 == 0 {
            vec![0, 1, 2]
        } else {
            vec![(round as usize / 2) % 3]
        };
        for node in &victims {
            cluster.nodes[*node].kill().await?;
        }
        for node in &victims {
            cluster.restart_node(*node).await?;
        }
        cluster.ready().await?;
    }
    for producer in &producers {
        producer.goes_on(500).await?;
        producer.progress.stop();
    }
    for producer in producers {
        let station = producer.station;
        let produced = producer
            .task
            .await
            .context("producer panicked")?
            .context(station)?;
        let stored = client.read_station(station).await?;
        check::stored_equals_produced(&produced, &stored).context(station)?;
        let received = client.drain(station, "audit").await.context(station)?;
        check::received_equals_stored(&received, &stored).context(station)?;
        check::in_order_of_production(&stored).context(station)?;
    }
    cluster.finish().await
}
