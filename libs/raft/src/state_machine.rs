//! openraft's state machine: applies entries to the partition and installs snapshots.
//!
//! Invariants: every entry is applied to the partition in order; every responder is answered, after the change is
//! visible; a disagreement between the log and the partition's own checks stops the replica.

use std::io;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftStateMachine};
use ptah_partition::{BatchHead, BatchStamp};
use ptah_segment_log::{Checkpoint, FRAME_HEADER_LEN, GroupLog, InstallError};
use ptah_types::LogId;
use tokio::sync::oneshot;

use crate::applied::{AppliedState, Content, Generation, Volume};
use crate::blocking::Blocking;
use crate::cell::InstallLock;
use crate::checkpoint_codec::decode_state;
use crate::metrics::Metrics;
use crate::record::{Body, Record, Void};
use crate::snapshot::{SnapshotBuilder, SnapshotData, Staged, stored_snapshot};
use crate::trouble::Trouble;
use crate::types::{
    Answer, Entry, EntryPayload, RaftLogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, log_id,
    raft_log_id,
};

/// Watchers are told after this many entries, and at the end of every run of entries.
const PUBLISH_EVERY: usize = 64;

/// The state machine of one openraft object.
pub(crate) struct StateMachine {
    log: Arc<GroupLog>,
    state: Arc<AppliedState>,
    generation: Generation,
    trouble: Arc<Trouble>,
    blocking: Blocking,
    metrics: Arc<Metrics>,
    installing: InstallLock,
}

impl StateMachine {
    /// Recovers the state from the newest checkpoint; openraft applies what is committed behind it.
    pub(crate) async fn open(
        log: Arc<GroupLog>,
        state: Arc<AppliedState>,
        trouble: Arc<Trouble>,
        blocking: Blocking,
        metrics: Arc<Metrics>,
        installing: InstallLock,
    ) -> io::Result<Self> {
        let reader = Arc::clone(&log);
        let checkpoint = blocking.run(move || reader.latest_checkpoint()).await?;
        let checkpoint = checkpoint.map_err(|error| {
            if let ptah_segment_log::ReadError::Damaged(damage) = &error {
                trouble.damaged(damage.to_string());
            }
            io::Error::other(error)
        })?;
        let content = match checkpoint {
            None => Content::default(),
            Some(checkpoint) => decode_state(&checkpoint.state).map_err(|error| {
                trouble.contradicts(error.to_string());
                io::Error::other(error)
            })?,
        };
        let generation = state.restart(content);
        Ok(Self {
            log,
            state,
            generation,
            trouble,
            blocking,
            metrics,
            installing,
        })
    }

    fn apply_entry(&self, entry: Entry) -> io::Result<Answer> {
        let id = entry.log_id;
        let volume = Volume {
            entries: 1,
            bytes: entry_bytes(&entry.payload),
        };
        let applied = self
            .state
            .change(self.generation, volume, |content| {
                let answer = apply_payload(content, &id, entry.payload)?;
                content.last_applied = Some(log_id(&id));
                Ok::<_, String>(answer)
            })
            .map_err(io::Error::other)?;
        applied.map_err(|what| self.disagreement(log_id(&id), &what))
    }

    /// The log holds an entry that the partition's checks refuse: a defect, or damage that no checksum shows.
    fn disagreement(&self, at: LogId, what: &str) -> io::Error {
        self.metrics.disagreements.inc();
        let text = format!("entry {at} does not agree with the partition's state: {what}");
        self.trouble.contradicts(text.clone());
        io::Error::other(text)
    }

    /// A staging area for a checkpoint whose segments are all here.
    async fn stage(&self, checkpoint: Checkpoint) -> io::Result<Staged> {
        let turn = Arc::clone(&self.installing).lock_owned().await;
        let log = Arc::clone(&self.log);
        let begin = move || {
            let install = log.begin_install(checkpoint)?;
            Ok::<_, InstallError>(Staged { install, turn })
        };
        self.blocking.run(begin).await?.map_err(io::Error::other)
    }

    fn builder(&self, force: bool) -> SnapshotBuilder {
        SnapshotBuilder {
            log: Arc::clone(&self.log),
            state: Arc::clone(&self.state),
            blocking: self.blocking,
            force,
        }
    }
}

fn entry_bytes(payload: &EntryPayload) -> u64 {
    let payload = match payload {
        EntryPayload::Normal(record) => record.payload.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    };
    (FRAME_HEADER_LEN + payload) as u64
}

fn apply_payload(content: &mut Content, id: &RaftLogId, payload: EntryPayload) -> Result<Answer, String> {
    match payload {
        EntryPayload::Blank => Ok(Answer::Nothing),
        EntryPayload::Membership(membership) => {
            content.membership = StoredMembership::new(Some(*id), membership);
            Ok(Answer::Nothing)
        }
        EntryPayload::Normal(record) => apply_record(content, &record),
    }
}

fn apply_record(content: &mut Content, record: &Record) -> Result<Answer, String> {
    let partition = &mut content.partition;
    match record.body {
        Body::Void(Void::Superseded) => Ok(Answer::Superseded),
        Body::Void(Void::NoRoom) => Ok(Answer::NoRoom),
        Body::Void(Void::Barrier) => Ok(Answer::Nothing),
        Body::Commands => partition
            .apply_entry(&record.payload, record.timestamp)
            .map(Answer::Commands)
            .map_err(|error| error.to_string()),
        Body::Batch {
            base_sequence,
            count,
            session,
        } => {
            let head = BatchHead::read(&record.payload).map_err(|error| error.to_string())?;
            let stamp = BatchStamp {
                base_sequence,
                count,
                timestamp: record.timestamp,
                session,
            };
            partition
                .apply_batch(&stamp, head)
                .map(Answer::Batch)
                .map_err(|error| error.to_string())
        }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<RaftLogId>, StoredMembership)> {
        Ok(self
            .state
            .read(|content| (content.last_applied.map(raft_log_id), content.membership.clone())))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut unpublished = 0;
        let mut result = Ok(());
        while let Some(item) = entries.next().await {
            let applied = item.and_then(|(entry, responder)| Ok((self.apply_entry(entry)?, responder)));
            match applied {
                Ok((answer, responder)) => {
                    if let Some(responder) = responder {
                        responder.send(answer);
                    }
                }
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
            unpublished += 1;
            if unpublished == PUBLISH_EVERY {
                self.state.publish();
                unpublished = 0;
            }
        }
        self.state.publish();
        result
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        (force || self.log.checkpoint_log_id().is_some()).then(|| self.builder(force))
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        self.builder(true)
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, data: SnapshotData) -> io::Result<()> {
        let content = decode_state(&data.checkpoint.state).map_err(io::Error::other)?;
        if content.last_applied.map(raft_log_id) != meta.last_log_id {
            return Err(io::Error::other("snapshot names another position than its state"));
        }
        let Staged { install, turn } = match data.staged {
            Some(staged) => staged,
            None => self.stage(data.checkpoint).await?,
        };
        let (tell, told) = oneshot::channel();
        let finishing = self
            .blocking
            .run(move || {
                install.finish(Box::new(move |result| {
                    // The other end only goes when the core is stopped.
                    let _ = tell.send(result);
                }))
            })
            .await?;
        finishing.map_err(io::Error::other)?;
        told.await
            .unwrap_or_else(|_| Err(io::Error::other("the store was closed")))?;
        drop(turn);
        self.state
            .replace(self.generation, content)
            .map_err(io::Error::other)?;
        self.metrics.snapshots_installed.inc();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        stored_snapshot(&self.log, self.blocking).await
    }
}
