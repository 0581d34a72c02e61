//! A storage node that takes orders, pretends to carry them out, and reports at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ptah_proto::storage::v1 as pb;
use ptah_proto::storage::v1::replica_service_server::{ReplicaService, ReplicaServiceServer};
use ptah_rpc::clients::{
    NodeRegistration, NodeReport, PlacementOrder, ReplicaReport, ReplicaSpec, ReplicaState,
};
use ptah_rpc::{Channels, NodeClient, RpcError, Server, TcpNetwork, to_status};
use ptah_service::Tasks;
use ptah_types::{DISK_FORMAT, ErrorKind, LogIndex, NodeId, RaftGroupId, Term, WIRE_PROTOCOL};
use tokio::sync::Notify;
use tonic::{Request, Response, Status};

use crate::harness::secret;

/// Everything that a node did for a replica.
#[derive(Clone, Default, Debug)]
pub(crate) struct History {
    pub(crate) opened_times: u32,
    pub(crate) initialized_times: u32,
}

#[derive(Default)]
struct Disk {
    replicas: BTreeMap<RaftGroupId, (ReplicaSpec, ReplicaState, bool)>,
    history: BTreeMap<RaftGroupId, History>,
    newest: (u64, u64),
    peers: BTreeMap<NodeId, String>,
    refuses: bool,
    stale_orders: u32,
}

/// A node with its disk; the disk stays when the node stops.
pub(crate) struct FakeNode {
    pub(crate) id: NodeId,
    pub(crate) disk_id: String,
    address: String,
    disk: Arc<Mutex<Disk>>,
    changed: Arc<Notify>,
    tasks: Tasks,
}

#[derive(Clone)]
struct Orders {
    disk: Arc<Mutex<Disk>>,
    changed: Arc<Notify>,
}

#[tonic::async_trait]
impl ReplicaService for Orders {
    async fn apply_placement(
        &self,
        request: Request<pb::ApplyPlacementRequest>,
    ) -> Result<Response<pb::ApplyPlacementResponse>, Status> {
        let order = PlacementOrder::try_from(request.into_inner())?;
        self.disk.lock().apply(order).map_err(|error| to_status(&error))?;
        self.changed.notify_one();
        Ok(Response::new(pb::ApplyPlacementResponse {}))
    }
}

impl Disk {
    fn apply(&mut self, order: PlacementOrder) -> Result<(), RpcError> {
        if self.refuses {
            return Err(RpcError::new(
                ErrorKind::Unavailable,
                "the node refuses for the test",
            ));
        }
        if (order.epoch, order.revision) < self.newest {
            self.stale_orders += 1;
            return Err(RpcError::new(
                ErrorKind::Conflict,
                "older than what was carried out",
            ));
        }
        self.newest = (order.epoch, order.revision);
        self.peers = order.peers;
        for spec in order.ensure {
            let history = self.history.entry(spec.group).or_default();
            let known = self
                .replicas
                .get(&spec.group)
                .map(|(_, state, initialized)| (*state, *initialized));
            let state = match known {
                Some((state, _)) => state,
                None if spec.opened => ReplicaState::Lost,
                None => {
                    history.opened_times += 1;
                    ReplicaState::Open
                }
            };
            let was_initialized = known.is_some_and(|(_, initialized)| initialized);
            if spec.initialize && !was_initialized {
                history.initialized_times += 1;
            }
            let initialized = was_initialized || spec.initialize;
            self.replicas.insert(spec.group, (spec, state, initialized));
        }
        for tombstone in order.remove {
            self.replicas.remove(&tombstone.group);
        }
        Ok(())
    }
}

impl FakeNode {
    /// Starts a node on an empty disk.
    pub(crate) async fn start(id: u64, control_planes: &[String]) -> Self {
        let tasks = Tasks::root();
        let network = TcpNetwork::new();
        let listener = ptah_rpc::bind(&network, "test", "127.0.0.1:0").await.unwrap();
        let disk = Arc::new(Mutex::new(Disk::default()));
        let changed = Arc::new(Notify::new());
        let orders = Orders {
            disk: disk.clone(),
            changed: changed.clone(),
        };
        let server = Server::internal(secret())
            .add_service(ReplicaServiceServer::new(orders))
            .serve(listener, &tasks);
        let node = Self {
            id: NodeId::new(id).unwrap(),
            disk_id: format!("disk-{id}"),
            address: server.local_addr().to_string(),
            disk,
            changed,
            tasks,
        };
        if !control_planes.is_empty() {
            node.start_reports(control_planes);
        }
        node
    }

    /// Registers where somebody decides, and reports there every 100 ms and after every change.
    pub(crate) fn start_reports(&self, control_planes: &[String]) {
        let channels = Channels::new(Arc::new(TcpNetwork::new()), secret());
        let clients: Vec<NodeClient> = control_planes
            .iter()
            .map(|address| {
                NodeClient::new(channels.to(address).unwrap()).with_deadline(Duration::from_secs(2))
            })
            .collect();
        let registration = self.registration();
        let (disk, changed, stopping) = (self.disk.clone(), self.changed.clone(), self.tasks.stopping());
        self.tasks.spawn("reports", async move {
            let mut at = 0;
            while !stopping.is_stopping() {
                let client = &clients[at % clients.len()];
                let report = disk.lock().report(&registration);
                let done = match client.report(&report, &registration.disk_id).await {
                    Ok(true) => true,
                    Ok(false) => client.register(&registration).await.is_ok(),
                    Err(_) => false,
                };
                if !done {
                    at += 1;
                }
                tokio::select! {
                    () = stopping.cancelled() => {}
                    () = changed.notified() => {}
                    () = tokio::time::sleep(Duration::from_millis(if done { 100 } else { 10 })) => {}
                }
            }
        });
    }

    pub(crate) fn registration(&self) -> NodeRegistration {
        NodeRegistration {
            node: self.id,
            name: format!("node-{}", self.id).parse().unwrap(),
            address: self.address.clone(),
            cluster: None,
            disk_id: self.disk_id.clone(),
            wire: WIRE_PROTOCOL,
            disk: DISK_FORMAT,
            zone: String::new(),
            version: "test".to_owned(),
        }
    }

    /// Stops the node; its disk stays.
    pub(crate) async fn stop(&self) {
        self.tasks.stop(Duration::from_secs(10)).await.unwrap();
    }

    pub(crate) fn groups(&self) -> Vec<RaftGroupId> {
        self.disk.lock().replicas.keys().copied().collect()
    }

    pub(crate) fn history(&self, group: RaftGroupId) -> History {
        self.disk.lock().history.get(&group).cloned().unwrap_or_default()
    }

    pub(crate) fn specs(&self) -> Vec<ReplicaSpec> {
        self.disk
            .lock()
            .replicas
            .values()
            .map(|(spec, _, _)| spec.clone())
            .collect()
    }

    pub(crate) fn states(&self) -> Vec<ReplicaState> {
        self.disk
            .lock()
            .replicas
            .values()
            .map(|(_, state, _)| *state)
            .collect()
    }

    pub(crate) fn peers(&self) -> BTreeMap<NodeId, String> {
        self.disk.lock().peers.clone()
    }

    pub(crate) fn newest(&self) -> (u64, u64) {
        self.disk.lock().newest
    }

    pub(crate) fn stale_orders(&self) -> u32 {
        self.disk.lock().stale_orders
    }

    /// Refuses orders, or takes them again.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.disk.lock().refuses = refuses;
    }

    /// Puts a group on the disk that nobody ordered.
    pub(crate) fn find_on_disk(&self, mut spec: ReplicaSpec, group: u64) {
        spec.group = RaftGroupId::new(group).unwrap();
        self.disk
            .lock()
            .replicas
            .insert(spec.group, (spec, ReplicaState::UnknownGroup, true));
        self.changed.notify_one();
    }
}

impl Disk {
    fn report(&self, node: &NodeRegistration) -> NodeReport {
        let replicas = self
            .replicas
            .iter()
            .map(|(group, (spec, state, initialized))| ReplicaReport {
                group: *group,
                replica: Some(spec.replica),
                state: *state,
                trouble: String::new(),
                term: Term(1),
                leader: None,
                applied: LogIndex(0),
                initialized: *initialized,
                voters: Vec::new(),
                learners: Vec::new(),
                members_settled: false,
                learner_lag: 0,
            });
        NodeReport {
            node: node.node,
            address: node.address.clone(),
            version: node.version.clone(),
            disk_free_bytes: 1,
            disk_total_bytes: 2,
            replicas: replicas.collect(),
            placement_epoch: self.newest.0,
            placement_revision: self.newest.1,
            refuses_messages: false,
            disk_needed_bytes: 0,
            yielding: BTreeSet::new(),
        }
    }
}
