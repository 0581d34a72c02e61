//! openraft's state machine: applies entries to the partition and installs snapshots.
//!
//! Invariants: every entry is applied to the partition in order; every responder is answered, after the change is
//! visible. The leader's log takes nothing that the partition's checks refuse ([`crate::admission`]). Where they refuse
//! something nevertheless, and must do so on every replica alike, the entry is carried out as far as all can follow and
//! an alarm is raised: stopping would stop them all. Only what sets this replica apart from its log stops it.

use std::io;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftStateMachine};
use ptah_partition::{BatchHead, BatchStamp, CommandError, Disagreement, Partition};
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
                Ok::<_, Stop>(answer)
            })
            .map_err(io::Error::other)?;
        match applied {
            Ok(answer) => {
                if let Answer::Refused { why, .. } = &answer {
                    self.alarm(log_id(&id), why);
                }
                Ok(answer)
            }
            Err(stop) => Err(self.stopped(log_id(&id), stop)),
        }
    }

    fn alarm(&self, at: LogId, why: &str) {
        self.metrics.disagreements.inc();
        let group = self.log.spec().group.to_hex();
        tracing::error!(%group, %at, %why, "entry of the log was refused by the partition's checks; report this as a defect");
    }

    fn stopped(&self, at: LogId, stop: Stop) -> io::Error {
        match stop {
            Stop::Contradiction(what) => {
                self.metrics.disagreements.inc();
                let text = format!("entry {at} does not agree with the partition's state: {what}");
                self.trouble.contradicts(text.clone());
                io::Error::other(text)
            }
            Stop::NewerBuild(what) => io::Error::other(format!("entry {at}: {what}")),
        }
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

/// Why an entry cannot be applied here.
#[derive(Debug)]
enum Stop {
    /// The log and this replica's state do not belong together: a defect, or damage that no checksum shows.
    Contradiction(String),
    /// Only a newer build can read it.
    NewerBuild(String),
}

fn apply_payload(content: &mut Content, id: &RaftLogId, payload: EntryPayload) -> Result<Answer, Stop> {
    match payload {
        EntryPayload::Blank => Ok(Answer::Nothing),
        EntryPayload::Membership(membership) => {
            content.membership = StoredMembership::new(Some(*id), membership);
            Ok(Answer::Nothing)
        }
        EntryPayload::Normal(record) => apply_record(&mut content.partition, &record),
    }
}

fn apply_record(partition: &mut Partition, record: &Record) -> Result<Answer, Stop> {
    match record.body {
        Body::Void(Void::Superseded) => Ok(Answer::Superseded),
        Body::Void(Void::NoRoom) => Ok(Answer::NoRoom),
        Body::Void(Void::Barrier) => Ok(Answer::Nothing),
        Body::Commands => match partition.apply_entry(&record.payload, record.timestamp) {
            Ok(applied) => Ok(Answer::Commands(applied)),
            Err(error @ (CommandError::UnknownVersion { .. } | CommandError::UnknownKind { .. })) => {
                Err(Stop::NewerBuild(error.to_string()))
            }
            Err(error @ CommandError::Malformed(_)) => Ok(Answer::Refused {
                why: error.to_string(),
                stored: false,
            }),
        },
        Body::Batch {
            base_sequence,
            count,
            session,
        } => {
            let head =
                BatchHead::read(&record.payload).map_err(|error| Stop::Contradiction(error.to_string()))?;
            let stamp = BatchStamp {
                base_sequence,
                count,
                timestamp: record.timestamp,
                session,
            };
            apply_batch(partition, &stamp, head)
        }
    }
}

/// A batch whose session or time is refused keeps its sequences, which the log has given away for good: its messages
/// stay, and the session knows nothing of them.
fn apply_batch(partition: &mut Partition, stamp: &BatchStamp, head: BatchHead) -> Result<Answer, Stop> {
    let contradiction = |error: Disagreement| Stop::Contradiction(error.to_string());
    match partition.apply_batch(stamp, head) {
        Ok(appended) => Ok(Answer::Batch(appended)),
        Err(error @ (Disagreement::Session { .. } | Disagreement::Time { .. })) => {
            let bare = BatchStamp {
                timestamp: stamp.timestamp.max(partition.last_timestamp()),
                session: None,
                ..*stamp
            };
            partition.apply_batch(&bare, head).map_err(contradiction)?;
            Ok(Answer::Refused {
                why: error.to_string(),
                stored: true,
            })
        }
        Err(error) => Err(contradiction(error)),
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

#[cfg(test)]
mod tests;
