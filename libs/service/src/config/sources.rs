//! Where settings come from, for people. Names only, never values.

use std::fmt;
use std::path::{Path, PathBuf};

use super::secret_files::SecretFile;

/// Where settings come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    file: Option<PathBuf>,
    variables: Vec<String>,
    pub(super) secret_files: Vec<SecretFile>,
}

impl Sources {
    pub(super) fn new<'a>(file: Option<&Path>, variables: impl Iterator<Item = &'a String>) -> Self {
        Self {
            file: file.map(Path::to_owned),
            variables: variables.cloned().collect(),
            secret_files: Vec::new(),
        }
    }

    /// Logs what is worth a look: files with secrets that everybody on the machine can read.
    pub(crate) fn warn(&self) {
        for file in self.secret_files.iter().filter(|file| file.readable_by_all) {
            tracing::warn!(
                key = format!("{}_file", file.key),
                path = %file.path.display(),
                "every user of this machine can read the file with the secret; take that permission away (chmod o-r)"
            );
        }
    }
}

impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(path) => write!(f, "settings file `{}`", path.display())?,
            None => f.write_str("no settings file")?,
        }
        if !self.variables.is_empty() {
            write!(f, ", environment {}", quoted(&self.variables))?;
        }
        for file in &self.secret_files {
            write!(f, ", `{}` from file `{}`", file.key, file.path.display())?;
            if file.readable_by_all {
                f.write_str(" (which every user of this machine can read)")?;
            }
        }
        f.write_str(", defaults for the rest")
    }
}

fn quoted(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(" ")
}
