//! Service shell: config, telemetry, health, signals, tracked tasks, shutdown.
