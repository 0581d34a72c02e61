//! Reading costs no room: acknowledgements vanish behind checkpoints.

use std::path::Path;
use std::time::Duration;

use ptah_integration_tests::client::message;
use ptah_integration_tests::cluster::Cluster;
use ptah_integration_tests::records::counted;
use ptah_integration_tests::until;

const SEGMENT_BYTES: u64 = 1 << 20;
const GROUPS: usize = 100;
const MESSAGES: u64 = 2_000;
const PAYLOAD_BYTES: u64 = 1_024;
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
    assert_eq!(
        client.drain("library", "reader-0").await?.len(),
        MESSAGES as usize
    );
    for reader in 1..=GROUPS {
        assert_eq!(
            client.drain("library", &format!("reader-{reader}")).await?.len(),
            MESSAGES as usize,
            "reader {reader}"
        );
    }
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
