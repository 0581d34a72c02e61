//! Answers of a partition: what a refusal means for the pipeline, and what leaves the pipeline means for a client.

use std::sync::Arc;

use ptah_types::ErrorKind;

use super::build::{Ticket, answer_failed, answer_stored};
use super::link::AppendRefusal;
use super::partition::PartitionAppender;
use super::pipeline::{Leaving, RefusalEffect};
use crate::error::GatewayError;
use crate::produce::{ProduceOutcome, StoredRun, Submission};

/// Why nothing is stored for the moment.
#[derive(Debug, Clone)]
pub(super) struct Reason {
    pub(super) kind: ErrorKind,
    pub(super) text: Arc<str>,
}

impl Reason {
    pub(super) fn unavailable(text: &str) -> Self {
        Self {
            kind: ErrorKind::Unavailable,
            text: text.into(),
        }
    }
}

/// Answers that are given after the lock is free.
pub(super) type Answers = Vec<(Ticket, Leaving)>;

impl PartitionAppender {
    pub(super) fn give_out(&self, answers: Answers) {
        if !answers.is_empty() {
            let reason = self.state.lock().reason.clone();
            self.give(answers, &reason);
        }
    }

    pub(super) fn give(&self, answers: Answers, reason: &Reason) {
        for (ticket, leaving) in answers {
            match leaving {
                Leaving::Stored(at) => {
                    let first = StoredRun {
                        partition: self.target().partition.partition.get(),
                        first_sequence: at.base_sequence,
                        timestamp_ns: at.timestamp_ns,
                        // What the client sent once is no duplicate because the gateway sent it twice.
                        duplicate: false,
                    };
                    answer_stored(ticket, first);
                }
                Leaving::TooLate => answer_failed(ticket, &Arc::new(self.unavailable(reason))),
                Leaving::Refused => {
                    let refused = GatewayError::Remote {
                        kind: reason.kind,
                        message: format!(
                            "partition {} of station `{}` refused the messages: {}",
                            self.target().partition.partition,
                            self.target().station,
                            reason.text
                        )
                        .into(),
                        retry_after: None,
                    };
                    answer_failed(ticket, &Arc::new(refused));
                }
                Leaving::Unknown => {
                    self.shared.metrics.unknown.inc();
                    let unknown = GatewayError::AppendUnknown {
                        station: Arc::clone(&self.target().station),
                        partition: self.target().partition.partition.get(),
                        why: Arc::clone(&reason.text),
                    };
                    answer_failed(ticket, &Arc::new(unknown));
                }
            }
        }
    }

    pub(super) fn unavailable(&self, why: &Reason) -> GatewayError {
        GatewayError::AppendUnavailable {
            station: Arc::clone(&self.target().station),
            partition: self.target().partition.partition.get(),
            waited_ms: self.shared.settings.deadline.as_millis() as u64,
            why: Arc::clone(&why.text),
        }
    }
}

pub(super) fn fail_submissions(submissions: impl IntoIterator<Item = Submission>, error: &Arc<GatewayError>) {
    for submission in submissions {
        submission
            .replies
            .complete(submission.runs, &ProduceOutcome::Failed(Arc::clone(error)));
    }
}

/// What a node's refusal of the batch with that number means.
pub(super) fn effect_of(refusal: &AppendRefusal, number: u64) -> RefusalEffect {
    use ptah_types::ErrorKind as Kind;
    match refusal.expected_number {
        0 => {}
        expected if expected < number => return RefusalEffect::SessionLost,
        expected if expected > number => return RefusalEffect::Forgotten,
        _ => return RefusalEffect::Retry,
    }
    match refusal.kind {
        Kind::OutcomeUnknown | Kind::Internal => RefusalEffect::Unknown,
        // The number was stored so long ago that its result is not remembered.
        Kind::AlreadyExists => RefusalEffect::Forgotten,
        Kind::NotLeader
        | Kind::Exhausted
        | Kind::Unavailable
        | Kind::DeadlineExceeded
        | Kind::NotFound
        | Kind::Unauthenticated
        | Kind::Incompatible => RefusalEffect::Retry,
        Kind::InvalidArgument
        | Kind::TooLarge
        | Kind::Conflict
        | Kind::PermissionDenied
        | Kind::DataDamaged => RefusalEffect::Permanent,
    }
}
