use bytes::Bytes;
use ptah_partition::{BatchBuilder, Door, MessageParts, SessionNumber};
use ptah_types::{Sequence, SessionId, Timestamp};

use super::*;

fn batch(base: u64, session: u64, number: u64, time: u64) -> Record {
    let mut builder = BatchBuilder::new();
    let parts = MessageParts::new(Door::GRPC, "subject", b"x");
    builder.push(&parts, std::iter::empty()).unwrap();
    let batch = builder.finish().unwrap();
    let stamp = BatchStamp {
        base_sequence: Sequence::new(base).unwrap(),
        count: 1,
        timestamp: Timestamp(time),
        session: SessionNumber::new(SessionId::new(session).unwrap(), number),
    };
    Record::batch(&stamp, batch.payload, batch.crc)
}

#[test]
fn a_batch_whose_session_or_time_is_refused_keeps_its_sequences_and_stops_nobody() {
    let mut partition = Partition::new();
    assert!(matches!(
        apply_record(&mut partition, &batch(1, 7, 1, 9)),
        Ok(Answer::Batch(_))
    ));
    let refused = |answer| matches!(answer, Ok(Answer::Refused { stored: true, .. }));
    assert!(refused(apply_record(&mut partition, &batch(2, 7, 5, 9))));
    assert!(refused(apply_record(&mut partition, &batch(3, 7, 2, 1))));
    assert!(matches!(
        apply_record(&mut partition, &batch(4, 7, 2, 9)),
        Ok(Answer::Batch(_))
    ));
    assert_eq!(partition.next_sequence(), Sequence::new(5).unwrap());
    partition.check().unwrap();
}

#[test]
fn commands_that_make_no_sense_have_no_effect_and_stop_nobody() {
    let mut partition = Partition::new();
    let good = ptah_partition::encode_commands(&[ptah_partition::Command::TrimTo {
        first: Sequence::FIRST,
    }])
    .unwrap();
    let cut = Record::commands(good.slice(..good.len() - 1), Timestamp(1));
    let answer = apply_record(&mut partition, &cut);
    assert!(
        matches!(answer, Ok(Answer::Refused { stored: false, .. })),
        "{answer:?}"
    );
    assert_eq!(partition, Partition::new());
}

#[test]
fn a_batch_at_another_sequence_and_commands_of_a_newer_build_stop_the_replica() {
    let mut partition = Partition::new();
    let elsewhere = apply_record(&mut partition, &batch(2, 7, 1, 9));
    assert!(matches!(elsewhere, Err(Stop::Contradiction(_))));
    let newer = Record::commands(Bytes::from_static(&[255, 1]), Timestamp(1));
    assert!(matches!(
        apply_record(&mut partition, &newer),
        Err(Stop::NewerBuild(_))
    ));
}
