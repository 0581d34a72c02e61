//! The data directory of `ptah up`: whose it is, who uses it, and what lies where.
//!
//! ```text
//! ptah-data/
//!   ptah-up.json       made last: what made the directory; without it nothing here is touched
//!   ptah.lock          held while a process uses the directory
//!   cluster-secret     what the cluster's processes share, mode 0600
//!   metadata/          the database
//!   gateway/           what the gateway needs when metadata is down
//!   storage-node-1/    one per storage node
//! ```
//!
//! Looking ([`inspect`]) and changing ([`Inspected::take`]) are two steps, so that a start that is refused changes
//! nothing.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ptah_service::{Random, Secret};
use serde::{Deserialize, Serialize};

use super::args::MAX_STORAGE_NODES;
use crate::failure::Failure;

const MARKER: &str = "ptah-up.json";
const MARKER_NEW: &str = "ptah-up.json.new";
const LOCK: &str = "ptah.lock";
const SECRET: &str = "cluster-secret";
/// The database, in the directory `metadata`.
pub(super) const METADATA_FILE: &str = "ptah-metadata.db";
const NODE_PREFIX: &str = "storage-node-";
/// Form of the directory that this version makes and reads.
const FORMAT: u32 = 1;
/// Random bytes of a cluster's secret.
const SECRET_BYTES: usize = 32;

/// What is written down about the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    format: u32,
    /// Storage nodes that the cluster has; never fewer than before.
    storage_nodes: u32,
    /// Of these, the first so many have been started once, so that they have data.
    #[serde(default)]
    started_nodes: u32,
}

/// A directory that was looked at and may be used.
#[derive(Debug)]
pub(super) struct Inspected {
    path: PathBuf,
    marker: Option<Marker>,
    lock: Option<File>,
}

/// A directory that this process uses.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    storage_nodes: u32,
    /// Held until the process ends.
    _lock: File,
}

/// Looks at the directory and changes nothing.
pub(super) fn inspect(path: &Path) -> Result<Inspected, Failure> {
    let failed = |what: &str, error: &io::Error| {
        Failure::cannot_start(format!(
            "{what} data directory `{}`: {}",
            path.display(),
            text(error)
        ))
    };
    let mut inspected = Inspected {
        path: path.to_owned(),
        marker: None,
        lock: None,
    };
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(inspected),
        Err(error) => return Err(failed("read", &error)),
    };
    let mut foreign = None;
    for entry in entries {
        let name = entry.map_err(|error| failed("read", &error))?.file_name();
        match name.to_str() {
            Some(MARKER) => inspected.marker = Some(read_marker(path)?),
            Some(LOCK) => inspected.lock = Some(lock(path, OpenOptions::new().read(true))?),
            Some(MARKER_NEW | SECRET) => {}
            _ => foreign = Some(name),
        }
    }
    match (foreign, &inspected.marker) {
        (Some(name), None) => Err(Failure::cannot_start(format!(
            "data directory `{}` is not empty and was not made by `ptah up` (it holds `{}`); give another --data-dir",
            path.display(),
            name.display()
        ))),
        _ => Ok(inspected),
    }
}

impl Inspected {
    /// How many storage nodes to start: as many as asked for, but never fewer than there are.
    pub(super) fn storage_nodes(&self, wanted: Option<u32>) -> Result<u32, Failure> {
        let existing = self.marker.as_ref().map_or(0, |marker| marker.storage_nodes);
        let nodes = wanted.unwrap_or(existing.max(1));
        if nodes < existing {
            return Err(Failure::cannot_start(format!(
                "data directory `{}` has {existing} storage nodes, and with only {nodes} their replicas would be \
                 missing; start it with --storage-nodes {existing} or more",
                self.path.display()
            )));
        }
        Ok(nodes)
    }

    /// Whether nothing was made here yet.
    pub(super) fn is_new(&self) -> bool {
        self.marker.is_none()
    }

    /// The first so many storage nodes have been started once.
    pub(super) fn started_nodes(&self) -> u32 {
        self.marker.as_ref().map_or(0, |marker| marker.started_nodes)
    }

    /// Where the cluster's metadata is, or will be.
    pub(super) fn metadata_file(&self) -> PathBuf {
        self.path.join("metadata").join(METADATA_FILE)
    }

    /// Whether there is a database; one that cannot be looked at is one.
    pub(super) fn has_metadata(&self) -> bool {
        self.metadata_file().try_exists().unwrap_or(true)
    }

    /// Where a storage node's data is, or will be.
    pub(super) fn node_dir(&self, number: u32) -> PathBuf {
        node_dir(&self.path, number)
    }

    /// Makes the directory if there is none, locks it and writes down what it is.
    pub(super) fn take(self, storage_nodes: u32) -> Result<DataDir, Failure> {
        let path = self.path;
        let failed = |what: &str, error: &io::Error| {
            Failure::cannot_start(format!(
                "{what} data directory `{}`: {}",
                path.display(),
                text(error)
            ))
        };
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|error| failed("make", &error))?;
        let lock = match self.lock {
            Some(lock) => lock,
            None => lock(
                &path,
                OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .mode(0o600),
            )?,
        };
        let marker = Marker {
            format: FORMAT,
            storage_nodes,
            started_nodes: self.marker.as_ref().map_or(0, |marker| marker.started_nodes),
        };
        if self.marker.as_ref() != Some(&marker) {
            write_marker(&path, &marker).map_err(|error| failed("write to", &error))?;
        }
        Ok(DataDir {
            path,
            storage_nodes,
            _lock: lock,
        })
    }
}

impl DataDir {
    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Storage nodes that the cluster has.
    pub(super) fn storage_nodes(&self) -> u32 {
        self.storage_nodes
    }

    /// Writes down that every storage node has been started, and so has data.
    pub(super) fn all_started(&self) -> Result<(), Failure> {
        let marker = Marker {
            format: FORMAT,
            storage_nodes: self.storage_nodes,
            started_nodes: self.storage_nodes,
        };
        write_marker(&self.path, &marker).map_err(|error| {
            Failure::cannot_start(format!(
                "write to data directory `{}`: {}",
                self.path.display(),
                text(&error)
            ))
        })
    }

    /// Where a storage node's data is.
    pub(super) fn node_dir(&self, number: u32) -> PathBuf {
        node_dir(&self.path, number)
    }

    /// A directory of one of the parts; made when it is not there.
    pub(super) fn part(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.path.join(name);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|error| {
            Failure::cannot_start(format!("make directory `{}`: {}", path.display(), text(&error)))
        })?;
        Ok(path)
    }

    /// The secret of the cluster's processes; made at the first start.
    pub(super) fn secret(&self, random: &dyn Random) -> Result<Secret, Failure> {
        let path = self.path.join(SECRET);
        let failed = |error: io::Error| {
            Failure::cannot_start(format!("cluster secret `{}`: {}", path.display(), text(&error)))
        };
        match fs::read_to_string(&path) {
            Ok(secret) => {
                check_mode(&path, fs::metadata(&path).map_err(failed)?.permissions().mode())?;
                let secret = secret.trim_end();
                if secret.len() < 2 * SECRET_BYTES {
                    return Err(Failure::cannot_start(format!(
                        "cluster secret `{}` is damaged: it has {} characters of {}; delete it, then a new one is made",
                        path.display(),
                        secret.len(),
                        2 * SECRET_BYTES
                    )));
                }
                Ok(Secret::new(secret.to_owned()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut bytes = [0; SECRET_BYTES];
                random.fill(&mut bytes);
                let secret: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                write_new(&self.path, SECRET, secret.as_bytes()).map_err(failed)?;
                Ok(Secret::new(secret))
            }
            Err(error) => Err(failed(error)),
        }
    }
}

fn node_dir(path: &Path, number: u32) -> PathBuf {
    path.join(format!("{NODE_PREFIX}{number}"))
}

fn check_mode(path: &Path, mode: u32) -> Result<(), Failure> {
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let path = path.display();
    Err(Failure::cannot_start(format!(
        "cluster secret `{path}` can be read by others (mode {:o}); run `chmod 600 {path}`",
        mode & 0o777
    )))
}

fn read_marker(dir: &Path) -> Result<Marker, Failure> {
    let path = dir.join(MARKER);
    let failed = |why: String| Failure::cannot_start(format!("`{}`: {why}", path.display()));
    let bytes = fs::read(&path).map_err(|error| failed(text(&error)))?;
    // The format comes first: a newer one may have other fields.
    let value: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| failed(format!("damaged: {error}")))?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(format) if format == u64::from(FORMAT) => {}
        Some(format) => {
            return Err(failed(format!(
                "made by a version with format {format}, this one knows {FORMAT}; use that version"
            )));
        }
        None => return Err(failed("damaged: it names no format".to_owned())),
    }
    let marker: Marker =
        serde_json::from_value(value).map_err(|error| failed(format!("damaged: {error}")))?;
    if !(1..=MAX_STORAGE_NODES).contains(&marker.storage_nodes) {
        return Err(failed(format!("damaged: {} storage nodes", marker.storage_nodes)));
    }
    Ok(marker)
}

fn write_marker(dir: &Path, marker: &Marker) -> io::Result<()> {
    let mut text = serde_json::to_string(marker)?;
    text.push('\n');
    let new = dir.join(MARKER_NEW);
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, dir.join(MARKER))?;
    File::open(dir)?.sync_all()
}

fn write_new(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    // Written beside and moved, so that a crash leaves no half of it.
    let new = dir.join(format!("{name}.new"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, dir.join(name))?;
    File::open(dir)?.sync_all()
}

fn lock(dir: &Path, options: &OpenOptions) -> Result<File, Failure> {
    let failed = |error: &io::Error| {
        Failure::cannot_start(format!(
            "lock data directory `{}`: {}",
            dir.display(),
            text(error)
        ))
    };
    let file = options.open(dir.join(LOCK)).map_err(|error| failed(&error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Failure::cannot_start(format!(
            "data directory `{}` is in use by another process; stop that one or give another --data-dir",
            dir.display()
        ))),
        Err(TryLockError::Error(error)) => Err(failed(&error)),
    }
}

fn text(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "permission denied; run as its owner or give another --data-dir".to_owned()
        }
        io::ErrorKind::NotADirectory => "not a directory; give another --data-dir".to_owned(),
        io::ErrorKind::StorageFull => "no space left on the disk".to_owned(),
        io::ErrorKind::ReadOnlyFilesystem => {
            "the file system is read-only; give another --data-dir".to_owned()
        }
        _ => error.to_string().to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ptah_service::SeededRandom;
    use tempfile::TempDir;

    fn new_dir() -> (TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        (dir, path)
    }

    fn message(failure: &Failure) -> String {
        assert_eq!(failure.exit().code(), 9);
        failure.message().unwrap().to_owned()
    }

    #[test]
    fn looking_changes_nothing() {
        let (parent, path) = new_dir();
        assert!(inspect(&path).unwrap().marker.is_none());
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_is_used_by_one_process_at_a_time_and_again_afterwards() {
        let (_parent, path) = new_dir();
        let used = inspect(&path).unwrap().take(1).unwrap();
        assert!(message(&inspect(&path).unwrap_err()).contains("in use by another process"));
        drop(used);
        assert!(inspect(&path).unwrap().marker.is_some());
    }

    #[test]
    fn somebody_elses_directory_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "x").unwrap();
        assert!(message(&inspect(dir.path()).unwrap_err()).contains("thesis.txt"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_or_a_path_below_a_file_is_no_directory() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(message(&inspect(&file).unwrap_err()).contains("not a directory"));
        assert!(message(&inspect(&file.join("below")).unwrap_err()).contains("not a directory"));
    }

    #[test]
    fn storage_nodes_may_grow_and_never_shrink() {
        let (_parent, path) = new_dir();
        assert_eq!(inspect(&path).unwrap().storage_nodes(None).unwrap(), 1);
        drop(inspect(&path).unwrap().take(3).unwrap());
        let inspected = inspect(&path).unwrap();
        assert_eq!(inspected.storage_nodes(None).unwrap(), 3);
        assert_eq!(inspected.storage_nodes(Some(5)).unwrap(), 5);
        assert!(message(&inspected.storage_nodes(Some(2)).unwrap_err()).contains("--storage-nodes 3"));
    }

    #[test]
    fn the_secret_is_made_once_and_only_its_owner_may_read_it() {
        let (_parent, path) = new_dir();
        let dir = inspect(&path).unwrap().take(1).unwrap();
        let first = dir.secret(&SeededRandom::new(1)).unwrap();
        let second = dir.secret(&SeededRandom::new(2)).unwrap();
        assert_eq!(first.expose(), second.expose());
        assert_eq!(first.expose().len(), 2 * SECRET_BYTES);
        let file = path.join(SECRET);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(message(&dir.secret(&SeededRandom::new(1)).unwrap_err()).contains("chmod 600"));
    }

    #[test]
    fn a_newer_format_is_refused() {
        let (_parent, path) = new_dir();
        drop(inspect(&path).unwrap().take(1).unwrap());
        fs::write(path.join(MARKER), r#"{"format":2,"more":true}"#).unwrap();
        assert!(message(&inspect(&path).unwrap_err()).contains("format 2"));
        fs::write(path.join(MARKER), "{").unwrap();
        assert!(message(&inspect(&path).unwrap_err()).contains("damaged"));
    }

    #[test]
    fn a_start_that_was_cut_off_early_can_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        for left_over in [LOCK, MARKER_NEW] {
            fs::write(dir.path().join(left_over), "").unwrap();
        }
        let taken = inspect(dir.path()).unwrap().take(2).unwrap();
        assert_eq!(taken.storage_nodes(), 2);
    }
}
