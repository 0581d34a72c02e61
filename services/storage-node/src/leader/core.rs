//! What the appends and the consumer groups of a led partition share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ptah_raft::{Leadership, ProposeError, Replica};
use ptah_types::{Term, Timestamp};
use tokio_util::sync::CancellationToken;

use super::{Alarm, PartitionSettings};
use crate::error::PartitionError;
use crate::shared::Shared;

/// One reign over one partition.
pub(crate) struct LeaderCore {
    /// What the whole node shares.
    pub(crate) shared: Arc<Shared>,
    /// The replica that leads.
    pub(crate) replica: Replica,
    /// Settings of the partition.
    pub(crate) settings: Arc<PartitionSettings>,
    /// Term of the reign: every proposal is fenced by it.
    pub(crate) term: Term,
    reign: u64,
    /// When it began, by the steady clock.
    pub(crate) began: Timestamp,
    /// Rings when something is due.
    pub(crate) alarm: Alarm,
    ended: AtomicBool,
    end: CancellationToken,
}

impl LeaderCore {
    pub(super) fn new(
        shared: Arc<Shared>,
        replica: Replica,
        settings: Arc<PartitionSettings>,
        leadership: Leadership,
    ) -> Self {
        Self {
            began: shared.steady.now(),
            shared,
            replica,
            settings,
            term: leadership.term,
            reign: leadership.reign,
            alarm: Alarm::default(),
            ended: AtomicBool::new(false),
            end: CancellationToken::new(),
        }
    }

    /// Whether this is the reign that `leadership` tells of.
    pub(crate) fn is_reign_of(&self, leadership: Leadership) -> bool {
        (self.term, self.reign) == (leadership.term, leadership.reign)
    }

    /// Whether the reign is over.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub(super) fn mark_ended(&self) {
        self.ended.store(true, Ordering::Release);
        self.end.cancel();
    }

    /// Waits until something is due; false when the reign is over.
    pub(super) async fn due(&self) -> bool {
        tokio::select! {
            biased;
            () = self.end.cancelled() => false,
            () = self.alarm.rang() => true,
        }
    }

    /// The refusal of a call that came to the wrong node, with the way to the right one.
    pub(crate) fn not_leader(&self) -> PartitionError {
        let leader = self
            .replica
            .leadership()
            .leader
            .filter(|leader| *leader != self.replica.node());
        self.shared.not_leader(self.replica.group(), leader)
    }

    /// What a failed proposal means to the caller.
    pub(crate) fn refusal(&self, error: ProposeError) -> PartitionError {
        let group = self.replica.group();
        match error {
            ProposeError::NotLeader { leader } => self.shared.not_leader(group, leader),
            ProposeError::TooMuchInFlight => PartitionError::Exhausted {
                what: "the partition has too many proposals in flight",
                retry_after: Duration::from_millis(5),
            },
            ProposeError::DiskFull => PartitionError::DiskFull {
                node: self.replica.node(),
            },
            ProposeError::Superseded => {
                PartitionError::Unavailable("an earlier append of the pipeline was not taken".into())
            }
            ProposeError::Unavailable(why) => PartitionError::Unavailable(why.into()),
            ProposeError::OutcomeUnknown => PartitionError::OutcomeUnknown { group },
        }
    }
}
