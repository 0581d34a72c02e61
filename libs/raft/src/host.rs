//! The host: one store, one transport, and all replicas of a node.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use ptah_rpc::{ClusterSecret, Network};
use ptah_segment_log::{Disk, Drivers, GroupCondition, GroupError, GroupInfo, Identity, Store};
use ptah_service::{Ports, Tasks};
use ptah_types::{LogIndex, NodeId, RaftGroupId, ReplicaId, Sequence, Term};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::blocking::Blocking;
use crate::cell::{Cell, ReplicaSpec, ReplicaState, ReplicaStatus, Shared};
use crate::detector::Detector;
use crate::directory::Directory;
use crate::drivers::{self, StoreDrivers};
use crate::error::{EnsureError, OpenError, RemoveError, StopError};
use crate::handover::{hand_over, wait_stopped};
use crate::leaders::{LeaderWatch, Leaders};
use crate::maintenance::Maintenance;
use crate::metrics::Metrics;
use crate::options::HostOptions;
use crate::replica::Replica;
use crate::store_metrics::StoreCollector;
use crate::supervisor::{Opener, supervise};
use crate::transport::grpc::TransportService;
use crate::transport::{Transport, TransportOptions, TransportParts};
use crate::watchers::{self, Watchers};

/// Everything that a host is made of.
pub struct HostParts {
    /// The file system.
    pub disk: Arc<dyn Disk>,
    /// Where the node's data is.
    pub data_dir: PathBuf,
    /// Whose data it is.
    pub identity: Identity,
    /// Settings.
    pub options: HostOptions,
    /// Clock and randomness.
    pub ports: Ports,
    /// The network.
    pub network: Arc<dyn Network>,
    /// The cluster's secret.
    pub secret: ClusterSecret,
    /// Owner of the host's tasks.
    pub tasks: Tasks,
}

/// Room on the data disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskSpace {
    /// All bytes.
    pub total_bytes: u64,
    /// Bytes available.
    pub available_bytes: u64,
    /// Parts of a hundred in use.
    pub used_percent: u8,
    /// Whether writes are refused now.
    pub refusing: bool,
}

struct Inner {
    shared: Arc<Shared>,
    directory: Arc<Directory>,
    transport: Transport,
    opener: Arc<Opener>,
    tasks: Tasks,
    /// Cancelled when the host stops; parent of every replica's token.
    stop: CancellationToken,
    space: watch::Receiver<DiskSpace>,
    failed: watch::Receiver<Option<String>>,
    drivers: Mutex<Option<Drivers>>,
}

/// All replicas of a node. Cheap to clone.
#[derive(Clone)]
pub struct RaftHost {
    inner: Arc<Inner>,
}

impl RaftHost {
    /// Opens the node's data, or makes it, and recovers every group. Replicas run when they are ensured.
    pub async fn open(parts: HostParts, metrics: &ptah_service::Metrics) -> Result<Self, OpenError> {
        let config = parts
            .options
            .raft_config()
            .map_err(|error| OpenError::Options(error.to_string()))?;
        let blocking = Blocking::new(parts.options.simulation);
        let (disk, dir, identity) = (Arc::clone(&parts.disk), parts.data_dir.clone(), parts.identity);
        let store_options = parts.options.store.clone();
        let store = blocking
            .run(move || Store::open(disk, &dir, identity, store_options))
            .await
            .map_err(OpenError::Drivers)??;
        let handles = metrics;
        let metrics = Arc::new(handles.register(Metrics::register));
        let tasks = parts.tasks.child("raft");
        let directory = Arc::new(Directory::new(Arc::clone(&metrics)));
        let detector = Arc::new(Detector::new(
            watchers::limits(&parts.options),
            Arc::clone(&metrics),
        ));
        let shared = Arc::new(Shared {
            node: identity.node,
            options: parts.options.clone(),
            leaders: Leaders::new(),
            replicas: watch::Sender::new(0),
            disk_full: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            metrics: Arc::clone(&metrics),
            blocking,
            tasks: tasks.clone(),
            runtime: Handle::current(),
        });
        let transport = Transport::new(TransportParts {
            identity,
            options: transport_options(&parts.options),
            network: parts.network,
            secret: parts.secret,
            ports: parts.ports.clone(),
            tasks: tasks.clone(),
            directory: Arc::clone(&directory),
            detector: Arc::clone(&detector),
            metrics,
        });
        let watchers = Watchers {
            directory: Arc::clone(&directory),
            detector,
            transport: transport.clone(),
            tasks: tasks.clone(),
        };
        let options = parts.options;
        let host = Self::start(
            store,
            shared,
            directory,
            transport,
            config,
            parts.ports,
            tasks.clone(),
        )?;
        watchers.start(&options);
        let collector = StoreCollector::new(Arc::downgrade(&host.inner.opener));
        handles.register(|registry| registry.register_collector(Box::new(collector)));
        Ok(host)
    }

    fn start(
        store: Store,
        shared: Arc<Shared>,
        directory: Arc<Directory>,
        transport: Transport,
        config: openraft::Config,
        ports: Ports,
        tasks: Tasks,
    ) -> Result<Self, OpenError> {
        let wakes = drivers::connect(&store);
        let (space_tell, space) = watch::channel(DiskSpace::default());
        let (failed_tell, failed) = watch::channel(None);
        let threads = StoreDrivers {
            store: store.clone(),
            wakes: Arc::clone(&wakes),
            shared: Arc::clone(&shared),
            space: space_tell,
            failed: failed_tell,
        }
        .start(&tasks)
        .map_err(OpenError::Drivers)?;
        let maintenance = Maintenance::new(
            Arc::clone(&directory),
            shared.options.maintenance_interval,
            Arc::clone(&wakes),
        );
        let maintaining = maintenance.run(tasks.clone());
        tasks.spawn_critical("maintenance", maintaining.map(Ok));
        let opener = Opener {
            store,
            transport: transport.clone(),
            ports,
            config: Arc::new(config),
            room: Arc::clone(&wakes.room),
        };
        Ok(Self {
            inner: Arc::new(Inner {
                shared,
                directory,
                transport,
                opener: Arc::new(opener),
                tasks,
                stop: CancellationToken::new(),
                space,
                failed,
                drivers: Mutex::new(threads),
            }),
        })
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.inner.shared.node
    }

    /// The gRPC service for the node's cluster listener. Serve it before replicas are ensured.
    pub fn transport_service(&self) -> TransportService {
        self.inner.transport.service()
    }

    /// Where the nodes of the cluster are: the whole table, `host:port` of their cluster listeners.
    pub fn set_peers(&self, peers: BTreeMap<NodeId, String>) {
        self.inner.transport.set_addresses(peers);
    }

    /// Runs a replica from now on; it is opened in the background. Idempotent.
    pub fn ensure(&self, spec: ReplicaSpec) -> Result<(), EnsureError> {
        let inner = &self.inner;
        if inner.shared.stopping.load(Ordering::Acquire) {
            return Err(EnsureError::Stopping);
        }
        check(&spec, inner.shared.node)?;
        let (group, replica) = (spec.group, spec.replica);
        let (initialize, opened) = (spec.initialize, spec.opened);
        let make = || {
            let stop = inner.stop.child_token();
            Arc::new(Cell::new(spec, Arc::clone(&inner.shared), stop))
        };
        let (cell, is_new) = inner.directory.get_or_insert(group, make);
        if cell.replica != replica {
            return Err(EnsureError::OtherReplica {
                group,
                found: cell.replica,
                wanted: replica,
            });
        }
        if is_new {
            let name = format!("replica of group {}", group.to_hex());
            let running = supervise(cell, Arc::clone(&inner.opener));
            let _runtime = inner.shared.runtime.enter();
            inner.tasks.spawn_critical(name, running.map(Ok));
        } else {
            cell.opened.fetch_or(opened, Ordering::AcqRel);
            if initialize && !cell.initialize.swap(true, Ordering::AcqRel) {
                cell.initialize_asked.notify_one();
            }
        }
        Ok(())
    }

    /// Stops a replica and deletes its data for ever; the caller holds a tombstone. Works for whatever the group's
    /// state is, and when it is not here.
    pub async fn remove(&self, group: RaftGroupId) -> Result<(), RemoveError> {
        let inner = &self.inner;
        if let Some(cell) = inner.directory.get(group) {
            cell.stop.cancel();
            wait_stopped(&cell).await;
        }
        let store = inner.opener.store.clone();
        let dropped = inner.shared.blocking.run(move || store.drop_group(group)).await;
        match dropped.map_err(|source| RemoveError::Interrupted { group, source })? {
            Ok(()) | Err(GroupError::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
        inner.directory.remove(group);
        inner.shared.leaders.forget(group);
        inner.shared.replicas.send_modify(|tick| *tick += 1);
        Ok(())
    }

    /// Stops a replica that left its group and deletes its data for ever; the caller holds its tombstone. Another replica of
    /// the group stays.
    pub async fn remove_replica(&self, group: RaftGroupId, replica: ReplicaId) -> Result<(), RemoveError> {
        let here = self.replicas().into_iter().find(|status| status.group == group);
        match here.map(|status| status.replica) {
            Some(Some(here)) if here == replica => self.remove(group).await,
            Some(None) => Err(RemoveError::Unidentified { group, replica }),
            _ => Ok(()),
        }
    }

    /// Every replica of this node, by group; also those that nobody ensured.
    pub fn replicas(&self) -> Vec<ReplicaStatus> {
        let mut statuses: BTreeMap<RaftGroupId, ReplicaStatus> = self
            .inner
            .opener
            .store
            .groups()
            .into_iter()
            .map(|info| (info.group, unclaimed(info)))
            .collect();
        for cell in self.inner.directory.all() {
            statuses.insert(cell.group, cell.status());
        }
        statuses.into_values().collect()
    }

    /// Ticks when the state, trouble or membership of any replica changed.
    pub fn watch_replicas(&self) -> watch::Receiver<u64> {
        self.inner.shared.replicas.subscribe()
    }

    /// A replica that was ensured, whatever its state.
    pub fn replica(&self, group: RaftGroupId) -> Option<Replica> {
        self.inner.directory.get(group).map(|cell| Replica { cell })
    }

    /// Leader changes of all groups.
    pub fn watch_leaders(&self) -> LeaderWatch {
        self.inner.shared.leaders.watch(self.inner.tasks.stopping())
    }

    /// Room on the disk, at most a second old.
    pub fn disk_space(&self) -> DiskSpace {
        *self.inner.space.borrow()
    }

    /// Why the store failed, if it did: nothing is acknowledged any more, stop the process.
    pub fn failure(&self) -> Option<String> {
        self.inner.opener.store.failure()
    }

    /// Resolves when the store fails.
    pub fn failed(&self) -> impl Future<Output = String> + Send + 'static {
        let mut failed = self.inner.failed.clone();
        async move {
            let failure = failed
                .wait_for(Option::is_some)
                .await
                .ok()
                .and_then(|text| text.clone());
            match failure {
                Some(text) => text,
                // The host stopped without a failure.
                None => std::future::pending().await,
            }
        }
    }

    /// Hands leaderships over, a few at a time, while everything is served on. What finds no successor within `limit`
    /// stays here.
    pub async fn hand_over(&self, limit: Duration) {
        let cells = self.inner.directory.all();
        let _ = tokio::time::timeout(limit, hand_over(&cells)).await;
    }

    /// Hands leaderships over, stops all replicas, flushes and closes the store.
    pub async fn stop(&self, deadline: Duration) -> Result<(), StopError> {
        let inner = &self.inner;
        let started = tokio::time::Instant::now();
        inner.shared.stopping.store(true, Ordering::Release);
        let cells = inner.directory.all();
        let patience = inner.shared.options.handover_timeout.min(deadline / 2);
        // Who could not be handed over is elected anew by the others.
        let _ = tokio::time::timeout(patience, hand_over(&cells)).await;
        inner.stop.cancel();
        let stops = cells.iter().map(|cell| wait_stopped(cell));
        futures_util::future::join_all(stops).await;
        let left = deadline
            .saturating_sub(started.elapsed())
            .max(Duration::from_millis(100));
        let tasks = inner.tasks.stop(left).await;
        let store = inner.opener.store.clone();
        let closed = inner.shared.blocking.run(move || store.close()).await;
        drop(inner.drivers.lock().take());
        closed.and_then(|closed| closed).map_err(StopError::Store)?;
        tasks.map_err(|unfinished| StopError::Tasks {
            names: unfinished.names,
            deadline: left,
        })
    }
}

fn transport_options(options: &HostOptions) -> TransportOptions {
    TransportOptions {
        append_window: options.append_window,
        peer_queue_bytes: options.peer_queue_bytes,
        heartbeat_coalesce: options.heartbeat_coalesce,
        beat_patience: options.heartbeat_interval / 2,
    }
}

fn check(spec: &ReplicaSpec, node: NodeId) -> Result<(), EnsureError> {
    let invalid = |what| {
        Err(EnsureError::Invalid {
            group: spec.group,
            what,
        })
    };
    if spec.initialize && !spec.members.contains(&(spec.replica, node)) {
        return invalid("a replica that initializes must be one of the members, on this node");
    }
    if spec.segment_bytes == 0 {
        return invalid("segments need a size");
    }
    Ok(())
}

/// Status of a group that is on disk and that nobody ensured.
fn unclaimed(info: GroupInfo) -> ReplicaStatus {
    let (state, trouble) = match &info.condition {
        GroupCondition::Healthy => (ReplicaState::Unclaimed, None),
        GroupCondition::Damaged(damage) => {
            let text: Vec<String> = damage.iter().map(ToString::to_string).collect();
            (ReplicaState::Unclaimed, Some(text.join("; ")))
        }
    };
    ReplicaStatus {
        group: info.group,
        replica: info.spec.as_ref().map(|spec| spec.replica),
        key: info.spec.map(|spec| spec.key),
        state,
        trouble,
        term: Term(0),
        leader: None,
        leader_node: None,
        ready: false,
        applied: LogIndex(0),
        first: LogIndex(0),
        last: LogIndex(0),
        next_sequence: Sequence::FIRST,
        initialized: false,
        voters: Vec::new(),
        learners: Vec::new(),
        membership: None,
        restarts: 0,
    }
}
