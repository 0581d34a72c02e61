//! Shared write-ahead log, segments, checkpoints and recovery over a disk port.
