//! Consume: from consumer groups on partitions to a client, and its acknowledgements back.
//!
//! Invariants: a client never gets more than it gave credit for; messages of a partition come in the order its leader
//! hands them out; what was not sent goes back at once when the client goes; memory is bounded over all clients.
//! Not here: who holds which message (storage nodes decide), the wire ([`crate::grpc`]).

pub mod budget;
pub mod credit;
mod drive;
pub mod link;
pub mod outbox;
mod pull;
pub mod session;
mod slot;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use parking_lot::Mutex;
use ptah_partition::{BatchView, SequenceRange};
use ptah_rpc::records::ConsumerGroupConfig;
use ptah_service::{Random, Tasks};
use ptah_types::{
    Action, ConsumerGroupId, GroupName, NodeId, PartitionNumber, Principal, RaftGroupId, StationName,
    TenantName, authorize,
};

use crate::catalog::{Catalog, Station};
use crate::control::Control;
use crate::error::GatewayError;
use crate::leaders::{Leaders, ReadRange};
use crate::metrics::ConsumeMetrics;
use crate::routing::Routing;

use budget::{ConsumeBudget, Reservation};
pub use credit::Amount;
use link::{DeliverLink, DeliverTransport, LinkRunner, LinkStatus};
pub use outbox::GroupOnPartition;
pub use pull::PullLimits;
pub use session::{ConsumeEvent, Session, SessionSpec};
pub use slot::DeliveredRun;

/// Partitions that are prepared at the same time.
const CONCURRENT_PARTITIONS: usize = 16;
/// Consumer groups that are remembered as being on all their partitions; more are asked for again.
const MAX_ENSURED: usize = 16_384;
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
    transport: Arc<dyn DeliverTransport>,
    random: Arc<dyn Random>,
    links: Mutex<BTreeMap<NodeId, Arc<DeliverLink>>>,
    tasks: Tasks,
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
    /// Owner of links and streams' tasks.
    pub tasks: Tasks,
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

/// What was read, with the memory that it takes.
#[derive(Debug)]
pub struct ReadAnswer {
    /// Partition.
    pub partition: PartitionNumber,
    /// Messages.
    pub stored: StoredMessages,
    /// To be held until the answer has left.
    pub memory: Arc<Reservation>,
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
            transport: parts.transport,
            random: parts.random,
            links: Mutex::default(),
            tasks: parts.tasks,
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

    /// Makes sure that the group exists and is on every partition of its station, and says where it is.
    pub async fn ready(
        &self,
        principal: &Principal,
        request: &GroupRequest,
    ) -> Result<ReadyGroup, GatewayError> {
        authorize(principal, Action::Consume, Some(&request.station))?;
        let station = self.shared.catalog.station(&request.tenant, &request.station)?;
        let wanted = wanted_partitions(&station, &request.partitions)?;
        let known = self
            .shared
            .catalog
            .with(|view| view.group(station.record.id, &request.group).cloned());
        let (id, config) = match known {
            Some(group) => (group.id, group.config),
            None => self.control.ensure_consumer_group(principal, request).await?,
        };
        let all = station
            .all_partitions()
            .map(|partition| self.on_partition(&station, partition, id));
        let all = all.collect::<Result<Vec<_>, _>>()?;
        self.ensure_on(&all, request, config).await?;
        let partitions = all
            .into_iter()
            .filter(|group| wanted.contains(&group.partition.partition))
            .collect();
        Ok(ReadyGroup {
            station,
            config,
            partitions,
        })
    }

    fn on_partition(
        &self,
        station: &Station,
        partition: PartitionNumber,
        consumer_group: ConsumerGroupId,
    ) -> Result<GroupOnPartition, GatewayError> {
        let raft_group = self
            .shared
            .catalog
            .with(|view| view.raft_group(station.record.id, partition));
        let raft_group = raft_group.ok_or_else(|| GatewayError::NotPlaced {
            station: station.record.name.display().to_owned(),
            partition: partition.get(),
        })?;
        Ok(GroupOnPartition {
            partition: station.partition_key(partition),
            raft_group,
            consumer_group,
        })
    }

    /// Puts the group on the partitions where this gateway has not seen it yet. All must have it before the first message
    /// is read, or a group that starts at the end would start at different moments.
    async fn ensure_on(
        &self,
        partitions: &[GroupOnPartition],
        request: &GroupRequest,
        config: ConsumerGroupConfig,
    ) -> Result<(), GatewayError> {
        let missing: Vec<_> = {
            let ensured = self.ensured.lock();
            let is_missing =
                |group: &&GroupOnPartition| !ensured.contains(&(group.consumer_group, group.raft_group));
            partitions.iter().filter(is_missing).cloned().collect()
        };
        let calls = missing.into_iter().map(|group| async move {
            let what = format!(
                "make consumer group `{}` on partition {} of station `{}`",
                request.group, group.partition.partition, request.station
            );
            let calls = &self.leaders.calls;
            let call = |address: String| {
                let (calls, group, name) = (Arc::clone(calls), group.clone(), request.group.clone());
                Box::pin(async move { calls.ensure_group(address, group, name, config).await }) as _
            };
            let () = self
                .leaders
                .at_leader(group.raft_group, self.shared.settings.ack_deadline, &what, call)
                .await?;
            let mut ensured = self.ensured.lock();
            if ensured.len() >= MAX_ENSURED {
                ensured.clear();
            }
            ensured.insert((group.consumer_group, group.raft_group));
            Ok::<_, GatewayError>(())
        });
        futures_util::stream::iter(calls)
            .buffer_unordered(CONCURRENT_PARTITIONS)
            .try_collect()
            .await
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
        let drive = Arc::clone(&session).drive(self.shared.tasks.stopping());
        self.shared.tasks.spawn("consume", drive);
        session
    }

    /// Acknowledges; answers when all partitions have it on a majority.
    pub async fn ack(
        &self,
        principal: &Principal,
        request: &GroupRequest,
        acks: Vec<(u32, Vec<SequenceRange>)>,
    ) -> Result<(), GatewayError> {
        authorize(principal, Action::Consume, Some(&request.station))?;
        let station = self.shared.catalog.station(&request.tenant, &request.station)?;
        let known = self
            .shared
            .catalog
            .with(|view| view.group(station.record.id, &request.group).cloned());
        let id = match known {
            Some(group) => group.id,
            None => {
                return Err(GatewayError::Remote {
                    kind: ptah_types::ErrorKind::NotFound,
                    message: format!(
                        "consumer group `{}` not found on station `{}`; read with it first",
                        request.group, request.station
                    )
                    .into(),
                    retry_after: None,
                });
            }
        };
        let mut calls = Vec::new();
        for (number, ranges) in acks {
            let partition = partition_of(&station, number)?;
            calls.push(self.ack_partition(self.on_partition(&station, partition, id)?, ranges, request));
        }
        futures_util::stream::iter(calls)
            .buffer_unordered(CONCURRENT_PARTITIONS)
            .try_collect()
            .await
    }

    async fn ack_partition(
        &self,
        group: GroupOnPartition,
        ranges: Vec<SequenceRange>,
        request: &GroupRequest,
    ) -> Result<(), GatewayError> {
        let what = format!(
            "acknowledge on partition {} of station `{}`",
            group.partition.partition, request.station
        );
        self.shared
            .metrics
            .acks
            .inc_by(ranges.iter().map(|range| range.count()).sum());
        let call = |address: String| {
            let (calls, group, ranges) = (Arc::clone(&self.leaders.calls), group.clone(), ranges.clone());
            Box::pin(async move { calls.ack(address, group, ranges).await }) as _
        };
        self.leaders
            .at_leader(group.raft_group, self.shared.settings.ack_deadline, &what, call)
            .await
    }

    /// Reads stored messages by sequence.
    pub async fn read(
        &self,
        principal: &Principal,
        tenant: &TenantName,
        name: &StationName,
        number: u32,
        from_sequence: u64,
        max_messages: u32,
    ) -> Result<ReadAnswer, GatewayError> {
        authorize(principal, Action::Consume, Some(name))?;
        let station = self.shared.catalog.station(tenant, name)?;
        let partition = partition_of(&station, number)?;
        let group = self
            .on_partition(&station, partition, ConsumerGroupId::new(1).expect("1 is not 0"))?
            .raft_group;
        let range = ReadRange {
            partition: station.partition_key(partition),
            group,
            from_sequence,
            max_messages,
            max_bytes: self.shared.settings.answer_bytes,
        };
        let largest = (self.shared.settings.answer_bytes).max(station.record.max_message_bytes);
        let memory = self
            .shared
            .budget
            .reserve(usize::try_from(largest).unwrap_or(usize::MAX))
            .await;
        let what = format!("read partition {partition} of station `{name}`");
        let call = |address: String| {
            let (calls, range) = (Arc::clone(&self.leaders.calls), range.clone());
            Box::pin(async move { calls.read(address, range).await }) as _
        };
        let stored = self
            .leaders
            .at_leader(group, self.shared.settings.ack_deadline, &what, call)
            .await?;
        Ok(ReadAnswer {
            partition,
            stored,
            memory: Arc::new(memory),
        })
    }
}

fn partition_of(station: &Station, number: u32) -> Result<PartitionNumber, GatewayError> {
    station
        .partition(number)
        .ok_or_else(|| GatewayError::PartitionNotFound {
            station: station.record.name.display().to_owned(),
            partition: number,
            partitions: station.partitions.get(),
        })
}

fn wanted_partitions(station: &Station, numbers: &[u32]) -> Result<BTreeSet<PartitionNumber>, GatewayError> {
    if numbers.is_empty() {
        return Ok(station.all_partitions().collect());
    }
    numbers
        .iter()
        .map(|number| partition_of(station, *number))
        .collect()
}
