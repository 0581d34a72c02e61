//! What the fake storage nodes share: committed logs, who leads, and which faults come next.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use ptah_partition::{
    AppendHead, BatchHead, BatchStamp, BatchView, Command, ConsumerId, Decision, Deliveries, GroupSpec,
    Partition, SequenceRange, Sequencer, SessionNumber, Urgency,
};
use ptah_proto::common::v1 as common;
use ptah_proto::storage::v1 as pb;
use ptah_types::{ConsumerGroupId, Sequence, SessionId, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// What happens to the next append of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Refused with this kind, not stored.
    Refuse(common::ErrorKind),
    /// Stored, but answered as not known.
    StoredButUnknown,
    /// Stored, and every stream of the node breaks before the answer.
    StoredThenBroken,
    /// Not stored, and every stream of the node breaks.
    LostThenBroken,
    /// The session is not known any more.
    SessionForgotten,
}

/// A committed batch.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) stamp: BatchStamp,
    pub(crate) payload: Bytes,
    pub(crate) crc: u32,
}

pub(crate) type Answer = Result<pb::AppendStored, pb::AppendRefused>;

/// Accepted and not committed.
struct Pending {
    stored: Stored,
    answer: oneshot::Sender<Answer>,
}

/// A pull as the leader has it.
pub(crate) struct PullState {
    pub(crate) pull_id: u64,
    pub(crate) group: ConsumerGroupId,
    pub(crate) credit_bytes: u64,
    pub(crate) out: mpsc::UnboundedSender<pb::DeliverResponse>,
    pub(crate) idle_told: bool,
    pub(crate) credit_seen: u64,
}

pub(crate) struct Group {
    pub(crate) partition: Partition,
    pub(crate) log: Vec<Stored>,
    pub(crate) leader: u64,
    pub(crate) term: u64,
    sequencer: Sequencer,
    pub(crate) deliveries: BTreeMap<ConsumerGroupId, Deliveries>,
    pub(crate) pulls: BTreeMap<ConsumerId, PullState>,
    pending: VecDeque<Pending>,
    /// Accepted appends are not committed while this is set.
    pub(crate) hold: bool,
    pub(crate) faults: VecDeque<Fault>,
    pub(crate) appends_seen: u64,
}

pub(crate) struct Node {
    pub(crate) broken: watch::Sender<u64>,
    pub(crate) up: bool,
}

pub(crate) struct State {
    pub(crate) groups: BTreeMap<u64, Group>,
    pub(crate) nodes: BTreeMap<u64, Node>,
    next_consumer: u64,
}

#[derive(Clone)]
pub(crate) struct World {
    state: Arc<Mutex<State>>,
    pub(crate) changes: watch::Sender<u64>,
    epoch: Instant,
}

impl World {
    pub(crate) fn new() -> Self {
        let state = State {
            groups: BTreeMap::new(),
            nodes: BTreeMap::new(),
            next_consumer: 1,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            changes: watch::Sender::new(0),
            epoch: Instant::now(),
        }
    }

    pub(crate) fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.state.lock())
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_700_000_000_000 + self.epoch.elapsed().as_millis() as u64)
    }

    pub(crate) fn tell(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    pub(crate) fn add_group(&self, group: u64, leader: u64) {
        let partition = Partition::new();
        let added = Group {
            sequencer: Sequencer::new(&partition),
            partition,
            log: Vec::new(),
            leader,
            term: 1,
            deliveries: BTreeMap::new(),
            pulls: BTreeMap::new(),
            pending: VecDeque::new(),
            hold: false,
            faults: VecDeque::new(),
            appends_seen: 0,
        };
        self.with(|state| state.groups.insert(group, added));
        self.tell();
    }

    pub(crate) fn fault(&self, group: u64, fault: Fault) {
        self.with(|state| state.groups.get_mut(&group).unwrap().faults.push_back(fault));
    }

    /// Breaks all streams of a node.
    pub(crate) fn break_streams(&self, node: u64) {
        self.with(|state| state.nodes[&node].broken.send_modify(|count| *count += 1));
    }

    /// Another node leads from now on. Of what was accepted and not committed the first `surviving` batches are committed,
    /// the rest never existed.
    pub(crate) fn move_leader(&self, group: u64, to: u64, surviving: usize) {
        self.with(|state| {
            let moved = state.groups.get_mut(&group).unwrap();
            let pending = std::mem::take(&mut moved.pending);
            for (place, pending) in pending.into_iter().enumerate() {
                if place < surviving {
                    moved.apply(pending.stored);
                }
                drop(pending.answer.send(Err(refused(
                    common::ErrorKind::OutcomeUnknown,
                    "leadership ended",
                    0,
                ))));
            }
            moved.leader = to;
            moved.term += 1;
            moved.hold = false;
            moved.sequencer = Sequencer::new(&moved.partition);
            moved.deliveries.clear();
            for pull in std::mem::take(&mut moved.pulls).into_values() {
                drop(pull.out.send(closed(pull.pull_id, common::ErrorKind::NotLeader)));
            }
        });
        self.tell();
    }

    /// Lets what was held be committed.
    pub(crate) fn release(&self, group: u64) {
        let now = self.now();
        self.with(|state| {
            let released = state.groups.get_mut(&group).unwrap();
            released.hold = false;
            released.commit();
            released.deliver(now);
        });
    }

    /// An append arrives at a node.
    pub(crate) fn append(
        &self,
        node: u64,
        group: u64,
        session: u64,
        number: u64,
        batch: Stored,
    ) -> oneshot::Receiver<Answer> {
        let (answer, answered) = oneshot::channel();
        let now = self.now();
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let Some(to) = state.groups.get_mut(&group) else {
            drop(answer.send(Err(refused(common::ErrorKind::NotFound, "no such group", 0))));
            return answered;
        };
        to.appends_seen += 1;
        if to.leader != node {
            let mut refused = refused(common::ErrorKind::NotLeader, "another node leads", 0);
            refused.error.as_mut().unwrap().leader = Some(common::NodeAddress {
                node_id: to.leader,
                address: String::new(),
            });
            drop(answer.send(Err(refused)));
            return answered;
        }
        let head = AppendHead {
            session: SessionNumber::new(SessionId::new(session).unwrap(), number),
            count: batch.stamp.count,
        };
        let fault = to.faults.pop_front();
        match fault {
            Some(Fault::Refuse(kind)) => {
                drop(answer.send(Err(refused(kind, "refused by the test", 0))));
                return answered;
            }
            Some(Fault::SessionForgotten) => {
                drop(answer.send(Err(refused(
                    common::ErrorKind::OutcomeUnknown,
                    "session expired",
                    1,
                ))));
                return answered;
            }
            Some(Fault::LostThenBroken) => {
                state.nodes[&node].broken.send_modify(|count| *count += 1);
                return answered;
            }
            _ => {}
        }
        match to.sequencer.accept(&head, now) {
            Decision::Propose(stamp) => {
                let stored = Stored { stamp, ..batch };
                to.pending.push_back(Pending { stored, answer });
                if !to.hold {
                    match fault {
                        Some(Fault::StoredButUnknown) => {
                            let (unheard, _) = oneshot::channel();
                            let last = to.pending.back_mut().unwrap();
                            let asker = std::mem::replace(&mut last.answer, unheard);
                            to.commit();
                            drop(asker.send(Err(refused(common::ErrorKind::OutcomeUnknown, "who knows", 0))));
                        }
                        Some(Fault::StoredThenBroken) => {
                            to.pending.back_mut().unwrap().answer = oneshot::channel().0;
                            to.commit();
                            state.nodes[&node].broken.send_modify(|count| *count += 1);
                        }
                        _ => to.commit(),
                    }
                    if let Some(to) = state.groups.get_mut(&group) {
                        to.deliver(now);
                    }
                }
            }
            Decision::Duplicate(appended) => {
                let stored = pb::AppendStored {
                    base_sequence: appended.base_sequence.get(),
                    timestamp_ns: 0,
                    duplicate: true,
                };
                drop(answer.send(Ok(stored)));
            }
            Decision::InFlight(appended) => {
                // The same batch came again before it was committed: answered when the first one is.
                let same = to
                    .pending
                    .iter_mut()
                    .find(|p| p.stored.stamp.base_sequence == appended.base_sequence);
                same.unwrap().answer = answer;
            }
            Decision::Refused(refusal) => {
                let expected = match &refusal {
                    ptah_partition::AppendRefusal::Gap { expected } => *expected,
                    ptah_partition::AppendRefusal::SessionExpired => 1,
                    _ => 0,
                };
                drop(answer.send(Err(refused(
                    common::ErrorKind::Conflict,
                    &refusal.to_string(),
                    expected,
                ))));
            }
        }
        answered
    }

    pub(crate) fn open_pull(
        &self,
        node: u64,
        group: u64,
        pull: PullState,
        credit: u32,
    ) -> Option<ConsumerId> {
        let now = self.now();
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let to = state.groups.get_mut(&group)?;
        if to.leader != node {
            drop(pull.out.send(closed(pull.pull_id, common::ErrorKind::NotLeader)));
            return None;
        }
        if !to.deliveries.contains_key(&pull.group) {
            let Some(deliveries) = Deliveries::new(&to.partition, pull.group, now) else {
                drop(pull.out.send(closed(pull.pull_id, common::ErrorKind::NotFound)));
                return None;
            };
            to.deliveries.insert(pull.group, deliveries);
        }
        let consumer = ConsumerId(state.next_consumer);
        state.next_consumer += 1;
        to.deliveries
            .get_mut(&pull.group)
            .unwrap()
            .open(consumer, credit)
            .unwrap();
        to.pulls.insert(consumer, pull);
        to.deliver(now);
        Some(consumer)
    }

    pub(crate) fn on_group(&self, group: u64, change: impl FnOnce(&mut Group, Timestamp)) {
        let now = self.now();
        self.with(|state| {
            if let Some(group) = state.groups.get_mut(&group) {
                change(group, now);
                group.deliver(now);
            }
        });
    }

    /// Payloads in the log of a group, in order.
    pub(crate) fn payloads(&self, group: u64) -> Vec<Vec<u8>> {
        self.with(|state| {
            let log = &state.groups[&group].log;
            let views = log
                .iter()
                .map(|stored| BatchView::parse(stored.payload.clone()).unwrap());
            views
                .flat_map(|view| view.iter().map(|m| m.payload().to_vec()).collect::<Vec<_>>())
                .collect()
        })
    }
}

impl Group {
    fn apply(&mut self, stored: Stored) {
        let head = BatchHead::read(&stored.payload).unwrap();
        self.partition.apply_batch(&stored.stamp, head).unwrap();
        self.log.push(stored);
    }

    fn commit(&mut self) {
        while let Some(pending) = self.pending.pop_front() {
            let answer = pb::AppendStored {
                base_sequence: pending.stored.stamp.base_sequence.get(),
                timestamp_ns: pending.stored.stamp.timestamp.0,
                duplicate: false,
            };
            self.apply(pending.stored);
            drop(pending.answer.send(Ok(answer)));
        }
        self.sequencer.committed(self.partition.next_sequence());
    }

    pub(crate) fn ensure(&mut self, group: ConsumerGroupId, spec: GroupSpec, now: Timestamp) {
        let _applied = self.partition.apply(&Command::EnsureGroup { group, spec }, now);
    }

    fn replicate(&mut self, group: ConsumerGroupId, now: Timestamp) {
        let Some(deliveries) = self.deliveries.get_mut(&group) else {
            return;
        };
        while deliveries.urgency() != Urgency::Nothing
            && let Some(round) = deliveries.to_replicate()
        {
            let applied: Vec<_> = round
                .commands
                .iter()
                .map(|command| self.partition.apply(command, now))
                .collect();
            let _ = deliveries.confirmed(round.round, &applied, now);
        }
    }

    pub(crate) fn ack(&mut self, group: ConsumerGroupId, ranges: &[SequenceRange], now: Timestamp) -> bool {
        if !self.deliveries.contains_key(&group) {
            let Some(deliveries) = Deliveries::new(&self.partition, group, now) else {
                return false;
            };
            self.deliveries.insert(group, deliveries);
        }
        let _outcome = self.deliveries.get_mut(&group).unwrap().ack(ranges);
        self.replicate(group, now);
        true
    }

    /// Hands out what can be handed out.
    pub(crate) fn deliver(&mut self, now: Timestamp) {
        let groups: Vec<_> = self.deliveries.keys().copied().collect();
        for group in groups {
            let deliveries = self.deliveries.get_mut(&group).unwrap();
            deliveries.observe(self.partition.first_sequence(), self.partition.next_sequence());
            deliveries.expire(now);
            self.replicate(group, now);
            let deliveries = self.deliveries.get_mut(&group).unwrap();
            let leases = deliveries.lease(now, u32::MAX);
            for lease in leases {
                let pull = self.pulls.get_mut(&lease.consumer).unwrap();
                for range in deliveries.mark_sent(lease.consumer, lease.range, now) {
                    for delivery in cut(&self.log, range, pull.pull_id, lease.delivery_count) {
                        pull.credit_bytes = pull.credit_bytes.saturating_sub(delivery.total_bytes.into());
                        pull.idle_told = false;
                        send_in_parts(&pull.out, delivery);
                    }
                }
            }
            self.replicate(group, now);
            let deliveries = &self.deliveries[&group];
            let (available, outstanding) = (deliveries.available(), deliveries.outstanding());
            for pull in self.pulls.values_mut().filter(|pull| pull.group == group) {
                if !available && !pull.idle_told {
                    pull.idle_told = true;
                    let idle = pb::DeliverIdle {
                        pull_id: pull.pull_id,
                        unacknowledged: outstanding,
                        next_sequence: self.partition.next_sequence().get(),
                    };
                    drop(pull.out.send(deliver(pb::deliver_response::Response::Idle(idle))));
                }
            }
        }
    }
}

/// Encoded batches of the messages of a range.
fn cut(log: &[Stored], range: SequenceRange, pull_id: u64, delivery_count: u32) -> Vec<pb::Delivery> {
    let mut deliveries = Vec::new();
    for stored in log {
        let (base, count) = (stored.stamp.base_sequence.get(), u64::from(stored.stamp.count));
        let first = range.first().get().max(base);
        let last = range.last().get().min(base + count - 1);
        if first > last {
            continue;
        }
        let view = BatchView::parse(stored.payload.clone()).unwrap();
        let payload = view
            .slice((first - base) as usize..(last - base + 1) as usize)
            .unwrap();
        deliveries.push(pb::Delivery {
            pull_id,
            base_sequence: first,
            count: (last - first + 1) as u32,
            timestamp_ns: stored.stamp.timestamp.0,
            crc32c: ptah_partition::crc32c(&payload),
            total_bytes: payload.len() as u32,
            offset: 0,
            payload,
            delivery_count,
        });
    }
    deliveries
}

fn send_in_parts(out: &mpsc::UnboundedSender<pb::DeliverResponse>, whole: pb::Delivery) {
    let part_bytes = ptah_types::limits::FRAGMENT_BYTES;
    let mut offset = 0;
    while offset < whole.payload.len() {
        let end = whole.payload.len().min(offset + part_bytes);
        let part = pb::Delivery {
            payload: whole.payload.slice(offset..end),
            offset: offset as u32,
            ..whole.clone()
        };
        drop(out.send(deliver(pb::deliver_response::Response::Delivery(part))));
        offset = end;
    }
}

pub(crate) fn deliver(response: pb::deliver_response::Response) -> pb::DeliverResponse {
    pb::DeliverResponse {
        response: Some(response),
    }
}

pub(crate) fn error(kind: common::ErrorKind, message: &str) -> common::Error {
    common::Error {
        kind: kind.into(),
        message: message.to_owned(),
        leader: None,
        retry_after_ms: 0,
    }
}

fn closed(pull_id: u64, kind: common::ErrorKind) -> pb::DeliverResponse {
    deliver(pb::deliver_response::Response::Closed(pb::DeliverClosed {
        pull_id,
        error: Some(error(kind, "closed by the test")),
    }))
}

fn refused(kind: common::ErrorKind, message: &str, expected_number: u64) -> pb::AppendRefused {
    pb::AppendRefused {
        error: Some(error(kind, message)),
        expected_number,
    }
}

pub(crate) fn range(first: u64, last: u64) -> SequenceRange {
    SequenceRange::new(Sequence::new(first).unwrap(), Sequence::new(last).unwrap()).unwrap()
}
