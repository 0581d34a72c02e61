//! Big messages and many clients: everything passes, and memory stays within what the documents state.
#![allow(clippy::disallowed_methods)] // the test owns its tasks and waits for them

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures_util::future::try_join_all;
use ptah_integration_tests::client::{Client, message};
use ptah_integration_tests::cluster::Cluster;
use ptah_integration_tests::process::Process;
use ptah_integration_tests::until;
use ptah_proto::api::v1 as api;

const MIB: usize = 1 << 20;
const PRODUCERS: usize = 200;
const SLOW_READERS: usize = 100;
const PAYLOAD: usize = 8 * MIB;
/// Stated in docs/operations.md: resident memory of a process with default settings, whatever clients do.
const GATEWAY_BUDGET_MIB: u64 = 768;
const NODE_BUDGET_MIB: u64 = 1_536;

/// A payload that differs at every place and from message to message.
fn payload(size: usize, seed: usize) -> Bytes {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes.into()
}

/// Most resident memory that a process ever had, in MiB.
fn peak_mib(process: &Process) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid()?))?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .context("no VmHWM")?;
    let kib: u64 = line.split_whitespace().nth(1).context("no value")?.parse()?;
    Ok(kib / 1_024)
}

async fn create_big_station(client: &Client, name: &str, partitions: u32) -> anyhow::Result<()> {
    let config = api::StationConfig {
        partitions,
        replicas: 3,
        max_message_bytes: 64 << 20,
        ..Default::default()
    };
    let request = api::CreateStationRequest {
        name: name.into(),
        config: Some(config),
        ..Default::default()
    };
    client.stations.clone().create_station(request).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_64_mib_passes_three_replicas_byte_for_byte() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let client = cluster.client().await?;
    create_big_station(&client, "films", 1).await?;
    let film = payload(64 * MIB, 1);
    let outcomes = client.produce("films", vec![message(film.clone())]).await?;
    outcomes
        .into_iter()
        .next()
        .context("no result")?
        .map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let received = client.drain("films", "viewer").await?;
    assert_eq!(received.len(), 1);
    assert!(received[0].payload == film, "the film came back changed");

    // The next leader serves the same bytes: they are on its disk too.
    let leader = cluster.leader(&client, "films", 1).await?;
    cluster.nodes[leader].kill().await?;
    let read = until(
        "another leader to serve the film",
        Duration::from_secs(30),
        || async {
            match client.read_partition("films", 1).await {
                Ok(messages) if messages.len() == 1 => Ok(messages),
                other => Err(format!("{:?}", other.map(|messages| messages.len()))),
            }
        },
    );
    assert!(read.await?[0].1 == film, "the other replica has other bytes");
    cluster.restart_node(leader).await?;
    cluster.ready().await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_and_big_producers_stay_within_the_memory_budget() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let client = cluster.client().await?;
    create_big_station(&client, "uploads", 4).await?;
    create_big_station(&client, "archive", 1).await?;
    for first in 0..4 {
        let batch = (0..2).map(|n| message(payload(PAYLOAD, first * 2 + n))).collect();
        client.produce("archive", batch).await?;
    }
    // Slow readers have credit for much more than they ever read. Each is a client of its own: on one connection they
    // would stop each other.
    let address = cluster.gateway_address()?;
    let readers = try_join_all((0..SLOW_READERS).map(|reader| async move {
        let client = Client::connect(address).await?;
        Ok::<_, anyhow::Error>(
            client
                .consume_stream("archive", &format!("slow-{reader}"), 1_000)
                .await?,
        )
    }))
    .await?;
    let body = payload(PAYLOAD, 99);
    let producing = (0..PRODUCERS).map(|producer| {
        let body = body.clone();
        async move {
            let client = Client::connect(address).await?;
            let new = api::NewMessage {
                partition: (producer % 4) as u32 + 1,
                ..message(body)
            };
            // Refused for now is an honest answer under such load; a client tries again.
            let stored = until("an upload to be taken", Duration::from_secs(240), || async {
                match client.produce("uploads", vec![new.clone()]).await {
                    Ok(mut outcomes) => outcomes.remove(0).map_err(|error| error.message),
                    Err(status) => Err(status.to_string()),
                }
            });
            stored.await
        }
    });
    let stored = try_join_all(producing).await?;
    assert_eq!(stored.len(), PRODUCERS);
    drop(readers);
    let gateway = peak_mib(&cluster.gateways[0])?;
    assert!(gateway < GATEWAY_BUDGET_MIB, "gateway took {gateway} MiB");
    for (index, node) in cluster.nodes.iter().enumerate() {
        let peak = peak_mib(node)?;
        assert!(
            peak < NODE_BUDGET_MIB,
            "storage node {} took {peak} MiB",
            index + 1
        );
    }
    cluster.finish().await
}
