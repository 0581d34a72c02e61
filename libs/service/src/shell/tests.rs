//! A process from start to end, without the process.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::*;
use crate::config::{LogConfig, MonitorConfig, ShutdownConfig};

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    log: LogConfig,
    monitor: MonitorConfig,
    shutdown: ShutdownConfig,
    ports_file: Option<PathBuf>,
}

impl Settings for Config {
    fn validate(&self) -> Result<(), ConfigError> {
        Ok(())
    }
    fn log(&self) -> &LogConfig {
        &self.log
    }
    fn monitor(&self) -> &MonitorConfig {
        &self.monitor
    }
    fn shutdown(&self) -> &ShutdownConfig {
        &self.shutdown
    }
    fn ports_file(&self) -> Option<&Path> {
        self.ports_file.as_deref()
    }
}

fn config() -> Config {
    let anywhere = "127.0.0.1:0".to_owned();
    Config {
        monitor: MonitorConfig {
            monitor_listen: anywhere.clone(),
            metrics_listen: anywhere,
        },
        ..Config::default()
    }
}

/// A service that remembers whether it was stopped.
struct Service {
    stopped: Arc<AtomicBool>,
    outcome: anyhow::Result<()>,
}

impl Running for Service {
    fn stop(self: Box<Self>, _deadline: Duration) -> BoxFuture<'static, anyhow::Result<()>> {
        Box::pin(async move {
            self.stopped.store(true, Ordering::SeqCst);
            self.outcome
        })
    }
}

fn service(outcome: anyhow::Result<()>) -> (Arc<AtomicBool>, anyhow::Result<Box<dyn Running>>) {
    let stopped = Arc::new(AtomicBool::new(false));
    let service = Service {
        stopped: Arc::clone(&stopped),
        outcome,
    };
    (stopped, Ok(Box::new(service)))
}

#[tokio::test]
async fn a_service_that_is_asked_to_stop_is_stopped_and_its_tasks_end() {
    let shell = Shell::new("test");
    let (stopped, started) = service(Ok(()));
    let (ask, asked) = oneshot::channel();
    let start = |_, shell: Shell| async move {
        let stopping = shell.tasks.stopping();
        shell
            .tasks
            .spawn("work", async move { stopping.cancelled().await });
        ask.send(()).unwrap();
        started
    };
    let ended = serve(shell.clone(), config(), start, async { asked.await.unwrap() }).await;
    assert_eq!(ended, Ended::Stopped);
    assert!(stopped.load(Ordering::SeqCst));
    assert!(shell.tasks.unfinished().is_empty() && !shell.health.is_ready());
}

#[tokio::test]
async fn a_critical_failure_stops_the_service() {
    let (stopped, started) = service(Ok(()));
    let start = |_, shell: Shell| async move {
        shell
            .tasks
            .child("raft")
            .spawn_critical("wal", async { anyhow::bail!("disk is gone") });
        started
    };
    let ended = serve(Shell::new("test"), config(), start, std::future::pending()).await;
    assert_eq!(ended, Ended::Failed);
    assert!(stopped.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_start_that_fails_ends_the_process_and_what_it_had_begun() {
    let shell = Shell::new("test");
    let start = |_, shell: Shell| async move {
        let stopping = shell.tasks.stopping();
        shell
            .tasks
            .spawn("half", async move { stopping.cancelled().await });
        anyhow::bail!("no database")
    };
    let ended = serve(shell.clone(), config(), start, std::future::pending()).await;
    assert_eq!(ended, Ended::Failed);
    assert!(shell.tasks.unfinished().is_empty());
}

#[tokio::test]
async fn unfinished_work_makes_the_stop_a_late_one() {
    let (_, started) = service(Err(anyhow::anyhow!("2 calls were cut off")));
    let start = |_, _| async move { started };
    let ended = serve(Shell::new("test"), config(), start, async {}).await;
    // Asked at once: either the start was not over yet, or its stop was late.
    assert!(matches!(ended, Ended::Stopped | Ended::Late));
    let (_, started) = service(Err(anyhow::anyhow!("2 calls were cut off")));
    let (ask, asked) = oneshot::channel();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ports.json");
    let config = Config {
        ports_file: Some(path.clone()),
        ..config()
    };
    let shell = Shell::new("test");
    let watcher = Tasks::root();
    watcher.spawn("ask", async move {
        while !path.exists() {
            tokio::task::yield_now().await;
        }
        ask.send(()).unwrap();
    });
    let ended = serve(shell, config, |_, _| async move { started }, async {
        asked.await.unwrap()
    })
    .await;
    assert_eq!(ended, Ended::Late);
}

#[tokio::test]
async fn the_ports_file_tells_what_was_bound() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ports.json");
    let (_, started) = service(Ok(()));
    let config = Config {
        ports_file: Some(path.clone()),
        ..config()
    };
    let start = |_, shell: Shell| async move {
        shell.health.set_address("grpc", "127.0.0.1:5");
        started
    };
    let asked = async {
        while !path.exists() {
            tokio::task::yield_now().await;
        }
    };
    let ended = serve(Shell::new("test"), config, start, asked).await;
    assert_eq!(ended, Ended::Stopped);
    let text = std::fs::read_to_string(&path).unwrap();
    let ports: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(ports["grpc"], "127.0.0.1:5");
    assert!(ports["monitor"].as_str().unwrap().starts_with("127.0.0.1:"));
}

#[tokio::test]
async fn an_occupied_monitor_port_is_a_failed_start() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = config();
    config.monitor.metrics_listen = taken.local_addr().unwrap().to_string();
    let (stopped, started) = service(Ok(()));
    let ended = serve(
        Shell::new("test"),
        config,
        |_, _| async move { started },
        std::future::pending(),
    )
    .await;
    assert_eq!(ended, Ended::Failed);
    assert!(
        !stopped.load(Ordering::SeqCst),
        "the service was started all the same"
    );
}

#[test]
fn every_end_has_its_own_exit_code() {
    let codes = [Ended::Stopped, Ended::Failed, Ended::Late].map(Ended::exit_code);
    assert_eq!(codes, [0, 1, 3]);
}
