//! One real process: started, watched, stopped, killed. Its output goes to a file that is shown when a test fails.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::Context;
use tokio::process::{Child, Command};

use crate::links::NAME_VARIABLE;
use crate::{SOON, until};

/// Directory with the programs of this build: the tests' own executable lies in `deps` below it.
pub fn programs() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe().context("find the test's own program")?;
    let dir = test
        .parent()
        .and_then(Path::parent)
        .context("test program lies in no target directory")?;
    Ok(dir.to_owned())
}

/// Runs a command to its end; what it said. It is killed, and an error, when it takes longer than `limit`.
pub async fn output(mut command: Command, limit: Duration) -> anyhow::Result<Output> {
    let what = format!("{:?}", command.as_std());
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {what}"))?;
    let ended = tokio::time::timeout(limit, child.wait_with_output()).await;
    let output = ended.with_context(|| format!("{what} did not end within {limit:?}"))??;
    anyhow::ensure!(
        output.status.success(),
        "{what} ended with {}:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

/// A running program.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Addresses of its listeners by name.
    pub addresses: BTreeMap<String, String>,
}

impl Process {
    /// Starts `program` with `args` and waits until it wrote its addresses to `ports_file`.
    pub async fn start(
        name: &str,
        program: &str,
        args: &[&str],
        ports_file: &Path,
        log: PathBuf,
    ) -> anyhow::Result<Self> {
        let _ = std::fs::remove_file(ports_file);
        let path = programs()?.join(program);
        let output = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .context("open log")?;
        let child = Command::new(&path)
            .args(args)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("RUST_BACKTRACE", "1")
            .env(NAME_VARIABLE, name)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("share log")?)
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}; build the workspace first", path.display()))?;
        let mut process = Self {
            name: name.to_owned(),
            child,
            log,
            addresses: BTreeMap::new(),
        };
        process.addresses = process.wait_for_ports(ports_file).await?;
        Ok(process)
    }

    async fn wait_for_ports(&mut self, ports_file: &Path) -> anyhow::Result<BTreeMap<String, String>> {
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            if let Ok(text) = std::fs::read_to_string(ports_file) {
                return serde_json::from_str(&text).context("parse ports file");
            }
            if let Some(status) = self.child.try_wait().context("look at process")? {
                anyhow::bail!("{} ended with {status}:\n{}", self.name, self.log_tail());
            }
            anyhow::ensure!(
                tokio::time::Instant::now() < deadline,
                "{} did not listen:\n{}",
                self.name,
                self.log_tail()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Address of a listener.
    pub fn address(&self, door: &str) -> anyhow::Result<&str> {
        let address = self.addresses.get(door);
        Ok(address.with_context(|| format!("{} has no door `{door}`: {:?}", self.name, self.addresses))?)
    }

    /// Process id.
    pub fn pid(&self) -> anyhow::Result<u32> {
        self.child
            .id()
            .with_context(|| format!("{} has ended", self.name))
    }

    /// Kills it without warning and waits until it is gone.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.child
            .kill()
            .await
            .with_context(|| format!("kill {}", self.name))
    }

    /// Sends a signal by name, such as `TERM`, `STOP` or `CONT`.
    pub async fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let pid = self.pid()?.to_string();
        let status = Command::new("kill")
            .args(["-s", signal, &pid])
            .status()
            .await
            .context("run kill")?;
        anyhow::ensure!(status.success(), "signal {signal} to {}: {status}", self.name);
        Ok(())
    }

    /// Asks it to stop and waits until it did; an exit code other than 0 is an error.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.signal("TERM").await?;
        let status = tokio::time::timeout(SOON, self.child.wait()).await;
        let status =
            status.with_context(|| format!("{} did not stop:\n{}", self.name, self.log_tail()))??;
        anyhow::ensure!(
            status.success(),
            "{} stopped with {status}:\n{}",
            self.name,
            self.log_tail()
        );
        Ok(())
    }

    /// Waits for its end; its exit code, which a process that was killed has not.
    pub async fn end(&mut self, limit: Duration) -> anyhow::Result<Option<i32>> {
        let ended = tokio::time::timeout(limit, self.child.wait()).await;
        let late = || format!("{} did not end within {limit:?}:\n{}", self.name, self.log_tail());
        Ok(ended.with_context(late)??.code())
    }

    /// Waits until its readiness endpoint says yes.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let monitor = self.address("monitor")?.to_owned();
        let asked = until(&format!("{} to be ready", self.name), SOON, || {
            http_get(&monitor, "/readyz")
        })
        .await;
        asked.map(|_| ()).with_context(|| self.log_tail())
    }

    /// The last lines of its output.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

/// A GET request; the body of an answer with status 200.
pub async fn http_get(address: &str, path: &str) -> anyhow::Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").context("answer without a body")?;
    anyhow::ensure!(
        head.starts_with("HTTP/1.1 200"),
        "{}: {body}",
        head.lines().next().unwrap_or_default()
    );
    Ok(body.to_owned())
}
