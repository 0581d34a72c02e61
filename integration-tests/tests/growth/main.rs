//! Reading costs no room: acknowledgements vanish behind checkpoints.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::try_join_all;
use ptah_integration_tests::client::{Client, Received, message};
use ptah_integration_tests::cluster::Cluster;
use ptah_integration_tests::records::counted;
use ptah_integration_tests::{SOON, process, until};
use ptah_proto::api::v1::consume_response::Response;

const SEGMENT_BYTES: u64 = 1 << 20;
const GROUPS: usize = 100;
const MESSAGES: u64 = 2_000;
const PAYLOAD_BYTES: u64 = 1_024;
/// Groups that read at the same time.
const AT_ONCE: usize = 20;
/// Messages that a group acknowledges together.
const STEP: usize = 5;
/// What one acknowledgement takes at least in the log, with its frame.
const COMMAND_BYTES: u64 = 100;
/// What the messages themselves take, with their frames.
const STATION_BYTES: u64 = MESSAGES * (PAYLOAD_BYTES + 100);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_station_read_a_hundred_times_grows_by_less_than_a_segment() -> anyhow::Result<()> {
    let cluster = Cluster::start_with(3, &format!("[partition]\nsegment_bytes = {SEGMENT_BYTES}\n")).await?;
    let client = cluster.client().await?;
    client.create_station("library", 1, 3).await?;
    for batch in 0..10 {
        let messages = (0..200)
            .map(|n| message(counted("p", batch * 200 + n, PAYLOAD_BYTES as usize)))
            .collect();
        for outcome in client.produce("library", messages).await? {
            outcome.map_err(|error| anyhow::anyhow!("{error:?}"))?;
        }
    }
    for first in (0..GROUPS).step_by(AT_ONCE) {
        try_join_all((first..first + AT_ONCE).map(|reader| read_in_small_steps(&client, reader))).await?;
    }
    let written = entries_proposed(&cluster).await? * COMMAND_BYTES;
    assert!(
        written > 3 * SEGMENT_BYTES,
        "only {written} bytes of acknowledgements were written"
    );
    for node in 0..3 {
        let dir = cluster.node_dir(node);
        // A checkpoint is taken behind a bounded number of commands, so the room comes back without anybody's doing.
        until(
            &format!("node {} to have its room back", node + 1),
            Duration::from_secs(90),
            || async {
                let now = segment_bytes(&dir).map_err(|error| error.to_string())?;
                if now <= STATION_BYTES + SEGMENT_BYTES {
                    Ok(())
                } else {
                    Err(format!("{now} bytes"))
                }
            },
        )
        .await?;
    }
    cluster.finish().await
}

/// Reads the station as a group of its own and acknowledges a few messages at a time, each time waiting until that is
/// stored: as many commands as possible, as a careful consumer writes them.
async fn read_in_small_steps(client: &Client, reader: usize) -> anyhow::Result<()> {
    let group = format!("reader-{reader}");
    let mut stream = client.consume_stream("library", &group, MESSAGES as u32).await?;
    let mut received = Vec::new();
    while received.len() < MESSAGES as usize {
        let said = tokio::time::timeout(SOON, stream.next())
            .await
            .context("nothing came")??;
        if let Some(Response::Batch(batch)) = said {
            received.extend(batch.messages.into_iter().map(Received::from));
        }
    }
    for step in received.chunks(STEP) {
        let (last, others) = step.split_last().context("chunks are not empty")?;
        stream.acknowledge(others, 0).await?;
        stream.confirm(std::slice::from_ref(last)).await?;
    }
    Ok(())
}

/// Entries that the nodes proposed to their groups so far.
async fn entries_proposed(cluster: &Cluster) -> anyhow::Result<u64> {
    let mut sum = 0;
    for node in &cluster.nodes {
        let page = process::http_get(node.address("metrics")?, "/metrics").await?;
        let line = page
            .lines()
            .find(|line| line.starts_with("ptah_raft_proposals_total"));
        let value = line
            .and_then(|line| line.split_whitespace().nth(1))
            .context("no counter of proposals")?;
        sum += value.parse::<u64>()?;
    }
    Ok(sum)
}

/// Bytes of everything but the write-ahead log, whose files are recycled and of fixed number and size.
fn segment_bytes(dir: &Path) -> std::io::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if path.is_dir() {
            sum += if path.file_name().is_some_and(|name| name == "wal") {
                0
            } else {
                segment_bytes(&path)?
            };
        } else {
            // Files come and go while the node works.
            sum += entry.metadata().map(|metadata| metadata.len()).unwrap_or(0);
        }
    }
    Ok(sum)
}
