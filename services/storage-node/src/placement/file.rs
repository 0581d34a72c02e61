//! The file `placement` in the data directory.
//!
//! One header line, `ptah-placement <version> <crc32c of the body, 8 hexadecimal digits>`, then the body as JSON, so that a
//! person can read it. It is replaced as a whole: written beside, synced, renamed, directory synced.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ptah_partition::crc32c;
use ptah_segment_log::Disk;
use ptah_types::{NodeId, PartitionKey, PartitionNumber, RaftGroupId, ReplicaId, StationId};
use serde::{Deserialize, Serialize};

use super::{Fence, Owner, PlacedReplica, Placement, Removal};

/// Version that is written. Stored, never used again for another form.
const VERSION: u32 = 1;
const MAGIC: &str = "ptah-placement";
const NAME: &str = "placement";
/// A node with 100,000 replicas needs about 30 MB.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Why the placement cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlacementFileError {
    /// The disk failed.
    #[error("{verb} {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// What the disk said.
        source: io::Error,
    },
    /// Written by a newer build.
    #[error("{} has version {found}, this build reads {VERSION}; start the newer build again", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Not what was written.
    #[error("{} is damaged: {why}; restore it from a backup, or retire this node and join with an empty directory and a new node id", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
}

/// The placement file of one data directory.
#[derive(Clone)]
pub(crate) struct PlacementFile {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredPlacement {
    cluster: String,
    node: u64,
    disk_id: String,
    epoch: u64,
    revision: u64,
    peers: BTreeMap<u64, String>,
    replicas: BTreeMap<u64, StoredReplica>,
    removals: BTreeMap<u64, u64>,
    /// Group, replica and revision of replicas to remove that left groups that stay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    departures: Vec<(u64, u64, u64)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredReplica {
    tenant: String,
    station: u64,
    partition: u32,
    replica: u64,
    members: Vec<(u64, u64)>,
    opened: bool,
    initialize: bool,
    initialized: bool,
    max_message_bytes: u64,
    generation: u64,
}

impl PlacementFile {
    /// The file in `dir`; nothing is touched.
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: &Path) -> Self {
        Self {
            disk,
            dir: dir.to_owned(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.join(NAME)
    }

    /// Reads the placement; `None` when there is none. Blocking. Changes nothing.
    pub(crate) fn load(&self) -> Result<Option<Placement>, PlacementFileError> {
        let path = self.path();
        let io = |verb| {
            let path = path.clone();
            move |source| PlacementFileError::Io { verb, path, source }
        };
        if !self.disk.exists(&path).map_err(io("look for"))? {
            return Ok(None);
        }
        let bytes = self.read(&path).map_err(io("read"))?;
        decode(&path, &bytes).map(Some)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.disk.open_read(path)?;
        let len = file.len()?;
        if len > MAX_FILE_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("it has {len} bytes, more than {MAX_FILE_BYTES}"),
            ));
        }
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        let mut filled = 0;
        while filled < bytes.len() {
            let read = file.read_at(&mut bytes[filled..], filled as u64)?;
            if read == 0 {
                break;
            }
            filled += read;
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// Replaces the placement; durable when it returns. Blocking.
    pub(crate) fn store(&self, placement: &Placement) -> Result<(), PlacementFileError> {
        let path = self.path();
        self.replace(&path, &encode(placement))
            .map_err(|source| PlacementFileError::Io {
                verb: "write",
                path,
                source,
            })
    }

    /// The error of a write that was cut off.
    pub(super) fn interrupted(&self, source: io::Error) -> PlacementFileError {
        PlacementFileError::Io {
            verb: "write",
            path: self.path(),
            source,
        }
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.disk.create_dir_all(&self.dir)?;
        let temporary = self.dir.join(format!("{NAME}.tmp"));
        let file = self.disk.create(&temporary)?;
        file.write_at(&mut [IoSlice::new(bytes)], 0)?;
        file.sync_data()?;
        drop(file);
        self.disk.rename(&temporary, path)?;
        self.disk.sync_dir(&self.dir)
    }
}

fn encode(placement: &Placement) -> Vec<u8> {
    let stored = StoredPlacement {
        cluster: placement.owner.cluster.to_string(),
        node: placement.owner.node.get(),
        disk_id: placement.owner.disk_id.clone(),
        epoch: placement.fence.epoch,
        revision: placement.fence.revision,
        peers: placement
            .peers
            .iter()
            .map(|(n, a)| (n.get(), a.clone()))
            .collect(),
        replicas: placement
            .replicas
            .iter()
            .map(|(group, replica)| (group.get(), stored_replica(replica)))
            .collect(),
        removals: placement
            .removals
            .iter()
            .filter(|(removal, _)| removal.replica.is_none())
            .map(|(removal, revision)| (removal.group.get(), *revision))
            .collect(),
        departures: placement
            .removals
            .iter()
            .filter_map(|(removal, revision)| Some((removal.group.get(), removal.replica?.get(), *revision)))
            .collect(),
    };
    let body = serde_json::to_vec_pretty(&stored).expect("numbers, texts and maps with number keys are JSON");
    let mut bytes = format!("{MAGIC} {VERSION} {:08x}\n", crc32c(&body)).into_bytes();
    bytes.extend_from_slice(&body);
    bytes
}

fn stored_replica(replica: &PlacedReplica) -> StoredReplica {
    StoredReplica {
        tenant: replica.key.tenant.to_string(),
        station: replica.key.station.get(),
        partition: replica.key.partition.get(),
        replica: replica.replica.get(),
        members: replica.members.iter().map(|(r, n)| (r.get(), n.get())).collect(),
        opened: replica.opened,
        initialize: replica.initialize,
        initialized: replica.initialized,
        max_message_bytes: replica.max_message_bytes,
        generation: replica.generation,
    }
}

fn decode(path: &Path, bytes: &[u8]) -> Result<Placement, PlacementFileError> {
    let damaged = |why: String| PlacementFileError::Damaged {
        path: path.to_owned(),
        why,
    };
    let end = bytes.iter().take(64).position(|byte| *byte == b'\n');
    let end = end.ok_or_else(|| damaged("it has no header line".to_owned()))?;
    let header =
        std::str::from_utf8(&bytes[..end]).map_err(|_| damaged("its header is not text".to_owned()))?;
    let mut words = header.split(' ');
    let (Some(MAGIC), Some(version), Some(crc), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(damaged(format!("its header is {header:?}")));
    };
    let found: u32 = version
        .parse()
        .map_err(|_| damaged(format!("its version is {version:?}")))?;
    if found > VERSION {
        let path = path.to_owned();
        return Err(PlacementFileError::Newer { path, found });
    }
    if found == 0 {
        return Err(damaged("its version is 0".to_owned()));
    }
    let body = &bytes[end + 1..];
    if u32::from_str_radix(crc, 16) != Ok(crc32c(body)) {
        return Err(damaged("its checksum does not fit".to_owned()));
    }
    let stored: StoredPlacement = serde_json::from_slice(body).map_err(|error| damaged(error.to_string()))?;
    Placement::try_from(stored).map_err(damaged)
}

impl TryFrom<StoredPlacement> for Placement {
    type Error = String;

    fn try_from(stored: StoredPlacement) -> Result<Self, String> {
        let mut peers = BTreeMap::new();
        for (node, address) in stored.peers {
            peers.insert(NodeId::new(node).map_err(text)?, address);
        }
        let mut replicas = BTreeMap::new();
        for (group, replica) in stored.replicas {
            replicas.insert(RaftGroupId::new(group).map_err(text)?, replica.try_into()?);
        }
        let mut removals = BTreeMap::new();
        for (group, revision) in stored.removals {
            let removal = Removal {
                group: RaftGroupId::new(group).map_err(text)?,
                replica: None,
            };
            removals.insert(removal, revision);
        }
        for (group, replica, revision) in stored.departures {
            let removal = Removal {
                group: RaftGroupId::new(group).map_err(text)?,
                replica: Some(ReplicaId::new(replica).map_err(text)?),
            };
            removals.insert(removal, revision);
        }
        Ok(Self {
            owner: Owner {
                cluster: stored.cluster.parse().map_err(text)?,
                node: NodeId::new(stored.node).map_err(text)?,
                disk_id: stored.disk_id,
            },
            fence: Fence {
                epoch: stored.epoch,
                revision: stored.revision,
            },
            peers,
            replicas,
            removals,
        })
    }
}

impl TryFrom<StoredReplica> for PlacedReplica {
    type Error = String;

    fn try_from(stored: StoredReplica) -> Result<Self, String> {
        let mut members = Vec::with_capacity(stored.members.len());
        for (replica, node) in stored.members {
            members.push((
                ReplicaId::new(replica).map_err(text)?,
                NodeId::new(node).map_err(text)?,
            ));
        }
        Ok(Self {
            key: PartitionKey {
                tenant: stored.tenant.parse().map_err(text)?,
                station: StationId::new(stored.station).map_err(text)?,
                partition: PartitionNumber::new(stored.partition).map_err(text)?,
            },
            replica: ReplicaId::new(stored.replica).map_err(text)?,
            members,
            opened: stored.opened,
            initialize: stored.initialize,
            initialized: stored.initialized,
            max_message_bytes: stored.max_message_bytes,
            generation: stored.generation,
        })
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement() -> Placement {
        let mut placement = Placement::empty(Owner {
            cluster: ptah_types::ClusterId::from_random_bytes([7; 16]),
            node: NodeId::new(3).unwrap(),
            disk_id: "00ff".to_owned(),
        });
        placement.fence = Fence {
            epoch: 2,
            revision: 9,
        };
        placement.peers.insert(NodeId::new(3).unwrap(), "h:1".to_owned());
        let removed = Removal {
            group: RaftGroupId::new(8).unwrap(),
            replica: None,
        };
        placement.removals.insert(removed, 7);
        let replica = PlacedReplica {
            key: PartitionKey {
                tenant: "default".parse().unwrap(),
                station: StationId::new(5).unwrap(),
                partition: PartitionNumber::FIRST,
            },
            replica: ReplicaId::new(1).unwrap(),
            members: vec![(ReplicaId::new(1).unwrap(), NodeId::new(3).unwrap())],
            opened: true,
            initialize: false,
            initialized: true,
            max_message_bytes: 10,
            generation: 1,
        };
        placement.replicas.insert(RaftGroupId::new(4).unwrap(), replica);
        placement
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut placement = placement();
        let left = Removal {
            group: RaftGroupId::new(4).unwrap(),
            replica: Some(ReplicaId::new(2).unwrap()),
        };
        placement.removals.insert(left, 11);
        let read = decode(Path::new("placement"), &encode(&placement)).unwrap();
        assert_eq!(read, placement);
    }

    #[test]
    fn the_form_on_disk_does_not_move() {
        let text = String::from_utf8(encode(&placement())).unwrap();
        let (header, body) = text.split_once('\n').unwrap();
        assert_eq!(
            header,
            format!("ptah-placement 1 {:08x}", crc32c(body.as_bytes()))
        );
        let value: serde_json::Value = serde_json::from_str(body).unwrap();
        let expected = serde_json::json!({
            "cluster": "07070707-0707-4707-8707-070707070707", "node": 3, "disk_id": "00ff",
            "epoch": 2, "revision": 9, "peers": {"3": "h:1"}, "removals": {"8": 7},
            "replicas": {"4": {"tenant": "default", "station": 5, "partition": 1, "replica": 1, "members": [[1, 3]],
                "opened": true, "initialize": false, "initialized": true, "max_message_bytes": 10, "generation": 1}},
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let good = encode(&placement());
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 1;
            assert!(decode(Path::new("placement"), &bad).is_err(), "byte {place}");
        }
        for len in 0..good.len() {
            assert!(
                decode(Path::new("placement"), &good[..len]).is_err(),
                "length {len}"
            );
        }
    }
}
