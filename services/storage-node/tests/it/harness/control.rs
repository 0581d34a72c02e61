//! A control plane that takes every node in, unless told otherwise, and records what nodes say.

use std::sync::Arc;

use parking_lot::Mutex;
use ptah_proto::control::v1 as pb;
use ptah_proto::control::v1::node_service_server::{NodeService, NodeServiceServer};
use ptah_rpc::{ClusterSecret, RpcError, Server, ServerHandle, TcpNetwork, bind};
use ptah_service::{Secret, Tasks};
use ptah_types::{ClusterId, ErrorKind};
use tonic::{Request, Response, Status};

use super::until;

#[derive(Clone)]
pub(crate) struct ControlPlane {
    state: Arc<Mutex<State>>,
    server: Arc<ServerHandle>,
    _tasks: Tasks,
}

struct State {
    cluster: ClusterId,
    registrations: Vec<pb::RegisterNodeRequest>,
    reports: Vec<pb::NodeReport>,
    refusal: Option<String>,
    refused: u64,
    /// Nodes that registered before have to do it again.
    forgets: bool,
}

#[derive(Clone)]
struct Registry(Arc<Mutex<State>>);

impl ControlPlane {
    pub(crate) async fn start() -> Self {
        Self::of_cluster(1).await
    }

    /// A control plane of another cluster for another number.
    pub(crate) async fn of_cluster(number: u8) -> Self {
        let state = Arc::new(Mutex::new(State {
            cluster: ClusterId::from_random_bytes([number; 16]),
            registrations: Vec::new(),
            reports: Vec::new(),
            refusal: None,
            refused: 0,
            forgets: false,
        }));
        let tasks = Tasks::root();
        let secret = ClusterSecret::new(&Secret::new(super::SECRET.to_owned())).unwrap();
        let listener = bind(&TcpNetwork::new(), "control", "127.0.0.1:0").await.unwrap();
        let server = Server::internal(secret)
            .add_service(NodeServiceServer::new(Registry(Arc::clone(&state))))
            .serve(listener, &tasks);
        Self {
            state,
            server: Arc::new(server),
            _tasks: tasks,
        }
    }

    pub(crate) fn address(&self) -> String {
        self.server.local_addr().to_string()
    }

    /// Refuses every node from now on, also those that it knows.
    pub(crate) fn refuse(&self, why: &str) {
        let mut state = self.state.lock();
        state.refusal = Some(why.to_owned());
        state.forgets = true;
    }

    /// Takes every node in again.
    pub(crate) fn accept(&self) {
        self.state.lock().refusal = None;
    }

    /// How many registrations were refused.
    pub(crate) fn refused(&self) -> u64 {
        self.state.lock().refused
    }

    pub(crate) fn registrations(&self) -> Vec<pb::RegisterNodeRequest> {
        self.state.lock().registrations.clone()
    }

    /// Waits for the first report.
    pub(crate) async fn first_report(&self) -> pb::NodeReport {
        until("a report", || async {
            self.state.lock().reports.first().cloned()
        })
        .await
    }

    /// Waits for a report that `wanted` likes.
    pub(crate) async fn report(
        &self,
        what: &str,
        wanted: impl Fn(&pb::NodeReport) -> bool,
    ) -> pb::NodeReport {
        until(what, || async {
            self.state
                .lock()
                .reports
                .iter()
                .rev()
                .find(|report| wanted(report))
                .cloned()
        })
        .await
    }
}

#[tonic::async_trait]
impl NodeService for Registry {
    async fn register_node(
        &self,
        request: Request<pb::RegisterNodeRequest>,
    ) -> Result<Response<pb::RegisterNodeResponse>, Status> {
        let mut state = self.0.lock();
        if let Some(why) = state.refusal.clone() {
            state.refused += 1;
            return Err(RpcError::new(ErrorKind::Conflict, why).into());
        }
        state.forgets = false;
        state.registrations.push(request.into_inner());
        Ok(Response::new(pb::RegisterNodeResponse {
            cluster_id: state.cluster.to_string(),
            report_interval_ms: 200,
        }))
    }

    async fn report_node(
        &self,
        request: Request<pb::ReportNodeRequest>,
    ) -> Result<Response<pb::ReportNodeResponse>, Status> {
        let report = request.into_inner().report;
        let mut state = self.0.lock();
        let known = !state.forgets;
        if known {
            state.reports.extend(report);
        }
        Ok(Response::new(pb::ReportNodeResponse { known }))
    }
}
