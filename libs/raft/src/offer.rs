//! Offering one proposal to openraft.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt;
use openraft::vote::leader_id_std::CommittedLeaderId;
use ptah_types::Term;

use crate::cell::Cell;
use crate::proposal::{Done, Pending, ProposalResponder, ProposeError};
use crate::record::{Body, Record};
use crate::types::Raft;

impl Cell {
    /// Proposes to openraft at once.
    pub(crate) fn propose_now(&self, term: Term, record: Record, done: Done) -> Result<(), ProposeError> {
        self.with_running(|running| self.propose_to(running.raft.clone(), term, record, done))
            .unwrap_or_else(|| Err(ProposeError::Unavailable("the replica is not running".to_owned())))
    }

    fn propose_to(&self, raft: Raft, term: Term, record: Record, done: Done) -> Result<(), ProposeError> {
        let shared = &self.shared;
        let leadership = self.leadership();
        if leadership.term != term || leadership.leader_replica != Some(self.replica) {
            return Err(ProposeError::NotLeader {
                leader: leadership.leader,
            });
        }
        if !leadership.ready {
            return Err(ProposeError::Unavailable(
                "the leader is not ready yet".to_owned(),
            ));
        }
        if self.is_stopping() {
            return Err(ProposeError::Unavailable("the node is stopping".to_owned()));
        }
        // Commands free the disk, too, and barriers take no room; both may use the reserve.
        if matches!(record.body, Body::Batch { .. }) && shared.disk_full.load(Ordering::Relaxed) {
            return Err(ProposeError::DiskFull);
        }
        let guard = self
            .in_flight
            .enter(
                record.payload.len() as u64,
                shared.options.max_in_flight_entries,
                shared.options.max_in_flight_bytes,
            )
            .ok_or(ProposeError::TooMuchInFlight)?;
        let pending = Pending::new(done, guard);
        let responder = ProposalResponder::new(Arc::clone(&pending));
        let mut write = Box::pin(async move {
            raft.write(record)
                .with_leader(CommittedLeaderId::new(term.0))
                .responder(responder)
                .await
        });
        // The core's queue is longer than what may be in flight, so it takes the message at the first poll.
        match tokio::task::unconstrained(&mut write).now_or_never() {
            Some(Ok(())) => {}
            Some(Err(_)) => pending.disarm(),
            // The core is going. openraft's calls must not be dropped while they wait for its end: a later one would
            // panic. The answer comes from the responder, whatever happens to the message.
            None => {
                let _runtime = shared.runtime.enter();
                shared.tasks.spawn("proposal to a core that ends", async move {
                    if let Err(error) = write.await {
                        tracing::debug!(%error, "proposal was not taken");
                    }
                });
            }
        }
        pending.offered().map_err(ProposeError::Unavailable)
    }
}
