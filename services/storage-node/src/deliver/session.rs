//! One gateway's delivery stream: its pulls, what is being read for them, and what is being sent.
//!
//! Everything here runs in the stream's own task, when the stream can take more: a reader that is slow is simply not
//! polled, and what it has not been sent stays on disk. At most `in_hand_bytes` and one delivery wait in memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, Stream as _};
use ptah_partition::{BatchError, ConsumerId, Lease, SequenceRange};
use ptah_types::{ConsumerGroupId, PartitionKey, RaftGroupId};

use super::cut::{self, Piece};
use super::group::{Credit, GroupDelivery};
use super::outbox::{DeliverEvent, Outbox, Part};
use super::reading::{Read, behind, read};
use super::rounds::AckReply;
use super::views::{ReadBatch, Views};
use crate::error::PartitionError;
use crate::node::Node;

/// Pulls that one stream may have open.
const MAX_PULLS: usize = 65_536;
/// Closed pulls for which acks are still taken.
const MAX_CLOSED: usize = 16_384;
/// Events that may wait for the gateway to read them before the stream is not read any more.
const MAX_WAITING_EVENTS: usize = 16_384;
/// Reads from disk under way at a time, per stream.
const MAX_READS: usize = 4;

/// What a gateway asks for when it starts a pull.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PullOpening {
    /// The pull.
    pub(crate) pull_id: u64,
    /// The partition.
    pub(crate) key: PartitionKey,
    /// Its Raft group.
    pub(crate) group: RaftGroupId,
    /// The consumer group.
    pub(crate) consumer_group: ConsumerGroupId,
    /// Credit to begin with.
    pub(crate) credit: Credit,
}

/// The stream does not follow the protocol; it cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// A pull was opened twice.
    #[error("pull {0} is open already; use each pull id once per stream")]
    Twice(u64),
    /// More pulls than a stream may have.
    #[error("stream has {MAX_PULLS} pulls open; open another stream")]
    TooMany,
}

/// One delivery stream.
pub(crate) struct DeliverSession {
    node: Arc<Node>,
    outbox: Outbox,
    pulls: BTreeMap<u64, Pull>,
    /// Pulls that were closed, newest last: their acks may still come.
    closed: VecDeque<(u64, Arc<GroupDelivery>)>,
    /// Pulls to look at, in turn.
    ready: VecDeque<u64>,
    /// Pulls with pieces to send, in turn.
    sending: VecDeque<u64>,
    in_hand_bytes: u64,
    reads: FuturesUnordered<BoxFuture<'static, Read>>,
    views: Views,
}

struct Pull {
    group: Arc<GroupDelivery>,
    consumer: ConsumerId,
    /// Marked as sent and not yet wholly on the wire.
    pieces: VecDeque<Piece>,
    reading: bool,
}

impl DeliverSession {
    /// A stream without pulls.
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self {
            node,
            outbox: Outbox::default(),
            pulls: BTreeMap::new(),
            closed: VecDeque::new(),
            ready: VecDeque::new(),
            sending: VecDeque::new(),
            in_hand_bytes: 0,
            reads: FuturesUnordered::new(),
            views: Views::default(),
        }
    }

    /// Whether more may be read from the gateway.
    pub(crate) fn may_read(&self) -> bool {
        self.outbox.waiting() < MAX_WAITING_EVENTS
    }

    /// Starts a pull.
    pub(crate) fn open(&mut self, opening: PullOpening) -> Result<(), SessionError> {
        let pull_id = opening.pull_id;
        if self.pulls.contains_key(&pull_id) {
            return Err(SessionError::Twice(pull_id));
        }
        if self.pulls.len() >= MAX_PULLS {
            return Err(SessionError::TooMany);
        }
        match self.try_open(&opening) {
            Ok(pull) => {
                self.pulls.insert(pull_id, pull);
            }
            Err(error) => self.outbox.push(DeliverEvent::Closed {
                pull_id,
                error: Some(Box::new(error)),
            }),
        }
        Ok(())
    }

    fn try_open(&self, opening: &PullOpening) -> Result<Pull, PartitionError> {
        self.node.check_route(opening.group, &opening.key, None)?;
        let group = self.node.leader(opening.group)?.group(opening.consumer_group)?;
        let consumer = group.open(&self.outbox, opening.pull_id, opening.credit)?;
        Ok(Pull {
            group,
            consumer,
            pieces: VecDeque::new(),
            reading: false,
        })
    }

    /// Adds credit to a pull. For one that has ended meanwhile it means nothing.
    pub(crate) fn credit(&self, pull_id: u64, credit: Credit) {
        if let Some(pull) = self.pulls.get(&pull_id) {
            pull.group.add_credit(pull.consumer, credit);
        }
    }

    /// Acknowledges; with a `confirm_id` the answer is an event.
    pub(crate) fn ack(&self, pull_id: u64, ranges: Vec<SequenceRange>, confirm_id: Option<u64>) {
        let reply = confirm_id.map(|confirm_id| AckReply::Stream {
            outbox: self.outbox.clone(),
            pull_id,
            confirm_id,
        });
        let open = self.pulls.get(&pull_id).map(|pull| &pull.group);
        let closed = || {
            self.closed
                .iter()
                .rev()
                .find(|(id, _)| *id == pull_id)
                .map(|(_, group)| group)
        };
        match (open.or_else(closed), reply) {
            (Some(group), reply) => group.ack(ranges, reply),
            (None, Some(reply)) => {
                let why = format!("pull {pull_id} is not open on this stream; acknowledge with AckMessages");
                reply.answer(Err(PartitionError::Invalid(why)));
            }
            (None, None) => {
                self.node.shared.metrics.acks_lost.inc();
            }
        }
    }

    /// Ends a pull; `unsent` did not reach a client.
    pub(crate) fn close(&mut self, pull_id: u64, unsent: &[SequenceRange]) {
        let Some(pull) = self.remove(pull_id) else {
            return;
        };
        let mut unsent = unsent.to_vec();
        unsent.extend(pull.pieces.iter().map(|piece| piece.range));
        pull.group.close(pull.consumer, &unsent);
        if self.closed.len() >= MAX_CLOSED {
            self.closed.pop_front();
        }
        self.closed.push_back((pull_id, pull.group));
        self.outbox.push(DeliverEvent::Closed { pull_id, error: None });
    }

    fn remove(&mut self, pull_id: u64) -> Option<Pull> {
        let pull = self.pulls.remove(&pull_id)?;
        self.in_hand_bytes -= pull.pieces_bytes();
        Some(pull)
    }

    /// The next thing to say. Polled only when the stream can take it.
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<DeliverEvent> {
        loop {
            if let Some(event) = self.outbox.take_event(cx) {
                if let DeliverEvent::Closed {
                    pull_id,
                    error: Some(_),
                } = &event
                {
                    self.remove(*pull_id);
                }
                return Poll::Ready(event);
            }
            self.outbox.take_ready(&mut self.ready);
            let read = self.poll_reads(cx);
            let looked = self.look();
            if let Some(part) = self.next_part() {
                return Poll::Ready(DeliverEvent::Part(part));
            }
            if !read && !looked {
                return Poll::Pending;
            }
        }
    }

    /// Takes reads that have ended; whether there was one.
    fn poll_reads(&mut self, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        while let Poll::Ready(Some(read)) = std::pin::Pin::new(&mut self.reads).poll_next(cx) {
            any = true;
            self.take_read(read);
        }
        any
    }

    /// Looks at pulls that have something to do, as long as there is room in memory; whether there was one.
    fn look(&mut self) -> bool {
        let mut any = false;
        while self.in_hand_bytes < self.node.shared.limits.deliver_in_hand_bytes
            && self.reads.len() < MAX_READS
            && let Some(pull_id) = self.ready.pop_front()
        {
            any = true;
            self.look_at(pull_id);
        }
        any
    }

    fn look_at(&mut self, pull_id: u64) {
        let Some(pull) = self.pulls.get_mut(&pull_id) else {
            return;
        };
        // What is on its way ends with another look.
        if pull.reading || !pull.pieces.is_empty() {
            return;
        }
        let Some(lease) = pull.group.next_lease(pull.consumer) else {
            return;
        };
        let group = pull.group.core().replica.group();
        if let Some(batch) = self.views.take(group, lease.range.first()) {
            return self.cut(pull_id, lease, vec![batch]);
        }
        pull.reading = true;
        let replica = pull.group.core().replica.clone();
        self.reads.push(Box::pin(read(replica, pull_id, lease)));
    }

    fn take_read(&mut self, read: Read) {
        let Some(pull) = self.pulls.get_mut(&read.pull_id) else {
            return;
        };
        pull.reading = false;
        let mut lease = Some(read.lease);
        if let Some(damaged) = &read.damaged {
            pull.group.set_aside(pull.consumer, damaged.range, &damaged.why);
            lease = behind(read.lease, damaged.range);
        }
        match (read.result, lease) {
            (Err(error), _) => {
                let error = self.node.read_error(&pull.group.core().replica, error);
                self.fail(read.pull_id, error);
            }
            (Ok(batches), Some(lease)) if read.damaged.is_none() || !batches.is_empty() => {
                let batches = batches.into_iter().map(ReadBatch::new).collect();
                self.cut(read.pull_id, lease, batches);
            }
            // Nothing whole so far.
            (Ok(_), lease) => {
                if let Some(lease) = lease {
                    pull.group.put_back(pull.consumer, lease);
                }
                self.ready.push_back(read.pull_id);
            }
        }
    }

    /// Makes pieces out of what was read, as far as the lease and the credit go, and puts back the rest.
    fn cut(&mut self, pull_id: u64, lease: Lease, batches: Vec<ReadBatch>) {
        let Some(pull) = self.pulls.get_mut(&pull_id) else {
            return;
        };
        let group = pull.group.core().replica.group();
        let mut rest = Some(lease);
        let mut set_aside = false;
        for mut batch in batches {
            if let Err(error) = pull.take_from(&mut batch, &mut rest) {
                let unreadable = rest.and_then(|rest| Some((rest, cut::overlap(&batch, rest.range)?)));
                if let Some((lease, range)) = unreadable {
                    pull.group.set_aside(pull.consumer, range, &error.to_string());
                    rest = behind(lease, range);
                    set_aside = true;
                }
                continue;
            }
            let more = rest.is_some_and(|rest| cut::overlap(&batch, rest.range).is_some());
            if more || batch.reaches_behind(lease.range) {
                self.views.keep(group, batch);
                break;
            }
        }
        self.in_hand_bytes += pull.pieces_bytes();
        if let Some(rest) = rest {
            let stuck = rest == lease && !set_aside && !pull.group.credit(pull.consumer).is_used_up();
            pull.group.put_back(pull.consumer, rest);
            if stuck {
                let why = PartitionError::Unavailable("leased messages were not found".into());
                return self.fail(pull_id, why);
            }
        }
        if pull.pieces.is_empty() {
            self.ready.push_back(pull_id);
        } else {
            self.sending.push_back(pull_id);
        }
    }

    /// Ends a pull that cannot go on.
    fn fail(&mut self, pull_id: u64, error: PartitionError) {
        tracing::warn!(pull = pull_id, %error, "pull ended");
        let Some(pull) = self.remove(pull_id) else {
            return;
        };
        let unsent: Vec<_> = pull.pieces.iter().map(|piece| piece.range).collect();
        pull.group.close(pull.consumer, &unsent);
        self.outbox.push(DeliverEvent::Closed {
            pull_id,
            error: Some(Box::new(error)),
        });
    }

    /// The next part of a delivery; pulls take turns.
    fn next_part(&mut self) -> Option<Part> {
        while let Some(pull_id) = self.sending.pop_front() {
            let Some(pull) = self.pulls.get_mut(&pull_id) else {
                continue;
            };
            let Some(piece) = pull.pieces.front_mut() else {
                continue;
            };
            let part = piece.next_part(pull_id);
            if piece.is_done() {
                self.in_hand_bytes -= piece.payload.len() as u64;
                pull.pieces.pop_front();
            }
            if pull.pieces.is_empty() {
                self.ready.push_back(pull_id);
            } else {
                self.sending.push_back(pull_id);
            }
            return Some(part);
        }
        None
    }
}

impl Pull {
    fn pieces_bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.payload.len() as u64).sum()
    }

    /// Makes pieces of the messages of `rest` that are in the batch, as far as the credit goes, and shortens `rest`.
    fn take_from(&mut self, batch: &mut ReadBatch, rest: &mut Option<Lease>) -> Result<(), BatchError> {
        while let Some(lease) = *rest
            && let Some(wanted) = cut::overlap(batch, lease.range)
        {
            let credit = self.group.credit(self.consumer);
            if credit.is_used_up() {
                break;
            }
            let wanted = super::group::split(wanted, credit.messages).map_or(wanted, |(first, _)| first);
            let fitting = cut::fitting(batch, wanted, credit.bytes)?;
            let sending = Lease {
                range: fitting,
                ..lease
            };
            let (mut messages, mut bytes) = (0, 0);
            for range in self.group.mark_sent(&sending) {
                let piece = cut::piece(batch, range, lease.delivery_count)?;
                messages += range.count();
                bytes += piece.payload.len() as u64;
                self.pieces.push_back(piece);
            }
            self.group.charge(self.consumer, messages, bytes);
            *rest = behind(lease, fitting);
        }
        Ok(())
    }
}

impl Drop for DeliverSession {
    /// The gateway is gone: what it holds goes out again.
    fn drop(&mut self) {
        for pull in std::mem::take(&mut self.pulls).into_values() {
            let unsent: Vec<_> = pull.pieces.iter().map(|piece| piece.range).collect();
            pull.group.release(pull.consumer, &unsent);
        }
    }
}
