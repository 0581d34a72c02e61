//! What waits to be written to one delivery stream. Credit and acknowledgements of a pull add up until they are written,
//! so that a busy stream carries few messages.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::Stream;
use parking_lot::Mutex;
use ptah_partition::SequenceRange;
use ptah_types::{ConsumerGroupId, PartitionKey, RaftGroupId};

use super::acks::{ConfirmedAck, WaitingAcks};
use super::credit::Amount;

/// Ranges that one acknowledgement carries at most.
const MAX_RANGES: usize = 1_024;

/// A consumer group on a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupOnPartition {
    /// Partition.
    pub partition: PartitionKey,
    /// Its Raft group.
    pub raft_group: RaftGroupId,
    /// Consumer group.
    pub consumer_group: ConsumerGroupId,
}

/// What is written to a delivery stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeliverCommand {
    /// Starts a pull.
    Open {
        /// Pull.
        pull: u64,
        /// What it reads.
        group: GroupOnPartition,
        /// First credit.
        credit: Amount,
    },
    /// Adds credit.
    Credit {
        /// Pull.
        pull: u64,
        /// How much.
        amount: Amount,
    },
    /// Acknowledges.
    Ack {
        /// Pull.
        pull: u64,
        /// Sequences.
        ranges: Vec<SequenceRange>,
        /// When not 0, answered after commit.
        confirm: u64,
    },
    /// Ends a pull.
    Close {
        /// Pull.
        pull: u64,
        /// Sequences that no client has seen.
        unsent: Vec<SequenceRange>,
    },
}

#[derive(Debug, Default)]
struct PullOutbox {
    open: Option<GroupOnPartition>,
    credit: Amount,
    acks: WaitingAcks,
    /// By number, so that one that is sent again is there once.
    confirms: BTreeMap<u64, Arc<ConfirmedAck>>,
    close: Option<Vec<SequenceRange>>,
    in_turn: bool,
}

#[derive(Debug, Default)]
struct State {
    pulls: BTreeMap<u64, PullOutbox>,
    turns: VecDeque<u64>,
    closed: bool,
    waker: Option<Waker>,
}

/// Handle on the outbox of one stream.
#[derive(Debug, Clone, Default)]
pub struct Outbox {
    state: Arc<Mutex<State>>,
}

impl Outbox {
    /// An empty outbox.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a pull.
    pub fn open(&self, pull: u64, group: GroupOnPartition) {
        self.change(pull, |outbox| outbox.open = Some(group), true);
    }

    /// Adds credit.
    pub fn credit(&self, pull: u64, amount: Amount) {
        let add = |outbox: &mut PullOutbox| {
            outbox.credit.messages = outbox.credit.messages.saturating_add(amount.messages);
            outbox.credit.bytes = outbox.credit.bytes.saturating_add(amount.bytes);
        };
        self.change(pull, add, false);
    }

    /// Acknowledges without an answer.
    pub(super) fn ack(&self, pull: u64, acks: WaitingAcks) {
        self.change(pull, |outbox| outbox.acks.join(acks), false);
    }

    /// Acknowledges with an answer.
    pub(super) fn ack_confirmed(&self, pull: u64, ack: Arc<ConfirmedAck>, confirm: u64) {
        let add = |outbox: &mut PullOutbox| {
            outbox.confirms.insert(confirm, ack);
        };
        self.change(pull, add, false);
    }

    /// Ends a pull, after what was said before.
    pub fn close_pull(&self, pull: u64, unsent: Vec<SequenceRange>) {
        self.change(pull, |outbox| outbox.close = Some(unsent), false);
    }

    /// Ends the stream.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.pulls.clear();
        state.wake();
    }

    /// The commands as a stream, for the transport.
    pub fn commands(&self) -> CommandStream {
        CommandStream(self.clone())
    }

    fn change(&self, pull: u64, change: impl FnOnce(&mut PullOutbox), make: bool) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        if make {
            state.pulls.entry(pull).or_default();
        }
        let Some(outbox) = state.pulls.get_mut(&pull) else {
            return;
        };
        change(outbox);
        if !outbox.in_turn {
            outbox.in_turn = true;
            state.turns.push_back(pull);
        }
        state.wake();
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn next_command(&mut self) -> Option<DeliverCommand> {
        while let Some(pull) = self.turns.pop_front() {
            let Some(outbox) = self.pulls.get_mut(&pull) else {
                continue;
            };
            match outbox.next_command(pull) {
                Some(command) => {
                    if matches!(command, DeliverCommand::Close { .. }) {
                        self.pulls.remove(&pull);
                    } else {
                        self.turns.push_back(pull);
                    }
                    return Some(command);
                }
                None => outbox.in_turn = false,
            }
        }
        None
    }
}

impl PullOutbox {
    fn next_command(&mut self, pull: u64) -> Option<DeliverCommand> {
        if let Some(group) = self.open.take() {
            let credit = std::mem::take(&mut self.credit);
            return Some(DeliverCommand::Open { pull, group, credit });
        }
        if !self.acks.is_empty() {
            let ranges = self.acks.take(MAX_RANGES);
            return Some(DeliverCommand::Ack {
                pull,
                ranges,
                confirm: 0,
            });
        }
        if let Some((confirm, ack)) = self.confirms.pop_first() {
            return Some(DeliverCommand::Ack {
                pull,
                ranges: ack.ranges.clone(),
                confirm,
            });
        }
        if self.close.is_none() && self.credit != Amount::default() {
            let amount = std::mem::take(&mut self.credit);
            return Some(DeliverCommand::Credit { pull, amount });
        }
        let unsent = self.close.take()?;
        Some(DeliverCommand::Close { pull, unsent })
    }
}

/// The commands as a stream. Ends when the outbox is closed.
pub struct CommandStream(Outbox);

impl Stream for CommandStream {
    type Item = DeliverCommand;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<DeliverCommand>> {
        let mut state = self.0.state.lock();
        if state.closed {
            return Poll::Ready(None);
        }
        if let Some(command) = state.next_command() {
            return Poll::Ready(Some(command));
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::super::acks::AckRoom;
    use super::*;
    use ptah_types::{PartitionNumber, Sequence, StationId, TenantName};

    fn group() -> GroupOnPartition {
        GroupOnPartition {
            partition: PartitionKey {
                tenant: TenantName::default_tenant(),
                station: StationId::new(1).unwrap(),
                partition: PartitionNumber::FIRST,
            },
            raft_group: RaftGroupId::new(1).unwrap(),
            consumer_group: ConsumerGroupId::new(1).unwrap(),
        }
    }

    fn range(first: u64, last: u64) -> SequenceRange {
        SequenceRange::new(Sequence::new(first).unwrap(), Sequence::new(last).unwrap()).unwrap()
    }

    fn acks(ranges: &[SequenceRange]) -> WaitingAcks {
        static ROOM: LazyLock<AckRoom> = LazyLock::new(AckRoom::new);
        WaitingAcks::new(ranges, &ROOM).unwrap()
    }

    fn all(outbox: &Outbox) -> Vec<DeliverCommand> {
        let mut state = outbox.state.lock();
        std::iter::from_fn(|| state.next_command()).collect()
    }

    #[test]
    fn acknowledgements_and_credit_of_a_pull_add_up_until_they_are_written() {
        let outbox = Outbox::new();
        outbox.open(1, group());
        assert_eq!(all(&outbox).len(), 1);
        outbox.ack(1, acks(&[range(1, 2)]));
        outbox.ack(1, acks(&[range(3, 5), range(9, 9)]));
        let one = Amount {
            messages: 1,
            bytes: 10,
        };
        outbox.credit(1, one);
        outbox.credit(1, one);
        let ack = DeliverCommand::Ack {
            pull: 1,
            ranges: vec![range(1, 5), range(9, 9)],
            confirm: 0,
        };
        let credit = DeliverCommand::Credit {
            pull: 1,
            amount: Amount {
                messages: 2,
                bytes: 20,
            },
        };
        assert_eq!(all(&outbox), [ack, credit]);
    }

    #[test]
    fn a_pull_is_closed_after_its_acknowledgements_and_takes_nothing_more() {
        let outbox = Outbox::new();
        outbox.open(1, group());
        let ack = ConfirmedAck::new(vec![range(1, 1)], &AckRoom::new()).unwrap();
        // Sent again before it was written.
        outbox.ack_confirmed(1, Arc::clone(&ack), 7);
        outbox.ack_confirmed(1, ack, 7);
        outbox.close_pull(1, vec![range(2, 3)]);
        let commands = all(&outbox);
        assert!(matches!(
            commands[..],
            [
                DeliverCommand::Open { .. },
                DeliverCommand::Ack { confirm: 7, .. },
                DeliverCommand::Close { .. }
            ]
        ));
        outbox.ack(1, acks(&[range(2, 2)]));
        assert_eq!(all(&outbox), []);
    }
}
