//! A unary call: with a deadline always, and with errors that say whether something can have happened.

use std::future::Future;
use std::time::Duration;

use ptah_types::ErrorKind;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::RpcError;

/// Whether a call changes something. Decides what a lost answer means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallEffect {
    /// It only reads: without an answer nothing happened.
    Read,
    /// It may change something: without an answer the outcome is unknown.
    Write,
}

impl CallEffect {
    fn error(self, status: Status) -> RpcError {
        match self {
            Self::Read => RpcError::of_read(status),
            Self::Write => status.into(),
        }
    }

    fn too_late(self, deadline: Duration) -> RpcError {
        let kind = match self {
            Self::Read => ErrorKind::DeadlineExceeded,
            Self::Write => ErrorKind::OutcomeUnknown,
        };
        RpcError::new(kind, format!("no answer within {deadline:?}"))
    }
}

/// Calls `method` with `message`: `call(deadline, CallEffect::Read, query, |request| client.get_record(request))`.
///
/// The deadline is told to the server and kept here.
pub async fn call<Q, T, F, Fut>(
    deadline: Duration,
    effect: CallEffect,
    message: Q,
    method: F,
) -> Result<T, RpcError>
where
    F: FnOnce(Request<Q>) -> Fut,
    Fut: Future<Output = Result<Response<T>, Status>>,
{
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    let end = Instant::now() + deadline;
    match tokio::time::timeout_at(end, method(request)).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        // The channel keeps the deadline as well and calls its end a cancellation.
        Ok(Err(status)) if status.code() == tonic::Code::Cancelled && Instant::now() >= end => {
            Err(effect.too_late(deadline))
        }
        Ok(Err(status)) => Err(effect.error(status)),
        Err(_) => Err(effect.too_late(deadline)),
    }
}

/// Waits for the beginning of a stream. No `grpc-timeout` is sent: it would be the deadline of the whole stream to
/// a proxy in between.
pub(crate) async fn begin<T>(
    deadline: Duration,
    opening: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, RpcError> {
    match tokio::time::timeout(deadline, opening).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(RpcError::of_read(status)),
        Err(_) => {
            let message = format!("stream not opened within {deadline:?}");
            Err(RpcError::new(ErrorKind::DeadlineExceeded, message))
        }
    }
}
