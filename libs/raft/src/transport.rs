//! How replicas talk: few streams per pair of nodes, whatever the number of groups.
//!
//! To every node lead five connections: one for log entries, one for heartbeats, so that a big entry never delays them,
//! one for votes, because many calls that are given up end a connection, one for snapshots, and one for the signs of life
//! of the node itself. Who talks is said at the beginning of each stream and in each call,
//! and verified: cluster, both nodes, both replicas.
//!
//! openraft asks [`Factory`] for a client per follower and purpose; all clients of one node share its [`Peer`].

mod append_stream;
mod beats;
mod client;
mod fragments;
pub(crate) mod grpc;
mod outbox;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use ptah_rpc::{Channels, ClusterSecret, Network};
use ptah_segment_log::Identity;
use ptah_service::{Ports, Tasks};
use ptah_types::NodeId;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

pub(crate) use beats::{Beat, BeatAnswer};
pub(crate) use client::Factory;
pub(crate) use outbox::{AppendHead, Route};

use crate::detector::Detector;
use crate::directory::Directory;
use crate::metrics::Metrics;
use crate::quiesce::agree;
use crate::shield::{NoAnswer, to_the_end, unbroken};
use crate::types::{RaftLogId, Vote, log_id};

/// How long greeting a node may take.
const GREETING_DEADLINE: Duration = Duration::from_secs(3);

/// What the transport is told by the host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TransportOptions {
    pub(crate) append_window: usize,
    pub(crate) peer_queue_bytes: usize,
    pub(crate) heartbeat_coalesce: Duration,
    /// How long the answer to a message of heartbeats waits for a group that is busy.
    pub(crate) beat_patience: Duration,
}

/// Connections by purpose.
struct Lines {
    entries: Channels,
    beats: Channels,
    votes: Channels,
    snapshots: Channels,
    pings: Channels,
}

struct Inner {
    identity: Identity,
    options: TransportOptions,
    network: Arc<dyn Network>,
    lines: Lines,
    ports: Ports,
    tasks: Tasks,
    directory: Arc<Directory>,
    detector: Arc<Detector>,
    /// Tells this process from the ones before it.
    incarnation: u64,
    metrics: Arc<Metrics>,
    addresses: watch::Sender<BTreeMap<NodeId, String>>,
    peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
    /// Nodes that are pinged.
    pinged: Mutex<BTreeSet<NodeId>>,
}

/// The talk of one node with all others. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Transport {
    inner: Arc<Inner>,
}

/// Another node, as its clients see it.
pub(crate) struct Peer {
    node: NodeId,
    outbox: Arc<outbox::Outbox>,
    beats: beats::Beats,
}

/// Everything that a transport is made of.
pub(crate) struct TransportParts {
    pub(crate) identity: Identity,
    pub(crate) options: TransportOptions,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) secret: ClusterSecret,
    pub(crate) ports: Ports,
    pub(crate) tasks: Tasks,
    pub(crate) directory: Arc<Directory>,
    pub(crate) detector: Arc<Detector>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Transport {
    pub(crate) fn new(parts: TransportParts) -> Self {
        let channels = || Channels::new(Arc::clone(&parts.network), parts.secret.clone());
        let lines = Lines {
            entries: channels(),
            beats: channels(),
            votes: channels(),
            snapshots: channels(),
            pings: channels(),
        };
        Self {
            inner: Arc::new(Inner {
                identity: parts.identity,
                options: parts.options,
                network: parts.network,
                incarnation: parts.ports.random.next_u64(),
                lines,
                ports: parts.ports,
                tasks: parts.tasks,
                directory: parts.directory,
                detector: parts.detector,
                metrics: parts.metrics,
                addresses: watch::Sender::new(BTreeMap::new()),
                peers: RwLock::new(BTreeMap::new()),
                pinged: Mutex::new(BTreeSet::new()),
            }),
        }
    }

    /// Where the nodes are. A node whose address changes is connected to anew.
    pub(crate) fn set_addresses(&self, addresses: BTreeMap<NodeId, String>) {
        self.inner.addresses.send_if_modified(|old| {
            let changed = *old != addresses;
            *old = addresses;
            changed
        });
    }

    pub(crate) fn address(&self, node: NodeId) -> Option<String> {
        self.inner.addresses.borrow().get(&node).cloned()
    }

    pub(crate) fn own_node(&self) -> NodeId {
        self.inner.identity.node
    }

    /// All other nodes that have an address.
    pub(crate) fn other_nodes(&self) -> BTreeSet<NodeId> {
        let addresses = self.inner.addresses.borrow();
        let others = addresses.keys().filter(|node| **node != self.own_node());
        others.copied().collect()
    }

    /// Sends a heartbeat with the next message to the node; `None` while there is no connection.
    pub(crate) fn beat(&self, node: NodeId, beat: Beat) -> Option<oneshot::Receiver<BeatAnswer>> {
        self.peer(node).beats.submit(beat)
    }

    fn agree_to_rest(&self, route: Route, vote: &Vote, last: Option<&RaftLogId>) -> bool {
        let cell = self.inner.directory.get(route.group);
        cell.is_some_and(|cell| agree(&cell, route.from, vote, last.map(log_id)))
    }

    /// Sends signs of life to these nodes from now on.
    pub(crate) fn keep_pinging(&self, nodes: &BTreeSet<NodeId>) {
        let mut pinged = self.inner.pinged.lock();
        for node in nodes {
            if pinged.insert(*node) {
                let (transport, node) = (self.clone(), *node);
                let pinging = async move {
                    grpc::keep_pinging(transport, node).await;
                    Ok(())
                };
                self.inner
                    .tasks
                    .spawn_critical(format!("pings to node {node}"), pinging);
            }
        }
    }

    /// The node's peer, whose streams run from now on.
    fn peer(&self, node: NodeId) -> Arc<Peer> {
        if let Some(peer) = self.inner.peers.read().get(&node) {
            return Arc::clone(peer);
        }
        let mut peers = self.inner.peers.write();
        let peer = peers.entry(node).or_insert_with(|| {
            let peer = Arc::new(Peer {
                node,
                outbox: Arc::new(outbox::Outbox::new(self.inner.options.peer_queue_bytes)),
                beats: beats::Beats::default(),
            });
            grpc::start_streams(self, &peer);
            peer
        });
        Arc::clone(peer)
    }

    /// Runs a call of openraft to its end, even when the caller goes away.
    pub(crate) async fn to_the_end<T: Send + 'static>(
        &self,
        name: &'static str,
        deadline: Duration,
        call: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, NoAnswer> {
        to_the_end(&self.inner.tasks, &Handle::current(), name, deadline, call).await
    }

    /// Waits for a call of openraft; when the caller goes away, a task does.
    async fn unbroken<T: Send + 'static>(
        &self,
        name: &'static str,
        call: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, NoAnswer> {
        unbroken(&self.inner.tasks, &Handle::current(), name, call).await
    }

    pub(crate) fn count_snapshot_bytes(&self, bytes: u64) {
        self.inner.metrics.snapshot_bytes.inc_by(bytes);
    }

    /// Whether nothing listens at the node's address any more: its process is gone for certain. Anything but a
    /// refused connection (an answer, silence, an unknown address) leaves that open.
    pub(crate) async fn is_certainly_gone(&self, node: NodeId, patience: Duration) -> bool {
        let Some(address) = self.address(node) else {
            return false;
        };
        let attempt = self.inner.network.connect(&address);
        match tokio::time::timeout(patience, attempt).await {
            Ok(Err(error)) => error.kind() == std::io::ErrorKind::ConnectionRefused,
            Ok(Ok(_)) | Err(_) => false,
        }
    }
}
