//! Connections within a process: pipes in memory between services that run together.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use ptah_service::BoxFuture;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

use super::{BoxIo, Listener, Network};

/// Bytes that a pipe holds in each direction before the writer waits.
const PIPE_BYTES: usize = 256 << 10;
/// Connections that wait to be accepted; further ones wait with their dialers.
const BACKLOG: usize = 128;
/// Ports that are given out for port 0 when nothing else gives them: the dynamic range.
const FIRST_FREE_PORT: u16 = 49_152;

/// Network of services that share a process. A dialed address that is bound here is reached through a pipe.
///
/// [`InProcessNetwork::new`] knows pipes only and opens no port. [`InProcessNetwork::over`] binds every address on
/// another network too, and dials what is not bound here through it.
#[derive(Clone)]
pub struct InProcessNetwork {
    bound: Arc<Bound>,
    outer: Option<Arc<dyn Network>>,
}

#[derive(Default)]
struct Bound {
    doors: Mutex<BTreeMap<SocketAddr, mpsc::Sender<DuplexStream>>>,
}

impl InProcessNetwork {
    /// Pipes only.
    pub fn new() -> Self {
        Self {
            bound: Arc::default(),
            outer: None,
        }
    }

    /// Pipes, and `outer` for everything else.
    pub fn over(outer: Arc<dyn Network>) -> Self {
        Self {
            bound: Arc::default(),
            outer: Some(outer),
        }
    }
}

impl Default for InProcessNetwork {
    fn default() -> Self {
        Self::new()
    }
}

impl Network for InProcessNetwork {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<BoxIo>> {
        Box::pin(async move {
            let door = parse(address).ok().and_then(|address| self.bound.find(address));
            if let Some(door) = door {
                let (near, far) = tokio::io::duplex(PIPE_BYTES);
                door.send(far).await.map_err(|_| refused(address))?;
                return Ok(Box::new(near) as BoxIo);
            }
            match &self.outer {
                Some(outer) => outer.connect(address).await,
                None => Err(refused(address)),
            }
        })
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let (local, outer) = match &self.outer {
                Some(outer) => {
                    let listener = outer.bind(address).await?;
                    (listener.local_addr(), Some(listener))
                }
                None => (parse(address)?, None),
            };
            let (local, arrivals) = self.bound.open(local)?;
            let bound = Arc::clone(&self.bound);
            Ok(Box::new(BoundPipe {
                bound,
                local,
                arrivals,
                outer,
            }) as Box<dyn Listener>)
        })
    }
}

impl Bound {
    /// The door of `address`, or of the same port on every address of the machine.
    fn find(&self, address: SocketAddr) -> Option<mpsc::Sender<DuplexStream>> {
        let doors = self.doors.lock();
        let exact = doors.get(&address);
        let wildcard = || {
            let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
            address
                .ip()
                .is_loopback()
                .then(|| doors.get(&SocketAddr::new(any, address.port())))?
        };
        exact.or_else(wildcard).cloned()
    }

    fn open(&self, wanted: SocketAddr) -> io::Result<(SocketAddr, mpsc::Receiver<DuplexStream>)> {
        let mut doors = self.doors.lock();
        let local = match wanted.port() {
            0 => (FIRST_FREE_PORT..=u16::MAX)
                .map(|port| SocketAddr::new(wanted.ip(), port))
                .find(|free| !doors.contains_key(free))
                .ok_or_else(|| io::Error::new(io::ErrorKind::AddrInUse, "no free port in this process"))?,
            _ => wanted,
        };
        if doors.contains_key(&local) {
            let why = "address already in use in this process";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
        }
        let (door, arrivals) = mpsc::channel(BACKLOG);
        doors.insert(local, door);
        Ok((local, arrivals))
    }
}

struct BoundPipe {
    bound: Arc<Bound>,
    local: SocketAddr,
    arrivals: mpsc::Receiver<DuplexStream>,
    outer: Option<Box<dyn Listener>>,
}

impl Listener for BoundPipe {
    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxIo, SocketAddr)>> {
        Box::pin(async {
            let outer = async {
                match &mut self.outer {
                    Some(outer) => outer.accept().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // In a fixed order, so that a simulated run is repeatable.
                biased;
                pipe = self.arrivals.recv() => match pipe {
                    Some(pipe) => Ok((Box::new(pipe) as BoxIo, self.local)),
                    None => Err(io::Error::other("the address is no longer bound")),
                },
                accepted = outer => accepted,
            }
        })
    }
}

impl Drop for BoundPipe {
    fn drop(&mut self) {
        self.bound.doors.lock().remove(&self.local);
    }
}

fn refused(address: &str) -> io::Error {
    let why = format!("nothing listens on `{address}`");
    io::Error::new(io::ErrorKind::ConnectionRefused, why)
}

fn parse(address: &str) -> io::Result<SocketAddr> {
    let numeric = match address.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => address.to_owned(),
    };
    numeric.parse().map_err(|_| {
        let why = format!("`{address}` is not ip:port");
        io::Error::new(io::ErrorKind::InvalidInput, why)
    })
}
