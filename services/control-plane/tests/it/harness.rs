//! A metadata service, control planes and nodes in one process.

use std::sync::Arc;
use std::time::Duration;

use ptah_control_plane::config::BootstrapConfig;
use ptah_control_plane::{Config, ControlPlane};
use ptah_metadata::Metadata;
use ptah_rpc::clients::{CreateStation, EnsureConsumerGroup, ListQuery};
use ptah_rpc::records::{ConsumerGroupConfig, PlacementRecord, RecordKind, RecordValue};
use ptah_rpc::{Channels, ClusterSecret, ManagementClient, MetadataClient, NodeClient, TcpNetwork};
use ptah_service::{ClusterConfig, Health, Metrics, Ports, Running, Secret, Tasks};
use ptah_types::{ReplicaCount, StartAt, StationKind, Storage, TenantName, UserName};

use crate::fake_node::FakeNode;

const SECRET: &str = "the secret of the tests";
/// Longest wait for something that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn secret() -> ClusterSecret {
    ClusterSecret::new(&Secret::new(SECRET)).unwrap()
}

pub(crate) fn tenant() -> TenantName {
    TenantName::default_tenant()
}

pub(crate) fn root() -> UserName {
    "root".parse().unwrap()
}

struct Store {
    folder: tempfile::TempDir,
    address: String,
    running: Option<(Metadata, Tasks)>,
}

/// A control plane that runs.
pub(crate) struct Plane {
    pub(crate) control: ControlPlane,
    pub(crate) health: Health,
    tasks: Tasks,
}

/// All of it.
pub(crate) struct World {
    store: Store,
    pub(crate) planes: Vec<Plane>,
    pub(crate) nodes: Vec<FakeNode>,
    channels: Channels,
}

impl World {
    /// A store and one control plane that decides.
    pub(crate) async fn new() -> Self {
        let mut world = Self::without_planes().await;
        world.start_plane().await;
        until("a control plane decides", || world.planes[0].control.decides()).await;
        world
    }

    /// A store alone.
    pub(crate) async fn without_planes() -> Self {
        let mut world = Self {
            store: Store {
                folder: tempfile::tempdir().unwrap(),
                address: "127.0.0.1:0".to_owned(),
                running: None,
            },
            planes: Vec::new(),
            nodes: Vec::new(),
            channels: Channels::new(Arc::new(TcpNetwork::new()), secret()),
        };
        world.start_store().await;
        world
    }

    /// The same with nodes that have registered.
    pub(crate) async fn with_nodes(count: u64) -> Self {
        let mut world = Self::new().await;
        for id in 1..=count {
            world.start_node(id).await;
        }
        world.until_alive(count as usize).await;
        world
    }

    pub(crate) async fn start_store(&mut self) {
        let tasks = Tasks::root();
        let path = self.store.folder.path().join("metadata.db");
        let config = ptah_metadata::Config {
            grpc_listen: self.store.address.clone(),
            database_url: format!("sqlite://{}?mode=rwc", path.display()),
            cluster: cluster(),
            ..ptah_metadata::Config::default()
        };
        let deps = ptah_metadata::Deps {
            ports: Ports::system(),
            network: Arc::new(TcpNetwork::new()),
            tasks: tasks.clone(),
            metrics: Metrics::new(),
            health: Health::new("metadata"),
            store: None,
        };
        let metadata = ptah_metadata::start(config, deps).await.unwrap();
        self.store.address = metadata.address().to_string();
        self.store.running = Some((metadata, tasks));
    }

    pub(crate) async fn stop_store(&mut self) {
        let (metadata, tasks) = self.store.running.take().unwrap();
        Box::new(metadata).stop(Duration::from_secs(5)).await.unwrap();
        tasks.stop(Duration::from_secs(5)).await.unwrap();
    }

    /// Starts one more control plane; answers its number.
    pub(crate) async fn start_plane(&mut self) -> usize {
        self.start_plane_of(self.plane_config()).await
    }

    pub(crate) async fn start_plane_with(&mut self, bootstrap: BootstrapConfig) -> usize {
        self.start_plane_of(Config {
            bootstrap,
            ..self.plane_config()
        })
        .await
    }

    /// Settings of a control plane with short times.
    pub(crate) fn plane_config(&self) -> Config {
        Config {
            bootstrap: BootstrapConfig {
                root_password: Secret::new("the password of root"),
                ..BootstrapConfig::default()
            },
            grpc_listen: "127.0.0.1:0".to_owned(),
            metadata_addresses: ptah_service::List(vec![self.store.address.clone()]),
            lease_ttl_ms: 1_500,
            node_alive_window_ms: 1_000,
            report_interval_ms: 100,
            cluster: cluster(),
            ..Config::default()
        }
    }

    pub(crate) async fn start_plane_of(&mut self, config: Config) -> usize {
        let tasks = Tasks::root();
        let deps = ptah_control_plane::Deps {
            ports: Ports::system(),
            network: Arc::new(TcpNetwork::new()),
            tasks: tasks.clone(),
            metrics: Metrics::new(),
            health: Health::new("control-plane"),
        };
        let health = deps.health.clone();
        let control = ptah_control_plane::start(config, deps).await.unwrap();
        let plane = Plane {
            control,
            health,
            tasks,
        };
        self.planes.push(plane);
        self.planes.len() - 1
    }

    pub(crate) async fn stop_plane(&mut self, number: usize) {
        let plane = self.planes.remove(number);
        Box::new(plane.control)
            .stop(Duration::from_secs(5))
            .await
            .unwrap();
        plane.tasks.stop(Duration::from_secs(5)).await.unwrap();
    }

    pub(crate) async fn start_node(&mut self, id: u64) -> usize {
        let node = FakeNode::start(id, &self.plane_addresses()).await;
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    pub(crate) fn plane_addresses(&self) -> Vec<String> {
        self.planes
            .iter()
            .map(|plane| plane.control.address().to_string())
            .collect()
    }

    pub(crate) fn management(&self, plane: usize) -> ManagementClient {
        let address = self.planes[plane].control.address().to_string();
        ManagementClient::new(self.channels.to(&address).unwrap()).with_deadline(Duration::from_secs(15))
    }

    pub(crate) fn node_client(&self, plane: usize) -> NodeClient {
        let address = self.planes[plane].control.address().to_string();
        NodeClient::new(self.channels.to(&address).unwrap())
    }

    pub(crate) fn metadata(&self) -> MetadataClient {
        MetadataClient::new(self.channels.to(&self.store.address).unwrap())
    }

    pub(crate) async fn until_alive(&self, count: usize) {
        let management = self.management(0);
        until_async(&format!("{count} nodes are alive"), async || {
            let nodes = management.describe_nodes(&root()).await.unwrap_or_default();
            nodes.nodes.iter().filter(|node| node.alive).count() == count
        })
        .await;
    }

    pub(crate) async fn placements(&self) -> Vec<PlacementRecord> {
        let list = self
            .metadata()
            .list(&ListQuery::all(RecordKind::Placement))
            .await
            .unwrap();
        let placement = |value| match value {
            RecordValue::Placement(placement) => placement,
            other => panic!("{other:?}"),
        };
        list.records
            .into_iter()
            .map(|record| placement(record.value))
            .collect()
    }

    /// Waits until every partition is open everywhere and initialised, as recorded.
    pub(crate) async fn until_placed(&self, partitions: usize) {
        until_async("all placements are complete", async || {
            let placements = self.placements().await;
            let complete = |placement: &PlacementRecord| {
                placement.initialized && placement.replicas.iter().all(|replica| replica.opened)
            };
            placements.len() == partitions && placements.iter().all(complete)
        })
        .await;
    }
}

fn cluster() -> ClusterConfig {
    ClusterConfig {
        secret: Secret::new(SECRET),
    }
}

pub(crate) fn station(name: &str, partitions: u32, replicas: u32) -> CreateStation {
    CreateStation {
        principal: root(),
        tenant: tenant(),
        name: name.parse().unwrap(),
        kind: StationKind::Station,
        partitions,
        replicas: ReplicaCount::new(replicas).unwrap(),
        storage: Storage::File,
        max_message_bytes: 0,
    }
}

pub(crate) fn group(station: &str, name: &str) -> EnsureConsumerGroup {
    EnsureConsumerGroup {
        principal: root(),
        tenant: tenant(),
        station: station.parse().unwrap(),
        group: name.parse().unwrap(),
        config: ConsumerGroupConfig {
            start: StartAt::First,
            ack_deadline_ms: 0,
            max_in_flight: 0,
        },
    }
}

/// Waits for a condition, for as long as [`PATIENCE`].
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    until_async(what, async || holds()).await;
}

pub(crate) async fn until_async(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, wait).await.is_ok(),
        "not in time: {what}"
    );
}
