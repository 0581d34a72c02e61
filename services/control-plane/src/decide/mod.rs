//! Decisions: everything that changes metadata goes through one task, one decision after the other.
//!
//! A decision looks at the view, is written with preconditions under the lease's epoch, and ends when the view has seen
//! it, so that the next decision builds on it. A write that was refused or whose outcome is not known is looked at again:
//! every decision first asks whether what it wants is there already.

mod bootstrap;
mod consumer_group;
mod duty;
mod moves;
mod node;
mod progress;
mod station;

use std::time::Duration;

use ptah_rpc::MetadataClient;
use ptah_rpc::clients::{
    ConsumerGroupEnsured, CreateStation, DeleteStation, EnsureConsumerGroup, NodeRegistration, Registered,
    SetNodeDuty, StationCreated, StationUpdated, UpdateStation,
};
use ptah_rpc::records::{Commit, NodeDuty, Precondition, RecordKey, RecordValue, Write};
use ptah_service::{Component, Ports, Stopping};
use ptah_types::{Action, ErrorKind, Principal, StationName, TenantName, Timestamp, UserName, authorize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::config::BootstrapConfig;
use crate::error::ControlError;
use crate::lease::Lease;
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::placement::NodeLoad;
use crate::sync::Metadata;
use crate::view::View;

/// Decisions that may wait.
const QUEUE: usize = 256;
/// A caller waits this long for a place in the queue.
const QUEUE_DEADLINE: Duration = Duration::from_secs(2);
/// A caller waits this long for its decision; then it is not known whether it was made.
const DECISION_DEADLINE: Duration = Duration::from_secs(10);
/// Writes that one decision tries.
const ATTEMPTS: u32 = 5;
/// How long the view may take to see a revision that the store has.
const VIEW_DEADLINE: Duration = Duration::from_secs(2);
/// Pause before a takeover is tried again.
const TAKEOVER_RETRY: Duration = Duration::from_millis(500);
/// How often tombstones are looked through for ones that can go.
const COMPACTION_INTERVAL: Duration = Duration::from_secs(60);

/// How often it is looked whether replicas have to move.
const MOVE_INTERVAL: Duration = Duration::from_millis(500);

pub use moves::MoveLimits;

type Answer<T> = oneshot::Sender<Result<T, ControlError>>;

/// A decision to make, and where its outcome goes.
enum Job {
    CreateStation(CreateStation, Answer<StationCreated>),
    UpdateStation(UpdateStation, Answer<StationUpdated>),
    DeleteStation(DeleteStation, Answer<u64>),
    SetNodeDuty(SetNodeDuty, Answer<u64>),
    EnsureConsumerGroup(EnsureConsumerGroup, Answer<ConsumerGroupEnsured>),
    Register(NodeRegistration, Answer<Registered>),
}

/// What a look at the view leads to.
enum Step<T> {
    /// It is so already.
    Done(T),
    /// Write this.
    Commit(Change<T>),
}

/// A write, and what to answer when it is done at a revision.
struct Change<T> {
    preconditions: Vec<Precondition>,
    writes: Vec<Write>,
    done: Box<dyn FnOnce(u64) -> T + Send>,
}

impl<T> Change<T> {
    fn new(done: impl FnOnce(u64) -> T + Send + 'static) -> Self {
        Self {
            preconditions: Vec::new(),
            writes: Vec::new(),
            done: Box::new(done),
        }
    }

    /// Writes a record that is at a revision; 0 when it must not exist.
    fn put(&mut self, key: RecordKey, at_revision: u64, value: RecordValue) {
        self.require(key.clone(), at_revision);
        self.writes.push(Write {
            key,
            value: Some(value),
        });
    }

    /// Deletes a record that is at a revision.
    fn delete(&mut self, key: RecordKey, at_revision: u64) {
        self.require(key.clone(), at_revision);
        self.writes.push(Write { key, value: None });
    }

    fn require(&mut self, key: RecordKey, revision: u64) {
        self.preconditions.push(Precondition { key, revision });
    }
}

/// Handle on the deciding task. Cheap to clone.
#[derive(Clone)]
pub struct Decisions {
    jobs: mpsc::Sender<Job>,
}

impl Decisions {
    /// Makes a station, or finds it with the same settings.
    pub async fn create_station(&self, request: CreateStation) -> Result<StationCreated, ControlError> {
        self.submit("create a station", |answer| Job::CreateStation(request, answer))
            .await
    }

    /// Changes settings of a station.
    pub async fn update_station(&self, request: UpdateStation) -> Result<StationUpdated, ControlError> {
        self.submit("change a station", |answer| Job::UpdateStation(request, answer))
            .await
    }

    /// Changes what a node is there for; answers a revision at which it is so.
    pub async fn set_node_duty(&self, request: SetNodeDuty) -> Result<u64, ControlError> {
        self.submit("change the duty of a node", |answer| {
            Job::SetNodeDuty(request, answer)
        })
        .await
    }

    /// Deletes a station; answers the revision.
    pub async fn delete_station(&self, request: DeleteStation) -> Result<u64, ControlError> {
        self.submit("delete a station", |answer| Job::DeleteStation(request, answer))
            .await
    }

    /// Makes a consumer group, or finds it.
    pub async fn ensure_consumer_group(
        &self,
        request: EnsureConsumerGroup,
    ) -> Result<ConsumerGroupEnsured, ControlError> {
        self.submit("make a consumer group", |answer| {
            Job::EnsureConsumerGroup(request, answer)
        })
        .await
    }

    /// Takes a storage node in.
    pub async fn register(&self, node: NodeRegistration) -> Result<Registered, ControlError> {
        self.submit("register a node", |answer| Job::Register(node, answer))
            .await
    }

    async fn submit<T>(
        &self,
        action: &'static str,
        job: impl FnOnce(Answer<T>) -> Job,
    ) -> Result<T, ControlError> {
        let (answer, outcome) = oneshot::channel();
        match self.jobs.send_timeout(job(answer), QUEUE_DEADLINE).await {
            Ok(()) => {}
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => return Err(ControlError::Busy),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => {
                return Err(ControlError::NoLease {
                    why: "it is stopping".to_owned(),
                });
            }
        }
        let unknown = |why: &str| ControlError::Metadata {
            action,
            source: ptah_rpc::RpcError::new(ErrorKind::OutcomeUnknown, why),
        };
        match tokio::time::timeout(DECISION_DEADLINE, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(unknown("the control plane is stopping")),
            Err(_) => Err(unknown("the decision was not made in time")),
        }
    }
}

/// What decisions are made from.
pub struct DeciderParts {
    /// The store.
    pub client: MetadataClient,
    /// What it holds.
    pub metadata: Metadata,
    /// Whether to decide at all.
    pub lease: Lease,
    /// Nodes as they report.
    pub nodes: Nodes,
    /// Clock and randomness.
    pub ports: Ports,
    /// The first start.
    pub bootstrap: BootstrapConfig,
    /// How often nodes shall report.
    pub report_interval: Duration,
    /// When and how many replicas are moved.
    pub moves: MoveLimits,
    /// Where to count.
    pub metrics: Metrics,
    /// Where to tell readiness.
    pub component: Component,
}

/// The deciding task.
pub struct Decider {
    parts: DeciderParts,
    jobs: mpsc::Receiver<Job>,
    compacted_to: u64,
    /// Epoch under which replicas are moved, and since when: a node that has not reported since then may still do so.
    moving_since: Option<(u64, Instant)>,
}

impl Decider {
    /// The task, and a handle on it.
    pub fn new(parts: DeciderParts) -> (Self, Decisions) {
        let (sender, jobs) = mpsc::channel(QUEUE);
        let this = Self {
            parts,
            jobs,
            compacted_to: 0,
            moving_since: None,
        };
        (this, Decisions { jobs: sender })
    }

    /// Decides until the service stops.
    pub async fn run(mut self, stopping: Stopping) {
        let mut standing = self.parts.lease.watch();
        standing.mark_changed();
        let mut compaction = tokio::time::interval(COMPACTION_INTERVAL);
        compaction.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut moving = tokio::time::interval(MOVE_INTERVAL);
        moving.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut layout = self.parts.metadata.progress();
        loop {
            let takeover_is_due = self.parts.lease.needs_takeover();
            // Everything here may be dropped at any await; the work itself is done behind the `select!`.
            tokio::select! {
                biased;
                () = stopping.cancelled() => break,
                _ = standing.changed() => self.take_over().await,
                () = tokio::time::sleep(TAKEOVER_RETRY), if takeover_is_due => self.take_over().await,
                job = self.jobs.recv() => match job {
                    Some(job) => self.work(job).await,
                    None => break,
                },
                () = self.parts.nodes.news() => self.record_progress().await,
                _ = layout.changed() => self.record_progress().await,
                _ = compaction.tick() => self.compact().await,
                _ = moving.tick() => self.move_replicas().await,
            }
        }
    }

    async fn work(&mut self, job: Job) {
        let metrics = self.parts.metrics.clone();
        // A caller that went away does not want its answer.
        match job {
            Job::CreateStation(request, answer) => {
                let outcome = self.create_station(&request).await;
                metrics.decided(outcome.as_ref().err());
                drop(answer.send(outcome));
            }
            Job::UpdateStation(request, answer) => {
                let outcome = self.update_station(&request).await;
                metrics.decided(outcome.as_ref().err());
                drop(answer.send(outcome));
            }
            Job::SetNodeDuty(request, answer) => {
                let outcome = self.set_node_duty(&request).await;
                metrics.decided(outcome.as_ref().err());
                drop(answer.send(outcome));
            }
            Job::DeleteStation(request, answer) => {
                let outcome = self.delete_station(&request).await;
                metrics.decided(outcome.as_ref().err());
                drop(answer.send(outcome));
            }
            Job::EnsureConsumerGroup(request, answer) => {
                let outcome = self.ensure_consumer_group(&request).await;
                metrics.decided(outcome.as_ref().err());
                drop(answer.send(outcome));
            }
            Job::Register(request, answer) => {
                let outcome = self.register(&request).await;
                metrics.decided(outcome.as_ref().err());
                drop(answer.send(outcome));
            }
        }
    }

    /// Decides under the epoch of a takeover that is complete.
    async fn decide<T>(
        &self,
        action: &'static str,
        look: impl FnMut(&View) -> Result<Step<T>, ControlError>,
    ) -> Result<T, ControlError> {
        let epoch = self.parts.lease.authority()?;
        self.decide_under(epoch, action, look).await
    }

    async fn decide_under<T>(
        &self,
        epoch: u64,
        action: &'static str,
        mut look: impl FnMut(&View) -> Result<Step<T>, ControlError>,
    ) -> Result<T, ControlError> {
        for _ in 0..ATTEMPTS {
            let now_under = self.parts.lease.epoch()?;
            if now_under != epoch {
                return Err(ControlError::TakingOver {
                    why: "the lease changed".to_owned(),
                });
            }
            let step = self
                .parts
                .metadata
                .read(&mut look)
                .ok_or_else(|| ControlError::TakingOver {
                    why: "metadata is being read".to_owned(),
                })??;
            let change = match step {
                Step::Done(answer) => return Ok(answer),
                Step::Commit(change) => change,
            };
            let commit = Commit {
                preconditions: change.preconditions,
                writes: change.writes,
                lease_epoch: epoch,
            };
            match self.parts.client.commit(&commit).await {
                Ok(revision) => {
                    self.see(revision).await;
                    return Ok((change.done)(revision));
                }
                Err(error) if matches!(error.kind, ErrorKind::Conflict | ErrorKind::OutcomeUnknown) => {
                    debug!(action, %error, "looking again");
                    self.parts.lease.doubt();
                    self.catch_up(action, error.kind).await?;
                }
                Err(error) => return Err(ControlError::metadata(action)(error)),
            }
        }
        Err(ControlError::Contended { action })
    }

    /// Waits until the view has seen a write. When it does not in time, the next decision's preconditions say so.
    async fn see(&self, revision: u64) {
        if !self.parts.metadata.wait_for(revision, VIEW_DEADLINE).await {
            warn!(revision, "the view of metadata lags behind the store");
        }
    }

    /// Brings the view up to what the store has now.
    async fn catch_up(&self, action: &'static str, after: ErrorKind) -> Result<(), ControlError> {
        let info = self.parts.client.info().await.map_err(|mut error| {
            // The write before may have happened: not being able to look does not change that.
            if after == ErrorKind::OutcomeUnknown {
                error.kind = ErrorKind::OutcomeUnknown;
            }
            ControlError::metadata(action)(error)
        })?;
        self.see(info.revision).await;
        Ok(())
    }

    fn now(&self) -> Timestamp {
        self.parts.ports.clock.now()
    }

    /// Nodes that may get replicas of new stations, with their loads.
    fn live_nodes(nodes: &Nodes, view: &View) -> Vec<NodeLoad> {
        let live = view
            .nodes()
            .filter(|node| node.duty == NodeDuty::Serving && nodes.is_alive(node.node));
        let load = |node: &ptah_rpc::records::NodeRecord| {
            let (replicas, firsts) = view.load_of(node.node);
            NodeLoad {
                node: node.node,
                zone: node.zone.clone(),
                replicas,
                firsts,
            }
        };
        live.map(load).collect()
    }
}

/// Finds the caller and asks whether it may.
pub(crate) fn permit(
    view: &View,
    tenant: &TenantName,
    caller: &UserName,
    action: Action,
    station: Option<&StationName>,
) -> Result<(), ControlError> {
    if *tenant != TenantName::default_tenant() {
        return Err(ControlError::TenantNotFound(tenant.as_str().to_owned()));
    }
    let user = view.user(tenant, caller);
    let user = user.ok_or_else(|| ControlError::UnknownUser(caller.as_str().to_owned()))?;
    let principal = Principal {
        user: user.name.clone(),
        role: user.role,
    };
    Ok(authorize(&principal, action, station)?)
}

#[cfg(test)]
mod tests;
