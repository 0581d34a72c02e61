//! A flipped bit in any file of a node: never served, never dropped in silence, never voted on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use ptah_integration_tests::client::{Client, message};
use ptah_integration_tests::cluster::Cluster;
use ptah_integration_tests::records::counted;
use ptah_integration_tests::{SOON, process, until};

const MESSAGES: u64 = 3_000;
const SMALL_SEGMENTS: &str = "[partition]\nsegment_bytes = 1048576\n";

type Matches<'a> = dyn Fn(&str) -> bool + 'a;
type Stored = BTreeMap<u64, Bytes>;

async fn store_messages(client: &Client, station: &str, size: usize) -> anyhow::Result<Stored> {
    let mut stored = Stored::new();
    for first in (0..MESSAGES).step_by(100) {
        let payloads: Vec<Bytes> = (first..first + 100).map(|n| counted("p", n, size)).collect();
        let outcomes = client
            .produce(station, payloads.iter().cloned().map(message).collect())
            .await?;
        for (outcome, payload) in outcomes.into_iter().zip(payloads) {
            let at = outcome.map_err(|error| anyhow::anyhow!("{error:?}"))?;
            stored.insert(at.sequence, payload);
        }
    }
    Ok(stored)
}

/// Files of a kind, biggest first, so that the first one has content.
fn files(dir: &Path, matches: &Matches<'_>) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            let shown = path.to_string_lossy().into_owned();
            if path.is_dir() {
                dirs.push(path);
            } else if matches(&shown) {
                found.push(path);
            }
        }
    }
    found.sort_by_key(|path| std::cmp::Reverse(std::fs::metadata(path).map(|m| m.len()).unwrap_or(0)));
    Ok(found)
}

/// Makes `to` what `from` is: every trial starts from the same directory.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let _ = std::fs::remove_dir_all(to);
    let status = std::process::Command::new("cp")
        .args(["-a", "--sparse=always"])
        .arg(from)
        .arg(to)
        .status()?;
    anyhow::ensure!(status.success(), "copy {}: {status}", from.display());
    Ok(())
}

/// Flips one bit at a share of the file's written part.
fn flip(path: &Path, share: f64) -> anyhow::Result<()> {
    let mut bytes = std::fs::read(path)?;
    let used = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .context("file is empty")?
        + 1;
    let place = (used as f64 * share) as usize;
    bytes[place] ^= 0x10;
    Ok(std::fs::write(path, bytes)?)
}

/// What a reader gets may be less than was stored only if the node says that something is wrong.
async fn nothing_false_is_served(cluster: &Cluster, stored: &Stored, what: &str) -> anyhow::Result<()> {
    let client = cluster.client().await?;
    let monitor = cluster.nodes[0].address("monitor")?;
    let waiting_for = format!("{what}: everything, or a word about damage");
    let told = until(&waiting_for, SOON, || async {
        // A partition that is down keeps a reader waiting; whoever wants to know why looks at the status.
        let read = tokio::time::timeout(Duration::from_secs(2), client.read_partition("ledger", 1)).await;
        if let Ok(Ok(messages)) = read {
            if let Err(error) = all_were_stored(&messages, stored) {
                return Ok(Err(error));
            }
            if messages.len() == stored.len() {
                return Ok(Ok(()));
            }
        }
        let status = process::http_get(monitor, "/status")
            .await
            .map_err(|error| error.to_string())?;
        let lower = status.to_lowercase();
        if lower.contains("damage") || lower.contains("checksum") {
            Ok(Ok(()))
        } else {
            Err(status)
        }
    });
    told.await?.with_context(|| what.to_owned())
}

fn all_were_stored(messages: &[(u64, Bytes)], stored: &Stored) -> anyhow::Result<()> {
    for (sequence, payload) in messages {
        let expected = stored
            .get(sequence)
            .with_context(|| format!("{sequence} was never stored"))?;
        anyhow::ensure!(payload == expected, "{sequence} is served with other bytes");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_in_any_file_of_the_only_replica_is_noticed() -> anyhow::Result<()> {
    let mut cluster = Cluster::start_with(1, SMALL_SEGMENTS).await?;
    let client = cluster.client().await?;
    client.create_station("ledger", 1, 1).await?;
    let stored = store_messages(&client, "ledger", 600).await?;
    let dir = cluster.node_dir(0);
    let kept = cluster.path().join("kept");
    let is_wal = |path: &str| path.contains("/wal/");
    let is_group = |path: &str| !path.contains("/wal/") && path.contains("/g/");
    let kinds: [(&str, &Matches<'_>, bool); 4] = [
        ("write-ahead log", &is_wal, false),
        ("segment", &|path| is_group(path) && path.ends_with(".seg"), true),
        (
            "checkpoint",
            &|path| is_group(path) && path.contains("ckpt"),
            true,
        ),
        ("vote", &|path| is_group(path) && path.contains("meta."), true),
    ];
    for (kind, matches, clean) in kinds {
        // Segments and checkpoints are written some time behind the log.
        until(&format!("a file of the kind {kind}"), SOON, || async {
            let found = files(&dir, matches).map_err(|error| error.to_string())?;
            if found.is_empty() { Err("none yet") } else { Ok(()) }.map_err(str::to_owned)
        })
        .await?;
        // After a clean stop segments and checkpoints are what the node starts from; after a kill it is the log.
        if clean {
            cluster.nodes[0].stop().await?;
        } else {
            cluster.nodes[0].kill().await?;
        }
        copy(&dir, &kept)?;
        let damaged = files(&dir, matches)?;
        assert!(!damaged.is_empty(), "there is no file of the kind {kind}");
        for path in damaged.into_iter().take(2) {
            for share in [0.3, 0.6, 0.9] {
                let what = format!("{kind} {} at {share}", path.display());
                flip(&path, share)?;
                match cluster.restart_node(0).await {
                    Ok(()) => {
                        nothing_false_is_served(&cluster, &stored, &what).await?;
                        cluster.nodes[0].kill().await?;
                    }
                    // Refusing to start is honest as well, if the reason is told.
                    Err(error) => {
                        let said = format!("{error:#}").to_lowercase();
                        anyhow::ensure!(
                            said.contains("damage") || said.contains("checksum"),
                            "{what}: {said}"
                        );
                    }
                }
                copy(&kept, &dir)?;
            }
        }
        cluster.restart_node(0).await?;
        cluster.ready().await?;
    }
    let client = cluster.client().await?;
    let read = until(
        "the healed station to be readable",
        Duration::from_secs(30),
        || client.read_partition("ledger", 1),
    );
    assert_eq!(
        read.await?.into_iter().collect::<Stored>(),
        stored,
        "with the bits flipped back all is there"
    );
    cluster.finish().await
}

/// Flips a bit in every 64 bytes of a file: no copy of anything in it is left whole.
fn ruin(path: &Path) -> anyhow::Result<()> {
    let mut bytes = std::fs::read(path)?;
    anyhow::ensure!(!bytes.is_empty(), "{} is empty", path.display());
    bytes.iter_mut().step_by(64).for_each(|byte| *byte ^= 0x10);
    Ok(std::fs::write(path, bytes)?)
}

/// Stops a node in order, lets `harm` happen to its directory and starts it again, while `other` is down. So the node
/// and the third one are the majority that a leader needs.
async fn restart_beside_one_down(
    cluster: &mut Cluster,
    node: usize,
    other: usize,
    harm: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    cluster.nodes[node].stop().await?;
    cluster.nodes[other].stop().await?;
    harm(&cluster.node_dir(node))?;
    cluster.restart_node(node).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_with_a_damaged_vote_says_so_and_does_not_vote() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let client = cluster.client().await?;
    client.create_station("ledger", 1, 3).await?;
    let mut stored = store_messages(&client, "ledger", 100).await?;

    // Undamaged, two of three are enough.
    restart_beside_one_down(&mut cluster, 0, 1, |_| Ok(())).await?;
    let one_more = |text: &'static str| {
        let client = client.clone();
        move || {
            let client = client.clone();
            async move {
                match client
                    .produce("ledger", vec![message(Bytes::from_static(text.as_bytes()))])
                    .await
                {
                    Ok(mut outcomes) => outcomes.remove(0).map_err(|error| error.message),
                    Err(status) => Err(status.to_string()),
                }
            }
        }
    };
    let at = until("two whole replicas to store", SOON, one_more("with two")).await?;
    stored.insert(at.sequence, Bytes::from_static(b"with two"));
    cluster.restart_node(1).await?;
    cluster.ready().await?;

    // With its votes ruined, the same node is no help.
    restart_beside_one_down(&mut cluster, 0, 1, |dir| {
        let votes = files(dir, &|path| path.contains("/g/") && path.contains("meta."))?;
        anyhow::ensure!(votes.len() == 2, "votes lie in {votes:?}");
        votes.iter().try_for_each(|path| ruin(path))
    })
    .await?;
    let monitor = cluster.nodes[0].address("monitor")?.to_owned();
    until("the node to tell of the damage", SOON, || async {
        let status = process::http_get(&monitor, "/status")
            .await
            .map_err(|error| error.to_string())?;
        if status.to_lowercase().contains("damage") {
            Ok(())
        } else {
            Err(status)
        }
    })
    .await?;
    let refused = one_more("without a majority")().await;
    assert!(
        refused.is_err(),
        "stored at {refused:?} with one whole replica of three"
    );
    let leaders = client.station("ledger").await?.partitions;
    assert!(
        leaders.iter().all(|partition| partition.leader_node_id != 1),
        "the damaged replica leads: {leaders:?}"
    );

    // With the third node back there is a majority without it, and everything that was acknowledged.
    cluster.restart_node(1).await?;
    let at = until("the whole replicas to store", SOON, one_more("with two others")).await?;
    stored.insert(at.sequence, Bytes::from_static(b"with two others"));
    let read = client.read_partition("ledger", 1).await?;
    // The refused one had an unknown outcome: it may be there.
    let read: Stored = read
        .into_iter()
        .filter(|(_, payload)| payload.as_ref() != b"without a majority")
        .collect();
    assert_eq!(read, stored);
    cluster.finish().await
}
