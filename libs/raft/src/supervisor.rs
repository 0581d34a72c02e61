//! The life of a replica: opened, watched, and opened again when its core dies, as often as it takes.
//!
//! Only what no restart can change ends a replica: damaged or lost data, another replica in its place, and a store that
//! failed. Everything else may pass, a full disk too.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::error::{InitializeError, RaftError};
use ptah_segment_log::{GroupCondition, GroupError, GroupLog, GroupSpec, Store};
use ptah_service::Ports;
use ptah_types::{ReplicaId, Term};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::cell::{Cell, Leadership, MAX_BEATS, ReplicaState, Running};
use crate::log_store::LogStore;
use crate::runtime::with_random;
use crate::state_machine::StateMachine;
use crate::transport::{Factory, Transport};
use crate::trouble::Damaged;
use crate::types::{Membership, Raft, member_nodes};

/// A replica that ran this long without dying starts with the shortest pause again.
const PEACE: Duration = Duration::from_secs(60);
/// How long a core may take to end before it is told to people.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(10);

/// What opening a replica needs.
pub(crate) struct Opener {
    pub(crate) store: Store,
    pub(crate) transport: Transport,
    pub(crate) ports: Ports,
    pub(crate) config: Arc<openraft::Config>,
    /// Told when appends may find room again.
    pub(crate) room: Arc<Notify>,
}

/// Why a replica was not opened.
enum OpenFailure {
    /// Trying again does not help.
    Final(ReplicaState, String),
    /// It may help.
    Again(String),
}

fn again(error: impl ToString) -> OpenFailure {
    OpenFailure::Again(error.to_string())
}

/// Why a running replica ended.
enum Ended {
    Stopped,
    Died(String),
}

/// Runs a replica until it is stopped or cannot run any more.
pub(crate) async fn supervise(cell: Arc<Cell>, opener: Arc<Opener>) {
    let options = &cell.shared.options;
    let mut pause = options.restart_pause;
    loop {
        let started = Instant::now();
        let why = match run_once(&cell, &opener).await {
            Ok(Ended::Stopped) => break cell.set_state(ReplicaState::Stopped, None),
            Ok(Ended::Died(why)) | Err(OpenFailure::Again(why)) => why,
            Err(OpenFailure::Final(state, why)) => {
                tracing::error!(group = %cell.group.to_hex(), replica = %cell.replica, ?state, %why, "replica cannot run");
                break cell.set_state(state, Some(why));
            }
        };
        if let Some(failure) = opener.store.failure() {
            break cell.set_state(ReplicaState::Failed, Some(failure));
        }
        if let Some(damage) = cell.trouble.found() {
            cell.set_state(ReplicaState::Damaged, Some(damage.what.clone()));
            break note_damage(&cell, &opener, damage).await;
        }
        if cell.is_stopping() {
            break cell.set_state(ReplicaState::Stopped, None);
        }
        if started.elapsed() > PEACE {
            pause = options.restart_pause;
        }
        tracing::warn!(group = %cell.group.to_hex(), replica = %cell.replica, %why, ?pause, "replica waits to be opened again");
        cell.shared.metrics.restarts.inc();
        cell.set_state(ReplicaState::Restarting, Some(why));
        tokio::select! {
            () = cell.stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(options.restart_pause_max);
    }
}

/// Notes damage on the disk, so that the replica does not vote after a restart either. A replica that is alone goes on
/// after a restart as far as it can: nobody takes its place.
async fn note_damage(cell: &Cell, opener: &Opener, damage: Damaged) {
    if !damage.on_disk || is_alone(cell.state.read(|content| content.membership.clone()).membership()) {
        return;
    }
    let Some(log) = opener.store.group(cell.group) else {
        return;
    };
    let what = format!("found damaged while it ran: {}", damage.what);
    loop {
        let (log, what) = (Arc::clone(&log), what.clone());
        let noted = cell.shared.blocking.run(move || log.note_damage(&what)).await;
        let Err(error) = noted.and_then(|noted| noted) else {
            return;
        };
        tracing::error!(group = %cell.group.to_hex(), %error, "damage of a replica is not noted yet on the disk");
        tokio::select! {
            () = cell.stop.cancelled() => return,
            () = tokio::time::sleep(cell.shared.options.restart_pause_max) => {}
        }
    }
}

async fn run_once(cell: &Arc<Cell>, opener: &Opener) -> Result<Ended, OpenFailure> {
    if cell.is_stopping() {
        return Ok(Ended::Stopped);
    }
    let log = find_log(cell, opener).await?;
    cell.opened.store(true, Ordering::Release);
    let raft = open_raft(cell, opener, &log).await.map_err(again)?;
    let running = Running {
        raft,
        log,
        blocking: cell.shared.blocking,
        installing: Arc::clone(&cell.installing),
        beats: Arc::new(Semaphore::new(MAX_BEATS)),
    };
    let ended = match begin(cell, &running).await {
        Ok(()) => {
            cell.reset_pulse();
            cell.set_running(Some(running.clone()));
            cell.set_state(ReplicaState::Running, None);
            watch(cell, &running).await
        }
        Err(why) => Ended::Died(why),
    };
    cell.set_running(None);
    cell.reset_pulse();
    let term = cell.leadership().term;
    cell.set_leadership(Leadership {
        term,
        ..Leadership::default()
    });
    shut_down(cell, running.raft).await;
    Ok(ended)
}

/// Waits until the core is gone: two cores must never write one log. The wait has no end of its own, because the core
/// always ends (its own waits have deadlines); a stop of the whole host cuts it.
async fn shut_down(cell: &Arc<Cell>, raft: Raft) {
    // openraft panics when somebody else's call was cancelled while it waited for the core's end; the core has ended
    // then. The call itself must not be cancelled, for the same reason.
    let ending = AssertUnwindSafe(async move { raft.shutdown().await }).catch_unwind();
    let mut ending = std::pin::pin!(ending);
    while tokio::time::timeout(SHUTDOWN_PATIENCE, &mut ending)
        .await
        .is_err()
    {
        tracing::warn!(group = %cell.group.to_hex(), "openraft's core does not end");
    }
}

/// The replica's log; made when it may be made.
async fn find_log(cell: &Arc<Cell>, opener: &Opener) -> Result<Arc<GroupLog>, OpenFailure> {
    if let Some(log) = opener.store.group(cell.group) {
        return if log.spec().replica == cell.replica {
            Ok(log)
        } else {
            let found = log.spec().replica;
            let why = format!(
                "the disk holds replica {found} of the group, not {}",
                cell.replica
            );
            Err(OpenFailure::Final(ReplicaState::Failed, why))
        };
    }
    let on_disk = opener
        .store
        .groups()
        .into_iter()
        .find(|info| info.group == cell.group);
    if let Some(GroupCondition::Damaged(damage)) = on_disk.map(|info| info.condition) {
        let text: Vec<String> = damage.iter().map(ToString::to_string).collect();
        return Err(OpenFailure::Final(ReplicaState::Damaged, text.join("; ")));
    }
    if cell.opened.load(Ordering::Acquire) {
        let why = format!(
            "replica {} held data once and the disk has none of it; place a new replica",
            cell.replica
        );
        return Err(OpenFailure::Final(ReplicaState::Lost, why));
    }
    let (store, spec) = (opener.store.clone(), group_spec(cell));
    let made = cell
        .shared
        .blocking
        .run(move || store.create_group(spec))
        .await
        .map_err(again)?;
    made.map_err(|error| match error {
        GroupError::ReplicaUsed { .. } => OpenFailure::Final(ReplicaState::Lost, error.to_string()),
        other => again(other),
    })
}

fn group_spec(cell: &Cell) -> GroupSpec {
    GroupSpec {
        group: cell.group,
        replica: cell.replica,
        key: cell.key.clone(),
        segment_bytes: cell.segment_bytes,
    }
}

async fn open_raft(cell: &Arc<Cell>, opener: &Opener, log: &Arc<GroupLog>) -> io::Result<Raft> {
    let shared = &cell.shared;
    let machine = StateMachine::open(
        Arc::clone(log),
        Arc::clone(&cell.state),
        Arc::clone(&cell.trouble),
        shared.blocking,
        Arc::clone(&shared.metrics),
        Arc::clone(&cell.installing),
    )
    .await?;
    let store = LogStore::new(
        Arc::clone(log),
        Arc::clone(&opener.room),
        Arc::clone(&cell.trouble),
        shared.blocking,
        Arc::clone(&shared.metrics),
        Arc::clone(&cell.state),
    );
    let factory = Factory {
        transport: opener.transport.clone(),
        group: cell.group,
        from: cell.replica,
        holds: Arc::clone(&cell.holds),
    };
    let config = Arc::clone(&opener.config);
    let opening = Raft::new(cell.replica.get(), config, factory, store, machine);
    with_random(Arc::clone(&opener.ports.random), opening)
        .await
        .map_err(io::Error::other)
}

/// What a replica does when it starts, and when it is asked to initialise: the group's first membership, and an
/// election that needs nobody else.
async fn begin(cell: &Arc<Cell>, running: &Running) -> Result<(), String> {
    let raft = &running.raft;
    if cell.initialize.load(Ordering::Acquire) && running.log.last_log_id().is_none() {
        match raft.initialize(member_nodes(&cell.members)).await {
            // Another replica of the group was faster, which the log will tell.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    let stored = raft.server_metrics().borrow_watched().membership_config.clone();
    if is_alone(stored.membership()) {
        raft.trigger()
            .elect(false)
            .await
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Whether a group has one member.
fn is_alone(membership: &Membership) -> bool {
    membership.nodes().count() == 1
}

/// Publishes who leads, until the replica is stopped or dies.
async fn watch(cell: &Arc<Cell>, running: &Running) -> Ended {
    let raft = &running.raft;
    let mut server = raft.server_metrics();
    let mut applied_term = cell.state.watch_term();
    let mut membership = None;
    loop {
        let (leadership, seen, is_alone) = {
            let metrics = server.borrow_and_update();
            let applied = *applied_term.borrow_and_update();
            (
                leadership_of(cell.replica, &metrics, applied),
                *metrics.membership_config.log_id(),
                is_alone(metrics.membership_config.membership()),
            )
        };
        cell.set_leadership(leadership);
        // Another term, leader or membership ends every rest.
        cell.wake();
        // A leader that is alone needs neither heartbeats nor elections, and openraft's timer costs.
        if is_alone {
            raft.runtime_config().tick(!leadership.ready);
        } else {
            cell.tick_while_awake();
        }
        if membership != Some(seen) {
            membership = Some(seen);
            cell.changed();
        }
        tokio::select! {
            () = cell.stop.cancelled() => return Ended::Stopped,
            () = cell.initialize_asked.notified() => if let Err(why) = begin(cell, running).await {
                return Ended::Died(why);
            },
            () = cell.damage_found.notified() => return Ended::Died("stored data is damaged".to_owned()),
            changed = server.changed() => if changed.is_err() {
                return Ended::Died(cause_of_death(raft));
            },
            changed = applied_term.changed() => if changed.is_err() {
                return Ended::Died("the applied state is gone".to_owned());
            },
        }
        if raft.metrics().borrow_watched().running_state.is_err() {
            return Ended::Died(cause_of_death(raft));
        }
    }
}

fn cause_of_death(raft: &Raft) -> String {
    match &raft.metrics().borrow_watched().running_state {
        Err(fatal) => fatal.to_string(),
        Ok(()) => "the core ended".to_owned(),
    }
}

fn leadership_of(
    own: ReplicaId,
    metrics: &openraft::metrics::RaftServerMetrics<crate::types::TypeConfig>,
    applied: Option<Term>,
) -> Leadership {
    let term = Term(metrics.vote.leader_id.term);
    let leader = metrics.current_leader;
    let home = leader.and_then(|id| metrics.membership_config.membership().get_node(&id).copied());
    // Entries of a term begin with its leader's blank one: when any of them is applied, all older ones are.
    let ready = metrics.state == ServerState::Leader && leader == Some(own.get()) && applied == Some(term);
    Leadership {
        term,
        reign: 0,
        leader: home.and_then(|home| home.node()),
        leader_replica: leader.and_then(|id| ReplicaId::new(id).ok()),
        ready,
    }
}
