//! Sample records, and streams of messages made from them that a checker can recognise.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use bytes::Bytes;

/// One sample record.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its key.
    pub key: String,
    /// The line as it is in the file, without the line end.
    pub line: String,
}

/// Where the sample records are.
pub fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/records.ndjson")
}

/// All sample records in the order of the file.
pub fn load() -> anyhow::Result<Vec<Record>> {
    let text = std::fs::read_to_string(path()).context("read sample records")?;
    text.lines()
        .map(|line| {
            let value: serde_json::Value = serde_json::from_str(line).context("parse record")?;
            let key = value["key"].as_str().context("record has no key")?.to_owned();
            Ok(Record {
                key,
                line: line.to_owned(),
            })
        })
        .collect()
}

/// The records `rounds` times over, each line with a counter of its key, so that order within a key can be checked:
/// `{"n":<counter>,"key":...,...}`.
pub fn numbered(rounds: usize) -> anyhow::Result<Vec<Record>> {
    let records = load()?;
    let mut counters: BTreeMap<String, u64> = BTreeMap::new();
    let mut numbered = Vec::with_capacity(records.len() * rounds);
    for _ in 0..rounds {
        for record in &records {
            let counter = counters.entry(record.key.clone()).or_default();
            *counter += 1;
            let rest = record.line.strip_prefix('{').context("record is not an object")?;
            numbered.push(Record {
                key: record.key.clone(),
                line: format!("{{\"n\":{counter},{rest}"),
            });
        }
    }
    Ok(numbered)
}

/// A small message that names itself: producer and counter, padded to `size` bytes.
pub fn counted(producer: &str, counter: u64, size: usize) -> Bytes {
    let mut text = format!("{producer}:{counter}:");
    while text.len() < size {
        text.push('.');
    }
    Bytes::from(text)
}
