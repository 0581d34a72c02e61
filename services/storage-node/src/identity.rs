//! Whose data directory it is: read before anything is written, checked against the configuration.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ptah_segment_log::{Disk, Identity, OpenError, Store};
use ptah_service::Random;
use ptah_types::NodeId;

use crate::placement::{Owner, Placement, PlacementFile, PlacementFileError};

/// What a data directory says of itself.
#[derive(Debug)]
pub(crate) enum Directory {
    /// Nothing was ever stored in it.
    Empty,
    /// It belongs to this node.
    Ours(Placement),
}

/// Why a data directory is not used. It was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DirectoryError {
    /// Another node's.
    #[error(
        "data directory {} belongs to node {found} of cluster {cluster}, this node is configured as node {configured}; set the \
         right `data_dir` or `node_id`",
        path.display()
    )]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// Node that it belongs to.
        found: NodeId,
        /// Its cluster.
        cluster: ptah_types::ClusterId,
        /// This node.
        configured: NodeId,
    },
    /// Files of two owners.
    #[error("data directory {} holds the placement of another node or cluster than its data; restore the right file", .0.display())]
    Mixed(PathBuf),
    /// Data without its placement.
    #[error(
        "data directory {} has no file `placement`; restore it from a backup, or join with an empty directory and a new \
         node id",
        .0.display()
    )]
    NoPlacement(PathBuf),
    /// A placement without its data.
    #[error(
        "data directory {} has lost its data: replicas were placed here, but nothing of them is there; restore it, or join \
         with an empty directory and a new node id",
        .0.display()
    )]
    Wiped(PathBuf),
    /// It cannot be read.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// It cannot be read.
    #[error(transparent)]
    Placement(#[from] PlacementFileError),
}

/// Reads whose directory it is. Blocking; changes nothing.
pub(crate) fn examine(disk: &Arc<dyn Disk>, dir: &Path, node: NodeId) -> Result<Directory, DirectoryError> {
    let placement = PlacementFile::new(Arc::clone(disk), dir).load()?;
    let identity = Store::read_identity(&**disk, dir)?;
    if let Some(identity) = identity {
        check_node(dir, identity, node)?;
    }
    let path = || dir.to_owned();
    match (identity, placement) {
        (None, None) => Ok(Directory::Empty),
        (Some(_), None) => Err(DirectoryError::NoPlacement(path())),
        (None, Some(placement)) => {
            check_node(dir, identity_of(&placement.owner), node)?;
            // The first start ended between writing the placement and making the store.
            if placement.replicas.is_empty() && placement.fence == crate::placement::Fence::default() {
                return Ok(Directory::Ours(placement));
            }
            Err(DirectoryError::Wiped(path()))
        }
        (Some(identity), Some(placement)) if identity == identity_of(&placement.owner) => {
            Ok(Directory::Ours(placement))
        }
        (Some(_), Some(_)) => Err(DirectoryError::Mixed(path())),
    }
}

fn check_node(dir: &Path, identity: Identity, configured: NodeId) -> Result<(), DirectoryError> {
    if identity.node == configured {
        return Ok(());
    }
    Err(DirectoryError::OtherNode {
        path: dir.to_owned(),
        found: identity.node,
        cluster: identity.cluster,
        configured,
    })
}

/// Owner as the store knows it.
pub(crate) fn identity_of(owner: &Owner) -> Identity {
    Identity {
        cluster: owner.cluster,
        node: owner.node,
    }
}

/// A random name for a new data directory.
pub(crate) fn new_disk_id(random: &dyn Random) -> String {
    format!("{:016x}{:016x}", random.next_u64(), random.next_u64())
}
