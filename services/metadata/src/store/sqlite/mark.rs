//! The mark: a small file beside the database that remembers how far the database was.
//!
//! A backup that is put back looks like a healthy database, but its revisions would be given out a second time, and
//! watchers would never learn that they know a future that did not happen. So the highest revision and lease epoch are
//! written and synced here *before* the commit that uses them, together with the numbers before it, which say that a
//! commit is under way. When the commit has happened, and before anybody is told, the mark is written without them.
//!
//! A database below its mark, or without one, is an older copy: the store then takes another incarnation and jumps over
//! every number that was in use. A database at the numbers from which a commit was under way is no older copy: that
//! commit did not happen, and nobody has seen its numbers.
//!
//! The file is text of a fixed length below one disk sector, rewritten in place.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ptah_types::ClusterId;

const TITLE: &str = "ptah-metadata-mark 2";
/// The first form, which did not tell whether a commit was under way.
const TITLE_1: &str = "ptah-metadata-mark 1";
/// Longer files are not marks; keeps a wrong path from being read whole.
const MAX_BYTES: u64 = 512;

/// How far a database is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Numbers {
    pub(super) revision: u64,
    pub(super) epoch: u64,
}

/// What the mark remembers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mark {
    pub(super) cluster: ClusterId,
    pub(super) incarnation: u64,
    /// Highest numbers that may be in use.
    pub(super) highest: Numbers,
    /// Where the database stands when the commit that is under way does not happen; the same as `highest` when none is.
    pub(super) settled: Numbers,
}

/// What is found in the place of a mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// No file.
    Nothing,
    /// A file that is not a whole mark.
    Damaged,
    /// A mark.
    Mark(Mark),
}

/// The open file.
#[derive(Clone)]
pub(super) struct MarkFile {
    file: Arc<File>,
}

/// Where the mark of a database is.
pub(super) fn path_of(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(".mark");
    PathBuf::from(path)
}

/// Reads the mark.
pub(super) fn read(path: &Path) -> io::Result<Found> {
    let length = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    };
    if length > MAX_BYTES {
        return Ok(Found::Damaged);
    }
    let bytes = std::fs::read(path)?;
    let mark = std::str::from_utf8(&bytes).ok().and_then(Mark::decode);
    Ok(mark.map_or(Found::Damaged, Found::Mark))
}

impl MarkFile {
    /// Opens or makes the file and writes a mark; afterwards both file and name survive power loss.
    pub(super) fn create(path: &Path, mark: &Mark) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        let this = Self { file: Arc::new(file) };
        this.write(mark)?;
        // Behind the write, so that a mark of another length is never without its content.
        let length = u64::try_from(mark.encode().len()).unwrap_or(MAX_BYTES);
        this.file.set_len(length)?;
        this.file.sync_all()?;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            File::open(folder)?.sync_all()?;
        }
        Ok(this)
    }

    /// Replaces the mark; it survives power loss when this returns.
    pub(super) fn write(&self, mark: &Mark) -> io::Result<()> {
        self.file.write_all_at(mark.encode().as_bytes(), 0)?;
        self.file.sync_data()
    }
}

impl Mark {
    fn encode(&self) -> String {
        let body = format!(
            "{TITLE}\ncluster {}\nincarnation {:020}\nrevision {:020}\nepoch {:020}\n\
             settled_revision {:020}\nsettled_epoch {:020}\n",
            self.cluster,
            self.incarnation,
            self.highest.revision,
            self.highest.epoch,
            self.settled.revision,
            self.settled.epoch
        );
        let checksum = checksum(&body);
        format!("{body}crc32c {checksum:08x}\n")
    }

    fn decode(text: &str) -> Option<Self> {
        let (body, checksum_line) = text.trim_end_matches('\n').rsplit_once('\n')?;
        let body = format!("{body}\n");
        let expected = u32::from_str_radix(checksum_line.strip_prefix("crc32c ")?, 16).ok()?;
        if checksum(&body) != expected {
            return None;
        }
        let mut lines = body.lines();
        let title = lines.next()?;
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let cluster = field("cluster")?.parse().ok()?;
        let incarnation = field("incarnation")?.parse().ok()?;
        let highest = Numbers {
            revision: field("revision")?.parse().ok()?,
            epoch: field("epoch")?.parse().ok()?,
        };
        let settled = match title {
            TITLE => Numbers {
                revision: field("settled_revision")?.parse().ok()?,
                epoch: field("settled_epoch")?.parse().ok()?,
            },
            TITLE_1 => highest,
            _ => return None,
        };
        Some(Self {
            cluster,
            incarnation,
            highest,
            settled,
        })
    }
}

fn checksum(text: &str) -> u32 {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, text.as_bytes());
    // A 32-bit algorithm: the upper half is empty.
    u32::try_from(crc).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Mark {
        Mark {
            cluster: ClusterId::from_random_bytes([7; 16]),
            incarnation: 3,
            highest: Numbers {
                revision: u64::MAX,
                epoch: 5,
            },
            settled: Numbers {
                revision: 9,
                epoch: 4,
            },
        }
    }

    #[test]
    fn a_mark_is_read_back_and_rewritten_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = path_of(&folder.path().join("db"));
        assert_eq!(read(&path).unwrap(), Found::Nothing);
        let file = MarkFile::create(&path, &mark()).unwrap();
        assert_eq!(read(&path).unwrap(), Found::Mark(mark()));
        let next = Mark {
            settled: mark().highest,
            ..mark()
        };
        file.write(&next).unwrap();
        assert_eq!(read(&path).unwrap(), Found::Mark(next));
    }

    #[test]
    fn the_layout_does_not_move() {
        let expected = "ptah-metadata-mark 2\ncluster 07070707-0707-4707-8707-070707070707\n\
                        incarnation 00000000000000000003\nrevision 18446744073709551615\nepoch 00000000000000000005\n\
                        settled_revision 00000000000000000009\nsettled_epoch 00000000000000000004\ncrc32c 892662e5\n";
        assert_eq!(mark().encode(), expected);
        assert!(expected.len() < 512, "one sector, so that it is never torn");
    }

    #[test]
    fn a_mark_of_the_first_form_is_read_with_nothing_under_way_and_written_in_the_second() {
        let text = "ptah-metadata-mark 1\ncluster 07070707-0707-4707-8707-070707070707\n\
                    incarnation 00000000000000000003\nrevision 18446744073709551615\nepoch 00000000000000000005\n\
                    crc32c dc799d0e\n";
        let folder = tempfile::tempdir().unwrap();
        let path = path_of(&folder.path().join("db"));
        std::fs::write(&path, text).unwrap();
        let first = Mark {
            settled: mark().highest,
            ..mark()
        };
        assert_eq!(read(&path).unwrap(), Found::Mark(first));
        MarkFile::create(&path, &mark()).unwrap();
        assert_eq!(read(&path).unwrap(), Found::Mark(mark()));
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let text = mark().encode();
        for index in 0..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes[index] ^= 1;
            let damaged = String::from_utf8(bytes).unwrap();
            assert_ne!(Mark::decode(&damaged), Some(mark()), "byte {index}");
            assert_eq!(Mark::decode(&damaged), None, "byte {index}");
        }
        assert_eq!(Mark::decode(&text[..text.len() / 2]), None);
        assert_eq!(Mark::decode(""), None);
    }
}
