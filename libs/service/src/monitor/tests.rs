//! The endpoints over real connections.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

struct Endpoints {
    health: Health,
    metrics: Metrics,
    tasks: Tasks,
}

async fn start() -> Endpoints {
    let endpoints = Endpoints {
        health: Health::new("gateway"),
        metrics: Metrics::new(),
        tasks: Tasks::root(),
    };
    Monitor::start(
        &anywhere(),
        &endpoints.health,
        &endpoints.metrics,
        &endpoints.tasks,
    )
    .await
    .unwrap();
    endpoints
}

fn anywhere() -> MonitorConfig {
    MonitorConfig {
        monitor_listen: "127.0.0.1:0".to_owned(),
        metrics_listen: "127.0.0.1:0".to_owned(),
    }
}

impl Endpoints {
    /// Status line and body.
    async fn get(&self, endpoint: &str, path: &str) -> (String, String) {
        let address = &self.health.addresses()[endpoint];
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }
}

#[tokio::test]
async fn readiness_is_503_with_reasons_until_every_component_is_ready() {
    let endpoints = start().await;
    let routing = endpoints.health.component("routing");
    routing.not_ready("no leader table yet");
    let (status, body) = endpoints.get("monitor", "/readyz").await;
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert_eq!(
        body,
        r#"{"not_ready":[{"component":"routing","reason":"no leader table yet"}],"ready":false}"#
    );
    routing.ready();
    let (status, _) = endpoints.get("monitor", "/readyz").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn liveness_does_not_depend_on_readiness() {
    let endpoints = start().await;
    let _starting = endpoints.health.component("routing");
    let (status, body) = endpoints.get("monitor", "/healthz").await;
    assert_eq!((status.as_str(), body.as_str()), ("HTTP/1.1 200 OK", "ok\n"));
}

#[tokio::test]
async fn the_status_is_json_with_the_real_addresses() {
    let endpoints = start().await;
    let (_, body) = endpoints.get("monitor", "/status").await;
    let status: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status["service"], "gateway");
    assert_eq!(
        status["addresses"]["monitor"],
        endpoints.health.addresses()["monitor"]
    );
}

#[tokio::test]
async fn metrics_are_served_as_openmetrics_text() {
    let endpoints = start().await;
    let counter = Counter::<u64>::default();
    counter.inc();
    endpoints
        .metrics
        .prefixed("ptah_test")
        .register(|registry| registry.register("things", "Things", counter.clone()));
    let (status, body) = endpoints.get("metrics", "/metrics").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(body.contains("ptah_test_things_total 1\n"), "{body}");
}

#[tokio::test]
async fn an_occupied_port_is_one_error_that_names_address_and_setting() {
    let first = start().await;
    let address = first.health.addresses()["monitor"].clone();
    let config = MonitorConfig {
        monitor_listen: address.clone(),
        ..anywhere()
    };
    let refused = Monitor::start(&config, &Health::new("x"), &Metrics::new(), &Tasks::root()).await;
    let told = refused.unwrap_err().to_string();
    assert_eq!(
        told,
        format!(
            "listen on `{address}` (setting `monitor.monitor_listen`): Address already in use (os error 98); \
             stop the process that uses it or set another port"
        )
    );
}

#[tokio::test]
async fn empty_addresses_switch_the_endpoints_off() {
    let config = MonitorConfig {
        monitor_listen: String::new(),
        metrics_listen: String::new(),
    };
    let (health, tasks) = (Health::new("x"), Tasks::root());
    Monitor::start(&config, &health, &Metrics::new(), &tasks)
        .await
        .unwrap();
    assert!(health.addresses().is_empty() && tasks.unfinished().is_empty());
}

#[tokio::test]
async fn the_endpoints_end_with_their_tasks() {
    let endpoints = start().await;
    endpoints.get("monitor", "/healthz").await;
    endpoints.tasks.stop(Duration::from_secs(20)).await.unwrap();
    let address = &endpoints.health.addresses()["monitor"];
    assert!(TcpStream::connect(address).await.is_err());
}
