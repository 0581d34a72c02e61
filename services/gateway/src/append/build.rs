//! From waiting messages to one encoded batch.

use std::collections::VecDeque;
use std::sync::Arc;

use ptah_partition::{Batch, BatchBuilder, BuildError, MessageParts};
use ptah_rpc::BudgetPermit;
use ptah_types::limits::{MAX_BATCH_MESSAGES, TARGET_BATCH_BYTES};
use tokio::time::Instant;

use crate::error::GatewayError;
use crate::produce::{NewMessage, Origin, ProduceOutcome, Replies, Run, StoredRun, Submission, take_runs};

/// Messages of a batch that came in one request, and where their answer goes.
#[derive(Debug)]
pub(super) struct Piece {
    runs: VecDeque<Run>,
    count: u64,
    replies: Arc<Replies>,
    /// Held until the messages are answered.
    _permit: Option<Arc<BudgetPermit>>,
}

/// What is needed to answer a batch.
pub(super) type Ticket = Vec<Piece>;

/// A batch, and what was left over.
#[derive(Debug, Default)]
pub(super) struct Built {
    /// Batch with its answers' places and its deadline; `None` when no message was fit.
    pub batch: Option<(Batch, Ticket, Instant)>,
    /// Submissions that did not fit any more, in order.
    pub rest: VecDeque<Submission>,
}

/// Takes what makes the next batch off the front of the backlog.
pub(super) fn take_parts(backlog: &mut VecDeque<Submission>) -> VecDeque<Submission> {
    let mut parts = VecDeque::new();
    let (mut bytes, mut count) = (0, 0);
    while let Some(front) = backlog.front_mut() {
        let room = (
            TARGET_BATCH_BYTES.saturating_sub(bytes),
            MAX_BATCH_MESSAGES - count,
        );
        let whole = front.bytes <= room.0 && front.messages.len() <= room.1;
        let part = if whole {
            backlog.pop_front()
        } else {
            front.split(room.0, room.1, count == 0)
        };
        let Some(part) = part else { break };
        if !whole && backlog.front().is_some_and(|front| front.messages.is_empty()) {
            backlog.pop_front();
        }
        bytes += part.bytes;
        count += part.messages.len();
        parts.push_back(part);
        if !whole {
            break;
        }
    }
    parts
}

/// Encodes the parts. A message that cannot be encoded is answered here; it does not hold up the others.
pub(super) fn encode(mut parts: VecDeque<Submission>) -> Built {
    let bytes = parts.iter().map(|part| part.bytes).sum();
    let mut builder = BatchBuilder::with_capacity(bytes);
    let mut ticket = Ticket::with_capacity(parts.len());
    let deadline = parts.front().map(|part| part.deadline);
    let mut rest = VecDeque::new();
    while let Some(mut part) = parts.pop_front() {
        let full = encode_part(&mut builder, &mut part, &mut ticket);
        if full {
            rest.push_back(part);
            rest.append(&mut parts);
        }
    }
    let batch = builder
        .finish()
        .zip(deadline)
        .map(|(batch, deadline)| (batch, ticket, deadline));
    Built { batch, rest }
}

/// Adds the messages of a part; true when the batch is full before its end.
fn encode_part(builder: &mut BatchBuilder, part: &mut Submission, ticket: &mut Ticket) -> bool {
    let mut taken = 0;
    let mut full = false;
    while let Some(message) = part.messages.front() {
        match push(builder, &part.origin, message) {
            Ok(()) => taken += 1,
            Err(BuildError::Full) if !builder.is_empty() => {
                full = true;
                break;
            }
            Err(error) => {
                flush(part, taken, ticket);
                taken = 0;
                let error = Arc::new(GatewayError::invalid(error.to_string()));
                let runs = take_runs(&mut part.runs, 1);
                part.replies.complete(runs, &ProduceOutcome::Failed(error));
            }
        }
        let gone = part.messages.pop_front();
        part.bytes -= gone.map_or(0, |message| message.encoded_bytes());
    }
    flush(part, taken, ticket);
    full
}

fn flush(part: &mut Submission, taken: usize, ticket: &mut Ticket) {
    if taken > 0 {
        ticket.push(Piece {
            runs: take_runs(&mut part.runs, taken),
            count: taken as u64,
            replies: Arc::clone(&part.replies),
            _permit: part.permit.clone(),
        });
    }
}

fn push(builder: &mut BatchBuilder, origin: &Origin, message: &NewMessage) -> Result<(), BuildError> {
    let subject = if message.subject.is_empty() {
        &*origin.subject
    } else {
        message.subject.as_str()
    };
    let parts = MessageParts {
        key: message.key.as_deref(),
        id: Some(message.message_id.as_bytes()).filter(|id| !id.is_empty()),
        producer: origin.producer.as_deref(),
        ..MessageParts::new(origin.door, subject, &message.payload)
    };
    let headers = message
        .headers
        .iter()
        .map(|(name, value)| (name.as_ref(), value.as_ref()));
    builder.push(&parts, headers)
}

/// Answers all messages of a batch that is stored.
pub(super) fn answer_stored(ticket: Ticket, first: StoredRun) {
    let mut at = first;
    for piece in ticket {
        piece.replies.complete(piece.runs, &ProduceOutcome::Stored(at));
        at.first_sequence += piece.count;
    }
}

/// Answers all messages of a batch with one failure.
pub(super) fn answer_failed(ticket: Ticket, error: &Arc<GatewayError>) {
    for piece in ticket {
        piece
            .replies
            .complete(piece.runs, &ProduceOutcome::Failed(Arc::clone(error)));
    }
}
