//! Nodes, a control plane that records, and a client for each kind of stream.

mod append;
mod control;
mod deliver;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use ptah_partition::{Batch, BatchBuilder, BatchView, Door, MessageParts};
use ptah_proto::storage::v1 as pb;
use ptah_raft::HostOptions;
use ptah_rpc::clients::{ConsumerGroupRef, PlacementOrder, ReplicaSpec};
use ptah_rpc::records::ConsumerGroupConfig;
use ptah_rpc::{Channels, ClusterSecret, PartitionClient, ReplicaClient, RpcError, TcpNetwork};
use ptah_segment_log::{Disk, SimDisk};
use ptah_service::{ClusterConfig, Health, List, Metrics, Ports, Secret, Tasks};
use ptah_storage_node::{Config, Deps, Running, start};
use ptah_types::{
    ConsumerGroupId, NodeId, PartitionKey, PartitionNumber, RaftGroupId, ReplicaId, StartAt, StationId,
};

pub(crate) use append::{Appender, whole};
pub(crate) use control::ControlPlane;
pub(crate) use deliver::{Deliverer, Received, Said};

/// How long a condition may take to come true on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const SECRET: &str = "a secret for tests only";
pub(crate) const MAX_MESSAGE_BYTES: u64 = 1 << 20;
pub(crate) const ACK_DEADLINE_MS: u32 = 60_000;

/// Waits until `check` gives something.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut check: impl FnMut() -> F) -> T {
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(found) = check().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Waits for something that must come.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, future).await;
    waited.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

pub(crate) fn node_id(number: u64) -> NodeId {
    NodeId::new(number).unwrap()
}

pub(crate) fn group_id(number: u64) -> RaftGroupId {
    RaftGroupId::new(number).unwrap()
}

pub(crate) fn key() -> PartitionKey {
    PartitionKey {
        tenant: "default".parse().unwrap(),
        station: StationId::new(1).unwrap(),
        partition: PartitionNumber::FIRST,
    }
}

pub(crate) fn key_pb() -> ptah_proto::common::v1::PartitionKey {
    ptah_proto::common::v1::PartitionKey {
        tenant: "default".to_owned(),
        station_id: 1,
        partition: 1,
    }
}

/// A consumer group on the partition that most tests use.
pub(crate) fn consumer_group(number: u64) -> ConsumerGroupRef {
    ConsumerGroupRef {
        partition: key(),
        group: group_id(1),
        consumer_group: ConsumerGroupId::new(number).unwrap(),
    }
}

pub(crate) fn group_config(ack_deadline_ms: u32, max_in_flight: u32) -> ConsumerGroupConfig {
    ConsumerGroupConfig {
        start: StartAt::First,
        ack_deadline_ms,
        max_in_flight,
    }
}

/// A batch of these payloads.
pub(crate) fn batch<P: AsRef<[u8]>>(payloads: &[P]) -> Batch {
    let mut builder = BatchBuilder::new();
    for payload in payloads {
        builder
            .push(&MessageParts::new(Door::GRPC, "orders", payload.as_ref()), [])
            .unwrap();
    }
    builder.finish().unwrap()
}

/// Payloads of an encoded batch.
pub(crate) fn payloads(encoded: Bytes) -> Vec<String> {
    let view = BatchView::parse(encoded).unwrap();
    view.iter()
        .map(|message| String::from_utf8_lossy(message.payload()).into_owned())
        .collect()
}

/// `n` payloads that tell their place, from `from` on.
pub(crate) fn numbered(from: u64, n: u64) -> Vec<String> {
    (from..from + n)
        .map(|number| format!("message {number}"))
        .collect()
}

/// A node, its disk, and everything needed to start it again.
pub(crate) struct TestNode {
    pub(crate) id: NodeId,
    pub(crate) config: Config,
    pub(crate) disk: SimDisk,
    pub(crate) health: Health,
    pub(crate) ports: Ports,
    tasks: Tasks,
    running: Option<Running>,
}

impl TestNode {
    pub(crate) fn new(id: u64, control: &ControlPlane) -> Self {
        let config = Config {
            node_id: id,
            name: format!("storage-{id}"),
            data_dir: PathBuf::from("/data"),
            grpc_listen: "127.0.0.1:0".to_owned(),
            control_plane_addresses: List(vec![control.address()]),
            cluster: ClusterConfig {
                secret: Secret::new(SECRET.to_owned()),
            },
            ..Config::default()
        };
        let mut config = config;
        config.partition.segment_bytes = 1 << 20;
        config.disk.reserve_bytes = 0;
        Self {
            id: node_id(id),
            config,
            disk: SimDisk::new(id),
            health: Health::new("storage-node"),
            ports: Ports::system(),
            tasks: Tasks::root(),
            running: None,
        }
    }

    pub(crate) async fn started(id: u64, control: &ControlPlane) -> Self {
        let mut node = Self::new(id, control);
        node.start().await.unwrap();
        node
    }

    pub(crate) async fn start(&mut self) -> anyhow::Result<()> {
        self.tasks = Tasks::root();
        self.health = Health::new("storage-node");
        let deps = Deps {
            ports: self.ports.clone(),
            network: Arc::new(TcpNetwork::new()),
            tasks: self.tasks.clone(),
            metrics: Metrics::new(),
            health: self.health.clone(),
            disk: self.disk.as_disk() as Arc<dyn Disk>,
            host: HostOptions::for_tests(),
        };
        let running = soon("start a node", start(self.config.clone(), deps)).await?;
        // The same address after a restart.
        self.config.grpc_listen = running.address().to_string();
        self.running = Some(running);
        Ok(())
    }

    pub(crate) fn address(&self) -> String {
        self.config.grpc_listen.clone()
    }

    pub(crate) async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop(Duration::from_secs(10)).await.unwrap();
        }
    }

    /// The power goes off: what was not synced is lost.
    pub(crate) async fn lose_power(&mut self) {
        self.disk.crash();
        self.running = None;
        drop(self.tasks.stop(Duration::from_millis(100)).await);
        self.disk.reboot();
    }

    /// Whether a task that the node needs has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.tasks.failed().now_or_never().is_some()
    }

    /// Why the node's tasks failed, once they did.
    pub(crate) async fn failed(&self) -> String {
        soon("a critical failure", self.tasks.failed()).await.to_string()
    }

    pub(crate) fn channels(&self) -> Channels {
        let secret = ClusterSecret::new(&Secret::new(SECRET.to_owned())).unwrap();
        Channels::new(Arc::new(TcpNetwork::new()), secret)
    }

    pub(crate) fn client(&self) -> PartitionClient {
        PartitionClient::new(self.channels().to(&self.address()).unwrap()).with_deadline(PATIENCE)
    }

    pub(crate) async fn place(&self, order: &PlacementOrder) -> Result<(), RpcError> {
        let channel = self.channels().to(&self.address()).unwrap();
        ReplicaClient::new(channel)
            .with_deadline(PATIENCE)
            .apply_placement(order)
            .await
    }

    /// Waits until the node leads a group and takes writes.
    pub(crate) async fn until_led(&self, group: RaftGroupId) {
        let client = self.client();
        until("a leader", || async {
            let described = client.describe_partitions(&[group]).await.ok()?;
            (!described.is_empty()).then_some(())
        })
        .await;
    }

    pub(crate) async fn appender(&self) -> Appender {
        Appender::open(&self.client(), 77).await
    }

    pub(crate) async fn deliverer(&self) -> Deliverer {
        Deliverer::open(&self.client()).await
    }

    /// Appends one batch per payload list under a fresh session and waits until all are stored.
    pub(crate) async fn store(&self, session: u64, batches: &[Vec<String>]) {
        let mut appender = Appender::open(&self.client(), session).await;
        appender.channel(1, group_id(1)).await;
        for (index, payloads) in batches.iter().enumerate() {
            appender.send(1, index as u64 + 1, &batch(payloads)).await;
        }
        for _ in batches {
            appender.stored().await;
        }
    }

    pub(crate) async fn ensure(&self, group: u64, ack_deadline_ms: u32, max_in_flight: u32) {
        let name = format!("group-{group}").parse().unwrap();
        let config = group_config(ack_deadline_ms, max_in_flight);
        self.client()
            .ensure_group(&consumer_group(group), &name, &config)
            .await
            .unwrap();
    }

    /// Payloads of everything that is stored.
    pub(crate) async fn everything(&self) -> Vec<String> {
        let request = pb::FetchRequest {
            partition: Some(key_pb()),
            group_id: 1,
            from_sequence: 0,
            max_messages: u32::MAX,
            max_bytes: u64::MAX,
        };
        let mut stream = self.client().fetch(request).await.unwrap();
        let mut all = Vec::new();
        let mut partial = Vec::new();
        loop {
            let response = soon("a fetched part", stream.message()).await.unwrap().unwrap();
            if response.count == 0 {
                return all;
            }
            partial.extend_from_slice(&response.payload);
            if partial.len() == response.total_bytes as usize {
                all.extend(payloads(std::mem::take(&mut partial).into()));
            }
        }
    }
}

/// An order for one more raft group, which `node` has alone.
pub(crate) fn order_alone(revision: u64, group: u64, node: &TestNode) -> PlacementOrder {
    let mut order = order(revision, &[node], node);
    let spec = &mut order.ensure[0];
    spec.group = group_id(group);
    spec.partition.partition = PartitionNumber::new(group as u32).unwrap();
    order
}

/// Places raft group 1 on these nodes; replica ids are node ids, the first one initialises.
pub(crate) fn order(revision: u64, nodes: &[&TestNode], me: &TestNode) -> PlacementOrder {
    let members = nodes
        .iter()
        .map(|node| (ReplicaId::new(node.id.get()).unwrap(), node.id))
        .collect();
    let spec = ReplicaSpec {
        partition: key(),
        group: group_id(1),
        replica: ReplicaId::new(me.id.get()).unwrap(),
        members,
        opened: false,
        initialize: nodes.first().is_some_and(|first| first.id == me.id),
        max_message_bytes: MAX_MESSAGE_BYTES,
        generation: 1,
    };
    PlacementOrder {
        epoch: 1,
        revision,
        peers: nodes
            .iter()
            .map(|node| (node.id, node.address()))
            .collect::<BTreeMap<_, _>>(),
        ensure: vec![spec],
        remove: Vec::new(),
        ..PlacementOrder::default()
    }
}

/// One node that leads raft group 1 alone.
pub(crate) async fn leader() -> (ControlPlane, TestNode) {
    let control = ControlPlane::start().await;
    let node = TestNode::started(1, &control).await;
    node.place(&order(1, &[&node], &node)).await.unwrap();
    node.until_led(group_id(1)).await;
    (control, node)
}
