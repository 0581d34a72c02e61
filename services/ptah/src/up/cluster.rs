//! The services of one process, started in order and stopped in the opposite one.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use ptah_rpc::{Channels, ClusterSecret, MetadataClient, Network};
use ptah_service::{
    ClusterConfig, Health, List, Metrics, Monitor, MonitorConfig, Ports, Running, Secret, Shell, TaskFailure,
    Tasks,
};
use ptah_storage_node::DiskConfig;
use ptah_types::ClusterId;
use tokio::time::Instant;

use super::data_dir::DataDir;
use super::doors::Doors;
use super::identity::{self, Identities};
use super::network::{CONTROL_PLANE, METADATA, Networks};
use crate::client::DEFAULT_ROOT_PASSWORD;
use crate::failure::Failure;

/// What each stage gets to stop at least, whatever the stages before it took: flushing is worth waiting for.
const LEAST_STOP: Duration = Duration::from_secs(3);
/// What tasks and the monitor pages get on top.
const TASKS_STOP: Duration = Duration::from_secs(2);

/// Longest wait for the control plane before storage nodes are started, and the pause between two looks.
const DECIDE_TIMEOUT: Duration = Duration::from_secs(10);
const DECIDE_PAUSE: Duration = Duration::from_millis(2);

/// What to start, and where.
pub(super) struct Plan {
    pub(super) data_dir: DataDir,
    pub(super) doors: Doors,
    pub(super) identities: Identities,
    /// Password of root, when one was asked for.
    pub(super) root_password: Option<String>,
    /// Room that storage nodes keep free.
    pub(super) disk: DiskConfig,
}

/// What is started.
pub(super) struct Cluster {
    pub(super) health: Health,
    ports: Ports,
    tasks: Tasks,
    /// Apart from the other tasks, so that probes are answered until all is stopped.
    monitor_tasks: Tasks,
    metrics: Metrics,
    networks: Networks,
    cluster_id: String,
    /// Services that are stopped together, in the order in which they were started.
    stages: Vec<Vec<(String, Box<dyn Running>)>>,
}

impl Cluster {
    pub(super) fn new() -> Self {
        Self {
            health: Health::new("up"),
            ports: Ports::system(),
            tasks: Tasks::root(),
            monitor_tasks: Tasks::root(),
            metrics: Metrics::new(),
            networks: Networks::new(),
            cluster_id: String::new(),
            stages: Vec::new(),
        }
    }

    /// The cluster's id, once it is started.
    pub(super) fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// Address of the door for clients, once it is started.
    pub(super) fn client_address(&self) -> String {
        self.health
            .addresses()
            .get("gateway/grpc")
            .cloned()
            .unwrap_or_default()
    }

    /// Waits until a part fails that the others need.
    pub(super) async fn failed(&self) -> TaskFailure {
        tokio::select! {
            failure = self.tasks.failed() => failure,
            failure = self.monitor_tasks.failed() => failure,
        }
    }

    /// Starts everything. What was started before a failure, or before this was dropped, is stopped by
    /// [`Cluster::stop`].
    pub(super) async fn start(&mut self, plan: &Plan) -> Result<(), Failure> {
        let secret = plan.data_dir.secret(self.ports.random.as_ref())?;
        let monitor = MonitorConfig {
            monitor_listen: plan.doors.monitor.to_string(),
            metrics_listen: plan.doors.metrics.to_string(),
        };
        Monitor::start(&monitor, &self.health, &self.metrics, &self.monitor_tasks)
            .await
            .map_err(|error| Failure::cannot_start(error.to_string()))?;
        // Holds the process back from being ready until the last service was started.
        let all = self.health.component("services");
        self.start_metadata(plan, &secret).await?;
        let cluster = self.read_cluster_id(&secret).await?;
        identity::check(&plan.identities, cluster)?;
        self.cluster_id = cluster.to_string();
        self.start_control_plane(plan, &secret).await?;
        self.until_control_plane_decides().await;
        self.start_storage_nodes(plan, &secret).await?;
        self.start_gateway(plan, &secret).await?;
        drop(all);
        Ok(())
    }

    async fn start_metadata(&mut self, plan: &Plan, secret: &Secret) -> Result<(), Failure> {
        let dir = plan.data_dir.part("metadata")?;
        let config = ptah_metadata::Config {
            grpc_listen: METADATA.to_owned(),
            database_url: sqlite_url(&dir.join(super::data_dir::METADATA_FILE))?,
            cluster: cluster_config(secret),
            ..ptah_metadata::Config::default()
        };
        let shell = self.shell("metadata");
        let deps = ptah_metadata::Deps::from_shell(shell, self.networks.inner());
        let running = ptah_metadata::start(config, deps).await;
        self.add("metadata", running)
    }

    /// Asks metadata which cluster this is.
    async fn read_cluster_id(&self, secret: &Secret) -> Result<ClusterId, Failure> {
        let failed = |why: String| Failure::cannot_start(format!("read the cluster's id: {why}"));
        let secret = ClusterSecret::new(secret).map_err(|error| failed(error.to_string()))?;
        let channel = Channels::new(self.networks.inner(), secret).to(METADATA);
        let client = MetadataClient::new(channel.map_err(|error| failed(error.message))?);
        Ok(client
            .info()
            .await
            .map_err(|error| failed(error.message))?
            .cluster)
    }

    async fn start_control_plane(&mut self, plan: &Plan, secret: &Secret) -> Result<(), Failure> {
        let mut config = ptah_control_plane::Config {
            // The lock on the directory proves that an earlier one of this name is gone: no need to wait for its lease.
            name: "up".to_owned(),
            grpc_listen: CONTROL_PLANE.to_owned(),
            metadata_addresses: List(vec![METADATA.to_owned()]),
            cluster: cluster_config(secret),
            ..ptah_control_plane::Config::default()
        };
        match &plan.root_password {
            Some(password) => config.bootstrap.root_password = Secret::new(password.clone()),
            // Only on loopback: anything else was refused without a password.
            None => config.bootstrap.root_password = Secret::new(DEFAULT_ROOT_PASSWORD.to_owned()),
        }
        config.bootstrap.allow_default_password = plan.doors.grpc.ip().is_loopback();
        let shell = self.shell("control-plane");
        let deps = ptah_control_plane::Deps::from_shell(shell, self.networks.inner());
        let running = ptah_control_plane::start(config, deps).await;
        self.add("control-plane", running)
    }

    /// Storage nodes ask the control plane first thing; one that cannot decide yet would only make them complain. When it
    /// takes too long, they are told why themselves.
    async fn until_control_plane_decides(&self) {
        let until = Instant::now() + DECIDE_TIMEOUT;
        let is_waiting = || {
            self.health
                .not_ready()
                .iter()
                .any(|part| part.component.starts_with("control-plane/"))
        };
        while is_waiting() && Instant::now() < until {
            tokio::time::sleep(DECIDE_PAUSE).await;
        }
    }

    async fn start_storage_nodes(&mut self, plan: &Plan, secret: &Secret) -> Result<(), Failure> {
        let starting = (1..).zip(&plan.doors.nodes).map(|(number, address)| {
            let name = format!("storage-node-{number}");
            let shell = Shell {
                metrics: self.metrics.labelled("node", &number.to_string()),
                ..self.shell(&name)
            };
            let config = ptah_storage_node::Config {
                disk: plan.disk.clone(),
                ..node_config(&plan.data_dir, number, *address, secret)
            };
            let network = self.networks.node();
            async move { (name, start_node(config, shell, network).await) }
        });
        let mut stage = Vec::new();
        let mut failure = Ok(());
        for (name, started) in join_all(starting).await {
            match started {
                Ok(running) => stage.push((name, running)),
                Err(error) => failure = failure.and(Err(start_failure(&name, &error))),
            }
        }
        self.stages.push(stage);
        failure
    }

    async fn start_gateway(&mut self, plan: &Plan, secret: &Secret) -> Result<(), Failure> {
        let dir = plan.data_dir.part("gateway")?;
        let config = ptah_gateway::Config {
            grpc_listen: plan.doors.grpc.to_string(),
            catalog_file: dir.join("catalog"),
            metadata_addresses: List(vec![METADATA.to_owned()]),
            control_plane_addresses: List(vec![CONTROL_PLANE.to_owned()]),
            cluster: cluster_config(secret),
            ..ptah_gateway::Config::default()
        };
        let shell = self.shell("gateway");
        let deps = ptah_gateway::Deps::from_shell(shell, self.networks.gateway());
        let running = ptah_gateway::start(config, deps).await;
        self.add("gateway", running)
    }

    fn shell(&self, name: &str) -> Shell {
        Shell {
            ports: self.ports.clone(),
            tasks: self.tasks.child(name.to_owned()),
            metrics: self.metrics.clone(),
            health: self.health.scope(name),
        }
    }

    fn add<R: Running>(&mut self, name: &str, started: anyhow::Result<R>) -> Result<(), Failure> {
        let running = started.map_err(|error| start_failure(name, &error))?;
        self.stages
            .push(vec![(name.to_owned(), Box::new(running) as Box<dyn Running>)]);
        Ok(())
    }

    /// Stops in order: the gateway finishes what it accepted, storage nodes flush, control plane, metadata.
    pub(super) async fn stop(&mut self, timeout: Duration) -> Result<(), Failure> {
        self.health.set_stopping();
        let until = Instant::now() + timeout;
        let mut late = String::new();
        for stage in self.stages.drain(..).rev() {
            let left = until.saturating_duration_since(Instant::now()).max(LEAST_STOP);
            for (name, stopped) in
                join_all(stage.into_iter().map(|service| stop_service(service, left))).await
            {
                if let Err(error) = stopped {
                    // Writing to a string cannot fail.
                    let _ = write!(
                        late,
                        "{}{name}: {error:#}",
                        if late.is_empty() { "" } else { ", " }
                    );
                }
            }
        }
        if let Err(unfinished) = self.tasks.stop(TASKS_STOP).await {
            let _ = write!(late, "{}{unfinished}", if late.is_empty() { "" } else { ", " });
        }
        // A probe that hangs on its connection is no reason to call the stop late.
        let _ = self.monitor_tasks.stop(TASKS_STOP).await;
        if late.is_empty() {
            return Ok(());
        }
        Err(Failure::failed(format!(
            "stopped, but not everything was finished in time: {late}"
        )))
    }
}

async fn start_node(
    config: ptah_storage_node::Config,
    shell: Shell,
    network: Arc<dyn Network>,
) -> anyhow::Result<Box<dyn Running>> {
    let deps = ptah_storage_node::Deps::from_shell(shell, network);
    Ok(Box::new(ptah_storage_node::start(config, deps).await?))
}

async fn stop_service(
    (name, service): (String, Box<dyn Running>),
    deadline: Duration,
) -> (String, anyhow::Result<()>) {
    // A service that forgets its own deadline is left behind a little later.
    let stopped = tokio::time::timeout(deadline + TASKS_STOP, service.stop(deadline)).await;
    (
        name,
        stopped.unwrap_or_else(|_| Err(anyhow::anyhow!("did not stop"))),
    )
}

fn start_failure(name: &str, error: &anyhow::Error) -> Failure {
    Failure::cannot_start(format!("start {name}: {}", ptah_service::error_text(error)))
}

fn cluster_config(secret: &Secret) -> ClusterConfig {
    ClusterConfig {
        secret: secret.clone(),
    }
}

fn node_config(
    data_dir: &DataDir,
    number: u32,
    address: SocketAddr,
    secret: &Secret,
) -> ptah_storage_node::Config {
    ptah_storage_node::Config {
        node_id: u64::from(number),
        name: format!("storage-{number}"),
        data_dir: data_dir.node_dir(number),
        grpc_listen: address.to_string(),
        control_plane_addresses: List(vec![CONTROL_PLANE.to_owned()]),
        cluster: cluster_config(secret),
        ..ptah_storage_node::Config::default()
    }
}

/// The path as the URL of a database; characters that mean something in a URL are escaped.
fn sqlite_url(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().ok_or_else(|| {
        Failure::cannot_start(format!(
            "data directory `{}` has a name that is not UTF-8; give another --data-dir",
            path.display()
        ))
    })?;
    let mut url = String::from("sqlite://");
    for byte in text.bytes() {
        match byte {
            b'%' | b'?' | b'#' | b'&' | b'+' | 0..=b' ' | 0x7f.. => {
                // Writing to a string cannot fail.
                let _ = write!(url, "%{byte:02X}");
            }
            _ => url.push(char::from(byte)),
        }
    }
    url.push_str("?mode=rwc");
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_of_a_url_in_a_path_are_escaped() {
        let url = sqlite_url(Path::new("/tmp/a b?c%#ü/ptah.db")).unwrap();
        assert_eq!(url, "sqlite:///tmp/a%20b%3Fc%25%23%C3%BC/ptah.db?mode=rwc");
    }
}
