//! Composition: settings in, running service out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ptah_rpc::{ClusterSecret, MAX_RPC_MESSAGE_BYTES, Network, Server, ServerHandle};
use ptah_service::{BoxFuture, Component, Health, Metrics as Registry, Ports, Running, Shell, Tasks};

use crate::config::Config;
use crate::grpc::{MetadataHandlers, MetadataServiceServer};
use crate::metrics::Metrics;
use crate::store::{self, PostgresOptions, PostgresStore, SqliteOptions, SqliteStore, Store};
use crate::watch::{Pace, Watches};

/// What the service needs from outside.
pub struct Deps {
    /// Clock and randomness.
    pub ports: Ports,
    /// Where to listen.
    pub network: Arc<dyn Network>,
    /// Owner of the service's tasks.
    pub tasks: Tasks,
    /// Where to register metrics.
    pub metrics: Registry,
    /// Where to tell readiness and addresses.
    pub health: Health,
    /// The store; `None` opens the database of the settings.
    pub store: Option<Arc<dyn Store>>,
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
            store: None,
        }
    }
}

/// The running service.
pub struct Metadata {
    address: SocketAddr,
    server: ServerHandle,
    watch_tasks: Tasks,
    store_tasks: Tasks,
    component: Component,
}

/// Starts the service: the store first, then the listener.
pub async fn start(config: Config, deps: Deps) -> anyhow::Result<Metadata> {
    let component = deps.health.component("metadata-store");
    let secret = ClusterSecret::new(&config.cluster.secret)?;
    let listener = ptah_rpc::bind(deps.network.as_ref(), "grpc_listen", &config.grpc_listen).await?;
    let address = listener.local_addr();
    let store_tasks = deps.tasks.child("metadata-store");
    let store = match deps.store {
        Some(store) => store,
        None => open_store(&config, &deps.ports, &store_tasks).await?,
    };
    let metrics = Metrics::new(&deps.metrics);
    let watch_tasks = deps.tasks.child("metadata-watches");
    let watches = Watches::new(
        store.clone(),
        watch_tasks.clone(),
        config.max_watches,
        Pace::default(),
        metrics.clone(),
    );
    let handlers = MetadataHandlers {
        store,
        watches,
        metrics,
    };
    let service = MetadataServiceServer::new(handlers)
        .max_decoding_message_size(MAX_RPC_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_RPC_MESSAGE_BYTES);
    let server = Server::internal(secret)
        .metrics(&deps.metrics)
        .health(&deps.health)
        .add_service(service)
        .serve(listener, &deps.tasks);
    deps.health.set_address("grpc", address);
    component.ready();
    Ok(Metadata {
        address,
        server,
        watch_tasks,
        store_tasks,
        component,
    })
}

/// Opens the database that the URL names.
async fn open_store(config: &Config, ports: &Ports, tasks: &Tasks) -> anyhow::Result<Arc<dyn Store>> {
    if store::is_postgres(&config.database_url) {
        let options = PostgresOptions {
            database_url: config.database_url.clone(),
            max_connections: config.database_max_connections,
            history_changes: config.history_changes,
        };
        return Ok(Arc::new(PostgresStore::open(&options, ports, tasks).await?));
    }
    let options = SqliteOptions {
        database_url: config.database_url.clone(),
        history_changes: config.history_changes,
    };
    let store = SqliteStore::open(&options, ports, tasks).await?;
    Ok(Arc::new(store))
}

impl Metadata {
    /// Where the service listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Running for Metadata {
    fn stop(self: Box<Self>, deadline: Duration) -> BoxFuture<'static, anyhow::Result<()>> {
        Box::pin(async move {
            self.component.not_ready("stopping");
            // Watches would keep their calls open for ever: end them first, the watchers resume elsewhere.
            self.watch_tasks.begin_stop();
            let served = self.server.stop(deadline).await.context("stop serving");
            let watched = self
                .watch_tasks
                .stop(Duration::from_secs(1))
                .await
                .context("end watches");
            // Last, when nobody writes any more.
            let stored = self
                .store_tasks
                .stop(Duration::from_secs(5))
                .await
                .context("close the store");
            served.and(watched).and(stored)
        })
    }
}
