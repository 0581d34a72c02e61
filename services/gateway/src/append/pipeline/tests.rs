use std::time::Duration;

use bytes::Bytes;

use super::*;

fn batch(content: u8) -> Batch {
    Batch {
        payload: Bytes::from(vec![content]),
        count: 1,
        crc: 0,
    }
}

fn at(base_sequence: u64) -> StoredAt {
    StoredAt {
        base_sequence,
        timestamp_ns: 0,
        duplicate: false,
    }
}

/// A pipeline with batches 1 to `count` on the channel.
fn sent(count: u8) -> (Pipeline<u8>, Instant) {
    let now = Instant::now();
    let mut pipeline = Pipeline::new(8);
    pipeline.bind(BindingId(1));
    for content in 1..=count {
        pipeline.push(
            batch(content),
            content,
            now + Duration::from_secs(u64::from(content)),
        );
    }
    assert_eq!(sendings(&mut pipeline).len(), usize::from(count));
    (pipeline, now)
}

fn sendings(pipeline: &mut Pipeline<u8>) -> Vec<(u64, u8)> {
    std::iter::from_fn(|| pipeline.next_sending())
        .map(|sending| (sending.number, sending.batch.payload[0]))
        .collect()
}

#[test]
fn after_a_lost_stream_everything_unanswered_is_sent_again_with_its_number() {
    let (mut pipeline, _) = sent(3);
    assert_eq!(pipeline.stored(1, at(1)), Some((1, Leaving::Stored(at(1)))));
    pipeline.unbind();
    assert_eq!(sendings(&mut pipeline), []);
    pipeline.bind(BindingId(2));
    assert_eq!(sendings(&mut pipeline), [(2, 2), (3, 3)]);
}

#[test]
fn an_answer_out_of_order_is_not_taken() {
    let (mut pipeline, _) = sent(2);
    assert_eq!(pipeline.stored(2, at(1)), None);
    assert_eq!(pipeline.len(), 2);
}

#[test]
fn a_refusal_that_may_pass_sends_everything_again_in_order() {
    let (mut pipeline, _) = sent(2);
    let mut left = Vec::new();
    let consequence = pipeline.refused(1, RefusalEffect::Retry, &mut left);
    assert_eq!(
        consequence,
        Consequence {
            unbound: true,
            new_session: false
        }
    );
    assert!(left.is_empty());
    pipeline.bind(BindingId(2));
    assert_eq!(sendings(&mut pipeline), [(1, 1), (2, 2)]);
}

#[test]
fn what_is_behind_a_batch_refused_for_good_moves_to_a_new_session() {
    let (mut pipeline, _) = sent(3);
    let mut left = Vec::new();
    let consequence = pipeline.refused(1, RefusalEffect::Permanent, &mut left);
    assert!(consequence.new_session);
    assert_eq!(left, [(1, Leaving::Refused)]);
    pipeline.bind(BindingId(2));
    assert_eq!(
        sendings(&mut pipeline),
        [(1, 2), (2, 3)],
        "numbers begin anew, contents keep their order"
    );
}

#[test]
fn a_batch_in_doubt_that_is_refused_for_good_is_unknown_with_all_behind_it() {
    let (mut pipeline, _) = sent(2);
    pipeline.unbind();
    pipeline.bind(BindingId(2));
    sendings(&mut pipeline);
    let mut left = Vec::new();
    pipeline.refused(1, RefusalEffect::Permanent, &mut left);
    assert_eq!(left, [(1, Leaving::Unknown), (2, Leaving::Unknown)]);
}

#[test]
fn a_lost_session_with_nothing_in_doubt_costs_nothing() {
    let (mut pipeline, _) = sent(2);
    let mut left = Vec::new();
    assert!(
        pipeline
            .refused(1, RefusalEffect::SessionLost, &mut left)
            .new_session
    );
    assert!(left.is_empty());
    pipeline.bind(BindingId(2));
    assert_eq!(sendings(&mut pipeline), [(1, 1), (2, 2)]);
}

#[test]
fn a_lost_session_with_a_batch_in_doubt_ends_it_as_unknown() {
    let (mut pipeline, _) = sent(1);
    pipeline.unbind();
    pipeline.bind(BindingId(2));
    sendings(&mut pipeline);
    let mut left = Vec::new();
    pipeline.refused(1, RefusalEffect::SessionLost, &mut left);
    assert_eq!(left, [(1, Leaving::Unknown)]);
}

#[test]
fn a_sent_batch_out_of_time_is_unknown_and_takes_what_is_behind_it_along() {
    let (mut pipeline, now) = sent(3);
    let mut left = Vec::new();
    let consequence = pipeline.expire(now + Duration::from_secs(1), &mut left);
    assert!(consequence.new_session && consequence.unbound);
    assert_eq!(
        left,
        [
            (1, Leaving::Unknown),
            (2, Leaving::Unknown),
            (3, Leaving::Unknown)
        ]
    );
}

#[test]
fn a_batch_that_was_refused_and_ran_out_of_time_is_certainly_not_stored_and_the_rest_goes_on() {
    let (mut pipeline, now) = sent(3);
    let mut left = Vec::new();
    pipeline.refused(1, RefusalEffect::Retry, &mut left);
    let consequence = pipeline.expire(now + Duration::from_secs(1), &mut left);
    assert!(consequence.new_session);
    assert_eq!(left, [(1, Leaving::TooLate)]);
    pipeline.bind(BindingId(2));
    assert_eq!(sendings(&mut pipeline), [(1, 2), (2, 3)]);
}

#[test]
fn a_batch_stored_so_long_ago_that_nobody_knows_where_is_unknown() {
    let (mut pipeline, _) = sent(1);
    let mut left = Vec::new();
    assert!(
        pipeline
            .refused(1, RefusalEffect::Forgotten, &mut left)
            .new_session
    );
    assert_eq!(left, [(1, Leaving::Unknown)]);
}
