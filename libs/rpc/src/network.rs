//! The network as a port: what carries bytes between processes.

mod in_process;
mod tcp;

use std::io;
use std::net::SocketAddr;

use ptah_service::{BindError, BoxFuture};
use tokio::io::{AsyncRead, AsyncWrite};

pub use in_process::InProcessNetwork;
pub use tcp::TcpNetwork;

/// A connection's two directions.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// A connection of any network.
pub type BoxIo = Box<dyn Io>;

/// Makes connections and takes them.
///
/// - Addresses are `host:port`. Port 0 binds a free one.
/// - `connect` has no deadline of its own; the caller sets one. Dropping the future gives the attempt up.
/// - A bound address stays taken until its listener is dropped.
pub trait Network: Send + Sync + 'static {
    /// Connects to `address`.
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<BoxIo>>;

    /// Listens on `address`.
    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>>;
}

/// A bound address.
pub trait Listener: Send + 'static {
    /// The address, with the real port.
    fn local_addr(&self) -> SocketAddr;

    /// The next connection and where it comes from. An error is about one connection, the next call may succeed.
    /// Cancel safe: a dropped future loses no connection.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxIo, SocketAddr)>>;
}

/// Binds `address`; the error names it and the setting `key` that gave it.
pub async fn bind(network: &dyn Network, key: &str, address: &str) -> Result<Box<dyn Listener>, BindError> {
    network.bind(address).await.map_err(|source| BindError {
        key: key.to_owned(),
        address: address.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
