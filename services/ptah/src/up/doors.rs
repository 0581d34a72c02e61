//! Where the cluster listens, and whether it can.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use super::args::UpArgs;
use crate::failure::Failure;

const GRPC_PORT: u16 = 5555;
const MONITOR_PORT: u16 = 8222;
const METRICS_PORT: u16 = 7777;
/// Port of the first storage node; the others follow.
const FIRST_NODE_PORT: u16 = 6222;

/// Addresses to listen on; port 0 lets the system choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Doors {
    /// Public gRPC.
    pub(super) grpc: SocketAddr,
    /// Health and status.
    pub(super) monitor: SocketAddr,
    /// Prometheus.
    pub(super) metrics: SocketAddr,
    /// Cluster listener of each storage node.
    pub(super) nodes: Vec<SocketAddr>,
}

impl Doors {
    /// The doors that the options ask for.
    pub(super) fn plan(args: &UpArgs, storage_nodes: u32) -> Result<Self, Failure> {
        let port = |base: u16, index: u32| {
            if args.ephemeral_ports {
                return Ok(0);
            }
            let port = u32::from(base) + index + u32::from(args.port_offset);
            u16::try_from(port).map_err(|_| {
                Failure::usage(format!(
                    "--port-offset {} moves port {base} to {port}; ports end at 65535",
                    args.port_offset
                ))
            })
        };
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let nodes = (0..storage_nodes).map(|index| Ok(SocketAddr::new(local, port(FIRST_NODE_PORT, index)?)));
        Ok(Self {
            grpc: SocketAddr::new(args.bind, port(GRPC_PORT, 0)?),
            monitor: SocketAddr::new(args.monitor_bind, port(MONITOR_PORT, 0)?),
            metrics: SocketAddr::new(args.monitor_bind, port(METRICS_PORT, 0)?),
            nodes: nodes.collect::<Result<_, Failure>>()?,
        })
    }

    /// Binds every door for a moment, so that a taken port is told before anything is changed.
    pub(super) fn try_all(&self) -> Result<(), Failure> {
        let mut held = Vec::new();
        for (name, address) in self.named() {
            held.push(TcpListener::bind(address).map_err(|error| taken(&name, address, &error))?);
        }
        Ok(())
    }

    fn named(&self) -> Vec<(String, SocketAddr)> {
        let mut named = vec![
            ("gRPC door".to_owned(), self.grpc),
            ("monitor page".to_owned(), self.monitor),
            ("metrics page".to_owned(), self.metrics),
        ];
        for (number, address) in (1..).zip(&self.nodes) {
            named.push((format!("cluster port of storage node {number}"), *address));
        }
        named
    }
}

fn taken(name: &str, address: SocketAddr, error: &std::io::Error) -> Failure {
    let why = match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "port is in use; stop the process that uses it, or move all ports with --port-offset"
        }
        std::io::ErrorKind::PermissionDenied => "not allowed; move all ports above 1023 with --port-offset",
        std::io::ErrorKind::AddrNotAvailable => "not an address of this machine",
        _ => return Failure::cannot_start(format!("cannot listen on {address} ({name}): {error}")),
    };
    Failure::cannot_start(format!("cannot listen on {address} ({name}): {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: UpArgs,
    }

    fn plan(line: &str, nodes: u32) -> Result<Doors, Failure> {
        Doors::plan(
            &Line::try_parse_from(line.split_whitespace()).unwrap().args,
            nodes,
        )
    }

    #[test]
    fn the_offset_moves_every_port() {
        let doors = plan("up --port-offset 1000", 3).unwrap();
        let ports: Vec<_> = doors.named().iter().map(|(_, address)| address.port()).collect();
        assert_eq!(ports, [6555, 9222, 8777, 7222, 7223, 7224]);
    }

    #[test]
    fn only_the_door_for_clients_follows_bind() {
        let doors = plan("up --bind 10.0.0.1", 1).unwrap();
        assert_eq!(doors.grpc.ip().to_string(), "10.0.0.1");
        assert!(doors.monitor.ip().is_loopback() && doors.nodes[0].ip().is_loopback());
    }

    #[test]
    fn an_offset_that_leaves_the_range_is_refused() {
        assert!(
            plan("up --port-offset 65000", 1)
                .unwrap_err()
                .message()
                .unwrap()
                .contains("--port-offset")
        );
    }

    #[test]
    fn a_taken_port_is_named_with_its_door() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut doors = plan("up --ephemeral-ports", 1).unwrap();
        doors.nodes[0] = taken.local_addr().unwrap();
        let message = doors.try_all().unwrap_err().message().unwrap().to_owned();
        let port = taken.local_addr().unwrap().port().to_string();
        for part in [port.as_str(), "cluster port of storage node 1", "--port-offset"] {
            assert!(message.contains(part), "{part:?} in {message:?}");
        }
    }
}
