//! Tasks: named, owned, and waited for.
//!
//! The only place that spawns. A [`Tasks`] is an owner; owners form a tree, and stopping one stops everything
//! below it. What must hold: when [`Tasks::stop`] has returned, nothing of the owner runs any more and nothing of
//! it starts again; a panic ends its own task and is never silent.
//!
//! Tasks end by themselves when [`Stopping`] says so. Only those that do not are aborted, at the deadline, and
//! their names are told.

use std::any::Any;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// How long aborted tasks get to be dropped; they are dropped at their next await.
const ABORT_GRACE: Duration = Duration::from_secs(1);

/// Owner of tasks. Clones are the same owner.
#[derive(Clone)]
pub struct Tasks(Arc<Owner>);

struct Owner {
    name: Cow<'static, str>,
    parent: Option<Tasks>,
    token: CancellationToken,
    /// Counts the tasks of this owner and of all below it.
    tracker: TaskTracker,
    state: Mutex<State>,
    failure: watch::Sender<Option<TaskFailure>>,
    panics: AtomicU64,
}

#[derive(Default)]
struct State {
    next_id: u64,
    live: BTreeMap<u64, Live>,
    children: Vec<Weak<Owner>>,
    /// Set when a stop is over: nothing starts any more.
    closed: bool,
}

struct Live {
    name: Cow<'static, str>,
    abort: Option<AbortHandle>,
}

/// Tells that work has to end. Clones tell the same.
#[derive(Clone, Debug)]
pub struct Stopping(CancellationToken);

/// A critical task ended with an error or a panic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("task `{task}` failed: {error}")]
pub struct TaskFailure {
    /// Full name of the task.
    pub task: String,
    /// What went wrong.
    pub error: String,
}

/// Tasks did not end in time and were cut off.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("still running after {deadline:?} and cut off: {}", names.join(", "))]
pub struct Unfinished {
    /// Full names, in order.
    pub names: Vec<String>,
    /// The time they had.
    pub deadline: Duration,
}

/// A running task. Dropping the handle does nothing: the owner has the task.
#[derive(Clone, Debug)]
pub struct TaskHandle {
    done: CancellationToken,
    abort: Option<AbortHandle>,
}

impl Tasks {
    /// An owner without parent: one per process or test.
    pub fn root() -> Self {
        Self::new("".into(), None, CancellationToken::new())
    }

    fn new(name: Cow<'static, str>, parent: Option<Self>, token: CancellationToken) -> Self {
        let tracker = TaskTracker::new();
        tracker.close();
        Self(Arc::new(Owner {
            name,
            parent,
            token,
            tracker,
            state: Mutex::default(),
            failure: watch::Sender::new(None),
            panics: AtomicU64::new(0),
        }))
    }

    /// An owner below this one. Stopping this one stops it too.
    pub fn child(&self, name: impl Into<Cow<'static, str>>) -> Self {
        let child = Self::new(name.into(), Some(self.clone()), self.0.token.child_token());
        let mut state = self.0.state.lock();
        state.children.retain(|child| child.strong_count() > 0);
        state.children.push(Arc::downgrade(&child.0));
        if state.closed {
            child.0.state.lock().closed = true;
        }
        drop(state);
        child
    }

    /// Starts a task. A panic in it is caught, logged at ERROR and counted.
    ///
    /// An owner that was stopped drops the future instead: its handle is finished at once.
    pub fn spawn<F>(&self, name: impl Into<Cow<'static, str>>, future: F) -> TaskHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.start(name.into(), future.map(Ok), false)
    }

    /// Starts a task whose end by an error or a panic stops its owner: it is logged at ERROR, every task of this
    /// owner is told to stop, and [`Tasks::failed`] tells it here and in all owners above.
    pub fn spawn_critical<F>(&self, name: impl Into<Cow<'static, str>>, future: F) -> TaskHandle
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.start(name.into(), future, true)
    }

    fn start<F>(&self, name: Cow<'static, str>, future: F, critical: bool) -> TaskHandle
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let done = CancellationToken::new();
        let mut state = self.0.state.lock();
        if state.closed {
            drop(state);
            tracing::debug!(task = %self.path(&name), "task not started, its owner was stopped");
            done.cancel();
            return TaskHandle { done, abort: None };
        }
        let id = state.next_id;
        state.next_id += 1;
        let entry = Live {
            name: name.clone(),
            abort: None,
        };
        state.live.insert(id, entry);
        drop(state);
        // The guard is made here and moved into the task: it works also when the task is aborted before its first poll.
        let guard = RunGuard {
            owner: self.clone(),
            id,
            done: done.clone(),
            _tokens: self.tokens(),
        };
        let abort = spawn_guarded(guard, name, future, critical);
        if let Some(live) = self.0.state.lock().live.get_mut(&id) {
            live.abort = Some(abort.clone());
        }
        TaskHandle {
            done,
            abort: Some(abort),
        }
    }

    fn tokens(&self) -> Vec<TaskTrackerToken> {
        self.lineage().map(|owner| owner.0.tracker.token()).collect()
    }

    /// This owner and all above it.
    fn lineage(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |owner| owner.0.parent.as_ref())
    }

    fn path(&self, task: &str) -> String {
        let mut names: Vec<&str> = self.lineage().map(|owner| &*owner.0.name).collect();
        names.retain(|name| !name.is_empty());
        names.reverse();
        names.push(task);
        names.join("/")
    }

    /// Says when to stop, to whoever works for this owner.
    pub fn stopping(&self) -> Stopping {
        Stopping(self.0.token.clone())
    }

    /// Whether the stop was announced.
    pub fn is_stopping(&self) -> bool {
        self.0.token.is_cancelled()
    }

    /// Announces the stop and does not wait.
    pub fn begin_stop(&self) {
        self.0.token.cancel();
    }

    /// Announces the stop, waits until all tasks have ended, and cuts off those that have not at the deadline.
    pub async fn stop(&self, deadline: Duration) -> Result<(), Unfinished> {
        self.begin_stop();
        let in_time = tokio::time::timeout(deadline, self.0.tracker.wait())
            .await
            .is_ok();
        let names = if in_time { Vec::new() } else { self.unfinished() };
        self.close();
        if !self.0.tracker.is_empty() {
            self.abort_all();
            // A task that blocks its thread cannot be cut; its name is in the answer.
            let _ = tokio::time::timeout(ABORT_GRACE, self.0.tracker.wait()).await;
        }
        if names.is_empty() {
            return Ok(());
        }
        Err(Unfinished { names, deadline })
    }

    /// Full names of the tasks that run now, of this owner and all below it.
    pub fn unfinished(&self) -> Vec<String> {
        let (mut names, children) = {
            let state = self.0.state.lock();
            let names: Vec<String> = state.live.values().map(|live| self.path(&live.name)).collect();
            (names, state.living_children())
        };
        names.extend(children.iter().flat_map(Self::unfinished));
        names.sort();
        names
    }

    fn close(&self) {
        let children = {
            let mut state = self.0.state.lock();
            state.closed = true;
            state.living_children()
        };
        children.iter().for_each(Self::close);
    }

    fn abort_all(&self) {
        let (aborts, children) = {
            let state = self.0.state.lock();
            let aborts: Vec<_> = state
                .live
                .values()
                .filter_map(|live| live.abort.clone())
                .collect();
            (aborts, state.living_children())
        };
        // Outside the lock: an abort may drop the task here and now, and its guard takes the lock.
        aborts.iter().for_each(AbortHandle::abort);
        children.iter().for_each(Self::abort_all);
    }

    /// Waits for the first critical failure of this owner or one below it.
    pub async fn failed(&self) -> TaskFailure {
        let mut failure = self.0.failure.subscribe();
        match failure.wait_for(Option::is_some).await.map(|found| found.clone()) {
            Ok(Some(found)) => found,
            // The sender lives as long as `self`.
            _ => std::future::pending().await,
        }
    }

    /// The first critical failure, if there was one.
    pub fn failure(&self) -> Option<TaskFailure> {
        self.0.failure.borrow().clone()
    }

    /// How many tasks of this owner and below ended with a panic.
    pub fn panics(&self) -> u64 {
        self.0.panics.load(Ordering::Relaxed)
    }

    fn report(&self, failure: &TaskFailure) {
        self.begin_stop();
        for owner in self.lineage() {
            owner.0.failure.send_if_modified(|slot| {
                let first = slot.is_none();
                if first {
                    *slot = Some(failure.clone());
                }
                first
            });
        }
    }

    fn ended(&self, name: &str, outcome: Result<anyhow::Result<()>, Box<dyn Any + Send>>, critical: bool) {
        let error = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(error)) => format!("{error:#}"),
            Err(panic) => {
                for owner in self.lineage() {
                    owner.0.panics.fetch_add(1, Ordering::Relaxed);
                }
                format!("panic: {}", panic_text(&*panic))
            }
        };
        let task = self.path(name);
        tracing::error!(%task, %error, critical, "task failed");
        if critical {
            self.report(&TaskFailure { task, error });
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the one place that spawns: the guard makes the task tracked"
)]
fn spawn_guarded<F>(guard: RunGuard, name: Cow<'static, str>, future: F, critical: bool) -> AbortHandle
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let task = tokio::spawn(async move {
        let outcome = AssertUnwindSafe(future).catch_unwind().await;
        guard.owner.ended(&name, outcome, critical);
        drop(guard);
    });
    task.abort_handle()
}

/// Text of a panic's payload, as far as it has one.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}

impl State {
    fn living_children(&self) -> Vec<Tasks> {
        self.children
            .iter()
            .filter_map(Weak::upgrade)
            .map(Tasks)
            .collect()
    }
}

/// Takes the task off its owner's list when it ends, in whatever way.
struct RunGuard {
    owner: Tasks,
    id: u64,
    done: CancellationToken,
    _tokens: Vec<TaskTrackerToken>,
}

impl Drop for RunGuard {
    fn drop(&mut self) {
        self.owner.0.state.lock().live.remove(&self.id);
        self.done.cancel();
    }
}

impl Stopping {
    /// Whether the stop was announced.
    pub fn is_stopping(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits for the announcement.
    pub async fn cancelled(&self) {
        self.0.cancelled().await;
    }

    /// Waits for the announcement, as a future that borrows nothing.
    pub fn cancelled_owned(self) -> WaitForCancellationFutureOwned {
        self.0.cancelled_owned()
    }
}

impl TaskHandle {
    /// Waits until the task has ended, in whatever way.
    pub async fn finished(&self) {
        self.done.cancelled().await;
    }

    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.done.is_cancelled()
    }

    /// Cuts the task off at its next await. Prefer to tell it to end.
    pub fn abort(&self) {
        if let Some(abort) = &self.abort {
            abort.abort();
        }
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks")
            .field("path", &self.path(""))
            .field("running", &self.0.tracker.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
