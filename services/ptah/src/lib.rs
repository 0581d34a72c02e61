//! The one command people type: ptah up, stations, produce, consume, bench.
