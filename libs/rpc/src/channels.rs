//! Channels: one connection per peer, shared by everyone in the process, made again when it breaks.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use ptah_types::{ErrorKind, VersionRange, WIRE_PROTOCOL};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::network::BoxIo;
use crate::secret::SECRET_HEADER;
use crate::wire::WIRE_HEADER;
use crate::{ClusterSecret, Network, RpcError};

/// A channel to one peer. Clones share its connection.
pub type RpcChannel = InterceptedService<Channel, Credentials>;

/// Settings of channels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelOptions {
    /// Time to make a connection.
    pub connect_timeout: Duration,
    /// A connection without traffic is probed this often, so that a dead one is found and made again.
    pub keep_alive_interval: Duration,
    /// A probe without answer for this long means that the connection is dead.
    pub keep_alive_timeout: Duration,
    /// Unread bytes that a peer may send on one stream. Small messages wait behind them: enough for 1 GB/s at a round trip
    /// of 1 ms, and not more.
    pub stream_window_bytes: u32,
    /// Unread bytes that a peer may send on one connection.
    pub connection_window_bytes: u32,
    /// Largest HTTP/2 frame that is taken: big messages in few frames, small ones not behind a huge one.
    pub max_frame_bytes: u32,
}

impl Default for ChannelOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(2),
            keep_alive_interval: Duration::from_secs(2),
            keep_alive_timeout: Duration::from_secs(3),
            stream_window_bytes: 1 << 20,
            connection_window_bytes: 32 << 20,
            max_frame_bytes: 256 << 10,
        }
    }
}

/// Adds the cluster's proof and our versions to each call. For the public door it adds nothing.
#[derive(Clone, Debug)]
pub struct Credentials(Option<Internal>);

#[derive(Clone, Debug)]
struct Internal {
    proof: MetadataValue<Ascii>,
    wire: MetadataValue<Ascii>,
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(internal) = &self.0 {
            let metadata = request.metadata_mut();
            metadata.insert(SECRET_HEADER, internal.proof.clone());
            metadata.insert(WIRE_HEADER, internal.wire.clone());
        }
        Ok(request)
    }
}

fn versions(wire: VersionRange) -> MetadataValue<Ascii> {
    MetadataValue::try_from(wire.to_string()).expect("digits and a dash are ASCII")
}

/// Cached channels by address. Clones share the cache.
#[derive(Clone)]
pub struct Channels {
    network: Arc<dyn Network>,
    credentials: Credentials,
    options: ChannelOptions,
    open: Arc<Mutex<BTreeMap<String, RpcChannel>>>,
}

impl Channels {
    /// Channels between processes of the cluster.
    pub fn new(network: Arc<dyn Network>, secret: ClusterSecret) -> Self {
        let internal = Internal {
            proof: secret.proof(),
            wire: versions(WIRE_PROTOCOL),
        };
        Self::with_credentials(network, Credentials(Some(internal)))
    }

    /// Channels to the public door, as outside programs have them.
    pub fn public(network: Arc<dyn Network>) -> Self {
        Self::with_credentials(network, Credentials(None))
    }

    fn with_credentials(network: Arc<dyn Network>, credentials: Credentials) -> Self {
        Self {
            network,
            credentials,
            options: ChannelOptions::default(),
            open: Arc::default(),
        }
    }

    /// Says that it speaks other versions of the wire protocol than this build does, and an empty cache: to find out how
    /// a peer of another release is answered.
    #[must_use]
    pub fn with_wire(mut self, wire: VersionRange) -> Self {
        if let Credentials(Some(internal)) = &mut self.credentials {
            internal.wire = versions(wire);
        }
        self.open = Arc::default();
        self
    }

    /// With other settings, and an empty cache.
    #[must_use]
    pub fn with_options(self, options: ChannelOptions) -> Self {
        Self {
            options,
            open: Arc::default(),
            ..self
        }
    }

    /// The channel to `address` (`host:port`). It connects at the first call and again after every loss; a call
    /// while there is no connection fails as unavailable within the connect timeout.
    pub fn to(&self, address: &str) -> Result<RpcChannel, RpcError> {
        self.to_any(&[address.to_owned()])
    }

    /// A channel to one of several instances of the same service, by `host:port`. Every connection that is made tries them
    /// in turn, beginning behind the one that was used last, so that one that hangs is not tried again and again; a call
    /// fails as unavailable when none of them takes a connection within the connect timeout.
    pub fn to_any(&self, addresses: &[String]) -> Result<RpcChannel, RpcError> {
        let name = addresses.join(",");
        let mut open = self.open.lock();
        if let Some(channel) = open.get(&name) {
            return Ok(channel.clone());
        }
        let channel = self.make(addresses)?;
        open.insert(name, channel.clone());
        Ok(channel)
    }

    /// Drops the cached channel of a peer that is gone for good. Clones that are in use live on.
    pub fn forget(&self, address: &str) {
        self.open.lock().remove(address);
    }

    fn make(&self, addresses: &[String]) -> Result<RpcChannel, RpcError> {
        let options = &self.options;
        for address in addresses {
            endpoint(address)?;
        }
        // The first one names the service in requests, whichever is connected.
        let endpoint = endpoint(addresses.first().map_or("", String::as_str))?
            .http2_keep_alive_interval(options.keep_alive_interval)
            .keep_alive_timeout(options.keep_alive_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(options.stream_window_bytes)
            .initial_connection_window_size(options.connection_window_bytes)
            .max_frame_size(options.max_frame_bytes);
        let instances = Arc::new(Instances {
            network: Arc::clone(&self.network),
            addresses: addresses.to_vec(),
            next: AtomicUsize::new(0),
            deadline: options.connect_timeout,
        });
        let connector = tower::service_fn(move |_: Uri| {
            let instances = Arc::clone(&instances);
            async move { instances.connect().await.map(TokioIo::new) }
        });
        let channel = endpoint.connect_with_connector_lazy(connector);
        Ok(InterceptedService::new(channel, self.credentials.clone()))
    }
}

/// Where a channel may connect to.
struct Instances {
    network: Arc<dyn Network>,
    addresses: Vec<String>,
    /// The one to try first.
    next: AtomicUsize,
    /// For all attempts of one connection together.
    deadline: Duration,
}

impl Instances {
    async fn connect(&self) -> io::Result<BoxIo> {
        let count = self.addresses.len();
        let first = self.next.load(Ordering::Relaxed);
        let patience = self.deadline / u32::try_from(count).unwrap_or(u32::MAX);
        let mut failures: Option<io::Error> = None;
        for number in first..first + count {
            let address = &self.addresses[number % count];
            match connect(&*self.network, address, patience).await {
                Ok(io) => {
                    self.next.store(number + 1, Ordering::Relaxed);
                    return Ok(io);
                }
                Err(error) => {
                    failures = Some(match failures {
                        None => error,
                        Some(before) => io::Error::new(error.kind(), format!("{before}; {error}")),
                    });
                }
            }
        }
        Err(failures.unwrap_or_else(|| io::ErrorKind::InvalidInput.into()))
    }
}

/// The deadline is kept here and not by the endpoint: its own gives an error that cannot be told from a call that
/// was lost half way.
async fn connect(network: &dyn Network, address: &str, deadline: Duration) -> io::Result<BoxIo> {
    let attempt = tokio::time::timeout(deadline, network.connect(address)).await;
    let connected = attempt.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    connected.map_err(|error| {
        let why = format!("connect to `{address}`: {error}");
        io::Error::new(error.kind(), why)
    })
}

fn endpoint(address: &str) -> Result<Endpoint, RpcError> {
    let invalid = || {
        let message = format!("`{address}` is no address; use host:port");
        RpcError::new(ErrorKind::InvalidArgument, message)
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| invalid())?;
    let uri = endpoint.uri();
    let is_host_port = uri.port_u16().is_some() && uri.path() == "/" && uri.query().is_none();
    if !is_host_port {
        return Err(invalid());
    }
    Ok(endpoint)
}

impl fmt::Debug for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channels")
            .field("open", &self.open.lock().keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TcpNetwork;

    #[tokio::test]
    async fn only_host_and_port_is_an_address() {
        let channels = Channels::public(Arc::new(TcpNetwork::new()));
        for bad in [
            "",
            "host",
            "host:",
            "host:1/path",
            "host:99999",
            "a b:1",
            "host:1?x",
        ] {
            let error = channels.to(bad).map(|_| ()).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument, "{bad}");
        }
        assert!(channels.to("[::1]:6222").is_ok());
        assert!(channels.to_any(&[]).is_err());
        assert!(channels.to_any(&["a:1".to_owned(), "b".to_owned()]).is_err());
    }

    #[tokio::test]
    async fn connections_go_to_the_instances_in_turn_and_past_those_that_do_not_answer() {
        let network = Arc::new(TcpNetwork::new());
        let mut listeners = Vec::new();
        for _ in 0..3 {
            listeners.push(network.bind("127.0.0.1:0").await.unwrap());
        }
        let mut addresses: Vec<String> = listeners.iter().map(|l| l.local_addr().to_string()).collect();
        // Nobody listens at the second one.
        drop(listeners.remove(1));
        let instances = Instances {
            network,
            addresses: addresses.clone(),
            next: AtomicUsize::new(0),
            deadline: Duration::from_secs(30),
        };
        for listener in [0, 1, 0, 1] {
            let (connected, accepted) = tokio::join!(instances.connect(), listeners[listener].accept());
            assert!(connected.is_ok() && accepted.is_ok());
        }
        listeners.clear();
        let refused = instances.connect().await.map(|_| ()).unwrap_err().to_string();
        addresses.retain(|address| !refused.contains(address.as_str()));
        assert_eq!(addresses, Vec::<String>::new(), "not told: {refused}");
    }
}
