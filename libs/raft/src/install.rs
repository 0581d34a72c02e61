//! Taking in a snapshot: copying the segments that are missing here, then one switch.
//!
//! Nothing changes before everything is here and verified. A crash or a broken connection in between leaves the old
//! state; the leader offers again. The staging area is one per replica: the right to use it travels with the staged data
//! through every thread and through openraft, so that an offer whose caller went away keeps others out until it ended.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use openraft::async_runtime::watch::WatchReceiver as _;
use ptah_segment_log::{Checkpoint, InstallError, MissingRange};
use ptah_types::NodeId;

use crate::cell::InstallTurn;
pub(crate) use crate::cell::Running;
use crate::snapshot::{Staged, snapshot_of};
use crate::transport::grpc::calls::SegmentReader;
use crate::transport::{Route, Transport};
use crate::types::Vote;

/// Received pieces are written together from this many bytes on.
const WRITE_BYTES: usize = 1 << 20;
/// A sender that sends nothing for this long is given up.
const PIECE_DEADLINE: Duration = Duration::from_secs(30);
/// How long the switch to the new state may take once everything is here.
const INSTALL_DEADLINE: Duration = Duration::from_secs(120);
/// How often segments that arrived damaged are fetched again.
const ATTEMPTS: usize = 3;

/// Why a snapshot is not installed; for the sender's log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    #[error("another snapshot is being copied or installed; offer it again")]
    Busy,
    #[error("offer cannot be read: {0}")]
    Offer(String),
    #[error("snapshot ends at a term above the leader's")]
    AheadOfLeader,
    #[error("copy segment {segment} from node {node}: {why}")]
    Copy { segment: u64, node: NodeId, why: String },
    #[error("segments still do not verify after {ATTEMPTS} attempts")]
    Damaged,
    #[error(transparent)]
    Install(#[from] InstallError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("replica stopped while the snapshot was installed: {0}")]
    Stopped(String),
}

/// The right to take in a snapshot; refused while another one is taken in.
pub(crate) fn turn(running: &Running) -> Result<InstallTurn, ReceiveError> {
    Arc::clone(&running.installing)
        .try_lock_owned()
        .map_err(|_| ReceiveError::Busy)
}

/// Takes in what a leader offers; answers the vote that this replica knows.
pub(crate) async fn receive(
    transport: &Transport,
    running: &Running,
    turn: InstallTurn,
    from: NodeId,
    route: Route,
    vote: Vote,
    checkpoint: Checkpoint,
) -> Result<Vote, ReceiveError> {
    let known = running.raft.server_metrics().borrow_watched().vote;
    if known > vote {
        return Ok(known);
    }
    if checkpoint.at.term.0 > vote.leader_id.term {
        return Err(ReceiveError::AheadOfLeader);
    }
    let (log, offered) = (Arc::clone(&running.log), checkpoint.clone());
    let begin = move || {
        let install = log.begin_install(offered)?;
        Ok::<_, InstallError>(Staged { install, turn })
    };
    let begun = running.blocking.run(begin).await?;
    let copier = Copier {
        transport,
        running,
        from,
        // The other way round: this replica asks the leader.
        route: Route {
            group: route.group,
            from: route.to,
            to: route.from,
        },
    };
    let staged = copier.copy(begun?).await?;
    let snapshot = snapshot_of(checkpoint, Some(staged))?;
    let raft = running.raft.clone();
    let call = async move { raft.install_full_snapshot(vote, snapshot).await };
    let response = transport
        .to_the_end("snapshot install", INSTALL_DEADLINE, call)
        .await
        .map_err(|error| ReceiveError::Stopped(error.to_string()))?
        .map_err(|error| ReceiveError::Stopped(error.to_string()))?;
    Ok(response.vote)
}

struct Copier<'a> {
    transport: &'a Transport,
    running: &'a Running,
    from: NodeId,
    route: Route,
}

impl Copier<'_> {
    /// Fetches until nothing is missing.
    async fn copy(&self, mut staged: Staged) -> Result<Staged, ReceiveError> {
        for _ in 0..ATTEMPTS {
            let missing = staged.install.missing();
            if missing.is_empty() {
                return Ok(staged);
            }
            for range in missing {
                staged = self.copy_range(staged, range).await?;
            }
        }
        if staged.install.missing().is_empty() {
            Ok(staged)
        } else {
            Err(ReceiveError::Damaged)
        }
    }

    fn failed(&self, range: MissingRange, why: impl ToString) -> ReceiveError {
        ReceiveError::Copy {
            segment: range.segment.0,
            node: self.from,
            why: why.to_string(),
        }
    }

    async fn copy_range(&self, mut staged: Staged, range: MissingRange) -> Result<Staged, ReceiveError> {
        let opening = SegmentReader::open(self.transport, self.from, self.route, range);
        let mut reader = tokio::time::timeout(PIECE_DEADLINE, opening)
            .await
            .map_err(|_| self.failed(range, "no answer"))?
            .map_err(|why| self.failed(range, why))?;
        let mut offset = range.offset;
        let mut buffer = BytesMut::with_capacity(WRITE_BYTES);
        loop {
            let piece = tokio::time::timeout(PIECE_DEADLINE, reader.next())
                .await
                .map_err(|_| self.failed(range, "the sender stalled"))?
                .map_err(|why| self.failed(range, why))?;
            let ended = piece.is_none();
            if let Some(piece) = piece {
                self.transport.count_snapshot_bytes(piece.len() as u64);
                buffer.extend_from_slice(&piece);
            }
            if buffer.len() >= WRITE_BYTES || (ended && !buffer.is_empty()) {
                let bytes = buffer.split().freeze();
                let (at, len) = (offset, bytes.len() as u64);
                let segment = range.segment;
                let (back, written) = self
                    .running
                    .blocking
                    .run(move || {
                        let written = staged.install.write(segment, at, &bytes);
                        (staged, written)
                    })
                    .await?;
                staged = back;
                match written {
                    Ok(()) => offset += len,
                    // It is missing again; the next attempt fetches it.
                    Err(InstallError::Damaged { .. }) => return Ok(staged),
                    Err(error) => return Err(error.into()),
                }
            }
            if ended {
                return Ok(staged);
            }
        }
    }
}
