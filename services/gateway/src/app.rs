//! Builds the gateway out of its parts, in order. Decides nothing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::BoxFuture;
use ptah_rpc::{Channels, ClusterSecret, MessageBudget, Network, Server, ServerHandle, bind};
use ptah_service::{Health, Metrics, Ports, Running, Shell, Tasks};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::info;

use crate::append::{AppendParts, Appends};
use crate::auth::Auth;
use crate::catalog::Catalog;
use crate::catalog::file::CatalogFile;
use crate::catalog::sync::CatalogSync;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::consume::budget::ConsumeBudget;
use crate::consume::{ConsumeParts, Consumer};
use crate::control::Control;
use crate::grpc::append_link::GrpcAppends;
use crate::grpc::catalog_file::CODEC;
use crate::grpc::deliver_link::GrpcDeliveries;
use crate::grpc::metadata::GrpcMetadata;
use crate::grpc::nodes::GrpcNodes;
use crate::grpc::{self, Services};
use crate::leaders::Leaders;
use crate::metrics::GatewayMetrics;
use crate::produce::Producer;
use crate::routing::Routing;
use crate::routing::watch_nodes::NodeWatch;
use crate::stations::Stations;

/// What the gateway takes from its process.
pub struct Deps {
    /// Clock and randomness.
    pub ports: Ports,
    /// Connections.
    pub network: Arc<dyn Network>,
    /// Owner of its tasks.
    pub tasks: Tasks,
    /// Counters.
    pub metrics: Metrics,
    /// Health.
    pub health: Health,
}

impl Deps {
    /// The parts of a process of its own.
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

/// A gateway that runs.
pub struct Gateway {
    /// Address for clients.
    pub address: std::net::SocketAddr,
    health: Health,
    server: ServerHandle,
    appends: Appends,
    /// Streams of clients; they end first.
    streams: Tasks,
    tasks: Tasks,
}

/// Parts that the others stand on.
struct Base {
    config: Config,
    tasks: Tasks,
    metrics: GatewayMetrics,
    ports: Ports,
    channels: Channels,
    catalog: Catalog,
    routing: Routing,
    nodes: Arc<GrpcNodes>,
}

/// Starts a gateway. It answers when its listener is bound; [`Gateway::ready`] tells when it is of use.
pub async fn start(config: Config, deps: Deps) -> anyhow::Result<Gateway> {
    let tasks = deps.tasks.child("gateway");
    let secret = ClusterSecret::new(&config.cluster.secret).context("read `cluster.secret`")?;
    let channels = Channels::new(Arc::clone(&deps.network), secret);
    let listener = bind(&*deps.network, "grpc_listen", &config.grpc_listen).await?;
    let base = Base {
        metrics: GatewayMetrics::new(&deps.metrics),
        ports: deps.ports,
        catalog: Catalog::new(),
        routing: Routing::new(),
        nodes: Arc::new(GrpcNodes {
            channels: channels.clone(),
            gateway: config.name.clone(),
        }),
        channels,
        tasks,
        config,
    };
    let cluster_id = base.follow_metadata(&deps.health).await;
    base.follow_nodes(&deps.health);
    let appends = base.appends();
    let streams = base.tasks.child("streams");
    let services = base.services(appends.clone(), cluster_id, streams.clone());
    let server = Server::public(MessageBudget::new(base.config.produce.budget_bytes))
        .metrics(&deps.metrics)
        .health(&deps.health);
    let server = grpc::add_to(server, services).serve(listener, &base.tasks);
    let address = server.local_addr();
    deps.health.set_address("grpc", address);
    info!(%address, "listening");
    Ok(Gateway {
        address,
        health: deps.health,
        server,
        appends,
        streams,
        tasks: base.tasks,
    })
}

impl Base {
    /// Fills the catalog, first from its file. Returns where the cluster's id will be told.
    async fn follow_metadata(&self, health: &Health) -> watch::Receiver<String> {
        let stopping = || self.tasks.stopping();
        if !self.config.catalog_file.as_os_str().is_empty() {
            let file = CatalogFile {
                path: self.config.catalog_file.clone(),
                codec: CODEC,
                blocking: self.ports.blocking,
            };
            file.restore(&self.catalog).await;
            self.tasks
                .spawn("catalog-file", file.follow(self.catalog.clone(), stopping()));
        }
        let metadata = Arc::new(GrpcMetadata {
            channels: self.channels.clone(),
            addresses: self.config.metadata_addresses.to_vec(),
        });
        let cluster_id = follow_cluster_id(&self.tasks, Arc::clone(&metadata));
        let sync = CatalogSync {
            catalog: self.catalog.clone(),
            source: metadata,
            random: Arc::clone(&self.ports.random),
            component: health.component("catalog"),
            metrics: self.metrics.catalog.clone(),
        };
        self.tasks.spawn("catalog", sync.run(stopping()));
        cluster_id
    }

    fn follow_nodes(&self, health: &Health) {
        let watch = NodeWatch {
            routing: self.routing.clone(),
            catalog: self.catalog.clone(),
            source: Arc::clone(&self.nodes) as _,
            random: Arc::clone(&self.ports.random),
            metrics: self.metrics.routing.clone(),
        };
        let (tasks, component) = (self.tasks.child("routing"), health.component("routing"));
        self.tasks
            .spawn("routing", watch.run(tasks, component, self.tasks.stopping()));
    }

    fn appends(&self) -> Appends {
        let appends = Appends::new(AppendParts {
            settings: self.config.append_settings(),
            routing: self.routing.clone(),
            catalog: self.catalog.clone(),
            transport: Arc::new(GrpcAppends {
                channels: self.channels.clone(),
                gateway: self.config.name.clone(),
            }),
            random: Arc::clone(&self.ports.random),
            metrics: self.metrics.append.clone(),
            tasks: self.tasks.child("append"),
        });
        let follow = appends.clone().follow_catalog(self.tasks.stopping());
        self.tasks.spawn("append-catalog", follow);
        appends
    }

    fn services(&self, appends: Appends, cluster_id: watch::Receiver<String>, streams: Tasks) -> Services {
        let (config, metrics, catalog) = (&self.config, &self.metrics, &self.catalog);
        let leaders = Leaders {
            routing: self.routing.clone(),
            catalog: catalog.clone(),
            random: Arc::clone(&self.ports.random),
            calls: Arc::clone(&self.nodes) as _,
        };
        let addresses = config.control_plane_addresses.0.clone();
        let control = Control::new(
            self.channels.clone(),
            addresses,
            config.metadata_addresses.to_vec(),
            Arc::clone(&self.ports.random),
            catalog.clone(),
        );
        let consumer = Consumer::new(ConsumeParts {
            settings: config.consume_settings(),
            budget: ConsumeBudget::new(config.consume.budget_bytes),
            leaders: leaders.clone(),
            control: control.clone(),
            transport: Arc::new(GrpcDeliveries {
                channels: self.channels.clone(),
                gateway: config.name.clone(),
            }),
            random: Arc::clone(&self.ports.random),
            metrics: metrics.consume.clone(),
            tasks: self.tasks.child("consume"),
            streams: streams.child("consume"),
        });
        Services {
            auth: Auth::new(
                catalog.clone(),
                &config.metadata_addresses,
                config.auth_settings(),
                &self.ports,
                metrics.auth.clone(),
            ),
            producer: Producer::new(
                catalog.clone(),
                appends,
                metrics.produce.clone(),
                config.in_flight_limit(),
            ),
            consumer,
            stations: Stations {
                catalog: catalog.clone(),
                control: control.clone(),
                leaders,
                create_deadline: Duration::from_millis(config.create_deadline_ms),
            },
            cluster: Cluster {
                catalog: catalog.clone(),
                routing: self.routing.clone(),
                control,
                cluster_id,
            },
            tasks: streams,
            produce_metrics: metrics.produce.clone(),
            consume_metrics: metrics.consume.clone(),
        }
    }
}

/// Asks for the cluster's id until it is told.
fn follow_cluster_id(tasks: &Tasks, metadata: Arc<GrpcMetadata>) -> watch::Receiver<String> {
    let (told, id) = watch::channel(String::new());
    let stopping = tasks.stopping();
    tasks.spawn("cluster-id", async move {
        while !stopping.is_stopping() {
            if let Ok(client) = metadata.client()
                && let Ok(info) = client.info().await
            {
                told.send_replace(info.cluster.to_string());
                return;
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    });
    id
}

impl Gateway {
    /// Waits until it is of use: the catalog is loaded and storage nodes are reached.
    pub async fn ready(&self) {
        self.health.until_ready().await;
    }

    /// Stops: streams end, accepted messages are stored, then everything else.
    pub async fn shut_down(self, limit: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        let left = || deadline.saturating_duration_since(Instant::now());
        self.streams.begin_stop();
        // Messages that were accepted get half of the time; the rest is for telling their producers.
        let serving = self.server.stop(limit);
        let (served, unfinished) = tokio::join!(serving, self.appends.drain(limit / 2));
        self.tasks
            .stop(left().max(Duration::from_millis(500)))
            .await
            .context("stop tasks")?;
        served.context("stop the server")?;
        anyhow::ensure!(
            unfinished == 0,
            "messages for {unfinished} partitions found no end in time; their producers were told"
        );
        Ok(())
    }
}

impl Running for Gateway {
    fn stop(self: Box<Self>, deadline: Duration) -> BoxFuture<'static, anyhow::Result<()>> {
        Box::pin((*self).shut_down(deadline))
    }
}
