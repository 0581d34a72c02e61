//! One consumer group on a led partition: its leases, and the pulls that they go to.
//!
//! Credit is kept twice. What a gateway gave is here, in messages and bytes; of that, `Deliveries` is granted only as many
//! messages as the bytes are likely to allow, and only when the stream is able to send. So leases are not held by those
//! who cannot use them, and a group's messages go to whoever reads.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use ptah_partition::{ConsumerId, Deliveries, Lease, Partition, RangeSet, SequenceRange};
use ptah_types::{ConsumerGroupId, Sequence};
use tokio::time::Instant;

use super::outbox::{DeliverEvent, Outbox};
use super::rounds::Waiting;
use crate::error::PartitionError;
use crate::leader::LeaderCore;

/// Most messages that one pull is granted at once when it is alone in its group.
const MOST_GRANTED: u64 = 16_384;
/// Fewest messages that a pull is granted when many share the group.
const SHARED_GRANT: u64 = 256;
/// Most messages that one look hands out to all pulls.
const LEASES_AT_ONCE: u32 = 65_536;
/// Size of a message that is assumed as long as nothing is known.
const GUESSED_MESSAGE_BYTES: u64 = 512;

/// What a receiver is ready to take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Credit {
    /// Messages.
    pub(crate) messages: u64,
    /// Bytes.
    pub(crate) bytes: u64,
}

impl Credit {
    /// Whether nothing may be sent for it.
    pub(super) fn is_used_up(self) -> bool {
        self.messages == 0 || self.bytes == 0
    }
}

/// One consumer group of a led partition.
pub(crate) struct GroupDelivery {
    pub(super) core: Arc<LeaderCore>,
    pub(super) id: ConsumerGroupId,
    /// Open pulls; without any, the group is not told of new messages and looks when it is asked for something.
    open_pulls: AtomicUsize,
    pub(super) state: Mutex<GroupState>,
}

pub(super) struct GroupState {
    pub(super) deliveries: Deliveries,
    pulls: BTreeMap<ConsumerId, Pull>,
    next_consumer: u64,
    next_sequence: Sequence,
    pub(super) waiting: VecDeque<Waiting>,
    /// When collected acks are proposed.
    pub(super) flush_at: Option<Instant>,
    /// Why nothing is handed out any more.
    pub(super) ended: Option<PartitionError>,
}

/// A pull as its group sees it.
struct Pull {
    outbox: Outbox,
    pull_id: u64,
    credit: Credit,
    /// Leased and not yet sent.
    leased: VecDeque<Lease>,
    /// Mean size of the messages that the pull got.
    message_bytes: u64,
    /// The stream was told that there is something to do and has not looked yet.
    signalled: bool,
    /// The gateway was told that everything was handed out, and nothing has come since.
    told_idle: bool,
}

impl GroupDelivery {
    /// Takes over a group; `None` if the partition does not have it.
    pub(crate) fn begin(core: Arc<LeaderCore>, id: ConsumerGroupId) -> Option<Arc<Self>> {
        let (deliveries, next_sequence) = core.replica.with_partition(|partition| {
            let deliveries = Deliveries::new(partition, id, core.began);
            (deliveries, partition.next_sequence())
        });
        let group = Arc::new(Self {
            core,
            id,
            open_pulls: AtomicUsize::new(0),
            state: Mutex::new(GroupState {
                deliveries: deliveries?,
                pulls: BTreeMap::new(),
                next_consumer: 1,
                next_sequence,
                waiting: VecDeque::new(),
                flush_at: None,
                ended: None,
            }),
        });
        group.set_alarm(&group.state.lock());
        Some(group)
    }

    /// The reign that the group belongs to.
    pub(crate) fn core(&self) -> &Arc<LeaderCore> {
        &self.core
    }

    /// Lets a pull in. The stream is signalled at once, so that it looks for the first time.
    pub(crate) fn open(
        &self,
        outbox: &Outbox,
        pull_id: u64,
        credit: Credit,
    ) -> Result<ConsumerId, PartitionError> {
        let mut state = self.state.lock();
        if let Some(ended) = &state.ended {
            return Err(ended.clone());
        }
        let consumer = ConsumerId(state.next_consumer);
        state
            .deliveries
            .open(consumer, 0)
            .map_err(|_| PartitionError::Exhausted {
                what: "the consumer group has as many pulls on this partition as it may",
                retry_after: Duration::from_secs(1),
            })?;
        state.next_consumer += 1;
        let pull = Pull {
            outbox: outbox.clone(),
            pull_id,
            credit,
            leased: VecDeque::new(),
            message_bytes: GUESSED_MESSAGE_BYTES,
            signalled: true,
            told_idle: false,
        };
        state.pulls.insert(consumer, pull);
        self.open_pulls.store(state.pulls.len(), Ordering::Release);
        // Messages that are applied from here on are told; those before are seen now.
        self.look_at_partition(&mut state);
        outbox.signal(pull_id);
        Ok(consumer)
    }

    /// Adds credit.
    pub(crate) fn add_credit(&self, consumer: ConsumerId, credit: Credit) {
        let mut state = self.state.lock();
        if let Some(pull) = state.pulls.get_mut(&consumer) {
            pull.credit.messages = pull.credit.messages.saturating_add(credit.messages);
            pull.credit.bytes = pull.credit.bytes.saturating_add(credit.bytes);
            pull.signal();
        }
    }

    /// The stream looks: the next lease that the pull may be sent, or nothing for now. Whatever comes later signals.
    pub(crate) fn next_lease(self: &Arc<Self>, consumer: ConsumerId) -> Option<Lease> {
        let mut state = self.state.lock();
        let pull = state.pulls.get_mut(&consumer)?;
        pull.signalled = false;
        if pull.credit.is_used_up() {
            state.return_unusable(consumer);
            self.hand_out(&mut state);
        } else if pull.leased.is_empty() {
            state.grant(consumer);
            self.hand_out(&mut state);
        }
        let lease = state.pop_lease(consumer);
        if lease.is_none() {
            state.tell_when_idle(consumer);
        }
        self.replicate_when_due(&mut state);
        self.set_alarm(&state);
        lease
    }

    /// Tells that messages of a lease go out now. Returns the parts that its holder still holds for this delivery: send
    /// exactly those.
    pub(crate) fn mark_sent(&self, lease: &Lease) -> Vec<SequenceRange> {
        let now = self.core.shared.steady.now();
        let mut state = self.state.lock();
        let sent = state.deliveries.mark_lease_sent(lease, now);
        if let Some(pull) = state.pulls.get_mut(&lease.consumer) {
            let messages: u64 = sent.iter().map(|part| part.count()).sum();
            pull.credit.messages = pull.credit.messages.saturating_sub(messages);
        }
        self.set_alarm(&state);
        sent
    }

    /// Takes the bytes of a delivery from the pull's credit.
    pub(crate) fn charge(&self, consumer: ConsumerId, messages: u64, bytes: u64) {
        let metrics = &self.core.shared.metrics;
        metrics.delivered_messages.inc_by(messages);
        metrics.delivered_bytes.inc_by(bytes);
        let mut state = self.state.lock();
        if let Some(pull) = state.pulls.get_mut(&consumer) {
            pull.credit.bytes = pull.credit.bytes.saturating_sub(bytes);
            pull.message_bytes = (pull.message_bytes * 3 + bytes / messages.max(1)) / 4;
        }
    }

    /// What the pull may still be sent.
    pub(crate) fn credit(&self, consumer: ConsumerId) -> Credit {
        self.state
            .lock()
            .pulls
            .get(&consumer)
            .map_or(Credit::default(), |pull| pull.credit)
    }

    /// Takes back a part of a lease that was not sent after all. With credit left it comes again; without, it goes to
    /// whoever has some.
    pub(crate) fn put_back(self: &Arc<Self>, consumer: ConsumerId, lease: Lease) {
        let mut state = self.state.lock();
        let Some(pull) = state.pulls.get_mut(&consumer) else {
            return;
        };
        pull.leased.push_front(lease);
        if pull.credit.is_used_up() {
            state.return_unusable(consumer);
            self.hand_out(&mut state);
            self.replicate_when_due(&mut state);
        }
    }

    /// Ends a pull. What is leased and not sent goes back, and so do the parts of `unsent` that the pull holds. What a
    /// client may have stays leased until its deadline.
    pub(crate) fn close(self: &Arc<Self>, consumer: ConsumerId, unsent: &[SequenceRange]) {
        let mut state = self.state.lock();
        for range in unsent {
            state.deliveries.recall(consumer, *range);
        }
        state.deliveries.detach(consumer);
        self.forget(&mut state, consumer);
    }

    /// The gateway is gone: everything that the pull holds goes out again; `unsent` without counting as delivered.
    pub(crate) fn release(self: &Arc<Self>, consumer: ConsumerId, unsent: &[SequenceRange]) {
        let mut state = self.state.lock();
        for range in unsent {
            state.deliveries.recall(consumer, *range);
        }
        state.deliveries.release(consumer);
        self.forget(&mut state, consumer);
    }

    fn forget(self: &Arc<Self>, state: &mut GroupState, consumer: ConsumerId) {
        state.pulls.remove(&consumer);
        self.open_pulls.store(state.pulls.len(), Ordering::Release);
        self.hand_out(state);
        self.replicate_when_due(state);
        self.set_alarm(state);
    }

    /// Whether somebody reads.
    pub(crate) fn has_pulls(&self) -> bool {
        self.open_pulls.load(Ordering::Acquire) > 0
    }

    /// Catches up with what was stored while nobody read.
    pub(super) fn look_at_partition(&self, state: &mut GroupState) {
        let bounds = |partition: &Partition| (partition.first_sequence(), partition.next_sequence());
        let (first, next) = self.core.replica.with_partition(bounds);
        state.observe(first, next);
    }

    /// Messages from `first` to before `next` are stored now.
    pub(crate) fn observe(self: &Arc<Self>, first: Sequence, next: Sequence) {
        let mut state = self.state.lock();
        state.observe(first, next);
        self.hand_out(&mut state);
        self.replicate_when_due(&mut state);
    }

    /// Takes over settings that were changed.
    pub(crate) fn configure(&self, ack_deadline_ms: u64, max_in_flight: u32) {
        let mut state = self.state.lock();
        state.deliveries.configure(ack_deadline_ms, max_in_flight);
    }

    /// Something of the group may be due.
    pub(crate) fn tick(self: &Arc<Self>) {
        let now = self.core.shared.steady.now();
        let mut state = self.state.lock();
        if state.ended.is_some() {
            return;
        }
        if state
            .deliveries
            .next_deadline()
            .is_some_and(|deadline| deadline <= now)
        {
            state.deliveries.expire(now);
            self.core.shared.metrics.ack_deadlines_passed.inc();
            self.hand_out(&mut state);
        }
        if state.flush_at.is_some_and(|at| at <= Instant::now()) {
            state.flush_at = None;
            self.replicate(&mut state);
        }
        self.replicate_when_due(&mut state);
        self.set_alarm(&state);
    }

    /// The reign is over: every pull is closed, every ack that waits is answered.
    pub(crate) fn end(&self, error: &PartitionError) {
        let mut state = self.state.lock();
        state.ended = Some(error.clone());
        for pull in std::mem::take(&mut state.pulls).into_values() {
            pull.outbox.push(DeliverEvent::Closed {
                pull_id: pull.pull_id,
                error: Some(Box::new(error.clone())),
            });
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        for waiting in waiting {
            let unknown = PartitionError::OutcomeUnknown {
                group: self.core.replica.group(),
            };
            waiting.reply.answer(Err(unknown));
        }
    }

    /// Gives leases to pulls that were granted messages.
    pub(super) fn hand_out(&self, state: &mut GroupState) {
        if state.ended.is_some() {
            return;
        }
        let now = self.core.shared.steady.now();
        let leases = state.deliveries.lease(now, LEASES_AT_ONCE);
        state.route(leases);
    }

    /// Asks the leader's alarm to ring when this group has something to do.
    pub(super) fn set_alarm(&self, state: &GroupState) {
        let deadline = state.deliveries.next_deadline();
        let deadline = deadline.map(|deadline| self.core.shared.steady.instant_of(deadline));
        if let Some(at) = deadline.into_iter().chain(state.flush_at).min() {
            self.core.alarm.set(at);
        }
    }
}

impl GroupState {
    fn observe(&mut self, first: Sequence, next: Sequence) {
        self.deliveries.observe(first, next);
        self.next_sequence = self.next_sequence.max(next);
    }

    /// Gives leases to their pulls.
    pub(super) fn route(&mut self, leases: Vec<Lease>) {
        for lease in leases {
            if let Some(pull) = self.pulls.get_mut(&lease.consumer) {
                pull.leased.push_back(lease);
                pull.told_idle = false;
                pull.signal();
            }
        }
    }

    /// Grants as many messages as the pull's credit in bytes is likely to allow.
    fn grant(&mut self, consumer: ConsumerId) {
        let sharing = self.pulls.len() as u64;
        let Some(pull) = self.pulls.get(&consumer) else {
            return;
        };
        let fair = (MOST_GRANTED / sharing.max(1)).max(SHARED_GRANT);
        let by_bytes = (pull.credit.bytes / pull.message_bytes.max(1)).max(1);
        let wanted = pull.credit.messages.min(by_bytes).min(fair);
        let granted = u64::from(self.deliveries.credit(consumer).unwrap_or(0));
        let more = u32::try_from(wanted.saturating_sub(granted)).unwrap_or(u32::MAX);
        if more > 0 {
            self.deliveries.add_credit(consumer, more);
        }
    }

    /// Gives back what a pull holds and has no credit for, so that others get it.
    fn return_unusable(&mut self, consumer: ConsumerId) {
        let Some(pull) = self.pulls.get_mut(&consumer) else {
            return;
        };
        for lease in std::mem::take(&mut pull.leased) {
            self.deliveries.give_back(consumer, lease.range);
        }
        self.deliveries.retract_credit(consumer, u32::MAX);
    }

    /// The next lease, no longer than the pull's credit in messages.
    fn pop_lease(&mut self, consumer: ConsumerId) -> Option<Lease> {
        let pull = self.pulls.get_mut(&consumer)?;
        if pull.credit.is_used_up() {
            return None;
        }
        let mut lease = pull.leased.pop_front()?;
        if let Some((now, later)) = split(lease.range, pull.credit.messages) {
            lease.range = now;
            let later = Lease {
                range: later,
                ..lease
            };
            pull.leased.push_front(later);
        }
        Some(lease)
    }

    fn tell_when_idle(&mut self, consumer: ConsumerId) {
        let drained = self.deliveries.is_drained();
        let unacknowledged = self.deliveries.outstanding();
        let next_sequence = self.next_sequence;
        let Some(pull) = self.pulls.get_mut(&consumer) else {
            return;
        };
        if !drained || !pull.leased.is_empty() || pull.told_idle {
            return;
        }
        pull.told_idle = true;
        pull.outbox.push(DeliverEvent::Idle {
            pull_id: pull.pull_id,
            unacknowledged,
            next_sequence,
        });
    }

    /// First message of `ranges` that is in `refused`, if there is one.
    pub(super) fn first_refused(refused: &RangeSet, ranges: &[SequenceRange]) -> Option<Sequence> {
        let hit = |range: &SequenceRange| {
            refused
                .iter()
                .find(|r| r.first() <= range.last() && range.first() <= r.last())
        };
        ranges
            .iter()
            .find_map(|range| hit(range).map(|r| r.first().max(range.first())))
    }
}

impl Pull {
    fn signal(&mut self) {
        if !self.signalled {
            self.signalled = true;
            self.outbox.signal(self.pull_id);
        }
    }
}

/// Splits a range behind its first `messages` messages; `None` if it has no more.
pub(super) fn split(range: SequenceRange, messages: u64) -> Option<(SequenceRange, SequenceRange)> {
    let second = range.first().advance(messages)?;
    if messages == 0 || second > range.last() {
        return None;
    }
    let first_end = range.first().advance(messages - 1)?;
    Some((
        SequenceRange::new(range.first(), first_end)?,
        SequenceRange::new(second, range.last())?,
    ))
}
