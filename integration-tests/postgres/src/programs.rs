//! Where PostgreSQL's programs are, and as whom the server may run.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::Context;
use tokio::process::Command;

/// Debian keeps a directory for each version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// Finds a program: the newest of Debian's versions, or the one in the path.
pub(crate) fn find(name: &str) -> PathBuf {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir(DEBIAN)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let version = path.file_name()?.to_str()?.parse().ok()?;
            Some((version, path.join("bin").join(name)))
        })
        .filter(|(_, program)| program.exists())
        .collect();
    versions.sort();
    versions
        .pop()
        .map_or_else(|| PathBuf::from(name), |(_, program)| program)
}

/// Whom the server runs as when the tests run as root.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unprivileged {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Unprivileged {
    /// `None` when the tests are unprivileged themselves.
    pub(crate) async fn find() -> anyhow::Result<Option<Self>> {
        if id(&["-u"]).await? != 0 {
            return Ok(None);
        }
        for name in ["postgres", "nobody"] {
            if let (Ok(uid), Ok(gid)) = (id(&["-u", name]).await, id(&["-g", name]).await) {
                return Ok(Some(Self { uid, gid }));
            }
        }
        anyhow::bail!("postgresql refuses to run as root, and there is neither a user postgres nor nobody")
    }

    /// What to put in front of a command.
    pub(crate) fn prefix(self) -> Vec<String> {
        vec![
            "setpriv".to_owned(),
            format!("--reuid={}", self.uid),
            format!("--regid={}", self.gid),
            "--clear-groups".to_owned(),
        ]
    }
}

async fn id(args: &[&str]) -> anyhow::Result<u32> {
    let text = run(Command::new("id").args(args)).await?;
    text.trim().parse().context("read a user id")
}

/// Runs a command to its end; what it printed.
pub(crate) async fn run(command: &mut Command) -> anyhow::Result<String> {
    let what = format!("{:?}", command.as_std());
    let running = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {what}; `integration-tests/run` installs what is missing"))?;
    let ended = tokio::time::timeout(crate::SOON, running.wait_with_output()).await;
    let output = ended.with_context(|| format!("{what} did not end"))??;
    anyhow::ensure!(
        output.status.success(),
        "{what} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
