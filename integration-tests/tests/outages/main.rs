//! Outages of every service of a whole cluster while real records pass: nothing acknowledged is missing, doubled or
//! reordered, and what was confirmed by a group does not come again.
#![allow(clippy::disallowed_methods)] // the tests own their tasks and wait for them

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ptah_integration_tests::client::{Client, message};
use ptah_integration_tests::cluster::{Cluster, Layout, Service};
use ptah_integration_tests::links::Fault;
use ptah_integration_tests::load::Progress;
use ptah_integration_tests::postgres::Server;
use ptah_integration_tests::traffic::{self, Consumed, Gateways};
use ptah_integration_tests::{SOON, check, records, until};
use tokio::task::JoinHandle;

const STATION: &str = "records";
const PARTITIONS: u32 = 6;
/// Kills of the node that leads most.
const KILLS: usize = 20;
/// Messages that pass during every outage, and after it.
const MESSAGES: u64 = 300;
/// Longest time for them.
const LIMIT: Duration = Duration::from_secs(30);

/// A producer and a consumer that go on through everything.
struct Traffic {
    produced: Arc<Progress>,
    consumed: Arc<Progress>,
    producing: JoinHandle<anyhow::Result<check::Produced>>,
    consuming: JoinHandle<anyhow::Result<Consumed>>,
}

impl Traffic {
    async fn start(cluster: &Cluster, client: &Client) -> anyhow::Result<Self> {
        client.create_station(STATION, PARTITIONS, 3).await?;
        let doors = cluster.gateway_doors()?;
        let back = doors.iter().rev().cloned().collect();
        let (produced, consumed) = (Arc::new(Progress::default()), Arc::new(Progress::default()));
        let producing = tokio::spawn(traffic::produce(
            Gateways::new(doors),
            STATION.to_owned(),
            "p".to_owned(),
            records::load()?,
            Arc::clone(&produced),
        ));
        let consuming = tokio::spawn(traffic::consume(
            Gateways::new(back),
            STATION.to_owned(),
            "all".to_owned(),
            Arc::clone(&consumed),
        ));
        Ok(Self {
            produced,
            consumed,
            producing,
            consuming,
        })
    }

    /// Waits until so many more messages were acknowledged.
    async fn passes(&self, what: &str) -> anyhow::Result<()> {
        let before = self.produced.acknowledged();
        let passed = self.produced.beyond(before + MESSAGES, LIMIT).await;
        passed.map(|_| ()).with_context(|| what.to_owned())
    }

    /// Waits until the consumer's group exists and got something.
    async fn group_is_known(&self, client: &Client) -> anyhow::Result<()> {
        client.drain(STATION, "audit").await.map(|_| ())
    }

    /// Ends it, and compares what was acknowledged, what is stored, and what the groups got.
    async fn check(self, client: &Client) -> anyhow::Result<()> {
        self.produced.stop();
        let produced = self.producing.await.context("producer panicked")??;
        self.consumed.stop();
        let consumed = self.consuming.await.context("consumer panicked")??;
        let stored = client.read_station(STATION).await?;
        check::stored_equals_produced(&produced, &stored)?;
        // What was given up on one gateway may be stored behind what went to the next one.
        check::in_order_of_production(&produced.by_partition())?;
        let all: BTreeMap<(u32, u64), _> = stored
            .iter()
            .flat_map(|(partition, messages)| {
                let place =
                    |(sequence, payload): &(u64, bytes::Bytes)| ((*partition, *sequence), payload.clone());
                messages.iter().map(place)
            })
            .collect();
        assert!(
            consumed.messages == all,
            "the group has what is stored, and nothing else"
        );
        check::received_equals_stored(&client.drain(STATION, "auditors").await?, &stored)
    }
}

/// Index of the node that leads most partitions.
async fn busiest(client: &Client) -> anyhow::Result<Option<usize>> {
    let mut leads: BTreeMap<u64, usize> = BTreeMap::new();
    for status in client.station(STATION).await?.partitions {
        *leads.entry(status.leader_node_id).or_default() += 1;
    }
    leads.remove(&0);
    let most = leads.into_iter().max_by_key(|(_, count)| *count);
    Ok(most.map(|(node, _)| node as usize - 1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_that_leads_most_is_killed_twenty_times() -> anyhow::Result<()> {
    let (mut database, layout) = whole().await?;
    let mut cluster = Cluster::of(layout).await?;
    let client = cluster.client().await?;
    let traffic = Traffic::start(&cluster, &client).await?;
    traffic.passes("before any outage").await?;
    for kill in 0..KILLS {
        let node = busiest(&client).await?.context("nobody leads")?;
        cluster.nodes[node].kill().await?;
        traffic
            .passes(&format!("kill {kill}: without node {node}"))
            .await?;
        cluster.restart_node(node).await?;
        cluster.nodes[node].ready().await?;
    }
    traffic.check(&client).await?;
    cluster.finish().await?;
    database.stop().await
}

/// Ways to lose a process.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Stopped,
    Killed,
    Frozen,
    CutOff,
    Deaf,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_service_in_turn_is_stopped_killed_frozen_cut_off_and_brought_back() -> anyhow::Result<()> {
    let (mut database, layout) = whole().await?;
    let mut cluster = Cluster::of(layout.clone()).await?;
    let client = cluster.client().await?;
    let traffic = Traffic::start(&cluster, &client).await?;
    traffic.passes("before any outage").await?;
    for (service, count) in [
        (Service::Storage, layout.nodes),
        (Service::Gateway, layout.gateways),
        (Service::Control, layout.controls),
        (Service::Metadata, layout.metadata),
    ] {
        for index in 0..count {
            for loss in [
                Loss::Stopped,
                Loss::Killed,
                Loss::Frozen,
                Loss::CutOff,
                Loss::Deaf,
            ] {
                let what = format!("{} {loss:?}", service.name(index));
                lose(&mut cluster, service, index, loss)
                    .await
                    .context(what.clone())?;
                traffic.passes(&what).await?;
                bring_back(&mut cluster, service, index, loss)
                    .await
                    .context(what.clone())?;
                traffic.passes(&format!("{what} and brought back")).await?;
            }
        }
    }
    let client = cluster.client().await?;
    traffic.check(&client).await?;
    cluster.finish().await?;
    database.stop().await
}

async fn lose(cluster: &mut Cluster, service: Service, index: usize, loss: Loss) -> anyhow::Result<()> {
    let name = service.name(index);
    let everybody = cluster.everybody();
    match loss {
        Loss::Stopped => cluster.process(service, index).stop().await?,
        Loss::Killed => cluster.process(service, index).kill().await?,
        Loss::Frozen => cluster.process(service, index).signal("STOP").await?,
        Loss::CutOff => cluster.links.isolate(&name, Fault::Cut, &everybody),
        Loss::Deaf => {
            for other in everybody.iter().filter(|other| **other != name) {
                cluster.links.set(other, &name, Fault::CutForward);
                cluster.links.set(&name, other, Fault::CutBackward);
            }
        }
    }
    Ok(())
}

async fn bring_back(cluster: &mut Cluster, service: Service, index: usize, loss: Loss) -> anyhow::Result<()> {
    match loss {
        Loss::Stopped | Loss::Killed => cluster.restart(service, index).await?,
        Loss::Frozen => cluster.process(service, index).signal("CONT").await?,
        Loss::CutOff | Loss::Deaf => cluster.links.heal(),
    }
    cluster.process(service, index).ready().await
}

/// Metadata, its database and all control planes are gone. Meanwhile a leader dies, a storage node and a gateway start
/// again, and a new client signs in, produces and consumes. Afterwards management works, and did nothing twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_pass_without_metadata_its_database_and_control_planes() -> anyhow::Result<()> {
    let (mut database, layout) = whole().await?;
    let mut cluster = Cluster::of(layout).await?;
    let client = cluster.client().await?;
    client.create_station("before", 3, 3).await?;
    let traffic = Traffic::start(&cluster, &client).await?;
    traffic.passes("before any outage").await?;
    traffic.group_is_known(&client).await?;

    for control in &mut cluster.controls {
        control.kill().await?;
    }
    for metadata in &mut cluster.metadata {
        metadata.kill().await?;
    }
    database.kill().await?;
    traffic
        .passes("without metadata, database and control planes")
        .await?;

    let leader = busiest(&client).await?.context("nobody leads")?;
    cluster.nodes[leader].kill().await?;
    traffic.passes("a leader died meanwhile").await?;
    cluster.restart_node(leader).await?;
    let other = (leader + 1) % cluster.nodes.len();
    cluster.nodes[other].stop().await?;
    cluster.restart_node(other).await?;
    traffic
        .passes("a storage node was started again meanwhile")
        .await?;
    cluster.gateways[0].kill().await?;
    cluster.restart(Service::Gateway, 0).await?;
    traffic.passes("a gateway was started again meanwhile").await?;

    let newcomer = until("a new client to sign in", SOON, || cluster.client()).await?;
    let created = newcomer.create_station("meanwhile", 1, 3).await;
    assert!(created.is_err(), "nobody can make a station now");
    let again = newcomer.create_station("before", 3, 3).await;
    assert!(again.is_ok(), "what exists can be asked for: {again:?}");
    let stored = newcomer
        .produce("before", vec![message("from a new client")])
        .await?;
    assert!(stored.iter().all(Result::is_ok), "{stored:?}");

    database.start_again().await?;
    for index in 0..cluster.metadata.len() {
        cluster.restart(Service::Metadata, index).await?;
    }
    for index in 0..cluster.controls.len() {
        cluster.restart(Service::Control, index).await?;
    }
    cluster.ready().await?;
    until("management to work again", SOON, || {
        newcomer.create_station("after", 3, 3)
    })
    .await?;
    let exists = newcomer.create_station("meanwhile", 1, 3).await;
    assert!(exists.is_ok(), "what was refused was not made: {exists:?}");
    assert_eq!(
        newcomer.read_station("before").await?.values().flatten().count(),
        1
    );
    traffic.check(&newcomer).await?;
    cluster.finish().await?;
    database.stop().await
}

/// Five storage nodes and two of everything else, on PostgreSQL, with a proxy on every link.
async fn whole() -> anyhow::Result<(Server, Layout)> {
    let database = Server::start().await?;
    let layout = Layout {
        metadata: 2,
        controls: 2,
        nodes: 5,
        gateways: 2,
        database: Some(database.create_database("ptah").await?),
        proxied: true,
        ..Layout::default()
    };
    Ok((database, layout))
}
