//! Ports file: tells tests and scripts which addresses a process got when it asked for port 0.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

/// Writes `{"grpc": "127.0.0.1:1234", ...}` to `path`: a reader sees nothing or all of it, never a part.
pub fn write_ports_file(path: &Path, addresses: &BTreeMap<String, String>) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| {
        let why = format!("`{}` is not the name of a file", path.display());
        io::Error::new(io::ErrorKind::InvalidInput, why)
    })?;
    let mut temporary_name = name.to_owned();
    temporary_name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(temporary_name);
    let written = write_and_rename(&temporary, path, addresses);
    if written.is_err() {
        // What is left of the attempt is of no use; the error that counts is the first one.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_and_rename(temporary: &Path, path: &Path, addresses: &BTreeMap<String, String>) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(addresses)?;
    text.push('\n');
    let mut file = File::create(temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    drop(file);
    fs::rename(temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> BTreeMap<String, String> {
        BTreeMap::from([("grpc".to_owned(), "127.0.0.1:1234".to_owned())])
    }

    #[test]
    fn the_file_holds_the_addresses_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ports.json");
        fs::write(&path, "old").unwrap();
        write_ports_file(&path, &addresses()).unwrap();
        let read: BTreeMap<String, String> =
            serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(read, addresses());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write_ports_file(&dir.path().join("no/ports.json"), &addresses()).is_err());
    }
}
