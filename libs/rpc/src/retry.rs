//! Retry: bounded in number and time, with random pauses, and only where it cannot do harm.

use std::future::Future;
use std::time::Duration;

use ptah_service::Random;
use ptah_types::{Effect, ErrorKind};
use tokio::time::Instant;

use crate::RpcError;

/// How often and how long to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Most attempts, the first included; at least 1.
    pub attempts: u32,
    /// Upper bound of the first pause; doubles with each.
    pub first_backoff: Duration,
    /// Upper bound of every pause.
    pub max_backoff: Duration,
    /// Time for all attempts and pauses together.
    pub deadline: Duration,
    /// Whether doing it twice is the same as once. Only then an unknown outcome is tried again.
    pub idempotent: bool,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 10,
            first_backoff: Duration::from_millis(20),
            max_backoff: Duration::from_secs(1),
            deadline: Duration::from_secs(5),
            idempotent: false,
        }
    }
}

/// One attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Counted from 1.
    pub number: u32,
    /// Time that is left for it.
    pub remaining: Duration,
}

/// Runs `op` until it succeeds, fails for good, or attempts or time are used up; then the last error is the answer.
///
/// An attempt that is cut off by the deadline counts as unknown, or as too late when the policy says idempotent.
pub async fn retry<T, F, Fut>(policy: &RetryPolicy, random: &dyn Random, mut op: F) -> Result<T, RpcError>
where
    F: FnMut(Attempt) -> Fut,
    Fut: Future<Output = Result<T, RpcError>>,
{
    let end = Instant::now() + policy.deadline;
    let mut number = 1;
    loop {
        let remaining = end.saturating_duration_since(Instant::now());
        let attempt = Attempt { number, remaining };
        let error = match tokio::time::timeout_at(end, op(attempt)).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error,
            Err(_) => return Err(policy.cut_off(number)),
        };
        if number >= policy.attempts || !policy.may_repeat(&error) {
            return Err(error);
        }
        let pause = policy.pause(number, &error, random);
        if Instant::now() + pause >= end {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        number += 1;
    }
}

impl RetryPolicy {
    fn may_repeat(&self, error: &RpcError) -> bool {
        error.kind.is_retryable() && (self.idempotent || error.kind.effect() == Effect::None)
    }

    /// A random part of the bound, so that callers who failed together do not come back together; never earlier
    /// than the peer asked for.
    fn pause(&self, number: u32, error: &RpcError, random: &dyn Random) -> Duration {
        let doubled = self
            .first_backoff
            .saturating_mul(1 << number.saturating_sub(1).min(20));
        let bound = u64::try_from(doubled.min(self.max_backoff).as_micros()).unwrap_or(u64::MAX);
        let jittered = Duration::from_micros(bound / 2 + random.below(bound / 2 + 1));
        jittered.max(error.retry_after.unwrap_or_default())
    }

    fn cut_off(&self, attempts: u32) -> RpcError {
        let kind = if self.idempotent {
            ErrorKind::DeadlineExceeded
        } else {
            ErrorKind::OutcomeUnknown
        };
        let message = format!("no answer within {:?} and {attempts} attempts", self.deadline);
        RpcError::new(kind, message)
    }
}

#[cfg(test)]
mod tests;
