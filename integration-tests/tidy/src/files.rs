//! The files that the laws are about: what git knows, read as text.

use std::path::Path;
use std::process::Command;

use anyhow::Context;

/// A text file of the repository.
#[derive(Debug, Clone)]
pub(crate) struct SourceFile {
    /// Path from the root, with `/`.
    pub(crate) path: String,
    /// Content.
    pub(crate) text: String,
}

impl SourceFile {
    #[cfg(test)]
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    pub(crate) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Test code may do what product code may not.
    pub(crate) fn is_test(&self) -> bool {
        self.path.contains("/tests/")
            || self.path.ends_with("/tests.rs")
            || self.path.ends_with("_tests.rs")
            || self.path.starts_with("integration-tests/")
            || self.path.contains("/examples/")
            || self.path.contains("/benches/")
    }

    /// Lines with their numbers, up to the file's unit tests.
    pub(crate) fn product_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = self
            .text
            .lines()
            .position(|line| line.trim_start().starts_with("#[cfg(test)]"));
        let end = if self.text.contains("mod tests {") {
            end
        } else {
            None
        };
        self.text
            .lines()
            .take(end.unwrap_or(usize::MAX))
            .enumerate()
            .map(|(index, line)| (index + 1, line))
    }
}

/// Reads every text file that git tracks or would track.
pub(crate) fn load(root: &Path) -> anyhow::Result<Vec<SourceFile>> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("run git ls-files")?;
    anyhow::ensure!(
        listed.status.success(),
        "git ls-files failed: {}",
        String::from_utf8_lossy(&listed.stderr)
    );
    let mut files = Vec::new();
    for path in String::from_utf8(listed.stdout)
        .context("decode paths")?
        .split('\0')
        .filter(|p| !p.is_empty())
    {
        // A file that was deleted but not yet committed, or one that is not text, has no laws.
        if let Ok(text) = std::fs::read_to_string(root.join(path)) {
            files.push(SourceFile {
                path: path.to_owned(),
                text,
            });
        }
    }
    Ok(files)
}
