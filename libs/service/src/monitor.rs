//! Monitor endpoints: how the process is, for people and probes, and metrics for Prometheus.

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, response::Response};
use serde_json::json;
use tokio::net::TcpListener;

use crate::config::MonitorConfig;
use crate::{Health, Metrics, Tasks};

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listen on `{address}` (setting `{key}`): {source}; {}", advice(source))]
pub struct BindError {
    /// Setting that gave the address.
    pub key: String,
    /// The address.
    pub address: String,
    /// What the operating system says.
    pub source: io::Error,
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "stop the process that uses it or set another port",
        io::ErrorKind::PermissionDenied => "use a port above 1023 or give the process the right to bind it",
        io::ErrorKind::AddrNotAvailable => "use an address of this machine",
        _ => "use host:port with an address of this machine",
    }
}

/// The two endpoints. Started by the process shell, not under simulation.
#[derive(Debug)]
pub struct Monitor;

impl Monitor {
    /// Binds both addresses and serves them as tasks of `tasks`. The real addresses are told to `health` as
    /// `monitor` and `metrics`.
    pub async fn start(
        config: &MonitorConfig,
        health: &Health,
        metrics: &Metrics,
        tasks: &Tasks,
    ) -> Result<(), BindError> {
        let monitor = bind("monitor.monitor_listen", &config.monitor_listen).await?;
        let prometheus = bind("monitor.metrics_listen", &config.metrics_listen).await?;
        if let Some((listener, address)) = monitor {
            health.set_address("monitor", address);
            serve(listener, monitor_routes(health.clone()), "monitor", tasks);
        }
        if let Some((listener, address)) = prometheus {
            health.set_address("metrics", address);
            serve(listener, metrics_routes(metrics.clone()), "metrics", tasks);
        }
        Ok(())
    }
}

async fn bind(key: &str, address: &str) -> Result<Option<(TcpListener, SocketAddr)>, BindError> {
    if address.is_empty() {
        return Ok(None);
    }
    let bound = async {
        let listener = TcpListener::bind(address).await?;
        let local = listener.local_addr()?;
        Ok((listener, local))
    };
    match bound.await {
        Ok(bound) => Ok(Some(bound)),
        Err(source) => Err(BindError {
            key: key.to_owned(),
            address: address.to_owned(),
            source,
        }),
    }
}

fn serve(listener: TcpListener, routes: Router, name: &'static str, tasks: &Tasks) {
    let stopping = tasks.stopping();
    tasks.spawn_critical(name, async move {
        let serving = axum::serve(listener, routes).with_graceful_shutdown(stopping.cancelled_owned());
        Ok(serving.await?)
    });
}

fn monitor_routes(health: Health) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route(
            "/status",
            get(async |State(health): State<Health>| Json(health.status())),
        )
        .with_state(health)
}

async fn readyz(State(health): State<Health>) -> Response {
    let waiting = health.not_ready();
    if waiting.is_empty() {
        return Json(json!({"ready": true})).into_response();
    }
    let waiting: Vec<_> = waiting
        .into_iter()
        .map(|part| json!({"component": part.component, "reason": part.reason}))
        .collect();
    let body = json!({"ready": false, "not_ready": waiting});
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

fn metrics_routes(metrics: Metrics) -> Router {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let render =
        async |State(metrics): State<Metrics>| ([(header::CONTENT_TYPE, OPEN_METRICS)], metrics.render());
    Router::new().route("/metrics", get(render)).with_state(metrics)
}

#[cfg(test)]
mod tests;
