//! Errors of the service that are not the store's.

use ptah_types::{Boundary, ErrorKind};

use crate::store::StoreError;

/// A watch cannot begin or go on. All of them are answered by listing again or by resuming.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The store refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The watcher knows another history.
    #[error(
        "incarnation {known} is not the store's ({current}): an older database was put back; list again and watch from there"
    )]
    OtherIncarnation {
        /// The watcher's.
        known: u64,
        /// The store's.
        current: u64,
    },
    /// The watcher did not take what was sent.
    #[error("watch ended because it did not keep up; watch again from revision {resume_from}")]
    TooSlow {
        /// Everything up to here was sent.
        resume_from: u64,
    },
    /// No more watches are taken.
    #[error("{0} watches are open already; close some or raise `max_watches`")]
    TooMany(usize),
    /// The service stops.
    #[error("the metadata service is stopping; watch again")]
    Stopping,
}

impl Boundary for WatchError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::OtherIncarnation { .. } => ErrorKind::Conflict,
            Self::TooSlow { .. } | Self::TooMany(_) => ErrorKind::Exhausted,
            Self::Stopping => ErrorKind::Unavailable,
        }
    }
}
