//! Whose data lies in the directories of the storage nodes, before anybody opens them.

use std::path::Path;

use ptah_segment_log::{Identity, OsDisk, Store};
use ptah_types::ClusterId;

use super::data_dir::Inspected;
use crate::failure::Failure;

/// Identities of storage nodes that have data, with the numbers of their directories.
pub(super) type Identities = Vec<(u32, Identity)>;

/// Reads the identities and refuses what can only be a mix-up of directories. Changes nothing.
///
/// A node that had data and has none is a disk that is not mounted, more often than one that is lost: it is refused
/// unless the loss is accepted.
pub(super) fn read(
    inspected: &Inspected,
    storage_nodes: u32,
    accept_lost: bool,
) -> Result<Identities, Failure> {
    let mut identities: Identities = Vec::new();
    for number in 1..=storage_nodes {
        let dir = inspected.node_dir(number);
        let identity = Store::read_identity(&OsDisk, &dir).map_err(|error| {
            Failure::cannot_start(format!("storage node {number} in `{}`: {error}", dir.display()))
        })?;
        let Some(identity) = identity else {
            if number <= inspected.started_nodes() && !accept_lost {
                return Err(lost(number, &dir));
            }
            continue;
        };
        if identity.node.get() != u64::from(number) {
            return Err(Failure::cannot_start(format!(
                "`{}` holds the data of storage node {}; move it to where it belongs",
                dir.display(),
                identity.node
            )));
        }
        identities.push((number, identity));
    }
    if let [(number, _), ..] = identities[..]
        && !inspected.has_metadata()
    {
        return Err(Failure::cannot_start(format!(
            "storage node {number} has data but the cluster's metadata is missing in `{}`; bring it back from a backup, \
             a new cluster cannot use this data",
            inspected.metadata_file().display()
        )));
    }
    Ok(identities)
}

fn lost(number: u32, dir: &Path) -> Failure {
    Failure::cannot_start(format!(
        "storage node {number} had its data in `{}` and there is none now; mount its disk or bring the directory back, or \
         start with --accept-lost-node if it is gone: its replicas stay lost then",
        dir.display()
    ))
}

/// Refuses data of another cluster than the one whose metadata is here.
pub(super) fn check(identities: &Identities, cluster: ClusterId) -> Result<(), Failure> {
    for (number, identity) in identities {
        if identity.cluster != cluster {
            return Err(Failure::cannot_start(format!(
                "storage node {number} holds data of cluster {}, but the metadata here is of cluster {cluster}; \
                 give each cluster a --data-dir of its own",
                identity.cluster
            )));
        }
    }
    Ok(())
}
