//! Composition root: puts the node together, in order, and takes it apart again.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use ptah_raft::{HostOptions, HostParts, RaftHost};
use ptah_rpc::clients::NodeRegistration;
use ptah_rpc::{Channels, ClusterSecret, Listener, Network, Server, ServerHandle, bind};
use ptah_segment_log::{Disk, OsDisk};
use ptah_service::{Blocking, BoxFuture, Component, Health, Metrics, Ports, Shell, Tasks};
use ptah_types::limits::MAX_BATCH_BYTES;
use ptah_types::{DISK_FORMAT, WIRE_PROTOCOL};

use crate::budget::Budget;
use crate::config::Config;
use crate::control::{ControlLoop, ControlPlanes};
use crate::disk::{DiskChange, DiskGuard};
use crate::grpc::{PartitionGrpc, ReplicaGrpc};
use crate::identity::{Directory, examine, identity_of, new_disk_id};
use crate::metrics::NodeMetrics;
use crate::node::Node;
use crate::placement::{Owner, Placement, PlacementFile, PlacementKeeper};
use crate::shared::{Limits, Shared};
use crate::status::status;

/// How often the room on the disk is looked at.
const DISK_INTERVAL: Duration = Duration::from_secs(1);
/// Entries in flight per partition that are not appends: acks, groups, barriers.
const COMMANDS_IN_FLIGHT: u64 = 1_024;

/// What a node is built from.
pub struct Deps {
    /// Clock and randomness.
    pub ports: Ports,
    /// The network.
    pub network: Arc<dyn Network>,
    /// Owner of the node's tasks.
    pub tasks: Tasks,
    /// Where metrics go.
    pub metrics: Metrics,
    /// Where health and status go.
    pub health: Health,
    /// The file system.
    pub disk: Arc<dyn Disk>,
    /// Times and sizes of replication; limits that the configuration has are taken from there.
    pub host: HostOptions,
}

impl Deps {
    /// Those of a process of its own.
    pub fn from_shell(shell: Shell, network: Arc<dyn Network>) -> Self {
        Self {
            ports: shell.ports,
            network,
            tasks: shell.tasks,
            metrics: shell.metrics,
            health: shell.health,
            disk: Arc::new(OsDisk),
            host: HostOptions::default(),
        }
    }
}

/// A node that serves.
pub struct Running {
    address: SocketAddr,
    tasks: Tasks,
    server: ServerHandle,
    node: Arc<Node>,
    health: Health,
}

/// Starts a node. On an empty data directory this waits for a control plane; otherwise the node serves without one.
pub async fn start(config: Config, deps: Deps) -> anyhow::Result<Running> {
    let tasks = deps.tasks.child("storage-node");
    let started = Starting::new(config, deps, tasks.clone()).await?.run().await;
    if started.is_err() {
        // What was started already must not outlive the failure.
        drop(tasks.stop(Duration::from_secs(5)).await);
    }
    started
}

/// A node on its way up.
struct Starting {
    config: Config,
    deps: Deps,
    tasks: Tasks,
    secret: ClusterSecret,
    blocking: Blocking,
    listener: Box<dyn Listener>,
    advertised: String,
    ready: Component,
}

impl Starting {
    async fn new(config: Config, deps: Deps, tasks: Tasks) -> anyhow::Result<Self> {
        let secret = ClusterSecret::new(&config.cluster.secret)?;
        let listener = bind(&*deps.network, "grpc_listen", &config.grpc_listen).await?;
        let address = listener.local_addr();
        let advertised = match config.advertise_address.as_str() {
            "" => address.to_string(),
            advertised => advertised.to_owned(),
        };
        deps.health.set_address("grpc", address);
        let ready = deps.health.component("replicas");
        ready.not_ready("data directory is not open yet");
        Ok(Self {
            blocking: deps.ports.blocking,
            config,
            deps,
            tasks,
            secret,
            listener,
            advertised,
            ready,
        })
    }

    async fn run(self) -> anyhow::Result<Running> {
        let (control, placement) = self.identify().await?;
        let owner = placement.owner.clone();
        let file = PlacementFile::new(Arc::clone(&self.deps.disk), &self.config.data_dir);
        let host = self.open_host(&owner).await?;
        let shared = self.shared();
        self.look_at_disk(&shared).await;
        let budget = Budget::new(self.config.append.node_bytes);
        let leaders = self.tasks.child("leaders");
        let node = Arc::new(Node::new(shared, host, budget, leaders));
        let segment_bytes = self.config.partition.segment_bytes;
        let (keeper, task) = PlacementKeeper::new(
            file,
            Arc::clone(&node),
            self.blocking,
            segment_bytes,
            placement,
            self.ready,
        );
        let stopping = self.tasks.stopping();
        let server = Server::internal(self.secret.clone())
            .metrics(&self.deps.metrics)
            .health(&self.deps.health)
            .add_service(node.host.transport_service())
            .add_service(PartitionGrpc::server(Arc::clone(&node), stopping.clone()))
            .add_service(ReplicaGrpc::server(keeper.clone()))
            .serve(self.listener, &self.deps.tasks);
        spawn_loops(&self.tasks, &node);
        let placing = stopping.clone();
        self.tasks.spawn_critical("placement", async move {
            task.run(placing).await;
            Ok(())
        });
        let (reporting, reporter) = (Arc::clone(&node), keeper.clone());
        self.tasks.spawn_critical("control-plane", async move {
            control.run(reporting, reporter, stopping).await;
            Ok(())
        });
        provide_status(&self.deps.health, &node, keeper);
        let address = server.local_addr();
        tracing::info!(node = %owner.node, cluster = %owner.cluster, %address, advertised = %self.advertised, "listening");
        Ok(Running {
            address,
            tasks: self.tasks,
            server,
            node,
            health: self.deps.health,
        })
    }

    /// Finds out whose directory it is; on an empty one, asks the control plane. Nothing is written before that.
    async fn identify(&self) -> anyhow::Result<(ControlLoop, Placement)> {
        let node = self.config.node()?;
        let (disk, dir) = (Arc::clone(&self.deps.disk), self.config.data_dir.clone());
        let examined = self.blocking.run(move || examine(&disk, &dir, node)).await??;
        let mut registration = NodeRegistration {
            node,
            name: self.config.node_name()?,
            address: self.advertised.clone(),
            cluster: None,
            disk_id: String::new(),
            wire: WIRE_PROTOCOL,
            disk: DISK_FORMAT,
            zone: self.config.zone.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        match &examined {
            Directory::Empty => registration.disk_id = new_disk_id(&*self.deps.ports.random),
            Directory::Ours(placement) => {
                registration.cluster = Some(placement.owner.cluster);
                registration.disk_id.clone_from(&placement.owner.disk_id);
            }
        }
        let channels = Channels::new(Arc::clone(&self.deps.network), self.secret.clone());
        let planes = ControlPlanes::new(channels, self.config.control_plane_addresses.to_vec());
        let component = self.deps.health.component("control-plane");
        let mut control = ControlLoop::new(planes, registration.clone(), self.deps.ports.clone(), component);
        if let Directory::Ours(placement) = examined {
            // A directory that was copied, restored or swapped is refused before it is used, if anybody can tell.
            control.ask_once().await.with_context(|| self.describe_dir())?;
            return Ok((control, placement));
        }
        tracing::info!(dir = %self.config.data_dir.display(), "data directory is empty, asking the control plane");
        let stopping = self.tasks.stopping();
        let registered = control
            .register(&stopping)
            .await
            .with_context(|| self.describe_dir())?;
        let registered = registered.context("stopped before a control plane answered")?;
        let placement = Placement::empty(Owner {
            cluster: registered.cluster,
            node,
            disk_id: registration.disk_id.clone(),
        });
        let file = PlacementFile::new(Arc::clone(&self.deps.disk), &self.config.data_dir);
        let stored = placement.clone();
        self.blocking.run(move || file.store(&stored)).await??;
        control.set_cluster(registered.cluster);
        Ok((control, placement))
    }

    fn describe_dir(&self) -> String {
        let dir: &Path = &self.config.data_dir;
        format!("use data directory {}", dir.display())
    }

    async fn open_host(&self, owner: &Owner) -> anyhow::Result<RaftHost> {
        let mut options = self.deps.host.clone();
        // The leader refuses appends at its own bounds; a proposal that the log refuses would cost a barrier.
        options.max_in_flight_bytes = self.config.append.partition_bytes + 2 * MAX_BATCH_BYTES as u64;
        options.max_in_flight_entries = ptah_partition::MAX_IN_FLIGHT_APPENDS as u64 + COMMANDS_IN_FLIGHT;
        let parts = HostParts {
            disk: Arc::clone(&self.deps.disk),
            data_dir: self.config.data_dir.clone(),
            identity: identity_of(owner),
            options,
            ports: self.deps.ports.clone(),
            network: Arc::clone(&self.deps.network),
            secret: self.secret.clone(),
            tasks: self.tasks.clone(),
        };
        let host = RaftHost::open(parts, &self.deps.metrics.prefixed("ptah_raft")).await;
        host.with_context(|| self.describe_dir())
    }

    /// The first look: reports and refusals tell the truth from the beginning.
    async fn look_at_disk(&self, shared: &Shared) {
        let (disk, dir) = (Arc::clone(&self.deps.disk), self.config.data_dir.clone());
        match self.blocking.run(move || disk.space(&dir)).await {
            Ok(Ok(space)) => note_space(shared, space.total_bytes, space.available_bytes),
            Ok(Err(error)) | Err(error) => {
                tracing::warn!(%error, dir = %self.config.data_dir.display(), "room on the data disk is not known yet");
            }
        }
    }

    fn shared(&self) -> Arc<Shared> {
        Arc::new(Shared::new(
            self.deps.ports.clone(),
            Limits::new(&self.config),
            NodeMetrics::register(&self.deps.metrics),
            DiskGuard::new(self.config.disk.clone()),
        ))
    }
}

/// Tasks that run as long as the node does.
fn spawn_loops(tasks: &Tasks, node: &Arc<Node>) {
    let leaders = Arc::clone(node);
    tasks.spawn_critical("leaders", async move {
        leaders.follow_leaders().await;
        Ok(())
    });
    let (driven, stopping) = (Arc::clone(node), tasks.stopping());
    tasks.spawn_critical("members", async move {
        driven.drive_members(stopping).await;
        Ok(())
    });
    let failing = Arc::clone(node);
    let stopping = tasks.stopping();
    tasks.spawn_critical("store", async move {
        tokio::select! {
            () = stopping.cancelled() => Ok(()),
            why = failing.host.failed() => anyhow::bail!("storage failed, nothing can be acknowledged any more: {why}"),
        }
    });
    let (watched, stopping) = (Arc::clone(node), tasks.stopping());
    tasks.spawn_critical("disk", async move {
        loop {
            watch_disk(&watched);
            tokio::select! {
                () = stopping.cancelled() => return Ok(()),
                () = tokio::time::sleep(DISK_INTERVAL) => {}
            }
        }
    });
}

fn watch_disk(node: &Node) {
    let space = node.host.disk_space();
    if space.total_bytes == 0 {
        return;
    }
    note_space(&node.shared, space.total_bytes, space.available_bytes);
}

fn note_space(shared: &Shared, total_bytes: u64, free_bytes: u64) {
    let (guard, metrics) = (&shared.disk, &shared.metrics);
    let change = guard.observe(total_bytes, free_bytes);
    metrics.disk_full.set(i64::from(guard.is_full()));
    metrics
        .disk_free_bytes
        .set(i64::try_from(free_bytes).unwrap_or(i64::MAX));
    match change {
        DiskChange::None => {}
        DiskChange::Full => tracing::error!(
            free_bytes,
            total_bytes,
            "data disk is nearly full, new messages are refused; add room or delete stations"
        ),
        DiskChange::Recovered => {
            tracing::info!(free_bytes, "data disk has room again, messages are taken");
        }
    }
}

fn provide_status(health: &Health, node: &Arc<Node>, keeper: PlacementKeeper) {
    let node = Arc::downgrade(node);
    health.provide("storage", move || {
        node.upgrade()
            .map_or(serde_json::Value::Null, |node| status(&node, &keeper))
    });
}

impl Running {
    /// Where the node listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops: nothing new, what was accepted is answered, leaderships move, everything is flushed.
    pub async fn stop(self, deadline: Duration) -> anyhow::Result<()> {
        self.health.set_stopping();
        let end = tokio::time::Instant::now() + deadline;
        // Streams stay open meanwhile: gateways are told who leads next, and what is still led here is served.
        self.node.host.hand_over(deadline / 2).await;
        self.tasks.begin_stop();
        let left = end.saturating_duration_since(tokio::time::Instant::now());
        let host = self.node.host.stop(left).await;
        self.node.end_all();
        let left = end.saturating_duration_since(tokio::time::Instant::now());
        let server = self.server.stop(left.max(Duration::from_millis(200))).await;
        let left = end.saturating_duration_since(tokio::time::Instant::now());
        let tasks = self.tasks.stop(left.max(Duration::from_millis(200))).await;
        host.context("stop replicas")?;
        server.context("stop the listener")?;
        tasks.context("stop tasks")
    }
}

impl ptah_service::Running for Running {
    fn stop(self: Box<Self>, deadline: Duration) -> BoxFuture<'static, anyhow::Result<()>> {
        Box::pin(Running::stop(*self, deadline))
    }
}
