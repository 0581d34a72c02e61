//! Which lines wait for an answer.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

/// Messages that were sent and not answered, in the order of their numbers along the stream.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    /// Number of the first slot.
    base: u64,
    slots: VecDeque<Slot>,
    unanswered: usize,
    unanswered_bytes: u64,
}

#[derive(Debug)]
struct Slot {
    line: u64,
    payload_bytes: u64,
    is_answered: bool,
}

/// Some of the lines that an answer was about.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answered {
    /// Line numbers in rising order, neighbours joined.
    pub(super) lines: Vec<RangeInclusive<u64>>,
    /// How many.
    pub(super) count: u64,
    /// Their payload bytes together.
    pub(super) payload_bytes: u64,
}

impl InFlight {
    /// The next message of the stream is the one of this line.
    pub(super) fn push(&mut self, line: u64, payload_bytes: u64) {
        self.slots.push_back(Slot {
            line,
            payload_bytes,
            is_answered: false,
        });
        self.unanswered += 1;
        self.unanswered_bytes += payload_bytes;
    }

    /// Messages without an answer.
    pub(super) fn len(&self) -> usize {
        self.unanswered
    }

    /// Their payload bytes together.
    pub(super) fn payload_bytes(&self) -> u64 {
        self.unanswered_bytes
    }

    /// Takes an answer about `count` messages from number `first` on. `None` when one of them was not sent or was
    /// answered before: every message is answered once.
    pub(super) fn answer(&mut self, first: u64, count: u32) -> Option<Answered> {
        let start = usize::try_from(first.checked_sub(self.base)?).ok()?;
        let end = start
            .checked_add(count as usize)
            .filter(|end| *end <= self.slots.len() && count > 0)?;
        let mut answered = Answered {
            lines: Vec::new(),
            count: u64::from(count),
            payload_bytes: 0,
        };
        for slot in self.slots.range_mut(start..end) {
            if std::mem::replace(&mut slot.is_answered, true) {
                return None;
            }
            answered.payload_bytes += slot.payload_bytes;
            join(&mut answered.lines, slot.line);
        }
        self.unanswered -= end - start;
        self.unanswered_bytes -= answered.payload_bytes;
        while self.slots.front().is_some_and(|slot| slot.is_answered) {
            self.slots.pop_front();
            self.base += 1;
        }
        Some(answered)
    }

    /// Takes back the last `count` messages, which were not sent after all.
    pub(super) fn take_back(&mut self, count: usize) -> Vec<RangeInclusive<u64>> {
        let mut lines = Vec::new();
        let keep = self.slots.len().saturating_sub(count);
        for slot in self.slots.drain(keep..) {
            self.unanswered -= 1;
            self.unanswered_bytes -= slot.payload_bytes;
            join(&mut lines, slot.line);
        }
        lines
    }

    /// Lines without an answer, when none will come any more.
    pub(super) fn abandon(self) -> Answered {
        let mut lost = Answered {
            lines: Vec::new(),
            count: 0,
            payload_bytes: self.unanswered_bytes,
        };
        for slot in self.slots.iter().filter(|slot| !slot.is_answered) {
            join(&mut lost.lines, slot.line);
            lost.count += 1;
        }
        lost
    }
}

fn join(ranges: &mut Vec<RangeInclusive<u64>>, line: u64) {
    match ranges.last_mut() {
        Some(last) if *last.end() + 1 == line => *last = *last.start()..=line,
        _ => ranges.push(line..=line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_flight(lines: &[u64]) -> InFlight {
        let mut in_flight = InFlight::default();
        for line in lines {
            in_flight.push(*line, 10);
        }
        in_flight
    }

    #[test]
    fn numbers_along_the_stream_become_line_numbers() {
        // Line 3 was never sent, so the numbers run apart from the lines.
        let mut flight = in_flight(&[1, 2, 4, 5]);
        assert_eq!(flight.answer(1, 3).unwrap().lines, [2..=2, 4..=5]);
        assert_eq!((flight.len(), flight.payload_bytes()), (1, 10));
        assert_eq!(flight.answer(0, 1).unwrap().lines, [1..=1]);
        assert_eq!(flight.len(), 0);
    }

    #[test]
    fn an_answer_twice_or_about_nothing_is_noticed() {
        let mut flight = in_flight(&[1, 2, 3]);
        assert!(flight.answer(1, 1).is_some());
        assert!(flight.answer(1, 1).is_none(), "answered before");
        assert!(flight.answer(2, 2).is_none(), "beyond what was sent");
        assert!(flight.answer(0, 0).is_none(), "about nothing");
        assert!(flight.answer(0, 1).is_some());
        assert!(flight.answer(0, 1).is_none(), "long gone");
    }

    #[test]
    fn what_was_not_sent_is_taken_back_and_not_waited_for() {
        let mut flight = in_flight(&[1, 2, 4, 5]);
        assert_eq!(flight.take_back(2), [4..=5]);
        assert_eq!((flight.len(), flight.payload_bytes()), (2, 20));
        assert_eq!(flight.abandon().lines, [1..=2]);
    }

    #[test]
    fn what_is_abandoned_is_what_has_no_answer() {
        let mut flight = in_flight(&[1, 2, 3, 4]);
        flight.answer(1, 1);
        let lost = flight.abandon();
        assert_eq!(
            (lost.lines, lost.count, lost.payload_bytes),
            (vec![1..=1, 3..=4], 3, 30)
        );
    }
}
