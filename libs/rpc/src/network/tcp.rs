//! TCP.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ptah_service::BoxFuture;
use tokio::net::{TcpListener, TcpStream};

use super::{BoxIo, Listener, Network};

/// Pause after the process ran out of file descriptors or memory: trying again at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// TCP with small writes sent at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpNetwork;

impl TcpNetwork {
    /// The network of the machine.
    pub fn new() -> Self {
        Self
    }
}

impl Network for TcpNetwork {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<BoxIo>> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as BoxIo)
        })
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let listener = TcpListener::bind(address).await?;
            let local = listener.local_addr()?;
            Ok(Box::new(BoundTcp { listener, local }) as Box<dyn Listener>)
        })
    }
}

struct BoundTcp {
    listener: TcpListener,
    local: SocketAddr,
}

impl Listener for BoundTcp {
    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxIo, SocketAddr)>> {
        Box::pin(async {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    stream.set_nodelay(true)?;
                    Ok((Box::new(stream) as BoxIo, peer))
                }
                Err(error) => {
                    if !is_of_one_connection(&error) {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                    Err(error)
                }
            }
        })
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
