//! The handle to one replica: proposing, reading, watching, moving leadership and members.

use std::sync::Arc;

use bytes::Bytes;
use ptah_partition::{BatchStamp, Partition};
use ptah_segment_log::{Frame, ReadError};
use ptah_types::{NodeId, PartitionKey, RaftGroupId, ReplicaId, Sequence, Term, Timestamp};
use tokio::sync::watch;

use crate::applied::AppliedTo;
use crate::cell::{Cell, Leadership, ReplicaStatus};
use crate::error::{ReadMessagesError, TransferError};
use crate::handover::hand_leadership;
use crate::proposal::{Done, ProposeError};
use crate::record::{Record, stamp_of};

/// Messages as they are stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredBatch {
    /// What the leader stamped.
    pub stamp: BatchStamp,
    /// The batch as the gateway encoded it.
    pub payload: Bytes,
    /// CRC-32C of the payload.
    pub crc: u32,
}

/// One replica of this node. Cheap to clone.
#[derive(Clone)]
pub struct Replica {
    pub(crate) cell: Arc<Cell>,
}

impl Replica {
    /// The partition.
    pub fn key(&self) -> &PartitionKey {
        &self.cell.key
    }

    /// Its Raft group.
    pub fn group(&self) -> RaftGroupId {
        self.cell.group
    }

    /// The replica's id.
    pub fn id(&self) -> ReplicaId {
        self.cell.replica
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.cell.shared.node
    }

    /// How it is.
    pub fn status(&self) -> ReplicaStatus {
        self.cell.status()
    }

    /// Who leads.
    pub fn leadership(&self) -> Leadership {
        self.cell.leadership()
    }

    /// Who leads, and changes of it.
    pub fn watch_leadership(&self) -> watch::Receiver<Leadership> {
        self.cell.watch_leadership()
    }

    /// How far the log is applied here.
    pub fn watch_applied(&self) -> watch::Receiver<AppliedTo> {
        self.cell.state.watch_progress()
    }

    /// Looks at the applied state under a short read lock.
    pub fn with_partition<R>(&self, look: impl FnOnce(&Partition) -> R) -> R {
        self.cell.state.read(|content| look(&content.partition))
    }

    /// Proposes messages in a term. Never blocks; entries are in the log in the order of the calls.
    ///
    /// An error means that nothing was stored and `done` is dropped. Otherwise `done` is called exactly once, after
    /// the messages are applied here, or with the failure; never from inside this call.
    pub fn propose_batch(
        &self,
        term: Term,
        stamp: &BatchStamp,
        payload: Bytes,
        crc: u32,
        done: Done,
    ) -> Result<(), ProposeError> {
        self.propose(term, Record::batch(stamp, payload, crc), done)
    }

    /// Proposes commands (`ptah_partition::encode_commands`) with the leader's time; otherwise like
    /// [`Self::propose_batch`].
    pub fn propose_commands(
        &self,
        term: Term,
        commands: Bytes,
        now: Timestamp,
        done: Done,
    ) -> Result<(), ProposeError> {
        self.propose(term, Record::commands(commands, now), done)
    }

    /// Proposes an entry without effect. When it is applied, everything proposed before is applied or never will be.
    pub fn propose_barrier(&self, term: Term, done: Done) -> Result<(), ProposeError> {
        self.propose(term, Record::barrier(), done)
    }

    fn propose(&self, term: Term, record: Record, done: Done) -> Result<(), ProposeError> {
        let result = self.cell.propose(term, record, done);
        let metrics = &self.cell.shared.metrics;
        match &result {
            Ok(()) => metrics.proposals.inc(),
            Err(_) => metrics.proposals_refused.inc(),
        };
        result
    }

    /// Batches that hold the messages `from..upto`, from the batch that contains `from` on, never beyond what is
    /// applied, about `max_bytes` of them; at least one when `from` is applied, none when it is not yet.
    ///
    /// Answers without leaving the task when the messages are in memory.
    pub async fn read(
        &self,
        from: Sequence,
        upto: Sequence,
        max_bytes: u64,
    ) -> Result<Vec<StoredBatch>, ReadMessagesError> {
        let (first, next) =
            self.with_partition(|partition| (partition.first_sequence(), partition.next_sequence()));
        if from < first {
            return Err(ReadMessagesError::Dropped { first });
        }
        let upto = upto.min(next);
        if from >= upto {
            return Ok(Vec::new());
        }
        let Some((log, blocking)) = self
            .cell
            .with_running(|running| (Arc::clone(&running.log), running.blocking))
        else {
            return Err(ReadMessagesError::Unavailable(
                "the replica is not running".to_owned(),
            ));
        };
        if let Some(frames) = log.read_messages_cached(from, upto, max_bytes) {
            return Ok(batches(frames));
        }
        blocking
            .run(move || log.read_messages(from, upto, max_bytes))
            .await
            .map_err(|error| ReadMessagesError::Unavailable(error.to_string()))?
            .map(batches)
            .map_err(|error| self.read_failed(error))
    }

    /// Damaged messages are never served. Where other voters exist, they take over and this replica is replaced;
    /// a single replica goes on with what is whole.
    fn read_failed(&self, error: ReadError) -> ReadMessagesError {
        match error {
            ReadError::Damaged(damage) => {
                let text = damage.to_string();
                if self.cell.status().voters.len() > 1 {
                    self.cell.trouble.damaged(text.clone());
                    self.cell.damage_found.notify_one();
                } else {
                    tracing::error!(group = %self.cell.group.to_hex(), damage = %text, "messages are damaged");
                    self.cell.note_trouble(text.clone());
                }
                ReadMessagesError::Damaged(text)
            }
            ReadError::Dropped { first, .. } => ReadMessagesError::Dropped { first },
            other => ReadMessagesError::Unavailable(other.to_string()),
        }
    }

    /// Asks the replica `to` to lead; the result shows in the leadership.
    pub async fn transfer_leader(&self, to: ReplicaId) -> Result<(), TransferError> {
        let running = self
            .cell
            .running()
            .ok_or_else(|| TransferError::Unavailable("it is not open".to_owned()))?;
        if self.leadership().leader_replica != Some(self.id()) {
            return Err(TransferError::NotLeader);
        }
        if !self.status().voters.iter().any(|(replica, _)| *replica == to) {
            return Err(TransferError::NotAVoter(to));
        }
        let shared = &self.cell.shared;
        self.cell.until_awake().await;
        hand_leadership(shared, running.raft, to.get())
            .await
            .map_err(TransferError::Unavailable)
    }
}

fn batches(frames: Vec<Frame>) -> Vec<StoredBatch> {
    frames
        .into_iter()
        .filter_map(|frame| {
            Some(StoredBatch {
                stamp: stamp_of(&frame)?,
                payload: frame.payload,
                crc: frame.payload_crc,
            })
        })
        .collect()
}
