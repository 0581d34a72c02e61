//! Servers: gRPC services on a listener, with limits, credentials, health and reflection, stopped in order.
//!
//! An internal server serves only callers with the cluster's proof and fitting versions, also for health and
//! reflection. A public one serves everybody, reads messages within a [`MessageBudget`], and leaves users and
//! permissions to its services.
//!
//! What must hold: a panic of a handler is answered and logged, it ends its own call only; connections, calls and
//! messages are bounded; after [`ServerHandle::stop`] nothing of the server runs.

mod connection;
mod front;
mod methods;
mod metrics;
mod options;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use ptah_service::{Health, Metrics, Tasks, Unfinished};
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::Service;

use crate::{ClusterSecret, Listener, MessageBudget, RequestLimits};

pub use connection::ConnectionCut;
pub use front::Peer;
pub use options::ServerOptions;

use connection::Acceptor;
use front::{Admission, Front};
use methods::Methods;
use metrics::ServerMetrics;

/// Descriptors of everything that a server can serve.
const DESCRIPTORS: [&[u8]; 3] = [
    ptah_proto::FILE_DESCRIPTORS,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
];

/// Services that are to be served on one address.
pub struct Server {
    admission: Admission,
    options: ServerOptions,
    metrics: Option<Metrics>,
    health: Option<Health>,
    routes: Routes,
    names: Vec<&'static str>,
}

/// A server that runs.
#[derive(Clone, Debug)]
pub struct ServerHandle {
    local: SocketAddr,
    tasks: Tasks,
}

impl Server {
    /// A server for processes of the cluster.
    pub fn internal(secret: ClusterSecret) -> Self {
        Self::new(Admission::Cluster(secret), ServerOptions::internal())
    }

    /// A server for outside programs.
    pub fn public(budget: MessageBudget) -> Self {
        let methods = Methods::of(&DESCRIPTORS, RequestLimits::default());
        Self::new(Admission::Public(budget, methods), ServerOptions::public())
    }

    fn new(admission: Admission, options: ServerOptions) -> Self {
        Self {
            admission,
            options,
            metrics: None,
            health: None,
            routes: Routes::default(),
            names: Vec::new(),
        }
    }

    /// Other limits than the defaults.
    #[must_use]
    pub fn options(mut self, options: ServerOptions) -> Self {
        self.options = options;
        self
    }

    /// Other limits of what requests contain than the defaults. Only a public server looks into requests.
    #[must_use]
    pub fn request_limits(mut self, limits: RequestLimits) -> Self {
        if let Admission::Public(_, methods) = &mut self.admission {
            *methods = Methods::of(&DESCRIPTORS, limits);
        }
        self
    }

    /// Counts calls and connections there; names start with `ptah_rpc_server`, the label `listener` is the address.
    #[must_use]
    pub fn metrics(mut self, metrics: &Metrics) -> Self {
        self.metrics = Some(metrics.clone());
        self
    }

    /// Lets the gRPC health service tell the process's readiness. Without it, it tells that it serves.
    #[must_use]
    pub fn health(mut self, health: &Health) -> Self {
        self.health = Some(health.clone());
        self
    }

    /// Adds a generated server. Set its message limits before: `max_decoding_message_size` and
    /// `max_encoding_message_size` with [`crate::MAX_RPC_MESSAGE_BYTES`].
    #[must_use]
    pub fn add_service<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.names.push(S::NAME);
        self.routes = self.routes.add_service(service);
        self
    }

    /// Serves on `listener` as tasks of `tasks`, until they are stopped or [`ServerHandle::stop`] is called.
    pub fn serve(self, listener: Box<dyn Listener>, tasks: &Tasks) -> ServerHandle {
        let tasks = tasks.child("grpc-server");
        let local = listener.local_addr();
        let (reporter, health_service) = tonic_health::server::health_reporter();
        let mut server = self.add_service(health_service);
        server.add_reflection();
        let Server {
            admission,
            options,
            metrics,
            health,
            routes,
            names,
        } = server;
        let metrics = ServerMetrics::new(metrics.as_ref(), &local.to_string(), &names);
        report_health(reporter, health, names, &tasks);
        let front = Front {
            admission,
            routes: routes.prepare(),
            running: Arc::new(Semaphore::new(options.max_requests)),
            metrics: metrics.clone(),
            options: options.clone(),
        };
        let acceptor = Acceptor::new(front, options, metrics, tasks.clone());
        tasks.spawn("accept", acceptor.run(listener));
        tracing::info!(address = %local, "listening");
        ServerHandle { local, tasks }
    }

    fn add_reflection(&mut self) {
        let mut builder = tonic_reflection::server::Builder::configure();
        for descriptors in DESCRIPTORS {
            builder = builder.register_encoded_file_descriptor_set(descriptors);
        }
        // Only what is served here is told.
        for name in &self.names {
            builder = builder.with_service_name(*name);
        }
        match builder.build_v1() {
            Ok(service) => self.routes = std::mem::take(&mut self.routes).add_service(service),
            // The descriptors are part of the build; without them calls work all the same.
            Err(error) => tracing::error!(%error, "reflection is not served"),
        }
    }
}

fn report_health(reporter: HealthReporter, health: Option<Health>, names: Vec<&'static str>, tasks: &Tasks) {
    let stopping = tasks.stopping();
    let say = move |ready: bool| {
        let (reporter, names) = (reporter.clone(), names.clone());
        let status = if ready {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        async move {
            // The empty name stands for the process.
            for name in std::iter::once("").chain(names) {
                reporter.set_service_status(name, status).await;
            }
        }
    };
    tasks.spawn("health", async move {
        let mut ready = health.as_ref().is_none_or(Health::is_ready);
        loop {
            say(ready).await;
            let changed = async {
                match &health {
                    Some(health) => health.until(!ready).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stopping.cancelled() => break,
                () = changed => ready = !ready,
            }
        }
        say(false).await;
    });
}

impl ServerHandle {
    /// The address, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Stops: no new connections and calls, accepted calls finish, and at the deadline what is left is cut off.
    pub async fn stop(&self, deadline: Duration) -> Result<(), Unfinished> {
        self.tasks.stop(deadline).await
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("services", &self.names)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
