//! Nodes in one process: real stores, real TCP on port 0, and a runtime for each node, so that a kill is a kill.

#![allow(dead_code, unreachable_pub, reason = "every test file uses another part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod proxy;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ptah_partition::{
    AppendHead, Appended, Batch, BatchBuilder, BatchView, Decision, Door, MessageParts, Sequencer,
};
use ptah_raft::{
    Committed, HostOptions, HostParts, Outcome, ProposeError, RaftHost, Replica, ReplicaSpec, ReplicaState,
};
use ptah_rpc::{ClusterSecret, Network, Server, ServerHandle, TcpNetwork};
use ptah_segment_log::{Disk, Identity, OsDisk, SimDisk};
use ptah_service::{Metrics, Ports, Secret, Tasks};
use ptah_types::{
    ClusterId, NodeId, PartitionKey, PartitionNumber, RaftGroupId, ReplicaId, Sequence, StationId, Timestamp,
};
use tokio::runtime::Runtime;

pub use proxy::Proxy;

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const SEGMENT_BYTES: u64 = 64 << 10;

pub fn group(number: u64) -> RaftGroupId {
    RaftGroupId::new(number).unwrap()
}

pub fn node(number: u64) -> NodeId {
    NodeId::new(number).unwrap()
}

pub fn replica(number: u64) -> ReplicaId {
    ReplicaId::new(number).unwrap()
}

pub fn sequence(number: u64) -> Sequence {
    Sequence::new(number).unwrap()
}

/// Waits until `condition` gives something.
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn spec(group_number: u64, own: u64, nodes: &[u64]) -> ReplicaSpec {
    ReplicaSpec {
        key: PartitionKey {
            tenant: "default".parse().unwrap(),
            station: StationId::new(group_number).unwrap(),
            partition: PartitionNumber::FIRST,
        },
        group: group(group_number),
        replica: replica(own),
        members: nodes.iter().map(|id| (replica(*id), node(*id))).collect(),
        opened: false,
        initialize: own == nodes[0],
        segment_bytes: SEGMENT_BYTES,
    }
}

/// What runs while a node is up.
pub struct Up {
    pub metrics: Metrics,
    pub runtime: Runtime,
    pub host: RaftHost,
    pub tasks: Tasks,
    pub server: ServerHandle,
    pub address: String,
}

/// One node, up or down.
pub struct TestNode {
    pub id: u64,
    pub disk: SimDisk,
    /// When set, the node lives on real files here instead of on its simulated disk.
    pub files: Option<tempfile::TempDir>,
    pub up: Option<Up>,
    specs: BTreeMap<RaftGroupId, ReplicaSpec>,
}

/// Some nodes.
pub struct Cluster {
    pub id: ClusterId,
    pub options: HostOptions,
    pub nodes: Vec<TestNode>,
    /// Nodes that the others reach through something that can be cut.
    pub proxies: BTreeMap<u64, Proxy>,
    seed: u64,
}

pub fn secret() -> ClusterSecret {
    ClusterSecret::new(&Secret::new("a secret for tests only")).unwrap()
}

impl Cluster {
    pub fn new(count: u64, options: HostOptions, seed: u64) -> Self {
        Self::on(false, count, options, seed)
    }

    /// Nodes on real files.
    pub fn on_files(count: u64, options: HostOptions) -> Self {
        Self::on(true, count, options, 1)
    }

    fn on(on_files: bool, count: u64, options: HostOptions, seed: u64) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let nodes = (1..=count)
            .map(|id| TestNode {
                id,
                disk: SimDisk::new(seed * 1000 + id),
                files: on_files.then(|| tempfile::tempdir().unwrap()),
                up: None,
                specs: BTreeMap::new(),
            })
            .collect();
        let mut cluster = Self {
            id: ClusterId::from_random_bytes([9; 16]),
            options,
            nodes,
            proxies: BTreeMap::new(),
            seed,
        };
        for id in 1..=count {
            cluster.start(id);
        }
        cluster
    }

    pub fn three() -> Self {
        Self::new(3, HostOptions::for_tests(), 1)
    }

    pub fn node_mut(&mut self, id: u64) -> &mut TestNode {
        &mut self.nodes[id as usize - 1]
    }

    pub fn node(&self, id: u64) -> &TestNode {
        &self.nodes[id as usize - 1]
    }

    /// Starts a node on whatever its disk holds, and its replicas.
    pub fn start(&mut self, id: u64) {
        self.seed += 1;
        let identity = Identity {
            cluster: self.id,
            node: node(id),
        };
        let (options, seed) = (self.options.clone(), self.seed);
        let this = self.node_mut(id);
        assert!(this.up.is_none(), "node {id} is up");
        let (disk, dir): (Arc<dyn Disk>, PathBuf) = match &this.files {
            Some(dir) => (Arc::new(OsDisk), dir.path().to_owned()),
            None => (this.disk.as_disk(), PathBuf::from("/data")),
        };
        this.up = Some(start_node(identity, disk, dir, options, seed));
        self.tell_addresses();
        let specs: Vec<ReplicaSpec> = self.node(id).specs.values().cloned().collect();
        let _runtime = self.runtime(id).enter();
        for spec in specs {
            self.host(id).ensure(spec).unwrap();
        }
    }

    /// The runtime of a node.
    pub fn runtime(&self, id: u64) -> &Runtime {
        &self.node(id).up.as_ref().expect("the node is up").runtime
    }

    pub fn tell_addresses(&self) {
        let peers: BTreeMap<NodeId, String> = self
            .nodes
            .iter()
            .filter_map(|n| Some((node(n.id), self.way_to(n)?)))
            .collect();
        for up in self.nodes.iter().filter_map(|n| n.up.as_ref()) {
            up.host.set_peers(peers.clone());
        }
    }

    fn way_to(&self, to: &TestNode) -> Option<String> {
        let address = to.up.as_ref()?.address.clone();
        let Some(proxy) = self.proxies.get(&to.id) else {
            return Some(address);
        };
        proxy.set_target(address);
        Some(proxy.address())
    }

    pub fn host(&self, id: u64) -> &RaftHost {
        &self.node(id).up.as_ref().expect("the node is up").host
    }

    /// Stops every thread of a node's runtime, as SIGSTOP does: its connections stay, and nobody answers.
    pub fn freeze(&self, id: u64) -> Frozen {
        let runtime = self.runtime(id);
        let workers = runtime.metrics().num_workers();
        let (tell, stopped) = mpsc::channel();
        let thaw = (0..workers)
            .map(|_| {
                let (thaw, wait) = mpsc::channel::<()>();
                let tell = tell.clone();
                runtime.spawn(async move {
                    tell.send(()).unwrap();
                    // Ends when the other side is dropped.
                    let _ = wait.recv();
                });
                thaw
            })
            .collect();
        for _ in 0..workers {
            stopped.recv_timeout(PATIENCE).expect("a worker takes the task");
        }
        Frozen { _thaw: thaw }
    }

    /// Power loss: what was not synced is gone or torn.
    pub fn power_off(&mut self, id: u64) {
        let this = self.node_mut(id);
        this.disk.crash();
        this.kill_process();
        this.disk.reboot();
        // As storage nodes do: what was open once is never made anew.
        for spec in this.specs.values_mut() {
            spec.opened = true;
        }
    }

    /// Ends a node in order.
    pub fn stop(&mut self, id: u64) {
        let this = self.node_mut(id);
        let up = this.up.take().expect("the node is up");
        up.runtime.block_on(async {
            up.host.stop(Duration::from_secs(10)).await.unwrap();
            up.server.stop(Duration::from_secs(1)).await.ok();
            up.tasks.stop(Duration::from_secs(1)).await.ok();
        });
        drop(up.host);
        up.runtime.shutdown_timeout(Duration::from_secs(5));
    }

    pub fn ensure(&mut self, spec: ReplicaSpec, on: u64) {
        {
            let _runtime = self.runtime(on).enter();
            self.host(on).ensure(spec.clone()).unwrap();
        }
        self.node_mut(on).specs.insert(spec.group, spec);
    }

    /// A group with one replica on each of `nodes`.
    pub fn create(&mut self, group_number: u64, nodes: &[u64]) {
        for id in nodes {
            self.ensure(spec(group_number, *id, nodes), *id);
        }
    }

    /// Deletes a replica for ever.
    pub fn remove(&mut self, group_number: u64, on: u64) {
        let removed = self
            .runtime(on)
            .block_on(self.host(on).remove(group(group_number)));
        removed.unwrap();
        self.node_mut(on).specs.remove(&group(group_number));
    }

    pub fn replica(&self, on: u64, group_number: u64) -> Replica {
        self.host(on)
            .replica(group(group_number))
            .expect("the replica was ensured")
    }

    /// Nodes that are up and have the group.
    fn holders(&self, group_number: u64) -> impl Iterator<Item = u64> + '_ {
        self.nodes
            .iter()
            .filter(move |n| n.up.is_some() && n.specs.contains_key(&group(group_number)))
            .map(|n| n.id)
    }

    /// A leader that takes writes.
    pub fn leader(&self, group_number: u64) -> Leader {
        let on = until("a leader is ready", || {
            self.holders(group_number)
                .filter(|id| self.replica(*id, group_number).leadership().ready)
                .max_by_key(|id| self.replica(*id, group_number).leadership().term)
        });
        Leader::new(on, self.replica(on, group_number))
    }

    /// Waits until every node that is up hears every other one.
    pub fn until_all_are_heard(&self) {
        let up: Vec<u64> = self
            .nodes
            .iter()
            .filter(|n| n.up.is_some())
            .map(|n| n.id)
            .collect();
        for id in &up {
            until(&format!("node {id} hears the others"), || {
                (self.counter(*id, "ptah_nodes_heard") + 1 == up.len() as u64).then_some(())
            });
        }
    }

    /// The leader's side on a node that leads.
    pub fn leader_on(&self, id: u64, group_number: u64) -> Leader {
        Leader::new(id, self.replica(id, group_number))
    }

    /// Where a node that is up listens.
    pub fn address(&self, id: u64) -> String {
        self.node(id).up.as_ref().expect("the node is up").address.clone()
    }

    /// Appends, following the leader, until it is committed; answers where.
    pub fn append(&self, group_number: u64, payload: &[u8]) -> Appended {
        until("a message is committed", || {
            let mut leader = self.leader(group_number);
            leader.append(payload).ok()
        })
    }

    /// Waits until every replica that is up has applied all messages before `next`.
    pub fn until_applied(&self, group_number: u64, next: Sequence) {
        let holders: Vec<u64> = self.holders(group_number).collect();
        for id in holders {
            until(&format!("node {id} has applied up to {next}"), || {
                let replica = self.replica(id, group_number);
                (replica.with_partition(|p| p.next_sequence()) >= next).then_some(())
            });
        }
    }

    /// Payloads of all messages that a replica holds, with their sequences.
    pub fn messages(&self, on: u64, group_number: u64) -> Vec<(u64, Bytes)> {
        let replica = self.replica(on, group_number);
        let (mut next, end) = replica.with_partition(|p| (p.first_sequence(), p.next_sequence()));
        let mut all = Vec::new();
        let runtime = self.runtime(on);
        while next < end {
            let batches = runtime.block_on(replica.read(next, end, 1 << 20)).unwrap();
            assert!(!batches.is_empty(), "messages from {next} are there");
            for batch in batches {
                let base = batch.stamp.base_sequence;
                assert_eq!(ptah_partition::crc32c(&batch.payload), batch.crc);
                let view = BatchView::parse(batch.payload).unwrap();
                for (place, message) in view.iter().enumerate() {
                    all.push((base.get() + place as u64, message.payload_bytes()));
                }
                next = base.advance(view.len() as u64).unwrap();
            }
        }
        all
    }

    /// Value of a counter.
    pub fn counter(&self, on: u64, name: &str) -> u64 {
        let text = self
            .node(on)
            .up
            .as_ref()
            .expect("the node is up")
            .metrics
            .render();
        text.lines()
            .filter_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok())
            .map(|value| value as u64)
            .next()
            .unwrap_or_else(|| panic!("no counter {name} in:\n{text}"))
    }

    pub fn state_of(&self, on: u64, group_number: u64) -> ReplicaState {
        self.replica(on, group_number).status().state
    }

    /// Encoded state of a partition, for comparing replicas.
    pub fn partition_bytes(&self, on: u64, group_number: u64) -> Bytes {
        self.replica(on, group_number).with_partition(|p| {
            p.check().unwrap();
            p.encode()
        })
    }
}

/// A node that does nothing until this is dropped.
pub struct Frozen {
    _thaw: Vec<mpsc::Sender<()>>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.kill_process();
        }
    }
}

impl TestNode {
    /// Lets the node come back without asking for its replicas.
    pub fn forget_specs(&mut self) -> Vec<ReplicaSpec> {
        std::mem::take(&mut self.specs).into_values().collect()
    }

    pub fn kill_process(&mut self) {
        if let Some(up) = self.up.take() {
            up.tasks.begin_stop();
            up.runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

fn start_node(
    identity: Identity,
    disk: Arc<dyn Disk>,
    data_dir: PathBuf,
    options: HostOptions,
    seed: u64,
) -> Up {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let tasks = Tasks::root();
    let network: Arc<dyn Network> = Arc::new(TcpNetwork::new());
    let parts = HostParts {
        disk,
        data_dir,
        identity,
        options,
        ports: Ports::seeded(seed),
        network: Arc::clone(&network),
        secret: secret(),
        tasks: tasks.clone(),
    };
    let metrics = Metrics::new().prefixed("ptah");
    let (host, server) = runtime.block_on(async {
        let host = RaftHost::open(parts, &metrics).await.unwrap();
        let listener = network.bind("127.0.0.1:0").await.unwrap();
        let server = Server::internal(secret())
            .add_service(host.transport_service())
            .serve(listener, &tasks);
        (host, server)
    });
    let address = server.local_addr().to_string();
    Up {
        metrics,
        runtime,
        host,
        tasks,
        server,
        address,
    }
}

pub fn batch_of(payload: &[u8]) -> Batch {
    let mut builder = BatchBuilder::new();
    let parts = MessageParts::new(Door::GRPC, "subject", payload);
    builder.push(&parts, std::iter::empty()).unwrap();
    builder.finish().unwrap()
}

/// The leader's side of a partition, as a storage node has it.
pub struct Leader {
    pub on: u64,
    pub replica: Replica,
    pub reign: u64,
    pub term: ptah_types::Term,
    sequencer: Sequencer,
    clock: u64,
}

pub type Answer = mpsc::Receiver<Result<Committed, ProposeError>>;

impl Leader {
    fn new(on: u64, replica: Replica) -> Self {
        let leadership = replica.leadership();
        let sequencer = replica.with_partition(Sequencer::new);
        Self {
            on,
            term: leadership.term,
            reign: leadership.reign,
            replica,
            sequencer,
            clock: 0,
        }
    }

    /// Proposes one message without waiting.
    pub fn propose(&mut self, payload: &[u8]) -> Result<Answer, ProposeError> {
        let batch = batch_of(payload);
        let head = AppendHead {
            session: None,
            count: batch.count,
        };
        self.sequencer
            .committed(self.replica.with_partition(|p| p.next_sequence()));
        self.clock += 1;
        let Decision::Propose(stamp) = self.sequencer.accept(&head, Timestamp(self.clock)) else {
            return Err(ProposeError::TooMuchInFlight);
        };
        let (tell, answer) = mpsc::channel();
        let done = Box::new(move |result| tell.send(result).unwrap_or(()));
        self.replica
            .propose_batch(self.term, &stamp, batch.payload, batch.crc, done)
            .inspect_err(|_| self.sequencer.poison())?;
        Ok(answer)
    }

    /// Proposes one message and waits.
    pub fn append(&mut self, payload: &[u8]) -> Result<Appended, ProposeError> {
        committed(&self.propose(payload)?)
    }

    /// Proposes commands and waits.
    pub fn command(
        &mut self,
        commands: &[ptah_partition::Command],
    ) -> Result<Vec<ptah_partition::Applied>, ProposeError> {
        let bytes = ptah_partition::encode_commands(commands).unwrap();
        let (tell, answer) = mpsc::channel();
        let done = Box::new(move |result| tell.send(result).unwrap_or(()));
        self.clock += 1;
        self.replica
            .propose_commands(self.term, bytes, Timestamp(self.clock), done)?;
        match answer.recv_timeout(PATIENCE).expect("an answer comes")?.outcome {
            Outcome::Commands(applied) => Ok(applied),
            other => panic!("commands gave {other:?}"),
        }
    }
}

/// Waits for the answer to a proposed message.
pub fn committed(answer: &Answer) -> Result<Appended, ProposeError> {
    match answer.recv_timeout(PATIENCE).expect("an answer comes")?.outcome {
        Outcome::Batch(appended) => Ok(appended),
        other => panic!("a batch gave {other:?}"),
    }
}
