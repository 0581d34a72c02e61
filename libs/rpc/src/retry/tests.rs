//! When to try again, and when not.

use std::cell::{Cell, RefCell};

use ptah_service::SeededRandom;

use super::*;

fn policy() -> RetryPolicy {
    RetryPolicy {
        attempts: 4,
        first_backoff: Duration::from_micros(100),
        max_backoff: Duration::from_micros(400),
        deadline: Duration::from_secs(20),
        idempotent: false,
    }
}

/// Answers with `errors` one after another, then with success; the number of attempts.
async fn attempts(policy: &RetryPolicy, errors: &[ErrorKind]) -> (u32, Result<(), ErrorKind>) {
    let made = Cell::new(0);
    let random = SeededRandom::new(1);
    let outcome = retry(policy, &random, |attempt| {
        made.set(attempt.number);
        let error = errors.get(attempt.number as usize - 1).copied();
        async move { error.map_or(Ok(()), |kind| Err(RpcError::new(kind, "no"))) }
    });
    let outcome = outcome.await.map_err(|error| error.kind);
    (made.get(), outcome)
}

#[tokio::test]
async fn what_had_no_effect_is_tried_again_until_it_succeeds() {
    let errors = [ErrorKind::Unavailable, ErrorKind::NotLeader, ErrorKind::Exhausted];
    assert_eq!(attempts(&policy(), &errors).await, (4, Ok(())));
}

#[tokio::test]
async fn attempts_are_bounded_and_the_last_error_is_the_answer() {
    let errors = [ErrorKind::Unavailable; 9];
    assert_eq!(
        attempts(&policy(), &errors).await,
        (4, Err(ErrorKind::Unavailable))
    );
}

#[tokio::test]
async fn what_cannot_get_better_is_not_tried_again() {
    for kind in ErrorKind::ALL.into_iter().filter(|kind| !kind.is_retryable()) {
        assert_eq!(attempts(&policy(), &[kind]).await, (1, Err(kind)));
    }
}

#[tokio::test]
async fn an_unknown_outcome_is_tried_again_only_where_twice_is_once() {
    let unknown = [ErrorKind::OutcomeUnknown];
    assert_eq!(
        attempts(&policy(), &unknown).await,
        (1, Err(ErrorKind::OutcomeUnknown))
    );
    let idempotent = RetryPolicy {
        idempotent: true,
        ..policy()
    };
    assert_eq!(attempts(&idempotent, &unknown).await, (2, Ok(())));
}

#[tokio::test]
async fn an_attempt_that_hangs_is_cut_off_with_an_honest_kind() {
    for (idempotent, expected) in [
        (false, ErrorKind::OutcomeUnknown),
        (true, ErrorKind::DeadlineExceeded),
    ] {
        let policy = RetryPolicy {
            deadline: Duration::from_millis(5),
            idempotent,
            ..policy()
        };
        let random = SeededRandom::new(1);
        let hanging = retry(&policy, &random, |_| {
            std::future::pending::<Result<(), RpcError>>()
        });
        assert_eq!(hanging.await.unwrap_err().kind, expected);
    }
}

#[tokio::test]
async fn no_pause_reaches_beyond_the_deadline() {
    let policy = RetryPolicy {
        first_backoff: Duration::from_secs(60),
        max_backoff: Duration::from_secs(60),
        ..policy()
    };
    // Answers now: it would have to wait for 30 s at least.
    assert_eq!(
        attempts(&policy, &[ErrorKind::Unavailable]).await,
        (1, Err(ErrorKind::Unavailable))
    );
}

#[tokio::test]
async fn attempts_know_the_time_that_is_left() {
    let left = RefCell::new(Vec::new());
    let random = SeededRandom::new(1);
    let _ = retry(&policy(), &random, |attempt| {
        left.borrow_mut().push(attempt.remaining);
        async { Err::<(), _>(RpcError::new(ErrorKind::Unavailable, "no")) }
    })
    .await;
    let left = left.into_inner();
    assert!(left.is_sorted_by(|earlier, later| earlier > later), "{left:?}");
}

#[test]
fn pauses_grow_to_their_bound_differ_and_respect_the_peers_wish() {
    let policy = RetryPolicy {
        first_backoff: Duration::from_millis(10),
        max_backoff: Duration::from_millis(40),
        ..policy()
    };
    let random = SeededRandom::new(1);
    let plain = RpcError::new(ErrorKind::Unavailable, "no");
    for (number, bound) in [(1, 10), (2, 20), (3, 40), (4, 40), (99, 40)] {
        let bound = Duration::from_millis(bound);
        let pauses: Vec<_> = (0..50).map(|_| policy.pause(number, &plain, &random)).collect();
        assert!(
            pauses.iter().all(|pause| (bound / 2..=bound).contains(pause)),
            "{number}: {pauses:?}"
        );
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }
    let patient = plain.with_retry_after(Duration::from_secs(3));
    assert_eq!(policy.pause(1, &patient, &random), Duration::from_secs(3));
}
