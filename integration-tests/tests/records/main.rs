//! Real records through real processes: every byte back, once each, in order within each key.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use anyhow::Context;
use ptah_integration_tests::cluster::Cluster;
use ptah_integration_tests::{process, records};
use tokio::process::Command;

/// How many times the records are produced.
const ROUNDS: usize = 20;
/// Longest time that a client may take for all of it.
const LIMIT: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_carries_every_record_to_two_groups_in_key_order() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let server = cluster.gateway_address()?.to_owned();
    let produced = records::numbered(ROUNDS)?;
    let mut file = tempfile::NamedTempFile::new()?;
    for record in &produced {
        writeln!(file, "{}", record.line)?;
    }
    file.flush()?;
    let path = file.path().to_str().context("path is not text")?;

    ptah(
        &server,
        &[
            "station",
            "create",
            "records",
            "--partitions",
            "6",
            "--replicas",
            "3",
        ],
    )
    .await?;
    ptah(
        &server,
        &["produce", "records", "--file", path, "--key-field", "key"],
    )
    .await?;

    let mut expected: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for record in &produced {
        expected.entry(&record.key).or_default().push(&record.line);
    }
    let count = produced.len().to_string();
    for group in ["first", "second"] {
        let output = ptah(
            &server,
            &["consume", "records", "--group", group, "--count", &count],
        )
        .await?;
        let text = String::from_utf8(output).context("payloads are text")?;
        assert_eq!(
            by_key(&text)?,
            expected,
            "group {group} got other bytes, or another order within a key"
        );
        let more = ptah(&server, &["consume", "records", "--group", group]).await?;
        assert!(more.is_empty(), "group {group} got something twice");
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_client_carries_every_record_over_the_streams() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let mut client = Command::new(python(root)?);
    client
        .arg("-B")
        .arg(format!(
            "{root}/integration-tests/sdk/python/records_round_trip.py"
        ))
        .arg(cluster.gateway_address()?)
        .arg(format!("{root}/proto"))
        .arg(records::path())
        .arg(ROUNDS.to_string());
    let output = process::output(client, LIMIT).await?;
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "48080 messages stored, received twice, equal"
    );
    cluster.finish().await
}

/// The interpreter of the virtual environment that `integration-tests/run` makes.
fn python(root: &str) -> anyhow::Result<String> {
    let path = format!("{root}/target/python-client/bin/python");
    anyhow::ensure!(
        std::path::Path::new(&path).exists(),
        "{path} is missing: run integration-tests/run once"
    );
    Ok(path)
}

fn by_key(text: &str) -> anyhow::Result<BTreeMap<&str, Vec<&str>>> {
    let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in text.lines() {
        // The key is cut out of the text, so that the expected value is compared byte for byte.
        let (_, rest) = line.split_once("\"key\":\"").context("line without a key")?;
        let (key, _) = rest
            .split_once("\",\"record\"")
            .context("line without a record")?;
        found.entry(key).or_default().push(line);
    }
    Ok(found)
}

/// Runs the command line; its standard output.
async fn ptah(server: &str, args: &[&str]) -> anyhow::Result<Vec<u8>> {
    let mut command = Command::new(process::programs()?.join("ptah"));
    command
        .args(args)
        .env("PTAH_SERVER", server)
        .env("PTAH_USER", "root")
        .env("PTAH_PASSWORD", "memphis");
    Ok(process::output(command, LIMIT).await?.stdout)
}
