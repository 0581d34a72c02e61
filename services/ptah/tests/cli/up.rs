//! `ptah up` as a child process.

use std::path::Path;
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::NamedTempFile;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

/// Longest wait for anything.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A cluster that is ready.
pub(crate) struct Up {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// A file and not a pipe: nobody reads along, and a full pipe would stop the process.
    stderr: NamedTempFile,
    pub(crate) ready: Value,
}

/// Starts `ptah` with these words, everything piped, and none of this process's settings.
pub(crate) fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ptah"));
    command
        .env_clear()
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs `ptah up` where it is expected to fail.
pub(crate) async fn up_fails(data_dir: &Path, words: &[&str]) -> Output {
    let mut up = command(&["up", "--json", "--data-dir"]);
    up.arg(data_dir).args(words);
    tokio::time::timeout(SOON, up.output())
        .await
        .expect("`ptah up` ends")
        .unwrap()
}

impl Up {
    /// Starts a cluster on free ports and waits until it says that it is ready.
    pub(crate) async fn start(data_dir: &Path, words: &[&str]) -> Self {
        let mut all = vec!["--ephemeral-ports"];
        all.extend(words);
        Self::start_with(data_dir, &all).await
    }

    /// Starts a cluster with exactly these options.
    pub(crate) async fn start_with(data_dir: &Path, words: &[&str]) -> Self {
        let mut up = command(&["up", "--json", "--data-dir"]);
        let stderr = NamedTempFile::new().unwrap();
        up.arg(data_dir).args(words).stderr(stderr.reopen().unwrap());
        let mut child = up.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        let read = tokio::time::timeout(SOON, stdout.read_line(&mut line)).await;
        if !matches!(read, Ok(Ok(len)) if len > 0) {
            child.start_kill().unwrap();
            let told = std::fs::read_to_string(stderr.path()).unwrap();
            panic!("`ptah up` did not become ready: {told}");
        }
        let ready = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        Self {
            child,
            stdout,
            stderr,
            ready,
        }
    }

    /// Address of the door for clients.
    pub(crate) fn server(&self) -> String {
        self.ready["grpc"].as_str().unwrap().to_owned()
    }

    /// Sends a signal.
    pub(crate) async fn signal(&self, signal: &str) {
        let pid = self.child.id().unwrap().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().await.unwrap();
        assert!(sent.success());
    }

    /// Waits for the end; answers with the status and what was written to stderr.
    pub(crate) async fn ended(mut self) -> (ExitStatus, String) {
        let status = tokio::time::timeout(SOON, self.child.wait())
            .await
            .expect("`ptah up` ends")
            .unwrap();
        let told = std::fs::read_to_string(self.stderr.path()).unwrap();
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "", "stdout has the ready line and nothing else");
        (status, told)
    }

    /// Stops as a person does, and expects that all is in order.
    pub(crate) async fn stop(self) {
        self.signal("-INT").await;
        let (status, told) = self.ended().await;
        assert!(status.success(), "{status}: {told}");
    }

    /// Runs a client command.
    pub(crate) async fn ptah(&self, words: &[&str]) -> Output {
        self.ptah_with(words, b"").await
    }

    /// Runs a client command with this on stdin.
    pub(crate) async fn ptah_with(&self, words: &[&str], input: &[u8]) -> Output {
        let mut child = command(words).env("PTAH_SERVER", self.server()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A command that ends early does not read its input.
        let _ = stdin.write_all(input).await;
        drop(stdin);
        tokio::time::timeout(SOON, child.wait_with_output())
            .await
            .expect("the command ends")
            .unwrap()
    }

    /// Runs a client command that must succeed; answers with its JSON.
    pub(crate) async fn json(&self, words: &[&str]) -> Value {
        let mut words = words.to_vec();
        words.push("--json");
        let output = self.ptah(&words).await;
        assert_eq!(code(&output), 0, "{words:?}: {}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }
}

pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The error of a command that was told to write JSON.
pub(crate) fn error(output: &Output) -> Value {
    let told = stderr(output);
    let last = told.lines().last().unwrap_or_default();
    let error: Value = serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {told}"));
    error["error"].clone()
}
