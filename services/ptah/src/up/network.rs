//! How the services of one process reach each other.
//!
//! Metadata and control plane have no port: their addresses name pipes. Storage nodes listen on real ports and on pipes:
//! among themselves they talk through real connections, as they would on several machines, everybody else takes the
//! pipe. The gateway's door is a real port.

use std::io;
use std::sync::Arc;

use ptah_rpc::{BoxIo, InProcessNetwork, Listener, Network, TcpNetwork};
use ptah_service::BoxFuture;

/// Address of the metadata service: loopback, so that nothing can leave the machine, and never bound outside.
pub(super) const METADATA: &str = "127.255.255.1:6224";
/// Address of the control plane, likewise.
pub(super) const CONTROL_PLANE: &str = "127.255.255.1:6223";

/// The networks of one process.
#[derive(Clone)]
pub(super) struct Networks {
    /// Pipes that have no port.
    inside: InProcessNetwork,
    /// Ports of storage nodes, with pipes beside them.
    nodes: InProcessNetwork,
    outside: Arc<dyn Network>,
}

/// Whose view of the network it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    /// Binds pipes only.
    Inner,
    /// Binds port and pipe, and reaches other storage nodes through their ports.
    Node,
    /// Binds real ports, and reaches storage nodes through pipes.
    Gateway,
}

#[derive(Clone)]
struct Viewed {
    networks: Networks,
    view: View,
}

impl Networks {
    pub(super) fn new() -> Self {
        let outside: Arc<dyn Network> = Arc::new(TcpNetwork::new());
        Self {
            inside: InProcessNetwork::new(),
            nodes: InProcessNetwork::over(Arc::clone(&outside)),
            outside,
        }
    }

    /// For metadata and control plane.
    pub(super) fn inner(&self) -> Arc<dyn Network> {
        self.viewed(View::Inner)
    }

    /// For a storage node.
    pub(super) fn node(&self) -> Arc<dyn Network> {
        self.viewed(View::Node)
    }

    /// For the gateway.
    pub(super) fn gateway(&self) -> Arc<dyn Network> {
        self.viewed(View::Gateway)
    }

    fn viewed(&self, view: View) -> Arc<dyn Network> {
        Arc::new(Viewed {
            networks: self.clone(),
            view,
        })
    }
}

impl Network for Viewed {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<BoxIo>> {
        let networks = &self.networks;
        if matches!(address, METADATA | CONTROL_PLANE) {
            return networks.inside.connect(address);
        }
        match self.view {
            View::Node => networks.outside.connect(address),
            View::Inner | View::Gateway => networks.nodes.connect(address),
        }
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        match self.view {
            View::Inner => self.networks.inside.bind(address),
            View::Node => self.networks.nodes.bind(address),
            View::Gateway => self.networks.outside.bind(address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    /// Takes one connection and tells whether it came through a pipe: a pipe has its own address as peer.
    async fn came_through_pipe(
        listener: &mut Box<dyn Listener>,
        dialer: Arc<dyn Network>,
        address: &str,
    ) -> bool {
        let dialed = dialer.connect(address);
        let (accepted, dialed) = tokio::join!(listener.accept(), dialed);
        dialed.unwrap();
        let peer: SocketAddr = accepted.unwrap().1;
        peer == listener.local_addr()
    }

    #[tokio::test]
    async fn storage_nodes_reach_each_other_through_real_ports_and_are_reached_through_pipes() {
        let networks = Networks::new();
        let mut node = networks.node().bind("127.0.0.1:0").await.unwrap();
        let address = node.local_addr().to_string();
        assert!(!came_through_pipe(&mut node, networks.node(), &address).await);
        assert!(came_through_pipe(&mut node, networks.gateway(), &address).await);
        assert!(came_through_pipe(&mut node, networks.inner(), &address).await);
    }

    #[tokio::test]
    async fn metadata_has_no_port_and_everybody_inside_reaches_it() {
        let networks = Networks::new();
        let mut metadata = networks.inner().bind(METADATA).await.unwrap();
        assert!(std::net::TcpStream::connect(METADATA).is_err());
        for dialer in [networks.inner(), networks.node(), networks.gateway()] {
            assert!(came_through_pipe(&mut metadata, dialer, METADATA).await);
        }
    }

    #[tokio::test]
    async fn the_gateways_door_is_a_real_port() {
        let networks = Networks::new();
        let door = networks.gateway().bind("127.0.0.1:0").await.unwrap();
        assert!(std::net::TcpStream::connect(door.local_addr()).is_ok());
    }
}
