//! Snapshots: a stored checkpoint and the message segments that its manifest lists.
//!
//! What openraft passes around is the checkpoint, never the messages; a receiver copies the segments that it lacks
//! before it hands the snapshot to openraft, so that installing it is one switch in the segment log.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::RaftSnapshotBuilder;
use ptah_segment_log::{Checkpoint, CheckpointError, GroupLog, Install};

use crate::applied::AppliedState;
use crate::blocking::Blocking;
use crate::cell::InstallTurn;
use crate::checkpoint_codec::{decode_state, encode_state};
use crate::types::{Snapshot, SnapshotMeta, TypeConfig, raft_log_id};

/// How often a forced checkpoint looks whether the log below it is durable, and for how long.
const FLUSH_PAUSE: Duration = Duration::from_millis(5);
const FLUSH_TRIES: u32 = 2_000;

/// What openraft passes from the builder to the network and from the network to the state machine.
pub(crate) struct SnapshotData {
    pub(crate) checkpoint: Checkpoint,
    /// The receiver's staging area with every segment in it; `None` on the sending side.
    pub(crate) staged: Option<Staged>,
}

/// A staging area, and the right to use it: it is nobody else's until the switch has happened or everything is dropped,
/// whatever becomes of the call that began it.
pub(crate) struct Staged {
    pub(crate) install: Install,
    pub(crate) turn: InstallTurn,
}

/// A checkpoint as openraft wants it.
pub(crate) fn snapshot_of(checkpoint: Checkpoint, staged: Option<Staged>) -> io::Result<Snapshot> {
    let content = decode_state(&checkpoint.state).map_err(io::Error::other)?;
    if content.last_applied != Some(checkpoint.at) {
        return Err(io::Error::other(
            "checkpoint names another position than its file",
        ));
    }
    Ok(Snapshot {
        meta: SnapshotMeta {
            last_log_id: Some(raft_log_id(checkpoint.at)),
            last_membership: content.membership,
        },
        snapshot: SnapshotData { checkpoint, staged },
    })
}

/// The newest stored checkpoint as a snapshot.
pub(crate) async fn stored_snapshot(log: &Arc<GroupLog>, blocking: Blocking) -> io::Result<Option<Snapshot>> {
    let log = Arc::clone(log);
    let checkpoint = blocking
        .run(move || log.latest_checkpoint())
        .await?
        .map_err(io::Error::other)?;
    checkpoint
        .map(|checkpoint| snapshot_of(checkpoint, None))
        .transpose()
}

/// Gives openraft the newest stored checkpoint; takes one first when forced to.
pub(crate) struct SnapshotBuilder {
    pub(crate) log: Arc<GroupLog>,
    pub(crate) state: Arc<AppliedState>,
    pub(crate) blocking: Blocking,
    pub(crate) force: bool,
}

impl SnapshotBuilder {
    /// Writes a checkpoint of the applied state as soon as the log below it is durable.
    async fn checkpoint_now(&self) -> io::Result<()> {
        let Some((at, bytes)) = self.state.read(encode_state) else {
            return Ok(());
        };
        if self.log.checkpoint_log_id() == Some(at) {
            return Ok(());
        }
        for _ in 0..FLUSH_TRIES {
            let (log, bytes) = (Arc::clone(&self.log), bytes.clone());
            let written = self.blocking.run(move || log.write_checkpoint(at, bytes)).await?;
            match written {
                Ok(()) => return Ok(()),
                Err(CheckpointError::AheadOfLog { .. }) => tokio::time::sleep(FLUSH_PAUSE).await,
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Err(io::Error::other(format!(
            "log up to {at} is still not durable; a checkpoint must wait for it"
        )))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        if self.force {
            self.checkpoint_now().await?;
        }
        stored_snapshot(&self.log, self.blocking)
            .await?
            .ok_or_else(|| io::Error::other("no checkpoint is stored yet"))
    }
}
