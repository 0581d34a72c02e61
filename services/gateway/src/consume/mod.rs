//! Consume: from consumer groups on partitions to a client, and its acknowledgements back.
//!
//! Invariants: a client never gets more than it gave credit for; messages of a partition come in the order its leader
//! hands them out; what was not sent goes back at once when the client goes; memory is bounded over all clients.
//! Not here: who holds which message (storage nodes decide), the wire ([`crate::grpc`]).

mod acknowledge;
mod acks;
pub mod budget;
pub mod credit;
mod drive;
mod group;
pub mod link;
pub mod outbox;
mod pull;
pub mod session;
mod slot;
mod state;
mod unary;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ptah_partition::BatchView;
use ptah_rpc::records::ConsumerGroupConfig;
use ptah_service::{Random, Tasks};
use ptah_types::{ConsumerGroupId, GroupName, NodeId, RaftGroupId, StationName, TenantName};

use crate::catalog::{Catalog, Station};
use crate::control::Control;
use crate::leaders::Leaders;
use crate::metrics::ConsumeMetrics;
use crate::routing::Routing;

use acks::AckRoom;
use budget::ConsumeBudget;
pub use credit::Amount;
use link::{DeliverLink, DeliverTransport, LinkRunner, LinkStatus};
pub use outbox::GroupOnPartition;
pub use pull::PullLimits;
pub use session::{ConsumeEvent, Session, SessionSpec};
pub use slot::DeliveredRun;
pub use unary::ReadAnswer;

/// Partitions that are prepared at the same time.
const CONCURRENT_PARTITIONS: usize = 16;
/// A delivery waits at most this long for its client, whatever the group's ack deadline is.
const LONGEST_HOLD: Duration = Duration::from_secs(15);

/// Settings of the consume path.
#[derive(Debug, Clone, Copy)]
pub struct ConsumeSettings {
    /// How long a client may leave messages unread when others wait for memory.
    pub stall: Duration,
    /// Bytes that one stream may have buffered and on the way.
    pub stream_bytes: u64,
    /// Bytes of one answer to a pull or read.
    pub answer_bytes: u64,
    /// How long acknowledgements and consumer groups are tried.
    pub ack_deadline: Duration,
}

/// What all consume streams share.
pub struct ConsumeShared {
    pub(crate) settings: ConsumeSettings,
    pub(crate) routing: Routing,
    pub(crate) catalog: Catalog,
    pub(crate) metrics: ConsumeMetrics,
    pub(crate) budget: ConsumeBudget,
    ack_room: AckRoom,
    transport: Arc<dyn DeliverTransport>,
    random: Arc<dyn Random>,
    links: Mutex<BTreeMap<NodeId, Arc<DeliverLink>>>,
    tasks: Tasks,
    streams: Tasks,
}

const FIRST_BACKOFF: Duration = Duration::from_millis(5);
const MAX_BACKOFF: Duration = Duration::from_millis(500);

impl ConsumeShared {
    pub(crate) fn backoff(&self, failures: u32) -> Duration {
        let longest = FIRST_BACKOFF
            .saturating_mul(1 << failures.min(10))
            .min(MAX_BACKOFF);
        longest / 2 + Duration::from_micros(self.random.below(longest.as_micros() as u64 / 2 + 1))
    }

    pub(crate) fn link(&self, node: NodeId) -> Arc<DeliverLink> {
        let mut links = self.links.lock();
        links.retain(|_, link| *link.status().borrow() != LinkStatus::Gone);
        let link = links.entry(node).or_insert_with(|| {
            let link = DeliverLink::new(node);
            let runner = LinkRunner {
                link: Arc::clone(&link),
                transport: Arc::clone(&self.transport),
                catalog: self.catalog.clone(),
                random: Arc::clone(&self.random),
            };
            self.tasks.spawn(
                format!("deliver-from-node-{node}"),
                runner.run(self.tasks.stopping()),
            );
            link
        });
        Arc::clone(link)
    }
}

/// Parts that the consume path is made of.
pub struct ConsumeParts {
    /// Settings.
    pub settings: ConsumeSettings,
    /// Memory of all streams.
    pub budget: ConsumeBudget,
    /// Single calls to leaders.
    pub leaders: Leaders,
    /// Makes consumer groups.
    pub control: Control,
    /// Opens streams to nodes.
    pub transport: Arc<dyn DeliverTransport>,
    /// Jitter.
    pub random: Arc<dyn Random>,
    /// Counters.
    pub metrics: ConsumeMetrics,
    /// Owner of links.
    pub tasks: Tasks,
    /// Owner of clients' streams; stopped first.
    pub streams: Tasks,
}

/// Serves consumers of every door. Cheap to clone.
#[derive(Clone)]
pub struct Consumer {
    shared: Arc<ConsumeShared>,
    leaders: Leaders,
    control: Control,
    /// Consumer groups that are on all partitions of their stations.
    ensured: Arc<Mutex<BTreeSet<(ConsumerGroupId, RaftGroupId)>>>,
}

/// Names a consumer group, and how to make it.
#[derive(Debug, Clone)]
pub struct GroupRequest {
    /// Name space.
    pub tenant: TenantName,
    /// Station.
    pub station: StationName,
    /// Group.
    pub group: GroupName,
    /// Settings if it has to be made.
    pub config: ConsumerGroupConfig,
    /// Partitions to read; empty for all.
    pub partitions: Vec<u32>,
}

/// A consumer group that is ready on the partitions to be read.
#[derive(Debug, Clone)]
pub struct ReadyGroup {
    /// Station.
    pub station: Arc<Station>,
    /// Settings that it has.
    pub config: ConsumerGroupConfig,
    /// Partitions in order.
    pub partitions: Vec<GroupOnPartition>,
}

/// Stored messages of one partition.
#[derive(Debug, Clone, Default)]
pub struct StoredMessages {
    /// Batches in order: base sequence, time, and messages.
    pub batches: Vec<(u64, u64, Arc<BatchView>)>,
    /// Oldest message that is kept.
    pub first_sequence: u64,
    /// Sequence that the next message gets.
    pub next_sequence: u64,
}

impl Consumer {
    /// A consume path without streams.
    pub fn new(parts: ConsumeParts) -> Self {
        let shared = ConsumeShared {
            settings: parts.settings,
            routing: parts.leaders.routing.clone(),
            catalog: parts.leaders.catalog.clone(),
            metrics: parts.metrics,
            budget: parts.budget,
            ack_room: AckRoom::new(),
            transport: parts.transport,
            random: parts.random,
            links: Mutex::default(),
            tasks: parts.tasks,
            streams: parts.streams,
        };
        let reap = shared.budget.clone().reap(
            shared.settings.stall,
            shared.metrics.clone(),
            shared.tasks.stopping(),
        );
        shared.tasks.spawn("consume-memory", reap);
        Self {
            shared: Arc::new(shared),
            leaders: parts.leaders,
            control: parts.control,
            ensured: Arc::default(),
        }
    }

    /// Memory of messages on their way out.
    pub fn budget(&self) -> &ConsumeBudget {
        &self.shared.budget
    }

    /// Starts a stream.
    pub fn open(&self, group: &ReadyGroup) -> Arc<Session> {
        let ack_deadline = Duration::from_millis(u64::from(group.config.ack_deadline_ms));
        let spec = SessionSpec {
            station: group.station.record.name.display().into(),
            station_id: group.station.record.id,
            partitions: group.partitions.clone(),
            hold_limit: (ack_deadline / 2).min(LONGEST_HOLD),
        };
        let session = Session::new(spec, Arc::clone(&self.shared));
        let drive = Arc::clone(&session).drive(self.shared.streams.stopping());
        self.shared.streams.spawn("consume", drive);
        session
    }
}
