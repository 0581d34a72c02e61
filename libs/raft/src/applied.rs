//! The applied state of a replica, shared by openraft's state machine, readers and checkpoints.
//!
//! Invariant: only the newest [`Generation`] may change it. When a replica is opened again, a worker of the openraft
//! object before it may still be busy; its changes are refused.

use parking_lot::RwLock;
use ptah_partition::Partition;
use ptah_types::{LogId, LogIndex, Sequence, Term};
use tokio::sync::watch;

use crate::types::StoredMembership;

/// How far a replica has applied its log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AppliedTo {
    /// Newest applied log index; 0 also when nothing is applied.
    pub index: LogIndex,
    /// Sequence of the message after the last applied one.
    pub next_sequence: Sequence,
}

/// Which openraft object may change the state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Generation(u64);

/// What a checkpoint holds and what is recovered from one.
#[derive(Default)]
pub(crate) struct Content {
    pub(crate) partition: Partition,
    pub(crate) last_applied: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

struct Inner {
    generation: Generation,
    content: Content,
    applied_entries: u64,
    applied_bytes: u64,
}

/// Entries and bytes applied since the process started; only differences mean something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Volume {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

/// The state, behind short locks.
pub(crate) struct AppliedState {
    inner: RwLock<Inner>,
    progress: watch::Sender<AppliedTo>,
    term: watch::Sender<Option<Term>>,
}

/// An openraft object that is not the newest one wanted to change the state.
#[derive(Debug, thiserror::Error)]
#[error("another openraft object runs this replica by now")]
pub(crate) struct Superseded;

impl AppliedState {
    pub(crate) fn new() -> Self {
        let content = Content::default();
        let progress = progress_of(&content);
        Self {
            inner: RwLock::new(Inner {
                generation: Generation::default(),
                content,
                applied_entries: 0,
                applied_bytes: 0,
            }),
            progress: watch::Sender::new(progress),
            term: watch::Sender::new(None),
        }
    }

    /// Starts over from recovered content; whoever changed the state before may not do so any more.
    pub(crate) fn restart(&self, content: Content) -> Generation {
        let generation = {
            let mut inner = self.inner.write();
            inner.generation = Generation(inner.generation.0 + 1);
            inner.content = content;
            inner.generation
        };
        self.publish();
        generation
    }

    /// Replaces everything by a snapshot.
    pub(crate) fn replace(&self, generation: Generation, content: Content) -> Result<(), Superseded> {
        self.change(generation, Volume::default(), |old| *old = content)?;
        self.publish();
        Ok(())
    }

    /// Changes the content; tell the watchers with [`Self::publish`] afterwards.
    pub(crate) fn change<R>(
        &self,
        generation: Generation,
        volume: Volume,
        change: impl FnOnce(&mut Content) -> R,
    ) -> Result<R, Superseded> {
        let mut inner = self.inner.write();
        if inner.generation != generation {
            return Err(Superseded);
        }
        inner.applied_entries += volume.entries;
        inner.applied_bytes += volume.bytes;
        Ok(change(&mut inner.content))
    }

    /// Tells the watchers how far it is.
    pub(crate) fn publish(&self) {
        let (progress, term) = {
            let inner = self.inner.read();
            (
                progress_of(&inner.content),
                inner.content.last_applied.map(|id| id.term),
            )
        };
        self.progress.send_if_modified(|old| {
            let changed = *old != progress;
            *old = progress;
            changed
        });
        self.term.send_if_modified(|old| {
            let changed = *old != term;
            *old = term;
            changed
        });
    }

    pub(crate) fn read<R>(&self, look: impl FnOnce(&Content) -> R) -> R {
        look(&self.inner.read().content)
    }

    pub(crate) fn volume(&self) -> Volume {
        self.read_with_volume(|_, volume| volume)
    }

    /// Content and volume of the same moment.
    pub(crate) fn read_with_volume<R>(&self, look: impl FnOnce(&Content, Volume) -> R) -> R {
        let inner = self.inner.read();
        let volume = Volume {
            entries: inner.applied_entries,
            bytes: inner.applied_bytes,
        };
        look(&inner.content, volume)
    }

    pub(crate) fn watch_progress(&self) -> watch::Receiver<AppliedTo> {
        self.progress.subscribe()
    }

    pub(crate) fn progress(&self) -> AppliedTo {
        *self.progress.borrow()
    }

    /// Term of the newest applied entry.
    pub(crate) fn watch_term(&self) -> watch::Receiver<Option<Term>> {
        self.term.subscribe()
    }
}

fn progress_of(content: &Content) -> AppliedTo {
    AppliedTo {
        index: content.last_applied.map_or(LogIndex(0), |id| id.index),
        next_sequence: content.partition.next_sequence(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_openraft_object_cannot_change_the_state() {
        let state = AppliedState::new();
        let old = state.restart(Content::default());
        let new = state.restart(Content::default());
        assert!(state.change(old, Volume::default(), |_| ()).is_err());
        assert!(state.change(new, Volume::default(), |_| ()).is_ok());
    }
}
