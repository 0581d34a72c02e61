use bytes::Bytes;
use ptah_partition::{BatchBuilder, BatchStamp, Door, MessageParts, SessionNumber};
use ptah_types::{SessionId, Timestamp};

use super::*;
use crate::applied::{Content, Volume};

struct Log {
    state: Arc<AppliedState>,
    admission: Admission,
    next: u64,
    appended: Vec<BatchStamp>,
}

fn payload() -> (Bytes, u32) {
    let mut builder = BatchBuilder::new();
    let parts = MessageParts::new(Door::GRPC, "subject", b"x");
    builder.push(&parts, std::iter::empty()).unwrap();
    let batch = builder.finish().unwrap();
    (batch.payload, batch.crc)
}

fn stamp(base: u64, session: u64, number: u64) -> BatchStamp {
    BatchStamp {
        base_sequence: Sequence::new(base).unwrap(),
        count: 1,
        timestamp: Timestamp(5),
        session: SessionNumber::new(SessionId::new(session).unwrap(), number),
    }
}

impl Log {
    fn new() -> Self {
        let state = Arc::new(AppliedState::new());
        state.restart(Content::default());
        Self {
            admission: Admission::new(Arc::clone(&state)),
            state,
            next: 1,
            appended: Vec::new(),
        }
    }

    fn offer(&mut self, stamp: BatchStamp) -> bool {
        let (payload, crc) = payload();
        let next = Sequence::new(self.next).unwrap();
        let taken = self.admission.takes(&Record::batch(&stamp, payload, crc), next);
        if taken {
            self.next += 1;
            self.appended.push(stamp);
        }
        taken
    }

    /// Applies everything; nothing that was taken may be refused.
    fn apply(&mut self) {
        let (payload, _) = payload();
        let head = BatchHead::read(&payload).unwrap();
        let mut content = self.state.read(|old| Content {
            partition: old.partition.clone(),
            ..Content::default()
        });
        for stamp in self.appended.drain(..) {
            content.partition.apply_batch(&stamp, head).unwrap();
        }
        let generation = self.state.restart(Content::default());
        self.state
            .change(generation, Volume::default(), |old| *old = content)
            .unwrap();
    }
}

#[test]
fn what_is_taken_is_never_refused_when_it_is_applied() {
    let mut log = Log::new();
    assert!(log.offer(stamp(1, 7, 1)));
    assert!(!log.offer(stamp(2, 8, 2)), "number 1 of the session is missing");
    assert!(!log.offer(stamp(2, 7, 1)), "the session has used the number");
    assert!(!log.offer(stamp(2, 7, 3)), "a number is skipped");
    assert!(!log.offer(stamp(3, 7, 2)), "a sequence is skipped");
    assert!(log.offer(stamp(2, 7, 2)));
    assert!(log.offer(stamp(3, 8, 1)));
    log.apply();
    assert!(log.offer(stamp(4, 8, 2)));
    log.apply();
}

#[test]
fn time_does_not_run_backwards_and_a_count_is_that_of_the_payload() {
    let mut log = Log::new();
    assert!(log.offer(stamp(1, 7, 1)));
    log.apply();
    let early = BatchStamp {
        timestamp: Timestamp(4),
        ..stamp(2, 7, 2)
    };
    assert!(!log.offer(early));
    let counted_wrong = BatchStamp {
        count: 2,
        ..stamp(2, 7, 2)
    };
    assert!(!log.offer(counted_wrong));
    assert!(log.offer(stamp(2, 7, 2)));
    log.apply();
}

#[test]
fn after_other_changes_nothing_is_taken_before_everything_is_applied() {
    let mut log = Log::new();
    assert!(log.offer(stamp(1, 7, 1)));
    log.admission.forget();
    assert!(
        !log.offer(stamp(2, 7, 2)),
        "the batch before it is not applied yet"
    );
    log.apply();
    assert!(log.offer(stamp(2, 7, 2)));
    log.apply();
}

#[test]
fn a_pipeline_longer_than_a_sequencer_remembers_is_taken_when_its_beginning_is_applied() {
    let mut log = Log::new();
    for number in 1..=3_000 {
        if number % 1_000 == 0 {
            log.apply();
        }
        // A hundred sessions take turns.
        let taken = log.offer(stamp(number, number % 100 + 1, number.div_ceil(100)));
        assert!(taken, "append {number}");
    }
    log.apply();
}
