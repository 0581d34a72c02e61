//! The network port over turmoil's simulated TCP.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use ptah_rpc::{BoxIo, Listener, Network};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use turmoil::net::{TcpListener, TcpStream};

use crate::trace::Trace;

type Stream = Mutex<Option<TcpStream>>;

/// The open connections of one host.
///
/// A crash drops the tasks of a host in an order that depends on the ids of tasks, which are counted per process. So
/// that every run is the same, the connections are ended before, in the order in which they were opened.
pub(crate) struct Wires {
    trace: Trace,
    streams: Mutex<(u64, BTreeMap<u64, Weak<Stream>>)>,
    hang_up: Notify,
}

impl Wires {
    pub(crate) fn new(trace: &Trace) -> Arc<Self> {
        Arc::new(Self {
            trace: trace.clone(),
            streams: Mutex::default(),
            hang_up: Notify::new(),
        })
    }

    fn add(&self, stream: TcpStream) -> BoxIo {
        let stream = Arc::new(Mutex::new(Some(stream)));
        let mut streams = self.streams.lock();
        streams.1.retain(|_, stream| stream.strong_count() > 0);
        streams.0 += 1;
        let number = streams.0;
        streams.1.insert(number, Arc::downgrade(&stream));
        Box::new(Wire {
            stream,
            trace: self.trace.clone(),
        })
    }

    /// Ends all connections. Outside of a host the peers are told nothing, as by a machine that lost its power; inside,
    /// they are told as by an operating system whose process died.
    pub(crate) fn cut(&self) {
        let streams = std::mem::take(&mut self.streams.lock().1);
        for stream in streams.into_values().filter_map(|stream| stream.upgrade()) {
            let stream = stream.lock().take();
            drop(stream);
        }
    }

    /// Asks the host to end its connections.
    pub(crate) fn hang_up(&self) {
        self.hang_up.notify_one();
    }

    /// Runs a host's software until [`Wires::hang_up`] asks for the end of its connections.
    pub(crate) async fn serve(&self, software: impl Future<Output = anyhow::Result<()>>) -> turmoil::Result {
        tokio::select! {
            biased;
            () = self.hang_up.notified() => {
                self.cut();
                std::future::pending().await
            }
            ended = software => Ok(ended?),
        }
    }
}

struct Wire {
    stream: Arc<Stream>,
    trace: Trace,
}

impl Wire {
    fn poll<T>(&self, poll: impl FnOnce(Pin<&mut TcpStream>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match self.stream.lock().as_mut() {
            Some(stream) => poll(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.poll(|stream| stream.poll_write(cx, buf));
        if let Poll::Ready(Ok(count)) = &written {
            self.trace.sent(&buf[..*count]);
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_shutdown(cx))
    }
}

/// Connects and listens inside the simulation. Addresses are `host:port` with turmoil's host names.
#[derive(Clone)]
pub(crate) struct SimNetwork(pub(crate) Arc<Wires>);

impl Network for SimNetwork {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<BoxIo>> {
        async move { Ok(self.0.add(TcpStream::connect(address).await?)) }.boxed()
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        async move {
            let listener = TcpListener::bind(address).await?;
            let address = listener.local_addr()?;
            Ok(Box::new(SimListener {
                listener,
                address,
                wires: Arc::clone(&self.0),
            }) as Box<dyn Listener>)
        }
        .boxed()
    }
}

struct SimListener {
    listener: TcpListener,
    address: SocketAddr,
    wires: Arc<Wires>,
}

impl Listener for SimListener {
    fn local_addr(&self) -> SocketAddr {
        self.address
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxIo, SocketAddr)>> {
        async move {
            let (stream, peer) = self.listener.accept().await?;
            Ok((self.wires.add(stream), peer))
        }
        .boxed()
    }
}
