//! Signs callers in before anything of their message is read.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::AUTHORIZATION;
use http::{Request, Response};
use parking_lot::Mutex;
use ptah_rpc::ConnectionCut;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use super::convert::status;
use crate::auth::{Auth, SignedIn};
use crate::consume::budget::InTransport;
use crate::error::GatewayError;

/// A service behind sign-in. Its handlers find [`SignedIn`] in the extensions.
#[derive(Clone)]
pub(super) struct Door<S> {
    inner: S,
    auth: Auth,
}

impl<S> Door<S> {
    pub(super) fn new(inner: S, auth: Auth) -> Self {
        Self { inner, auth }
    }
}

impl<S: NamedService> NamedService for Door<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Door<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // The one that was polled ready is used; its clone is for the next call.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let auth = self.auth.clone();
        Box::pin(async move {
            let header = request
                .headers()
                .get(AUTHORIZATION)
                .map(|value| value.as_bytes().to_vec());
            match auth.sign_in(header.as_deref()).await {
                Ok(signed_in) => {
                    request.extensions_mut().insert(signed_in);
                    let response = inner.call(request).await?;
                    Ok(hold_until_sent(response))
                }
                Err(error) => Ok(status(&error).into_http()),
            }
        })
    }
}

/// Memory of an answer, put into its extensions by a handler; held until the answer has left.
#[derive(Clone)]
pub(super) struct Held(Arc<Mutex<Option<InTransport>>>);

impl Held {
    pub(super) fn new(held: InTransport) -> Self {
        Self(Arc::new(Mutex::new(Some(held))))
    }
}

/// The body asks for its next frame only when the one before has left.
struct HoldingBody {
    body: Body,
    held: Option<InTransport>,
}

impl http_body::Body for HoldingBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let more = matches!(&frame, Poll::Ready(Some(Ok(frame))) if frame.is_data());
        if frame.is_ready() && !more {
            self.held = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

fn hold_until_sent(mut response: Response<Body>) -> Response<Body> {
    let held = response.extensions_mut().remove::<Held>();
    match held.and_then(|held| held.0.lock().take()) {
        Some(held) => response.map(|body| {
            Body::new(HoldingBody {
                body,
                held: Some(held),
            })
        }),
        None => response,
    }
}

/// How the caller's connection is ended.
pub(super) fn cut_of<T>(request: &tonic::Request<T>) -> ConnectionCut {
    request
        .extensions()
        .get::<ConnectionCut>()
        .cloned()
        .unwrap_or_default()
}

/// Who calls.
pub(super) fn caller<T>(request: &tonic::Request<T>) -> Result<SignedIn, Status> {
    let caller = request.extensions().get::<SignedIn>().cloned();
    caller.ok_or_else(|| status(&GatewayError::Unauthenticated("the call did not pass sign-in")))
}
