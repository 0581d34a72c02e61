//! Connections: taken, served over HTTP/2, and ended in order.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ptah_service::Tasks;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use crate::Listener;
use crate::budget::WaitingPlaces;
use crate::network::BoxIo;
use crate::server::ServerOptions;
use crate::server::front::Front;
use crate::server::metrics::ServerMetrics;

/// Takes connections and gives each a task.
pub(super) struct Acceptor {
    front: Arc<Front>,
    options: ServerOptions,
    metrics: ServerMetrics,
    free: Arc<Semaphore>,
    tasks: Tasks,
}

impl Acceptor {
    pub(super) fn new(front: Front, options: ServerOptions, metrics: ServerMetrics, tasks: Tasks) -> Self {
        Self {
            front: Arc::new(front),
            free: Arc::new(Semaphore::new(options.max_connections)),
            options,
            metrics,
            tasks,
        }
    }

    pub(super) async fn run(self, mut listener: Box<dyn Listener>) {
        let stopping = self.tasks.stopping();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((io, peer)) => self.welcome(io, peer),
                Err(error) => {
                    tracing::warn!(address = %listener.local_addr(), %error, "connection not accepted");
                    // An error may come back at once: let other tasks run.
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    fn welcome(&self, io: BoxIo, peer: SocketAddr) {
        let Ok(place) = Arc::clone(&self.free).try_acquire_owned() else {
            self.metrics.connections_refused.inc();
            tracing::debug!(%peer, "connection refused, there are too many");
            return;
        };
        let connection = self.connection(io, peer);
        let guard = Open::new(&self.metrics, place);
        self.tasks.spawn("connection", async move {
            connection.await;
            drop(guard);
        });
    }

    fn connection(&self, io: BoxIo, peer: SocketAddr) -> impl Future<Output = ()> + Send + 'static {
        let options = &self.options;
        let mut builder = http2::Builder::new(Spawner(self.tasks.clone()));
        builder
            .timer(TokioTimer::new())
            // gRPC has no use for it, and the system's time has no place in a simulation.
            .auto_date_header(false)
            .initial_stream_window_size(options.stream_window_bytes)
            .initial_connection_window_size(options.connection_window_bytes)
            .max_concurrent_streams(options.max_concurrent_streams)
            .max_frame_size(options.max_frame_bytes)
            .max_send_buf_size(options.max_send_buffer_bytes)
            .max_header_list_size(options.max_header_bytes)
            .max_pending_accept_reset_streams(options.max_pending_resets)
            .keep_alive_interval(options.keep_alive_interval)
            .keep_alive_timeout(options.keep_alive_timeout);
        let front = Arc::clone(&self.front);
        let cut = ConnectionCut::default();
        let caller = cut.clone();
        let places = WaitingPlaces::new(options.waiting_per_connection());
        let service = service_fn(move |mut request: http::Request<_>| {
            request.extensions_mut().insert(caller.clone());
            Arc::clone(&front).handle(peer, places.clone(), request)
        });
        let io = TokioIo::new(Greeted::new(io, options.handshake_timeout));
        let stopping = self.tasks.stopping();
        async move {
            let mut connection = std::pin::pin!(builder.serve_connection(io, service));
            let ended = tokio::select! {
                biased;
                ended = connection.as_mut() => ended,
                () = cut.0.cancelled() => {
                    tracing::debug!(%peer, "connection cut");
                    return;
                }
                () = stopping.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        ended = connection => ended,
                        () = cut.0.cancelled() => return,
                    }
                }
            };
            if let Err(error) = ended {
                // The peer's doing: it went away or does not speak HTTP/2.
                tracing::debug!(%peer, %error, "connection ended");
            }
        }
    }
}

/// Ends a connection at once. Found in the extensions of every request: for a client that holds memory and does not
/// read, since HTTP/2 asks nothing of a handler while its client does not.
#[derive(Clone, Debug, Default)]
pub struct ConnectionCut(CancellationToken);

impl ConnectionCut {
    /// Ends the connection and all its calls.
    pub fn cut(&self) {
        self.0.cancel();
    }
}

/// Runs the calls of a connection as tasks of the server.
#[derive(Clone)]
struct Spawner(Tasks);

impl<F> Executor<F> for Spawner
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, call: F) {
        self.0.spawn("call", call);
    }
}

/// Counts an open connection and holds its place.
struct Open {
    metrics: ServerMetrics,
    _place: OwnedSemaphorePermit,
}

impl Open {
    fn new(metrics: &ServerMetrics, place: OwnedSemaphorePermit) -> Self {
        metrics.connections.inc();
        Self {
            metrics: metrics.clone(),
            _place: place,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}

/// A connection whose first byte must come in time: HTTP/2 probes begin only after its handshake, so that a silent
/// connection would hold its place for ever.
struct Greeted {
    io: BoxIo,
    give_up: Option<Pin<Box<Sleep>>>,
}

impl Greeted {
    fn new(io: BoxIo, timeout: Duration) -> Self {
        Self {
            io,
            give_up: Some(Box::pin(tokio::time::sleep(timeout))),
        }
    }
}

impl AsyncRead for Greeted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        match (read, &mut self.give_up) {
            (Poll::Ready(read), _) => {
                self.give_up = None;
                Poll::Ready(read)
            }
            (Poll::Pending, Some(give_up)) => match give_up.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                Poll::Pending => Poll::Pending,
            },
            (Poll::Pending, None) => Poll::Pending,
        }
    }
}

impl AsyncWrite for Greeted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
