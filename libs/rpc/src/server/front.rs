//! What every call passes before its handler, and after it.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, Request, Response};
use ptah_types::ErrorKind;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::Service as _;

use crate::budget::{MeterSettings, MeteredBody, WaitingPlaces};
use crate::secret::SECRET_HEADER;
use crate::server::ServerOptions;
use crate::server::methods::Methods;
use crate::server::metrics::{Outcome, ServerMetrics};
use crate::wire::{WIRE_HEADER, agree_header};
use crate::{ClusterSecret, CurrentMessage, MessageBudget, RequestBody, RpcError};

/// Header in which callers tell their deadline.
const TIMEOUT_HEADER: &str = "grpc-timeout";

/// Address from which a call comes. Found in the extensions of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// Who is served.
pub(super) enum Admission {
    /// Processes with the same secret.
    Cluster(ClusterSecret),
    /// Everybody, within a budget.
    Public(MessageBudget, Methods),
}

/// The front of all services of a server.
pub(super) struct Front {
    pub(super) admission: Admission,
    pub(super) routes: Routes,
    pub(super) running: Arc<Semaphore>,
    pub(super) metrics: ServerMetrics,
    pub(super) options: ServerOptions,
}

impl Front {
    /// Answers one call. The answer of a stream is its beginning.
    pub(super) async fn handle<B>(
        self: Arc<Self>,
        peer: SocketAddr,
        places: WaitingPlaces,
        request: Request<B>,
    ) -> Result<Response<Body>, Infallible>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let started = Instant::now();
        let path = request.uri().path().to_owned();
        let (outcome, response) = match self.admit(request.headers()) {
            Ok(admitted) => {
                let response = self.call((peer, places), request, admitted).await;
                (outcome_of(&response), response)
            }
            Err(error) => (Outcome::Refused, Status::from(error).into_http()),
        };
        self.metrics.count(&path, outcome, started.elapsed());
        Ok(response)
    }

    fn admit(&self, headers: &HeaderMap) -> Result<Admitted, RpcError> {
        if let Admission::Cluster(secret) = &self.admission {
            let proof = headers.get(SECRET_HEADER).map(|value| value.as_bytes());
            if !proof.is_some_and(|proof| secret.verifies(proof)) {
                let message = "this port is for processes of the cluster; set the same `cluster.secret` for all of \
                               them";
                return Err(RpcError::new(ErrorKind::Unauthenticated, message));
            }
            agree_header(headers.get(WIRE_HEADER).map(|value| value.as_bytes()))?;
        }
        let deadline = self.deadline(headers)?;
        let running = Arc::clone(&self.running)
            .try_acquire_owned()
            .map_err(|_| RpcError::new(ErrorKind::Exhausted, "too many calls are under way; retry later"))?;
        Ok(Admitted {
            deadline,
            _running: running,
        })
    }

    fn deadline(&self, headers: &HeaderMap) -> Result<Option<Duration>, RpcError> {
        let Some(header) = headers.get(TIMEOUT_HEADER) else {
            return Ok(self.options.handler_timeout);
        };
        let told = header.to_str().ok().and_then(parse_timeout).ok_or_else(|| {
            let message = format!("header `{TIMEOUT_HEADER}` is {header:?}; write up to 8 digits and a unit");
            RpcError::new(ErrorKind::InvalidArgument, message)
        })?;
        let most = self.options.handler_timeout.unwrap_or(Duration::MAX);
        Ok(Some(told.min(most)))
    }

    async fn call<B>(
        &self,
        (peer, places): (SocketAddr, WaitingPlaces),
        mut request: Request<B>,
        admitted: Admitted,
    ) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        request.extensions_mut().insert(Peer(peer));
        let mut routes = self.routes.clone();
        match &self.admission {
            Admission::Cluster(_) => self.answer(routes.call(request), &admitted).await,
            Admission::Public(budget, methods) => {
                // Kept until the handler has answered: a unary call drops its body long before.
                let current = CurrentMessage::default();
                request.extensions_mut().insert(current.clone());
                let path = request.uri().path();
                let method = methods.get(path);
                let settings = MeterSettings {
                    max_message_bytes: self.options.max_message_bytes.min(methods.message_bytes(path)),
                    stall_timeout: self.options.stall_timeout,
                    wait_timeout: self.options.wait_timeout,
                    single: !method.is_some_and(|method| method.streams),
                    places,
                    request: method.and_then(|method| method.request.clone()),
                };
                let streams = !settings.single;
                let (budget, message) = (budget.clone(), current.clone());
                let mut request =
                    request.map(|body| Body::new(MeteredBody::new(body, budget, message, settings)));
                if streams {
                    let body = RequestBody::new(std::mem::take(request.body_mut()));
                    *request.body_mut() = body.shared();
                    request.extensions_mut().insert(body);
                }
                let response = self.answer(routes.call(request), &admitted).await;
                drop(current);
                response
            }
        }
    }

    /// Waits for the handler, until the deadline, and survives its panic.
    async fn answer<F>(&self, handler: F, admitted: &Admitted) -> Response<Body>
    where
        F: Future<Output = Result<Response<Body>, Infallible>>,
    {
        let handler = AssertUnwindSafe(handler).catch_unwind();
        let answered = match admitted.deadline {
            Some(deadline) => match tokio::time::timeout(deadline, handler).await {
                Ok(answered) => answered,
                Err(_) => return too_late(deadline).into_http(),
            },
            None => handler.await,
        };
        match answered {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            // The panic hook has logged where and why.
            Err(_) => {
                self.metrics.panics.inc();
                tracing::error!("a handler panicked, its call is answered as a defect");
                let error = RpcError::new(ErrorKind::Internal, "defect in the server, see its log");
                Status::from(error).into_http()
            }
        }
    }
}

/// A call that may run.
struct Admitted {
    deadline: Option<Duration>,
    _running: OwnedSemaphorePermit,
}

/// The handler was dropped somewhere on its way: what it did is not known here, and the caller knows whether it
/// matters.
fn too_late(deadline: Duration) -> Status {
    let message = format!("not answered within the deadline of {deadline:?}");
    RpcError::new(ErrorKind::OutcomeUnknown, message).into_status_with_code(Code::DeadlineExceeded)
}

fn outcome_of(response: &Response<Body>) -> Outcome {
    match response.headers().get("grpc-status") {
        Some(status) if status.as_bytes() != b"0" => Outcome::Failed,
        _ => Outcome::Answered,
    }
}

/// Reads `grpc-timeout`: up to eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let well_formed = (1..=8).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_digit());
    if !well_formed {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3_600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_in_every_unit() {
        let cases = [
            ("2H", Duration::from_secs(7_200)),
            ("3M", Duration::from_secs(180)),
            ("4S", Duration::from_secs(4)),
            ("5m", Duration::from_millis(5)),
            ("6u", Duration::from_micros(6)),
            ("99999999n", Duration::from_nanos(99_999_999)),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_timeout(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn malformed_timeouts_are_not_read() {
        for text in ["", "S", "5", "-1S", "+1S", "1.5S", "123456789S", "5x", "5 S", "ä"] {
            assert_eq!(parse_timeout(text), None, "{text}");
        }
    }
}
