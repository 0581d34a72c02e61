//! The catalog's copy on disk, so that a gateway can start while metadata is down.
//!
//! The file is replaced as a whole, a moment after the catalog changed. A file that is damaged or of another version is
//! passed over with a warning: the copy is worth nothing that the store does not have.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ptah_partition::crc32c;
use ptah_rpc::records::Record;
use ptah_service::{Blocking, Stopping};
use tracing::{info, warn};

use super::{Catalog, CatalogView, Position};

/// Name of the format with its version.
const MAGIC: &[u8; 8] = b"PTAHCAT1";
const HEAD_BYTES: usize = MAGIC.len() + 4;
/// Changes that come together are written once.
const PAUSE: Duration = Duration::from_secs(1);

/// What is in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogCopy {
    /// Records.
    pub records: Vec<Record>,
    /// Revision that they are of.
    pub revision: u64,
    /// Incarnation that the revision is of.
    pub incarnation: u64,
}

/// Form of the records in the file.
#[derive(Clone, Copy)]
pub struct CatalogCodec {
    /// To bytes.
    pub encode: fn(&CatalogCopy) -> Vec<u8>,
    /// Back.
    pub decode: fn(&[u8]) -> Result<CatalogCopy, String>,
}

/// The file of a catalog.
#[derive(Clone)]
pub struct CatalogFile {
    /// Where.
    pub path: PathBuf,
    /// Form.
    pub codec: CatalogCodec,
    /// Where files are read and written.
    pub blocking: Blocking,
}

impl CatalogFile {
    /// Fills the catalog from the file, if there is a good one.
    pub async fn restore(&self, catalog: &Catalog) {
        let path = self.path.clone();
        let read = self.blocking.run(move || std::fs::read(path)).await;
        let bytes = match read {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return,
            Ok(Err(error)) => {
                return warn!(path = %self.path.display(), %error, "catalog file cannot be read");
            }
            Err(error) => return warn!(%error, "catalog file was not read"),
        };
        match self.decode(&bytes) {
            Ok(copy) => {
                info!(path = %self.path.display(), records = copy.records.len(), "catalog restored from its file");
                let mut view = CatalogView::default();
                for record in copy.records {
                    view.apply(record);
                }
                catalog.replace(view, copy.revision, copy.incarnation);
            }
            Err(why) => warn!(path = %self.path.display(), why, "catalog file is passed over"),
        }
    }

    fn decode(&self, bytes: &[u8]) -> Result<CatalogCopy, String> {
        let (head, body) = bytes.split_at_checked(HEAD_BYTES).ok_or("it is too short")?;
        let body = Some(body)
            .filter(|_| head.starts_with(MAGIC))
            .ok_or("it is no catalog of this version")?;
        if crc32c(body).to_le_bytes() != head[MAGIC.len()..] {
            return Err("its checksum does not match".to_owned());
        }
        (self.codec.decode)(body)
    }

    /// Keeps the file equal to the catalog until told to stop.
    pub async fn follow(self, catalog: Catalog, stopping: Stopping) {
        let mut changes = catalog.watch();
        let mut written = *changes.borrow_and_update();
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
            tokio::select! {
                () = stopping.cancelled() => {}
                () = tokio::time::sleep(PAUSE) => {}
            }
            let position = *changes.borrow_and_update();
            if position.changes == written.changes || !position.loaded {
                continue;
            }
            match self.write(&catalog, position).await {
                Ok(()) => written = position,
                Err(error) => warn!(path = %self.path.display(), %error, "catalog file is not written"),
            }
        }
    }

    async fn write(&self, catalog: &Catalog, position: Position) -> io::Result<()> {
        let copy = CatalogCopy {
            records: catalog.with(|view| view.records().cloned().collect()),
            revision: position.revision,
            incarnation: position.incarnation,
        };
        let file = self.clone();
        let written = self.blocking.run(move || {
            let body = (file.codec.encode)(&copy);
            replace(&file.path, &[MAGIC, &crc32c(&body).to_le_bytes(), &body])
        });
        written.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

/// Puts a file in place as a whole. Only its owner can read it: it holds password hashes.
fn replace(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let beside = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.sync_all()?;
    drop(file);
    std::fs::rename(&beside, path)
}
