//! The network port over turmoil's simulated TCP.

use std::io;
use std::net::SocketAddr;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use ptah_rpc::{BoxIo, Listener, Network};
use turmoil::net::{TcpListener, TcpStream};

/// Connects and listens inside the simulation. Addresses are `host:port` with turmoil's host names.
#[derive(Clone, Copy, Debug, Default)]
pub struct SimNetwork;

impl Network for SimNetwork {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<BoxIo>> {
        async move { Ok(Box::new(TcpStream::connect(address).await?) as BoxIo) }.boxed()
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        async move {
            let listener = TcpListener::bind(address).await?;
            let address = listener.local_addr()?;
            Ok(Box::new(SimListener { listener, address }) as Box<dyn Listener>)
        }
        .boxed()
    }
}

struct SimListener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener for SimListener {
    fn local_addr(&self) -> SocketAddr {
        self.address
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxIo, SocketAddr)>> {
        async move {
            let (stream, peer) = self.listener.accept().await?;
            Ok((Box::new(stream) as BoxIo, peer))
        }
        .boxed()
    }
}
