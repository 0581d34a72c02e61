//! How a client's credit is shared between the partitions it reads. Without IO.
//!
//! Credit that a partition has been granted cannot be taken back, and a partition that is at its end keeps it. If idle
//! partitions counted, one of them could hold all the credit while another has messages. So:
//!
//! - what partitions with messages are granted, and what is buffered, stays within the client's credit;
//! - idle partitions keep what they have, and every partition has at least one message granted while there is credit,
//!   so that each is heard of. If idle ones deliver all at once, the excess waits in the gateway: more is never sent to
//!   the client than it gave credit for;
//! - all grants together stay within twice the credit and one message per partition.

/// Something counted in messages and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    /// Messages.
    pub messages: u64,
    /// Bytes.
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    bound: bool,
    idle: bool,
    granted: Amount,
}

/// Credit to send to one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// Place of the partition in the stream's list.
    pub slot: usize,
    /// How much.
    pub amount: Amount,
}

/// Credit of one consume stream.
#[derive(Debug)]
pub struct CreditBook {
    credit: Amount,
    buffered: Amount,
    slots: Vec<Slot>,
    /// Most bytes that the stream may have on the way and buffered, whatever the client's credit is.
    stream_bytes: u64,
}

impl CreditBook {
    /// No credit yet, for that many partitions.
    pub fn new(slots: usize, stream_bytes: u64) -> Self {
        Self {
            credit: Amount::default(),
            buffered: Amount::default(),
            slots: vec![Slot::default(); slots],
            stream_bytes,
        }
    }

    /// The client takes so much more.
    pub fn add(&mut self, amount: Amount) {
        self.credit.messages = self.credit.messages.saturating_add(amount.messages);
        self.credit.bytes = self.credit.bytes.saturating_add(amount.bytes);
    }

    /// Whether one more message may be sent to the client. The last one may be larger than what is left.
    pub fn may_send(&self) -> bool {
        self.credit.messages > 0 && self.credit.bytes > 0
    }

    /// A message was sent to the client.
    pub fn sent(&mut self, payload_bytes: u64) {
        self.credit.messages = self.credit.messages.saturating_sub(1);
        self.credit.bytes = self.credit.bytes.saturating_sub(payload_bytes);
    }

    /// A pull was opened, without credit.
    pub fn bound(&mut self, slot: usize) {
        if let Some(slot) = self.slots.get_mut(slot) {
            *slot = Slot {
                bound: true,
                ..Slot::default()
            };
        }
    }

    /// A pull ended; its grants are void.
    pub fn unbound(&mut self, slot: usize) {
        if let Some(slot) = self.slots.get_mut(slot) {
            *slot = Slot::default();
        }
    }

    /// Everything of the partition was delivered.
    pub fn idle(&mut self, slot: usize) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.idle = true;
        }
    }

    /// Whether all pulls are open and at their ends.
    pub fn all_idle(&self) -> bool {
        self.slots.iter().all(|slot| slot.bound && slot.idle)
    }

    /// Messages granted to a pull and not delivered yet.
    pub fn granted(&self, slot: usize) -> u64 {
        self.slots.get(slot).map_or(0, |slot| slot.granted.messages)
    }

    /// A pull delivered.
    pub fn received(&mut self, slot: usize, amount: Amount) {
        self.buffered.messages += amount.messages;
        self.buffered.bytes += amount.bytes;
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.idle = false;
            slot.granted.messages = slot.granted.messages.saturating_sub(amount.messages);
            slot.granted.bytes = slot.granted.bytes.saturating_sub(amount.bytes);
        }
    }

    /// Something left the buffer: sent or given back.
    pub fn unbuffered(&mut self, amount: Amount) {
        self.buffered.messages = self.buffered.messages.saturating_sub(amount.messages);
        self.buffered.bytes = self.buffered.bytes.saturating_sub(amount.bytes);
    }

    /// What is buffered.
    pub fn buffered(&self) -> Amount {
        self.buffered
    }

    /// Grants to send now.
    pub fn distribute(&mut self) -> Vec<Grant> {
        let credit = Amount {
            messages: self.credit.messages,
            bytes: self.credit.bytes.min(self.stream_bytes),
        };
        let open = Amount {
            messages: credit.messages.saturating_sub(self.buffered.messages),
            bytes: credit.bytes.saturating_sub(self.buffered.bytes),
        };
        if open.messages == 0 || open.bytes == 0 {
            return Vec::new();
        }
        let bound = self.slots.iter().filter(|slot| slot.bound).count() as u64;
        let active = self.slots.iter().filter(|slot| slot.bound && !slot.idle).count() as u64;
        // When all are idle each gets its share, to be ready for whatever comes.
        let sharing = if active > 0 { active } else { bound.max(1) };
        let target = Amount {
            messages: open.messages.div_ceil(sharing),
            bytes: open.bytes.div_ceil(sharing),
        };
        let mut free = self.free(open, credit, bound, active == 0);
        let mut grants = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate().filter(|(_, slot)| slot.bound) {
            let shares = !slot.idle || active == 0;
            let amount = if shares {
                slot.top_up(target, &mut free)
            } else {
                Amount::default()
            };
            let amount = slot.at_least_one(amount);
            if amount != Amount::default() {
                slot.granted.messages += amount.messages;
                slot.granted.bytes += amount.bytes;
                grants.push(Grant { slot: index, amount });
            }
        }
        grants
    }

    /// What may be granted beyond what is on the way.
    fn free(&self, open: Amount, credit: Amount, bound: u64, all: bool) -> Amount {
        let mut counted = Amount::default();
        let mut total = self.buffered;
        for slot in self.slots.iter().filter(|slot| slot.bound) {
            total.messages += slot.granted.messages;
            total.bytes += slot.granted.bytes;
            if all || !slot.idle {
                counted.messages += slot.granted.messages;
                counted.bytes += slot.granted.bytes;
            }
        }
        let cap = Amount {
            messages: credit.messages.saturating_mul(2).saturating_add(bound),
            bytes: credit.bytes.saturating_mul(2).saturating_add(bound),
        };
        let within = |open: u64, counted: u64, cap: u64, total: u64| {
            open.saturating_sub(counted).min(cap.saturating_sub(total))
        };
        Amount {
            messages: within(open.messages, counted.messages, cap.messages, total.messages),
            bytes: within(open.bytes, counted.bytes, cap.bytes, total.bytes),
        }
    }
}

impl Slot {
    /// Fills the grants up to the target when they are half used up, so that credit does not travel in crumbs.
    fn top_up(&self, target: Amount, free: &mut Amount) -> Amount {
        let fill = |granted: u64, target: u64, free: &mut u64| {
            if granted > target / 2 {
                return 0;
            }
            let amount = (target - granted).min(*free);
            *free -= amount;
            amount
        };
        Amount {
            messages: fill(self.granted.messages, target.messages, &mut free.messages),
            bytes: fill(self.granted.bytes, target.bytes, &mut free.bytes),
        }
    }

    fn at_least_one(&self, amount: Amount) -> Amount {
        Amount {
            messages: amount.messages.max(u64::from(self.granted.messages == 0)),
            bytes: amount.bytes.max(u64::from(self.granted.bytes == 0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(messages: u64) -> Amount {
        Amount {
            messages,
            bytes: messages * 100,
        }
    }

    fn book(slots: usize, credit: u64) -> CreditBook {
        let mut book = CreditBook::new(slots, u64::MAX);
        (0..slots).for_each(|slot| book.bound(slot));
        book.add(amount(credit));
        book
    }

    fn granted(book: &CreditBook) -> Vec<u64> {
        (0..book.slots.len()).map(|slot| book.granted(slot)).collect()
    }

    #[test]
    fn credit_is_shared_evenly_and_not_exceeded() {
        let mut book = book(3, 90);
        book.distribute();
        assert_eq!(granted(&book), [30, 30, 30]);
        assert_eq!(book.distribute(), []);
    }

    #[test]
    fn what_idle_partitions_hold_goes_to_those_with_messages() {
        let mut book = book(3, 90);
        book.distribute();
        book.idle(1);
        book.idle(2);
        book.distribute();
        assert_eq!(granted(&book), [90, 30, 30]);
    }

    #[test]
    fn one_credit_reaches_the_one_partition_that_has_messages() {
        let mut book = book(3, 1);
        book.distribute();
        assert_eq!(granted(&book), [1, 1, 1], "each must be asked");
        book.idle(0);
        book.received(1, amount(1));
        assert_eq!(
            book.distribute(),
            [],
            "the client's credit is used up by what is buffered"
        );
    }

    #[test]
    fn without_credit_nothing_is_granted_and_nothing_may_be_sent() {
        let mut book = book(2, 2);
        book.distribute();
        book.received(0, amount(1));
        book.received(1, amount(1));
        book.unbuffered(amount(2));
        book.sent(100);
        book.sent(100);
        assert!(!book.may_send());
        assert_eq!(book.distribute(), []);
    }

    #[test]
    fn grants_of_partitions_that_take_turns_stay_within_twice_the_credit() {
        let mut book = book(8, 100);
        for turn in 0..64 {
            book.distribute();
            for slot in 0..8 {
                book.idle(slot);
            }
            let slot = turn % 8;
            if book.granted(slot) > 0 {
                book.received(slot, amount(1));
                book.unbuffered(amount(1));
            }
            let total: u64 = granted(&book).iter().sum();
            assert!(total <= 2 * 100 + 8, "{total} granted for a credit of 100");
        }
    }

    #[test]
    fn the_bytes_of_a_stream_are_bounded_whatever_the_client_asks_for() {
        let mut book = CreditBook::new(1, 1_000);
        book.bound(0);
        book.add(Amount {
            messages: 10,
            bytes: u64::MAX,
        });
        assert_eq!(book.distribute()[0].amount.bytes, 1_000);
    }

    #[test]
    fn a_pull_that_ended_gives_its_credit_to_the_others() {
        let mut book = book(2, 100);
        book.distribute();
        book.unbound(0);
        book.distribute();
        assert_eq!(granted(&book), [0, 100]);
    }
}
