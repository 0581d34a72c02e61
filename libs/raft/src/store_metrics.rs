//! What the node's storage counts, read from it when metrics are asked for.

use std::fmt;
use std::sync::Weak;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Metric;
use ptah_segment_log::Stats;

use crate::supervisor::Opener;

/// Tells the counters of a host's store. Does not keep the store open: after the host is gone it tells nothing.
pub(crate) struct StoreCollector {
    opener: Weak<Opener>,
}

impl StoreCollector {
    pub(crate) fn new(opener: Weak<Opener>) -> Self {
        Self { opener }
    }
}

impl fmt::Debug for StoreCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreCollector").finish_non_exhaustive()
    }
}

impl Collector for StoreCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(opener) = self.opener.upgrade() else {
            return Ok(());
        };
        let stats = opener.store.stats();
        for (name, help, value) in counters(&stats) {
            write(&mut encoder, name, help, &ConstCounter::new(value))?;
        }
        for (name, help, value) in gauges(&stats) {
            // A gauge is signed; no store holds 8 EiB in memory.
            write(
                &mut encoder,
                name,
                help,
                &ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)),
            )?;
        }
        Ok(())
    }
}

fn counters(stats: &Stats) -> [(&'static str, &'static str, u64); 9] {
    [
        (
            "wal_syncs",
            "syncs of the write-ahead log; what acknowledgements wait for",
            stats.wal_syncs,
        ),
        (
            "wal_units",
            "commit units written to the write-ahead log",
            stats.units,
        ),
        (
            "wal_bytes",
            "bytes written to the write-ahead log",
            stats.wal_bytes,
        ),
        (
            "file_syncs",
            "syncs of segments, meta slots and checkpoints",
            stats.file_syncs,
        ),
        ("segment_bytes", "bytes written to segments", stats.segment_bytes),
        (
            "large_frames",
            "large frames written past the write-ahead log",
            stats.large_frames,
        ),
        (
            "reads_from_memory",
            "reads of the log answered from memory",
            stats.reads_from_memory,
        ),
        (
            "reads_from_disk",
            "reads of the log that went to files",
            stats.reads_from_disk,
        ),
        (
            "damaged_reads",
            "reads of the log that met damage",
            stats.damaged_reads,
        ),
    ]
}

fn gauges(stats: &Stats) -> [(&'static str, &'static str, u64); 2] {
    [
        ("wal_files", "write-ahead log files in use", stats.wal_files),
        (
            "unflushed_bytes",
            "bytes of frames that are not in their segment yet",
            stats.unflushed_bytes,
        ),
    ]
}

fn write(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, metric: &impl Metric) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}
