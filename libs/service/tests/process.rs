//! The shell as a real process: signals in, exit codes out.
//!
//! The test binary starts itself again as the process under test, which is why it has its own `main`.
#![allow(
    clippy::unwrap_used,
    reason = "a test, though clippy knows tests only by their harness"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use ptah_service::{
    BoxFuture, ConfigError, LogConfig, MonitorConfig, Running, Settings, ShutdownConfig, run,
};
use serde::{Deserialize, Serialize};

const ROLE: &str = "SERVICE_TEST_ROLE";
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let role = std::env::vars().find(|(name, _)| name == ROLE);
    match role {
        Some((_, role)) => process_under_test(&role),
        None => checks(),
    }
}

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
        match self.ports_file {
            Some(_) => Ok(()),
            None => Err(ConfigError::invalid("ports_file", "is not set; name a file")),
        }
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

struct Quick;
struct Stuck;

impl Running for Quick {
    fn stop(self: Box<Self>, _: Duration) -> BoxFuture<'static, anyhow::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

impl Running for Stuck {
    fn stop(self: Box<Self>, _: Duration) -> BoxFuture<'static, anyhow::Result<()>> {
        Box::pin(std::future::pending())
    }
}

fn process_under_test(role: &str) -> ExitCode {
    let service: Box<dyn Running> = match role {
        "stuck" => Box::new(Stuck),
        _ => Box::new(Quick),
    };
    run("test", None, |_: Config, _| async move { Ok(service) })
}

fn checks() -> ExitCode {
    a_signal_stops_the_process_in_order("TERM");
    a_signal_stops_the_process_in_order("INT");
    a_second_signal_ends_at_once();
    wrong_settings_are_one_line_and_exit_code_2();
    an_occupied_port_is_exit_code_1();
    ExitCode::SUCCESS
}

fn a_signal_stops_the_process_in_order(signal: &str) {
    let mut process = Process::start("quick", &[]);
    process.await_ports();
    process.signal(signal);
    assert_eq!(process.exit_code(), 0, "after SIG{signal}");
}

fn a_second_signal_ends_at_once() {
    let mut process = Process::start("stuck", &[]);
    process.await_ports();
    process.signal("TERM");
    // The first one was seen when readiness is gone; then the second cannot be merged with it by the system.
    process.await_stopping();
    process.signal("TERM");
    assert_eq!(process.exit_code(), 130);
}

fn wrong_settings_are_one_line_and_exit_code_2() {
    let mut process = Process::start("quick", &[("PTAH_MONITOR__MONITOR_LISTN", "x")]);
    assert_eq!(process.exit_code(), 2);
    let told = process.stderr();
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains("`PTAH_MONITOR__MONITOR_LISTN`"), "{told}");
}

fn an_occupied_port_is_exit_code_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut process = Process::start("quick", &[("PTAH_MONITOR__MONITOR_LISTEN", &address)]);
    assert_eq!(process.exit_code(), 1);
    let told = process.stderr();
    assert!(
        told.contains(&address) && told.contains("monitor.monitor_listen"),
        "{told}"
    );
}

struct Process {
    child: Child,
    dir: tempfile::TempDir,
}

impl Process {
    fn start(role: &str, variables: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .env_clear()
            .env(ROLE, role)
            .env("PTAH_PORTS_FILE", dir.path().join("ports.json"))
            .env("PTAH_MONITOR__MONITOR_LISTEN", "127.0.0.1:0")
            .env("PTAH_MONITOR__METRICS_LISTEN", "127.0.0.1:0")
            .envs(variables.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, dir }
    }

    fn ports_file(&self) -> PathBuf {
        self.dir.path().join("ports.json")
    }

    fn await_ports(&mut self) {
        until("the ports file is there", || self.ports_file().exists());
    }

    fn await_stopping(&self) {
        let text = std::fs::read_to_string(self.ports_file()).unwrap();
        let ports: serde_json::Value = serde_json::from_str(&text).unwrap();
        let monitor = ports["monitor"].as_str().unwrap().to_owned();
        until("the process says that it stops", || {
            get(&monitor, "/readyz").contains("stopping")
        });
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args(["-s", name, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    fn exit_code(&mut self) -> i32 {
        until("the process ends", || self.child.try_wait().unwrap().is_some());
        self.child
            .wait()
            .unwrap()
            .code()
            .expect("ended by itself and not by a signal")
    }

    fn stderr(&mut self) -> String {
        std::io::read_to_string(self.child.stderr.take().unwrap()).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn get(address: &str, path: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
