//! Messages on their way in, and where their answers go.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use ptah_partition::Door;
use ptah_rpc::BudgetPermit;
use tokio::time::Instant;

use super::replies::Replies;

/// A message to store, as any door gives it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewMessage {
    /// Body.
    pub payload: Bytes,
    /// Headers in order.
    pub headers: Vec<(Bytes, Bytes)>,
    /// Key.
    pub key: Option<Bytes>,
    /// Partition, counted from 1; 0 to let the gateway choose.
    pub partition: u32,
    /// Subject; empty for the station's name.
    pub subject: String,
    /// Message id; empty for none.
    pub message_id: String,
}

/// Room for lengths and flags of one encoded message.
const ENCODING_BYTES: usize = 48;
const HEADER_ENCODING_BYTES: usize = 8;

impl NewMessage {
    /// Everything but the payload.
    pub fn meta_bytes(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        headers + self.key.as_ref().map_or(0, Bytes::len) + self.subject.len() + self.message_id.len()
    }

    /// About what it takes in a batch; never less.
    pub fn encoded_bytes(&self) -> usize {
        let headers = self.headers.len() * HEADER_ENCODING_BYTES;
        self.payload.len() + self.meta_bytes() + headers + ENCODING_BYTES
    }
}

/// What is the same for all messages of a request.
#[derive(Debug)]
pub struct Origin {
    /// Subject of messages that have none.
    pub subject: Box<str>,
    /// Producer's name, if it gave one.
    pub producer: Option<Box<str>>,
    /// How they came in.
    pub door: Door,
}

/// Messages in a row along the request or stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Number of the first.
    pub first: u64,
    /// How many.
    pub count: u32,
}

/// Messages of one request for one partition.
#[derive(Debug)]
pub struct Submission {
    /// Messages in order.
    pub messages: VecDeque<NewMessage>,
    /// Their numbers, in the same order.
    pub runs: VecDeque<Run>,
    /// Sum of what they take in a batch.
    pub bytes: usize,
    /// What they have in common.
    pub origin: Arc<Origin>,
    /// Where answers go.
    pub replies: Arc<Replies>,
    /// Share of the memory budget, given back when all are answered.
    pub permit: Option<Arc<BudgetPermit>>,
    /// When to give up.
    pub deadline: Instant,
}

impl Submission {
    /// An empty submission.
    pub fn new(
        origin: Arc<Origin>,
        replies: Arc<Replies>,
        permit: Option<Arc<BudgetPermit>>,
        deadline: Instant,
    ) -> Self {
        Self {
            messages: VecDeque::new(),
            runs: VecDeque::new(),
            bytes: 0,
            origin,
            replies,
            permit,
            deadline,
        }
    }

    /// Adds the message with that number.
    pub fn push(&mut self, number: u64, message: NewMessage) {
        self.bytes += message.encoded_bytes();
        self.messages.push_back(message);
        match self.runs.back_mut() {
            Some(run) if run.first + u64::from(run.count) == number => run.count += 1,
            _ => self.runs.push_back(Run {
                first: number,
                count: 1,
            }),
        }
    }

    /// Takes messages off the front: as many as fit into `bytes` and `count`, and at least one if `force`.
    pub fn split(&mut self, bytes: usize, count: usize, force: bool) -> Option<Self> {
        let mut take = 0;
        let mut taken_bytes = 0;
        for message in self.messages.iter().take(count) {
            let next = taken_bytes + message.encoded_bytes();
            if next > bytes && !(force && take == 0) {
                break;
            }
            taken_bytes = next;
            take += 1;
        }
        if take == 0 {
            return None;
        }
        let rest = self.messages.split_off(take);
        let messages = std::mem::replace(&mut self.messages, rest);
        self.bytes -= taken_bytes;
        Some(Self {
            messages,
            runs: take_runs(&mut self.runs, take),
            bytes: taken_bytes,
            origin: Arc::clone(&self.origin),
            replies: Arc::clone(&self.replies),
            permit: self.permit.clone(),
            deadline: self.deadline,
        })
    }
}

/// Takes `count` numbers off the front.
pub fn take_runs(runs: &mut VecDeque<Run>, count: usize) -> VecDeque<Run> {
    let mut taken = VecDeque::new();
    let mut wanted = u32::try_from(count).unwrap_or(u32::MAX);
    while wanted > 0 {
        let Some(front) = runs.front_mut() else { break };
        let part = Run {
            first: front.first,
            count: front.count.min(wanted),
        };
        front.first += u64::from(part.count);
        front.count -= part.count;
        wanted -= part.count;
        if front.count == 0 {
            runs.pop_front();
        }
        taken.push_back(part);
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn submission(numbers: &[u64], payload: usize) -> Submission {
        let origin = Origin {
            subject: "orders".into(),
            producer: None,
            door: Door::GRPC,
        };
        let mut submission = Submission::new(Arc::new(origin), Replies::new(), None, Instant::now());
        for number in numbers {
            let message = NewMessage {
                payload: vec![0; payload].into(),
                ..NewMessage::default()
            };
            submission.push(*number, message);
        }
        submission
    }

    #[test]
    fn numbers_in_a_row_become_one_run() {
        let submission = submission(&[4, 5, 6, 9], 1);
        let runs: Vec<_> = submission.runs.iter().map(|run| (run.first, run.count)).collect();
        assert_eq!(runs, [(4, 3), (9, 1)]);
    }

    #[test]
    fn a_split_keeps_order_numbers_and_bytes() {
        let mut whole = submission(&[4, 5, 6, 9], 100);
        let bytes = whole.bytes;
        let part = whole.split(usize::MAX, 2, false).unwrap();
        assert_eq!((part.messages.len(), whole.messages.len()), (2, 2));
        assert_eq!(part.bytes + whole.bytes, bytes);
        assert_eq!(part.runs, [Run { first: 4, count: 2 }]);
        assert_eq!(
            whole.runs,
            [Run { first: 6, count: 1 }, Run { first: 9, count: 1 }]
        );
    }

    #[test]
    fn a_message_over_the_size_of_a_batch_travels_alone() {
        let mut whole = submission(&[0, 1], 5_000);
        assert!(whole.split(1_000, 10, false).is_none());
        let part = whole.split(1_000, 10, true).unwrap();
        assert_eq!((part.messages.len(), whole.messages.len()), (1, 1));
    }
}
