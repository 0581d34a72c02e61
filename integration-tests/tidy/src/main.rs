//! Checks the laws of the repository: who may import whom, which words belong where, what every crate must have.
//!
//! Run with `cargo run -p ptah-tidy`. Prints one line per breach and exits with 1 when there is one. Each law is a
//! function from the files to breaches, so that its tests need no repository.

mod files;
mod imports;
mod layout;
mod words;

use std::path::Path;

use anyhow::Context;
use files::SourceFile;

/// One place where a law is broken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Breach {
    /// Path from the root of the repository.
    path: String,
    /// Line, counted from 1; 0 for the whole file.
    line: usize,
    /// What is wrong and what to do.
    text: String,
}

impl Breach {
    fn new(path: &str, line: usize, text: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            text: text.into(),
        }
    }
}

fn breaches(files: &[SourceFile]) -> Vec<Breach> {
    let mut found = Vec::new();
    found.extend(imports::check(files));
    found.extend(words::check(files));
    found.extend(layout::check(files));
    found.sort();
    found
}

#[allow(clippy::print_stdout)] // the report is what this program is for
fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let files = files::load(&root).context("read the repository")?;
    let found = breaches(&files);
    for breach in &found {
        println!("{}:{}: {}", breach.path, breach.line, breach.text);
    }
    anyhow::ensure!(
        found.is_empty(),
        "{} breaches of the laws in {} files",
        found.len(),
        files.len()
    );
    println!("tidy: {} files keep the laws", files.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_keeps_its_laws() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let found = breaches(&files::load(&root).unwrap());
        assert!(found.is_empty(), "{found:#?}");
    }
}
