//! Composition: settings in, running service out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ptah_rpc::{
    Channels, ClusterSecret, MAX_RPC_MESSAGE_BYTES, MetadataClient, Network, Server, ServerHandle,
};
use ptah_service::{BoxFuture, Health, Metrics as Registry, Ports, Running, Settings, Shell, Tasks};

use crate::cluster::Cluster;
use crate::config::Config;
use crate::decide::{Decider, DeciderParts};
use crate::grpc::{Handlers, ManagementServiceServer, NodeServiceServer};
use crate::lease::{Lease, LeaseKeeper};
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::reconcile::{self, ReconcileParts};
use crate::sync::{Follower, Metadata};

/// What the service needs from outside.
pub struct Deps {
    /// Clock and randomness.
    pub ports: Ports,
    /// Where to listen, and the way to the others.
    pub network: Arc<dyn Network>,
    /// Owner of the service's tasks.
    pub tasks: Tasks,
    /// Where to register metrics.
    pub metrics: Registry,
    /// Where to tell readiness and addresses.
    pub health: Health,
}

impl Deps {
    /// Everything from the process shell.
    pub fn from_shell(shell: Shell, network: Arc<dyn Network>) -> Self {
        Self {
            ports: shell.ports,
            network,
            tasks: shell.tasks,
            metrics: shell.metrics,
            health: shell.health,
        }
    }
}

/// The running service.
pub struct ControlPlane {
    address: SocketAddr,
    lease: Lease,
    server: ServerHandle,
    tasks: Tasks,
}

/// Starts the service. It answers at once, and decides as soon as it holds the lease and has read metadata.
pub async fn start(config: Config, deps: Deps) -> anyhow::Result<ControlPlane> {
    config.validate()?;
    let secret = ClusterSecret::new(&config.cluster.secret)?;
    let listener = ptah_rpc::bind(deps.network.as_ref(), "grpc_listen", &config.grpc_listen).await?;
    let address = listener.local_addr();
    let channels = Channels::new(deps.network.clone(), secret.clone());
    let client = MetadataClient::new(
        channels
            .to_any(&config.metadata_addresses)
            .context("setting `metadata_addresses`")?,
    );
    let parts = Parts {
        metrics: Metrics::new(&deps.metrics),
        cluster: Cluster {
            metadata: Metadata::new(),
            nodes: Nodes::new(config.node_alive_window()),
            lease: Lease::new(),
        },
        tasks: deps.tasks.child("control-plane"),
        channels,
        client,
    };
    parts.follow(&deps);
    parts.keep_lease(&config, &deps)?;
    let handlers = parts.decide(&config, &deps);
    parts.reconcile(&deps);
    let server = Server::internal(secret)
        .metrics(&deps.metrics)
        .health(&deps.health)
        .add_service(
            ManagementServiceServer::new(handlers.clone())
                .max_decoding_message_size(MAX_RPC_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_RPC_MESSAGE_BYTES),
        )
        .add_service(
            NodeServiceServer::new(handlers)
                .max_decoding_message_size(MAX_RPC_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_RPC_MESSAGE_BYTES),
        )
        .serve(listener, &deps.tasks);
    deps.health.set_address("grpc", address);
    Ok(ControlPlane {
        address,
        lease: parts.cluster.lease,
        server,
        tasks: parts.tasks,
    })
}

/// What the tasks share.
struct Parts {
    metrics: Metrics,
    cluster: Cluster,
    tasks: Tasks,
    channels: Channels,
    client: MetadataClient,
}

impl Parts {
    fn follow(&self, deps: &Deps) {
        let follower = Follower {
            client: self.client.clone(),
            metadata: self.cluster.metadata.clone(),
            component: deps.health.component("metadata"),
            random: deps.ports.random.clone(),
        };
        self.tasks
            .spawn_critical("follow-metadata", ended(follower.run(self.tasks.stopping())));
    }

    fn keep_lease(&self, config: &Config, deps: &Deps) -> anyhow::Result<()> {
        let start = deps.ports.random.next_u64();
        let keeper = LeaseKeeper {
            client: self.client.clone(),
            lease: self.cluster.lease.clone(),
            instance: config.instance_name(start)?,
            start,
            ttl: config.lease_ttl(),
            component: deps.health.component("lease"),
        };
        self.tasks
            .spawn_critical("keep-lease", ended(keeper.run(self.tasks.stopping())));
        Ok(())
    }

    fn decide(&self, config: &Config, deps: &Deps) -> Handlers {
        let (decider, decisions) = Decider::new(DeciderParts {
            client: self.client.clone(),
            metadata: self.cluster.metadata.clone(),
            lease: self.cluster.lease.clone(),
            nodes: self.cluster.nodes.clone(),
            ports: deps.ports.clone(),
            bootstrap: config.bootstrap.clone(),
            report_interval: config.report_interval(),
            moves: config.replicas.limits(),
            metrics: self.metrics.clone(),
            component: deps.health.component("decisions"),
        });
        self.tasks
            .spawn_critical("decide", ended(decider.run(self.tasks.stopping())));
        Handlers {
            decisions,
            cluster: self.cluster.clone(),
        }
    }

    fn reconcile(&self, deps: &Deps) {
        let parts = ReconcileParts {
            metadata: self.cluster.metadata.clone(),
            nodes: self.cluster.nodes.clone(),
            lease: self.cluster.lease.clone(),
            channels: self.channels.clone(),
            random: deps.ports.random.clone(),
            metrics: self.metrics.clone(),
        };
        let tasks = self.tasks.child("reconcile");
        self.tasks
            .spawn_critical("reconcile", ended(reconcile::run(parts, tasks)));
    }
}

/// A loop that only ends when the service stops, for an owner that must know when it panics.
async fn ended(run: impl Future<Output = ()>) -> anyhow::Result<()> {
    run.await;
    Ok(())
}

impl ControlPlane {
    /// Where the service listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether this control plane decides now.
    pub fn decides(&self) -> bool {
        self.lease.authority().is_ok()
    }
}

impl Running for ControlPlane {
    fn stop(self: Box<Self>, deadline: Duration) -> BoxFuture<'static, anyhow::Result<()>> {
        Box::pin(async move {
            let served = self.server.stop(deadline).await.context("stop serving");
            // Gives the lease up, so that another control plane takes over at once.
            let ended = self.tasks.stop(Duration::from_secs(5)).await.context("end tasks");
            served.and(ended)
        })
    }
}
