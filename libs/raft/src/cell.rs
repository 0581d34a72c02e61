//! One replica of this node: what it is, what runs it now, and what others may see of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use openraft::async_runtime::watch::WatchReceiver as _;
use parking_lot::{Mutex, RwLock};
use ptah_segment_log::GroupLog;
use ptah_service::Tasks;
use ptah_types::{LogId, LogIndex, NodeId, PartitionKey, RaftGroupId, ReplicaId, Sequence, Term};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::applied::AppliedState;
use crate::blocking::Blocking;
use crate::holds::Holds;
use crate::leaders::Leaders;
use crate::metrics::Metrics;
use crate::options::HostOptions;
use crate::proposal::InFlight;
use crate::pulse::Pulse;
use crate::trouble::Trouble;
use crate::types::{Members, Raft, log_id, members};

/// A replica to run on this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaSpec {
    /// The partition.
    pub key: PartitionKey,
    /// Its Raft group.
    pub group: RaftGroupId,
    /// The replica on this node.
    pub replica: ReplicaId,
    /// All replicas that the group starts with.
    pub members: Vec<(ReplicaId, NodeId)>,
    /// Whether it is known that this replica held data once: then it is never made anew on an empty disk.
    pub opened: bool,
    /// Whether this replica makes the group's first membership. Given to exactly one replica, as long as the group is
    /// not known to have one.
    pub initialize: bool,
    /// Size of a segment in bytes; the same on all replicas.
    pub segment_bytes: u64,
}

/// What a replica is doing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ReplicaState {
    /// It is read from disk, or made.
    Opening,
    /// It votes, replicates and applies.
    Running,
    /// Its core died; it waits to be opened again, and the trouble says why. It never gives up.
    Restarting,
    /// Stored data is damaged or contradicts itself: it does not vote, its files are kept. Needs a new replica.
    Damaged,
    /// It held data once and the disk has none of it: it is never made anew. Needs a new replica.
    Lost,
    /// The store failed, or the disk holds another replica of the group: only a restart or an operator helps.
    Failed,
    /// It was stopped.
    Stopped,
    /// Its data is on disk, but nobody asked for it: kept, not voting.
    Unclaimed,
}

/// Who leads a group, as this replica sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Leadership {
    /// The newest term that this replica knows.
    pub term: Term,
    /// Another number each time this replica becomes ready: what a leader keeps in memory belongs to one reign.
    pub reign: u64,
    /// Node of the leader, if known.
    pub leader: Option<NodeId>,
    /// Replica of the leader, if known.
    pub leader_replica: Option<ReplicaId>,
    /// Whether this replica leads, and everything proposed before its term is applied.
    pub ready: bool,
}

/// A replica as it is reported.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaStatus {
    /// The Raft group.
    pub group: RaftGroupId,
    /// The replica; unknown when not even that could be read.
    pub replica: Option<ReplicaId>,
    /// The partition.
    pub key: Option<PartitionKey>,
    /// What it is doing.
    pub state: ReplicaState,
    /// What is wrong, for people.
    pub trouble: Option<String>,
    /// The newest term that it knows.
    pub term: Term,
    /// The leader's replica.
    pub leader: Option<ReplicaId>,
    /// The leader's node.
    pub leader_node: Option<NodeId>,
    /// Whether this replica leads and takes writes.
    pub ready: bool,
    /// Newest applied log index.
    pub applied: LogIndex,
    /// Oldest log index that is not purged, or will be the first one.
    pub first: LogIndex,
    /// Newest log index.
    pub last: LogIndex,
    /// Sequence of the message after the last applied one.
    pub next_sequence: Sequence,
    /// Whether the group has its first membership, as far as this replica knows.
    pub initialized: bool,
    /// Voters.
    pub voters: Vec<(ReplicaId, NodeId)>,
    /// Learners.
    pub learners: Vec<(ReplicaId, NodeId)>,
    /// Log entry of the membership.
    pub membership: Option<LogId>,
    /// How often it was opened again.
    pub restarts: u64,
}

/// What runs a replica.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) raft: Raft,
    pub(crate) log: Arc<GroupLog>,
    pub(crate) blocking: Blocking,
    /// Taken while a snapshot is copied in and installed; the same for every core of the replica.
    pub(crate) installing: InstallLock,
    /// Heartbeats that the core may be asked to take at once.
    pub(crate) beats: Arc<Semaphore>,
}

/// Heartbeats of one replica that may be under way in its core: its leader's, and a few of leaders that were.
pub(crate) const MAX_BEATS: usize = 4;

/// Who holds it may use the staging area of the replica.
pub(crate) type InstallLock = Arc<tokio::sync::Mutex<()>>;
/// The right to use the staging area. It travels with the staged data.
pub(crate) type InstallTurn = tokio::sync::OwnedMutexGuard<()>;

#[derive(Debug)]
struct Condition {
    state: ReplicaState,
    trouble: Option<String>,
    /// What it waits for while it runs.
    waits_for: Option<String>,
    restarts: u64,
}

/// What all replicas of a host share.
pub(crate) struct Shared {
    pub(crate) node: NodeId,
    pub(crate) options: HostOptions,
    pub(crate) leaders: Leaders,
    /// Ticks when a status changed.
    pub(crate) replicas: watch::Sender<u64>,
    pub(crate) disk_full: AtomicBool,
    pub(crate) stopping: AtomicBool,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) blocking: Blocking,
    pub(crate) tasks: Tasks,
    /// Where the host's tasks run, whoever starts them.
    pub(crate) runtime: Handle,
}

/// One replica.
pub(crate) struct Cell {
    pub(crate) key: PartitionKey,
    pub(crate) group: RaftGroupId,
    pub(crate) replica: ReplicaId,
    pub(crate) segment_bytes: u64,
    pub(crate) members: Vec<(ReplicaId, NodeId)>,
    pub(crate) opened: AtomicBool,
    pub(crate) initialize: AtomicBool,
    pub(crate) state: Arc<AppliedState>,
    pub(crate) trouble: Arc<Trouble>,
    pub(crate) holds: Arc<Holds>,
    pub(crate) in_flight: Arc<InFlight>,
    pub(crate) pulse: Pulse,
    pub(crate) installing: InstallLock,
    pub(crate) shared: Arc<Shared>,
    pub(crate) stop: CancellationToken,
    /// Told when the replica is asked to initialise the group while it runs.
    pub(crate) initialize_asked: Notify,
    /// Told when a reader met damage that ends the replica.
    pub(crate) damage_found: Notify,
    running: RwLock<Option<Running>>,
    condition: Mutex<Condition>,
    leadership: watch::Sender<Leadership>,
}

impl Cell {
    pub(crate) fn new(spec: ReplicaSpec, shared: Arc<Shared>, stop: CancellationToken) -> Self {
        Self {
            key: spec.key,
            group: spec.group,
            replica: spec.replica,
            segment_bytes: spec.segment_bytes,
            members: spec.members,
            opened: AtomicBool::new(spec.opened),
            initialize: AtomicBool::new(spec.initialize),
            state: Arc::new(AppliedState::new()),
            trouble: Arc::new(Trouble::default()),
            holds: Arc::new(Holds::default()),
            in_flight: Arc::new(InFlight::default()),
            pulse: Pulse::default(),
            installing: InstallLock::default(),
            shared,
            stop,
            initialize_asked: Notify::new(),
            damage_found: Notify::new(),
            running: RwLock::new(None),
            condition: Mutex::new(Condition {
                state: ReplicaState::Opening,
                trouble: None,
                waits_for: None,
                restarts: 0,
            }),
            leadership: watch::Sender::new(Leadership::default()),
        }
    }

    pub(crate) fn running(&self) -> Option<Running> {
        self.running.read().clone()
    }

    /// Looks at what runs the replica, without cloning it.
    pub(crate) fn with_running<R>(&self, look: impl FnOnce(&Running) -> R) -> Option<R> {
        self.running.read().as_ref().map(look)
    }

    pub(crate) fn set_running(&self, running: Option<Running>) {
        *self.running.write() = running;
    }

    pub(crate) fn leadership(&self) -> Leadership {
        *self.leadership.borrow()
    }

    pub(crate) fn watch_leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    /// Publishes who leads; the reign is counted here.
    pub(crate) fn set_leadership(&self, mut new: Leadership) {
        let mut became_ready = 0;
        let changed = self.leadership.send_if_modified(|old| {
            let starts = new.ready && !(old.ready && old.term == new.term);
            new.reign = old.reign + u64::from(starts);
            became_ready = i64::from(new.ready) - i64::from(old.ready);
            let changed = *old != new;
            *old = new;
            changed
        });
        if changed {
            self.shared.metrics.leading.inc_by(became_ready);
            self.shared.leaders.publish(self.group, &self.key, new);
        }
    }

    pub(crate) fn replica_state(&self) -> ReplicaState {
        self.condition.lock().state
    }

    pub(crate) fn set_state(&self, state: ReplicaState, trouble: Option<String>) {
        {
            let mut condition = self.condition.lock();
            let damaged = |state| i64::from(matches!(state, ReplicaState::Damaged | ReplicaState::Lost));
            self.shared
                .metrics
                .damaged
                .inc_by(damaged(state) - damaged(condition.state));
            condition.state = state;
            condition.trouble = trouble;
            if state == ReplicaState::Restarting {
                condition.restarts += 1;
            }
        }
        self.changed();
    }

    /// Notes something that people must see while the replica goes on.
    pub(crate) fn note_trouble(&self, trouble: String) {
        self.condition.lock().trouble = Some(trouble);
        self.changed();
    }

    /// Notes what the replica waits for while it runs, or that it waits no more.
    pub(crate) fn waits_for(&self, what: Option<String>) {
        {
            let mut condition = self.condition.lock();
            if condition.waits_for.is_some() == what.is_some() {
                return;
            }
            match &what {
                Some(what) => tracing::warn!(group = %self.group.to_hex(), %what, "replica waits"),
                None => tracing::info!(group = %self.group.to_hex(), "replica goes on"),
            }
            condition.waits_for = what;
        }
        self.changed();
    }

    /// Tells the watchers of statuses.
    pub(crate) fn changed(&self) {
        self.shared.replicas.send_modify(|tick| *tick += 1);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.is_cancelled() || self.shared.stopping.load(Ordering::Acquire)
    }

    /// Node of a member, as far as the applied membership tells.
    pub(crate) fn home_of(&self, replica: ReplicaId) -> Option<NodeId> {
        self.state.read(|content| {
            content
                .membership
                .membership()
                .get_node(&replica.get())
                .and_then(|home| home.node())
        })
    }

    /// Voters and learners as the log says, applied or not; none while it does not run.
    pub(crate) fn members(&self) -> (Members, Members) {
        self.with_running(|running| {
            let metrics = running.raft.server_metrics();
            let stored = metrics.borrow_watched().membership_config.clone();
            members(stored.membership())
        })
        .unwrap_or_default()
    }

    pub(crate) fn status(&self) -> ReplicaStatus {
        let leadership = self.leadership();
        let progress = self.state.progress();
        let (state, trouble, restarts) = {
            let condition = self.condition.lock();
            let trouble = condition.trouble.clone().or_else(|| condition.waits_for.clone());
            (condition.state, trouble, condition.restarts)
        };
        let effective = self.with_running(|running| {
            let metrics = running
                .raft
                .server_metrics()
                .borrow_watched()
                .membership_config
                .clone();
            (metrics, running.log.first_index(), running.log.last_log_id())
        });
        let (membership, first, last) = match &effective {
            Some((stored, first, last)) => (Some(stored), *first, *last),
            None => (None, progress.index, None),
        };
        let (voters, learners) = membership
            .map(|stored| members(stored.membership()))
            .unwrap_or_default();
        ReplicaStatus {
            group: self.group,
            replica: Some(self.replica),
            key: Some(self.key.clone()),
            state,
            trouble,
            term: leadership.term,
            leader: leadership.leader_replica,
            leader_node: leadership.leader,
            ready: leadership.ready,
            applied: progress.index,
            first,
            last: last.map_or(progress.index, |id| id.index),
            next_sequence: progress.next_sequence,
            initialized: !voters.is_empty(),
            membership: membership.and_then(|stored| stored.log_id().as_ref().map(log_id)),
            voters,
            learners,
            restarts,
        }
    }
}
