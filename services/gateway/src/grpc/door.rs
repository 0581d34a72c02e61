//! Signs callers in before anything of their message is read.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::header::AUTHORIZATION;
use http::{Request, Response};
use ptah_rpc::ConnectionCut;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use super::convert::status;
use super::outgoing;
use crate::auth::{Auth, SignedIn};
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
                    Ok(outgoing::finish(response))
                }
                Err(error) => Ok(status(&error).into_http()),
            }
        })
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
