//! Append: from messages of one partition to their sequences.
//!
//! Invariants: messages of a partition are stored in the order they were submitted; each is stored at most once, however
//! often the gateway sends it; a message is answered once, and as stored only after its partition's majority has it.
//! Not here: choosing the partition ([`crate::produce`]), the wire ([`crate::grpc`]).

mod answer;
mod build;
mod drive;
pub mod link;
pub mod partition;
pub mod pipeline;
pub mod queue;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ptah_service::{Random, Stopping, Tasks};
use ptah_types::{NodeId, PartitionNumber, RaftGroupId, SessionId, StationId};

use crate::catalog::{Catalog, Station};
use crate::error::GatewayError;
use crate::metrics::AppendMetrics;
use crate::routing::Routing;

use link::{AppendLink, AppendTransport, LinkRunner, LinkStatus};
pub use partition::{AppendTarget, PartitionAppender};

/// Settings of the append path.
#[derive(Debug, Clone, Copy)]
pub struct AppendSettings {
    /// Batches of one partition under way.
    pub window_batches: usize,
    /// How long the gateway tries to store a message.
    pub deadline: Duration,
    /// Bytes that may wait for a partition that has had no leader for some seconds.
    pub backlog_bytes: usize,
}

/// What all partitions share.
pub struct AppendShared {
    pub(crate) settings: AppendSettings,
    pub(crate) routing: Routing,
    pub(crate) metrics: AppendMetrics,
    pub(crate) sessions: Sessions,
    catalog: Catalog,
    transport: Arc<dyn AppendTransport>,
    random: Arc<dyn Random>,
    links: Mutex<BTreeMap<(NodeId, SessionId), Arc<AppendLink>>>,
    tasks: Tasks,
}

/// Ids of produce sessions: one for all partitions, until a partition has to begin anew.
pub(crate) struct Sessions {
    random: Arc<dyn Random>,
    current: Mutex<SessionId>,
}

impl Sessions {
    fn new(random: Arc<dyn Random>) -> Self {
        let first = draw(&*random);
        Self {
            random,
            current: Mutex::new(first),
        }
    }

    pub(crate) fn current(&self) -> SessionId {
        *self.current.lock()
    }

    /// A session that is not `spent`.
    pub(crate) fn renew(&self, spent: SessionId) -> SessionId {
        let mut current = self.current.lock();
        if *current == spent {
            *current = draw(&*self.random);
        }
        *current
    }
}

fn draw(random: &dyn Random) -> SessionId {
    loop {
        if let Ok(session) = SessionId::new(random.next_u64()) {
            return session;
        }
    }
}

const FIRST_BACKOFF: Duration = Duration::from_millis(5);
const MAX_BACKOFF: Duration = Duration::from_millis(500);

impl AppendShared {
    /// How long to wait before trying a partition again, with jitter.
    pub(crate) fn backoff(&self, failures: u32) -> Duration {
        let longest = FIRST_BACKOFF
            .saturating_mul(1 << failures.min(10))
            .min(MAX_BACKOFF);
        longest / 2 + Duration::from_micros(self.random.below(longest.as_micros() as u64 / 2 + 1))
    }

    /// The link to a node for a session; made when there is none.
    pub(crate) fn link(&self, node: NodeId, session: SessionId) -> Arc<AppendLink> {
        let mut links = self.links.lock();
        links.retain(|_, link| *link.status().borrow() != LinkStatus::Gone);
        let link = links.entry((node, session)).or_insert_with(|| {
            let link = AppendLink::new(node, session);
            let runner = LinkRunner {
                link: Arc::clone(&link),
                transport: Arc::clone(&self.transport),
                catalog: self.catalog.clone(),
                random: Arc::clone(&self.random),
                metrics: self.metrics.clone(),
            };
            self.tasks.spawn(
                format!("append-to-node-{node}"),
                runner.run(self.tasks.stopping()),
            );
            link
        });
        Arc::clone(link)
    }
}

/// Appenders of all partitions in use. Cheap to clone.
#[derive(Clone)]
pub struct Appends {
    shared: Arc<AppendShared>,
    appenders: Arc<Mutex<BTreeMap<RaftGroupId, Arc<PartitionAppender>>>>,
}

/// Parts that the append path is made of.
pub struct AppendParts {
    /// Settings.
    pub settings: AppendSettings,
    /// Leaders.
    pub routing: Routing,
    /// Stations and nodes.
    pub catalog: Catalog,
    /// Opens streams to nodes.
    pub transport: Arc<dyn AppendTransport>,
    /// Session ids and jitter.
    pub random: Arc<dyn Random>,
    /// Counters.
    pub metrics: AppendMetrics,
    /// Owner of links and partitions' tasks.
    pub tasks: Tasks,
}

impl Appends {
    /// An append path without partitions.
    pub fn new(parts: AppendParts) -> Self {
        let shared = AppendShared {
            settings: parts.settings,
            routing: parts.routing,
            metrics: parts.metrics,
            sessions: Sessions::new(Arc::clone(&parts.random)),
            catalog: parts.catalog,
            transport: parts.transport,
            random: parts.random,
            links: Mutex::default(),
            tasks: parts.tasks,
        };
        Self {
            shared: Arc::new(shared),
            appenders: Arc::default(),
        }
    }

    /// Longest time that a message is tried.
    pub fn deadline(&self) -> Duration {
        self.shared.settings.deadline
    }

    /// The appender of a partition.
    pub fn of(
        &self,
        station: &Station,
        partition: PartitionNumber,
    ) -> Result<Arc<PartitionAppender>, GatewayError> {
        let id = station.record.id;
        let group = self.shared.catalog.with(|view| view.raft_group(id, partition));
        let group = group.ok_or_else(|| GatewayError::NotPlaced {
            station: station.record.name.display().to_owned(),
            partition: partition.get(),
        })?;
        let mut appenders = self.appenders.lock();
        if let Some(appender) = appenders.get(&group) {
            appender.routed_by(station.record.generation);
            return Ok(Arc::clone(appender));
        }
        let target = AppendTarget {
            station: station.record.name.display().into(),
            partition: station.partition_key(partition),
            group,
        };
        let appender = PartitionAppender::new(target, Arc::clone(&self.shared));
        appender.routed_by(station.record.generation);
        let drive = Arc::clone(&appender).drive(self.shared.tasks.stopping());
        self.shared.tasks.spawn(format!("append-{group}"), drive);
        appenders.insert(group, Arc::clone(&appender));
        Ok(appender)
    }

    /// Ends the appenders of stations that are gone, whenever the catalog changes.
    pub async fn follow_catalog(self, stopping: Stopping) {
        let mut changes = self.shared.catalog.watch();
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
            self.drop_gone_stations();
        }
    }

    fn drop_gone_stations(&self) {
        let gone: Vec<_> = {
            let mut appenders = self.appenders.lock();
            let exists = |station: StationId| self.shared.catalog.with(|view| view.has_station(station));
            appenders
                .extract_if(.., |_, appender| !exists(appender.target().partition.station))
                .collect()
        };
        for (_, appender) in gone {
            let target = appender.target();
            appender.retire(GatewayError::StationNotFound {
                tenant: target.partition.tenant.to_string(),
                station: target.station.to_string(),
            });
        }
    }

    /// Waits until nothing waits or is under way, then ends everything. What is left at the end of the time is answered
    /// with an error; how many partitions that concerns is told.
    pub async fn drain(&self, limit: Duration) -> usize {
        let idle = async {
            while !self.appenders.lock().values().all(|appender| appender.is_idle()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _all_done = tokio::time::timeout(limit, idle).await;
        let appenders = std::mem::take(&mut *self.appenders.lock());
        let mut unfinished = 0;
        for appender in appenders.into_values() {
            unfinished += usize::from(!appender.is_idle());
            appender.retire(GatewayError::Stopping);
        }
        unfinished
    }
}
