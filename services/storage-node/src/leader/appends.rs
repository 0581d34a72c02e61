//! Appends: sequencer, what is in flight, and answers once the log has decided.
//!
//! Invariants: proposals enter the log in the order of their stamps (one lock around sequencer and proposing); a batch is
//! answered as stored only after it is applied here. When a proposal was not taken, or nobody knows, the sequencer has
//! stamped something that may be missing from the log: it is poisoned, everything in flight is waited for, a barrier is
//! proposed, and a new sequencer starts from what is applied then.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ptah_partition::{AppendHead, AppendRefusal, Appended, BatchStamp, Decision, Partition, Sequencer};
use ptah_raft::{Committed, ProposeError};
use ptah_types::Sequence;
use tokio::time::Instant;

use super::PartitionLeader;
use crate::append::{Reply, Stored};
use crate::budget::Permit;
use crate::error::PartitionError;

/// How often one append in flight may be sent again before the next one is refused.
const MAX_WAITING_RETRIES: usize = 64;
/// Time between attempts to propose a barrier.
const BARRIER_RETRY: Duration = Duration::from_millis(50);

/// A checked batch.
pub(crate) struct NewAppend {
    /// What the sequencer needs to know.
    pub(crate) head: AppendHead,
    /// The encoded batch.
    pub(crate) payload: Bytes,
    /// CRC-32C of the payload.
    pub(crate) crc: u32,
    /// Who waits for the answer.
    pub(crate) reply: Reply,
    /// The batch's share of the node's memory.
    pub(crate) permit: Permit,
}

/// State of the appends of one reign.
pub(super) struct Appends {
    sequencer: Sequencer,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: u64,
    barrier: Barrier,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Barrier {
    /// The sequencer is right.
    NotNeeded,
    /// The sequencer is poisoned; to be proposed once nothing is in flight.
    Wanted,
    /// Proposed.
    Proposed,
}

/// A batch between proposing and the log's decision.
struct InFlight {
    stamp: BatchStamp,
    /// `None` once it was answered because it took too long.
    reply: Option<Reply>,
    /// The same append, sent again meanwhile, and when.
    retries: Vec<(Instant, Reply)>,
    permit: Permit,
    since: Instant,
}

impl Appends {
    pub(super) fn new(partition: &Partition) -> Self {
        Self {
            sequencer: Sequencer::new(partition),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            barrier: Barrier::NotNeeded,
        }
    }

    fn take(&mut self, base_sequence: Sequence) -> Option<InFlight> {
        let place = self.place(base_sequence)?;
        let taken = self.in_flight.remove(place)?;
        self.in_flight_bytes -= taken.permit.bytes();
        Some(taken)
    }

    /// Nearly always the front.
    fn place(&self, base_sequence: Sequence) -> Option<usize> {
        self.in_flight
            .iter()
            .position(|entry| entry.stamp.base_sequence == base_sequence)
    }

    fn poison(&mut self) {
        self.sequencer.poison();
        if self.barrier == Barrier::NotNeeded {
            self.barrier = Barrier::Wanted;
        }
    }

    fn wants_barrier(&self) -> bool {
        self.barrier == Barrier::Wanted && self.in_flight.is_empty()
    }
}

impl PartitionLeader {
    /// Decides about a batch and proposes it; answers through its reply, now or when the log has decided.
    pub(crate) fn append(self: &Arc<Self>, append: NewAppend) {
        let core = self.core();
        let now = core.shared.ports.clock.now();
        let mut appends = self.appends.lock();
        if core.has_ended() {
            drop(appends);
            return append.reply.refuse(core.not_leader());
        }
        let limit_bytes = core.shared.limits.append_partition_bytes;
        if appends.in_flight_bytes >= limit_bytes {
            drop(appends);
            return append.reply.refuse(PartitionError::Exhausted {
                what: "the partition has as many bytes in flight as it may (`append.partition_bytes`)",
                retry_after: Duration::from_millis(20),
            });
        }
        match appends.sequencer.accept(&append.head, now) {
            Decision::Propose(stamp) => self.propose(&mut appends, stamp, append),
            Decision::Duplicate(appended) => {
                drop(appends);
                core.shared.metrics.appends_duplicate.inc();
                append.reply.answer(Ok(stored_before(appended)));
            }
            Decision::InFlight(appended) => {
                core.shared.metrics.appends_duplicate.inc();
                self.wait_for_original(&mut appends, appended, append.reply);
            }
            Decision::Refused(refusal) => {
                drop(appends);
                append.reply.refuse(refusal.into());
            }
        }
    }

    fn propose(self: &Arc<Self>, appends: &mut Appends, stamp: BatchStamp, append: NewAppend) {
        let core = self.core();
        let leader = Arc::clone(self);
        let base_sequence = stamp.base_sequence;
        let done = Box::new(move |result| leader.decided(base_sequence, result));
        if let Err(error) = core
            .replica
            .propose_batch(core.term, &stamp, append.payload, append.crc, done)
        {
            appends.poison();
            let barrier = appends.wants_barrier();
            append.reply.refuse(core.refusal(error));
            if barrier {
                self.propose_barrier(appends);
            }
            return;
        }
        let since = Instant::now();
        if appends.in_flight.is_empty() {
            core.alarm.set(since + core.shared.limits.append_deadline);
        }
        appends.in_flight_bytes += append.permit.bytes();
        appends.in_flight.push_back(InFlight {
            stamp,
            reply: Some(append.reply),
            retries: Vec::new(),
            permit: append.permit,
            since,
        });
    }

    /// The same append is in flight: answered when that one is decided, or after as long as any append.
    fn wait_for_original(&self, appends: &mut Appends, appended: Appended, reply: Reply) {
        let place = appends.place(appended.base_sequence);
        match place.and_then(|place| appends.in_flight.get_mut(place)) {
            Some(entry) if entry.retries.len() < MAX_WAITING_RETRIES => {
                let now = Instant::now();
                entry.retries.push((now, reply));
                self.core.alarm.set(now + self.core.shared.limits.append_deadline);
            }
            _ => reply.refuse(AppendRefusal::Busy.into()),
        }
    }

    /// The log has decided about the batch at `base_sequence`.
    fn decided(self: Arc<Self>, base_sequence: Sequence, result: Result<Committed, ProposeError>) {
        let mut appends = self.appends.lock();
        let Some(entry) = appends.take(base_sequence) else {
            drop(appends);
            tracing::error!(group = %self.core.replica.group(), %base_sequence, "log decided about an append that is not in flight");
            return;
        };
        match (&result, entry.stamp.appended().next()) {
            (Ok(_), Some(next)) => appends.sequencer.committed(next),
            _ => appends.poison(),
        }
        if appends.wants_barrier() {
            self.propose_barrier(&mut appends);
        }
        drop(appends);
        let stored = result.is_ok();
        self.answer(entry, result);
        if stored {
            self.messages_were_added();
        }
    }

    fn answer(&self, entry: InFlight, result: Result<Committed, ProposeError>) {
        let metrics = &self.core.shared.metrics;
        metrics
            .append_seconds
            .observe(entry.since.elapsed().as_secs_f64());
        match result {
            Ok(_) => {
                metrics.append_batches.inc();
                metrics.append_messages.inc_by(u64::from(entry.stamp.count));
                metrics.append_bytes.inc_by(entry.permit.bytes());
                let mut stored = Stored {
                    base_sequence: entry.stamp.base_sequence,
                    timestamp: entry.stamp.timestamp,
                    duplicate: false,
                };
                if let Some(reply) = entry.reply {
                    reply.answer(Ok(stored));
                }
                stored.duplicate = true;
                entry
                    .retries
                    .into_iter()
                    .for_each(|(_, reply)| reply.answer(Ok(stored)));
            }
            Err(error) => {
                metrics.appends_failed.inc();
                let refusal = self.core.refusal(error);
                let retries = entry.retries.into_iter().map(|(_, reply)| reply);
                let waiting = entry.reply.into_iter().chain(retries);
                waiting.for_each(|reply| reply.refuse(refusal.clone()));
            }
        }
    }

    /// Begins with a barrier: nothing is accepted before everything that may still come is applied.
    pub(super) fn make_sure(self: &Arc<Self>) {
        let mut appends = self.appends.lock();
        appends.poison();
        self.propose_barrier(&mut appends);
    }

    fn propose_barrier(self: &Arc<Self>, appends: &mut Appends) {
        let core = self.core();
        if core.has_ended() {
            return;
        }
        let leader = Arc::clone(self);
        let done = Box::new(move |result| leader.barrier_decided(result));
        match core.replica.propose_barrier(core.term, done) {
            Ok(()) => appends.barrier = Barrier::Proposed,
            Err(_) => core.alarm.set(Instant::now() + BARRIER_RETRY),
        }
    }

    fn barrier_decided(self: Arc<Self>, result: Result<Committed, ProposeError>) {
        let mut appends = self.appends.lock();
        appends.barrier = Barrier::Wanted;
        match result {
            Ok(_) => *appends = self.core.replica.with_partition(Appends::new),
            Err(_) => self.core.alarm.set(Instant::now() + BARRIER_RETRY),
        }
    }

    /// Answers appends that take too long, and tries a barrier again.
    pub(super) fn tick_appends(self: &Arc<Self>) {
        let core = self.core();
        let now = Instant::now();
        let deadline = core.shared.limits.append_deadline;
        let mut late = Vec::new();
        let mut appends = self.appends.lock();
        if appends.wants_barrier() {
            self.propose_barrier(&mut appends);
        }
        for entry in &mut appends.in_flight {
            entry.take_late(now, deadline, &mut late);
        }
        let waiting = appends.in_flight.iter().filter_map(InFlight::waits_since);
        if let Some(oldest) = waiting.min() {
            core.alarm.set(oldest + deadline);
        }
        drop(appends);
        let group = core.replica.group();
        for reply in late {
            core.shared.metrics.appends_failed.inc();
            reply.refuse(PartitionError::OutcomeUnknown { group });
        }
    }
}

impl InFlight {
    /// Takes those who have waited for `deadline`.
    fn take_late(&mut self, now: Instant, deadline: Duration, late: &mut Vec<Reply>) {
        if self.since + deadline <= now {
            late.extend(self.reply.take());
        }
        let is_late = |retry: &mut (Instant, Reply)| retry.0 + deadline <= now;
        late.extend(self.retries.extract_if(.., is_late).map(|(_, reply)| reply));
    }

    /// Since when somebody waits for the answer.
    fn waits_since(&self) -> Option<Instant> {
        let original = self.reply.as_ref().map(|_| self.since);
        let retries = self.retries.iter().map(|(since, _)| *since);
        original.into_iter().chain(retries).min()
    }
}

fn stored_before(appended: Appended) -> Stored {
    Stored {
        base_sequence: appended.base_sequence,
        timestamp: appended.timestamp,
        duplicate: true,
    }
}
