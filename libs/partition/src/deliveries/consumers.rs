//! Consumers of one group: credit, and whose turn it is.

use std::collections::BTreeMap;

use super::{ConsumerId, TooManyConsumers};

/// Most consumers that a group may have at a time in one partition.
pub const MAX_CONSUMERS: usize = 16_384;

#[derive(Debug)]
struct Consumer {
    credit: u32,
    /// Place in the queue; only with credit.
    turn: Option<u64>,
}

/// Open consumers. Those with credit stand in a queue.
#[derive(Debug, Default)]
pub(super) struct Consumers {
    all: BTreeMap<ConsumerId, Consumer>,
    queue: BTreeMap<u64, ConsumerId>,
    next_turn: u64,
}

impl Consumers {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// How many have credit.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn credit(&self, id: ConsumerId) -> Option<u32> {
        self.all.get(&id).map(|consumer| consumer.credit)
    }

    pub(super) fn open(&mut self, id: ConsumerId, credit: u32) -> Result<(), TooManyConsumers> {
        if !self.all.contains_key(&id) {
            if self.all.len() >= MAX_CONSUMERS {
                return Err(TooManyConsumers);
            }
            self.all.insert(
                id,
                Consumer {
                    credit: 0,
                    turn: None,
                },
            );
        }
        self.add_credit(id, credit);
        Ok(())
    }

    pub(super) fn close(&mut self, id: ConsumerId) {
        if let Some(turn) = self.all.remove(&id).and_then(|consumer| consumer.turn) {
            self.queue.remove(&turn);
        }
    }

    pub(super) fn add_credit(&mut self, id: ConsumerId, credit: u32) -> bool {
        let Some(consumer) = self.all.get_mut(&id) else {
            return false;
        };
        consumer.credit = consumer.credit.saturating_add(credit);
        if consumer.credit > 0 && consumer.turn.is_none() {
            consumer.turn = Some(self.next_turn);
            self.queue.insert(self.next_turn, id);
            self.next_turn += 1;
        }
        true
    }

    /// Takes back up to `most` of the credit; answers how much that was.
    pub(super) fn retract(&mut self, id: ConsumerId, most: u32) -> u32 {
        let Some(consumer) = self.all.get_mut(&id) else {
            return 0;
        };
        let taken = consumer.credit.min(most);
        consumer.credit -= taken;
        if consumer.credit == 0
            && let Some(turn) = consumer.turn.take()
        {
            self.queue.remove(&turn);
        }
        taken
    }

    /// Whose turn it is, and how much it may get.
    pub(super) fn front(&self) -> Option<(ConsumerId, u32)> {
        let id = *self.queue.first_key_value()?.1;
        Some((id, self.credit(id)?))
    }

    /// Takes credit and moves the consumer to the end of the queue, or out of it.
    pub(super) fn served(&mut self, id: ConsumerId, messages: u32) {
        let Some(consumer) = self.all.get_mut(&id) else {
            return;
        };
        consumer.credit = consumer.credit.saturating_sub(messages);
        if let Some(turn) = consumer.turn.take() {
            self.queue.remove(&turn);
        }
        self.add_credit(id, 0);
    }
}
