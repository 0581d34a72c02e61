//! Talk with the control plane: registration, and a report every second or so.
//!
//! The node serves without a control plane; only its first start needs one. A refusal keeps a node from starting; a node
//! that runs goes on serving, says in its readiness why it is refused, and asks again. What is wrong is logged once per
//! change, not once per attempt.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ptah_raft::{ReplicaState as HostState, ReplicaStatus};
use ptah_rpc::clients::{NodeRegistration, NodeReport, Registered, ReplicaReport, ReplicaState};
use ptah_rpc::{Channels, NodeClient, RpcError};
use ptah_service::{Component, Ports, Stopping};
use ptah_types::{ClusterId, ErrorKind, LogIndex, Term};
use tokio::time::Instant;

use crate::node::Node;
use crate::placement::PlacementKeeper;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Shortest pause after a refusal.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
const CALL_DEADLINE: Duration = Duration::from_secs(2);
/// A restart waits for control planes that do not answer no longer than this.
const QUESTION_DEADLINE: Duration = Duration::from_secs(3);
/// Reports are at least this far apart, however often something changes.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(50);
/// What a control plane may ask for.
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

/// The control plane does not accept this node with this data directory.
#[derive(Debug, thiserror::Error)]
#[error("the control plane refuses this node: {0}")]
pub(crate) struct Refused(RpcError);

/// The control planes, and which one answered last.
pub(crate) struct ControlPlanes {
    channels: Channels,
    addresses: Vec<String>,
    current: String,
    next: usize,
}

/// Registers and reports.
pub(crate) struct ControlLoop {
    planes: ControlPlanes,
    registration: NodeRegistration,
    ports: Ports,
    health: Component,
    /// Whether the node serves without being registered: then only a refusal makes it unready.
    serves: bool,
    /// What is wrong with each control plane, so that it is logged once.
    troubles: BTreeMap<String, String>,
}

impl ControlPlanes {
    /// Control planes at `addresses`, of which there is at least one.
    pub(crate) fn new(channels: Channels, addresses: Vec<String>) -> Self {
        Self {
            channels,
            current: addresses.first().cloned().unwrap_or_default(),
            addresses,
            next: 0,
        }
    }

    fn client(&self) -> Result<NodeClient, RpcError> {
        Ok(NodeClient::new(self.channels.to(&self.current)?).with_deadline(CALL_DEADLINE))
    }

    /// After a failure: where the failed one points to, or the next one.
    fn turn(&mut self, error: &RpcError) {
        if let Some((_, leader)) = &error.leader {
            self.current.clone_from(leader);
            return;
        }
        self.next = (self.next + 1) % self.addresses.len().max(1);
        if let Some(address) = self.addresses.get(self.next) {
            self.current.clone_from(address);
        }
    }
}

impl ControlLoop {
    /// Talks for the node that `registration` describes.
    pub(crate) fn new(
        planes: ControlPlanes,
        registration: NodeRegistration,
        ports: Ports,
        health: Component,
    ) -> Self {
        let serves = registration.cluster.is_some();
        if serves {
            health.ready();
        } else {
            health.not_ready("not registered with a control plane yet");
        }
        Self {
            planes,
            registration,
            ports,
            health,
            serves,
            troubles: BTreeMap::new(),
        }
    }

    /// The node belongs to a cluster now, and serves without a control plane from now on.
    pub(crate) fn set_cluster(&mut self, cluster: ClusterId) {
        self.registration.cluster = Some(cluster);
        self.serves = true;
    }

    /// Whether a control plane is known to refuse this node; asks each one once, and not for long. What cannot be
    /// reached says nothing.
    pub(crate) async fn ask_once(&mut self) -> Result<(), Refused> {
        let asking = async {
            for _ in 0..self.planes.addresses.len() {
                if self.try_register().await?.is_some() {
                    break;
                }
            }
            Ok(())
        };
        tokio::time::timeout(QUESTION_DEADLINE, asking)
            .await
            .unwrap_or(Ok(()))
    }

    /// Registers for the first time, however long it takes. `None`: the node stops.
    pub(crate) async fn register(&mut self, stopping: &Stopping) -> Result<Option<Registered>, Refused> {
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(registered) = self.try_register().await? {
                return Ok(Some(registered));
            }
            if !self.rest(&mut pause, stopping).await {
                return Ok(None);
            }
        }
    }

    /// Registers a node that serves, however long it takes and however often it is refused. `None`: the node stops.
    async fn register_again(&mut self, stopping: &Stopping) -> Option<Registered> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.try_register().await {
                Ok(Some(registered)) => return Some(registered),
                Ok(None) => {}
                Err(Refused(error)) => {
                    self.note_refusal(&error);
                    self.planes.turn(&error);
                    // Nothing that people have to mend is mended in a moment.
                    pause = pause.max(REFUSED_PAUSE);
                }
            }
            if !self.rest(&mut pause, stopping).await {
                return None;
            }
        }
    }

    /// Waits before the next attempt; false when the node stops.
    async fn rest(&self, pause: &mut Duration, stopping: &Stopping) -> bool {
        let jitter = self.ports.random.below(pause.as_millis() as u64 / 2 + 1);
        let wait = *pause + Duration::from_millis(jitter);
        *pause = (*pause * 2).min(LONGEST_PAUSE);
        tokio::select! {
            biased;
            () = stopping.cancelled() => false,
            () = tokio::time::sleep(wait) => true,
        }
    }

    async fn try_register(&mut self) -> Result<Option<Registered>, Refused> {
        let result = match self.planes.client() {
            Ok(client) => client.register(&self.registration).await,
            Err(error) => Err(error),
        };
        let error = match result {
            Ok(registered) => return self.accept(registered).map(Some),
            Err(error) => error,
        };
        if is_refusal(error.kind) {
            return Err(Refused(error));
        }
        self.note_trouble(&error);
        self.planes.turn(&error);
        Ok(None)
    }

    fn accept(&mut self, registered: Registered) -> Result<Registered, Refused> {
        if let Some(ours) = self.registration.cluster
            && ours != registered.cluster
        {
            let why = format!(
                "data directory belongs to cluster {ours}, the control plane at {} to cluster {}; use the data directory \
                 and the control planes of one cluster",
                self.planes.current, registered.cluster
            );
            return Err(Refused(RpcError::new(ErrorKind::Incompatible, why)));
        }
        self.note_peace();
        Ok(registered)
    }

    fn note_trouble(&mut self, error: &RpcError) {
        let address = &self.planes.current;
        let trouble = error.to_string();
        if !self.serves {
            self.health
                .not_ready(format!("control plane at {address}: {trouble}"));
        }
        if self.troubles.get(address) != Some(&trouble) {
            tracing::warn!(%address, error = %trouble, "control plane does not answer, trying on");
            self.troubles.insert(address.clone(), trouble);
        }
    }

    fn note_refusal(&mut self, error: &RpcError) {
        let address = &self.planes.current;
        let trouble = format!("the control plane at {address} refuses this node, which serves on: {error}");
        if self.troubles.get(address) != Some(&trouble) {
            tracing::error!(%address, %error, "control plane refuses this node; it serves on and asks again");
            self.troubles.insert(address.clone(), trouble.clone());
        }
        self.health.not_ready(trouble);
    }

    fn note_peace(&mut self) {
        self.health.ready();
        if !self.troubles.is_empty() {
            tracing::info!(address = %self.planes.current, "control plane answers");
            self.troubles.clear();
        }
    }

    /// Reports until the node stops; at once when the state of a replica changed.
    pub(crate) async fn run(mut self, node: Arc<Node>, keeper: PlacementKeeper, stopping: Stopping) {
        let mut changes = node.host.watch_replicas();
        loop {
            let Some(registered) = self.register_again(&stopping).await else {
                return;
            };
            let interval = registered
                .report_interval
                .clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL);
            loop {
                let began = Instant::now();
                changes.mark_unchanged();
                let known = self.report(&node, &keeper).await;
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep_until(began + interval) => {}
                    () = changed(&mut changes), if known => {
                        tokio::time::sleep_until(began + SHORTEST_INTERVAL).await;
                    }
                }
                if !known {
                    break;
                }
            }
        }
    }

    /// Reports once; false when the node has to register again.
    async fn report(&mut self, node: &Node, keeper: &PlacementKeeper) -> bool {
        let report = report_of(node, keeper, &self.registration);
        let result = match self.planes.client() {
            Ok(client) => client.report(&report, &self.registration.disk_id).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(known) => {
                self.note_peace();
                known
            }
            Err(error) => {
                self.note_trouble(&error);
                self.planes.turn(&error);
                false
            }
        }
    }
}

/// A refusal is about this node and its directory, and does not pass by waiting.
fn is_refusal(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Incompatible | ErrorKind::Conflict | ErrorKind::InvalidArgument | ErrorKind::AlreadyExists
    )
}

async fn changed(changes: &mut tokio::sync::watch::Receiver<u64>) {
    if changes.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn report_of(node: &Node, keeper: &PlacementKeeper, registration: &NodeRegistration) -> NodeReport {
    let view = keeper.view();
    let statuses = node.host.replicas();
    let report = |status| {
        let mut report = replica_report(status);
        add_members(&mut report, node);
        report
    };
    let mut replicas: Vec<_> = statuses.iter().map(report).collect();
    for (group, trouble) in view.troubles {
        if statuses.iter().any(|status| status.group == group) {
            continue;
        }
        replicas.push(ReplicaReport {
            group,
            replica: None,
            state: ReplicaState::Failed,
            trouble,
            term: Term::default(),
            leader: None,
            applied: LogIndex::default(),
            initialized: false,
            voters: Vec::new(),
            learners: Vec::new(),
            members_settled: false,
            learner_lag: 0,
        });
    }
    let (disk_total_bytes, disk_free_bytes) = node.shared.disk.seen();
    NodeReport {
        node: registration.node,
        address: registration.address.clone(),
        version: registration.version.clone(),
        disk_free_bytes,
        disk_total_bytes,
        replicas,
        placement_epoch: view.fence.epoch,
        placement_revision: view.fence.revision,
        refuses_messages: node.shared.disk.is_full(),
        disk_needed_bytes: node.shared.disk.needed_bytes(),
        yielding: node.membership.yielding(),
    }
}

fn replica_report(status: &ReplicaStatus) -> ReplicaReport {
    ReplicaReport {
        group: status.group,
        replica: status.replica,
        state: replica_state(status.state),
        trouble: status.trouble.clone().unwrap_or_default(),
        term: status.term,
        leader: status.leader_node,
        applied: status.applied,
        initialized: status.initialized,
        voters: status.voters.iter().map(|(replica, _)| *replica).collect(),
        learners: status.learners.iter().map(|(replica, _)| *replica).collect(),
        members_settled: false,
        learner_lag: 0,
    }
}

/// What only the leader of a group knows of its members.
fn add_members(report: &mut ReplicaReport, node: &Node) {
    let Some(replica) = node.host.replica(report.group) else {
        return;
    };
    if let Some(members) = replica.led_members() {
        report.voters = members.voters.iter().map(|(replica, _)| *replica).collect();
        report.learners = members.learners.iter().map(|(replica, _)| *replica).collect();
        report.members_settled = members.settled;
        report.learner_lag = members.learner_lag;
    }
}

fn replica_state(state: HostState) -> ReplicaState {
    match state {
        HostState::Running => ReplicaState::Open,
        HostState::Opening | HostState::Restarting | HostState::Stopped => ReplicaState::Starting,
        HostState::Damaged => ReplicaState::Damaged,
        HostState::Lost => ReplicaState::Lost,
        HostState::Unclaimed => ReplicaState::UnknownGroup,
        HostState::Failed => ReplicaState::Failed,
    }
}
