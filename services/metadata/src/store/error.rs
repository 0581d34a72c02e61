//! What can go wrong with the store.

use ptah_types::{Boundary, ErrorKind};

use super::Key;

/// A call to the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The request makes no sense.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// More than a limit.
    #[error("{0}")]
    TooLarge(String),
    /// A record is not at the revision that the writer saw.
    #[error("{key} changed: expected revision {expected}, found {found}; read it again and retry")]
    Changed {
        /// The record.
        key: Key,
        /// Revision that it had to have; 0 for none.
        expected: u64,
        /// Revision that it has; 0 for none.
        found: u64,
    },
    /// A deletion found nothing to delete.
    #[error("{key} does not exist and cannot be deleted; read it again and retry")]
    NothingToDelete {
        /// The record.
        key: Key,
    },
    /// The writer does not hold the lease any more.
    #[error("lease epoch {epoch} is not the current one ({current}); another control plane decides now")]
    StaleEpoch {
        /// The writer's.
        epoch: u64,
        /// The current one.
        current: u64,
    },
    /// The history that was asked for is not kept.
    #[error(
        "history after revision {after} is not kept, the floor is {floor}; list again and watch from there"
    )]
    Compacted {
        /// Where the reader is.
        after: u64,
        /// Where history begins.
        floor: u64,
    },
    /// The reader has seen revisions that this store does not have.
    #[error("revision {after} is ahead of the store, which is at {newest}; list again and watch from there")]
    Ahead {
        /// Where the reader is.
        after: u64,
        /// Where the store is.
        newest: u64,
    },
    /// More is waiting than the store takes.
    #[error("too many requests wait for the metadata store; retry later")]
    Busy,
    /// The database does not answer; nothing happened.
    #[error("{action}: {why}")]
    Unavailable {
        /// What was tried.
        action: &'static str,
        /// What the database says.
        why: String,
    },
    /// The commit was under way when the database or its writer was lost.
    #[error("{action}: it is not known whether it happened: {why}")]
    OutcomeUnknown {
        /// What was tried.
        action: &'static str,
        /// What is known.
        why: String,
    },
    /// The database holds something that this build never writes.
    #[error("metadata database is damaged: {0}; restore it from a backup")]
    Damaged(String),
}

impl StoreError {
    pub(crate) fn invalid(why: String) -> Self {
        Self::Invalid(why)
    }

    /// Whether the database itself failed, in contrast to a request that it refused.
    pub(crate) fn is_fault(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { .. } | Self::OutcomeUnknown { .. } | Self::Damaged(_)
        )
    }

    /// What the database said, without what was tried; empty when nothing failed.
    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::Unavailable { why, .. } | Self::OutcomeUnknown { why, .. } | Self::Damaged(why) => why,
            _ => "",
        }
    }
}

impl Boundary for StoreError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(_) => ErrorKind::InvalidArgument,
            Self::TooLarge(_) => ErrorKind::TooLarge,
            Self::Changed { .. }
            | Self::NothingToDelete { .. }
            | Self::StaleEpoch { .. }
            | Self::Compacted { .. }
            | Self::Ahead { .. } => ErrorKind::Conflict,
            Self::Busy => ErrorKind::Exhausted,
            Self::Unavailable { .. } => ErrorKind::Unavailable,
            Self::OutcomeUnknown { .. } => ErrorKind::OutcomeUnknown,
            Self::Damaged(_) => ErrorKind::DataDamaged,
        }
    }
}
