//! What owners promise.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;

use super::*;

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(20);

/// Sets its flag when it is dropped.
struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn flag() -> (Arc<AtomicBool>, Dropped) {
    let flag = Arc::new(AtomicBool::new(false));
    (Arc::clone(&flag), Dropped(flag))
}

#[tokio::test]
async fn stopping_waits_until_tasks_have_finished_their_work() {
    let tasks = Tasks::root();
    let (finished, guard) = flag();
    let stopping = tasks.stopping();
    tasks.spawn("worker", async move {
        stopping.cancelled().await;
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        drop(guard);
    });
    tasks.stop(LONG).await.unwrap();
    assert!(finished.load(Ordering::SeqCst));
}

#[tokio::test]
async fn stopping_a_parent_stops_its_children_and_not_the_other_way_round() {
    let parent = Tasks::root();
    let (first, second) = (parent.child("first"), parent.child("second"));
    for child in [&first, &second] {
        let stopping = child.stopping();
        child.spawn("loop", async move { stopping.cancelled().await });
    }
    first.stop(LONG).await.unwrap();
    assert!(!second.is_stopping() && !parent.is_stopping());
    parent.stop(LONG).await.unwrap();
    assert!(second.is_stopping() && second.unfinished().is_empty());
}

#[tokio::test]
async fn tasks_that_do_not_end_are_cut_off_and_named() {
    let root = Tasks::root();
    let raft = root.child("raft");
    let (dropped, guard) = flag();
    raft.spawn("stuck", async move {
        let _guard = guard;
        std::future::pending::<()>().await;
    });
    root.spawn("also-stuck", std::future::pending());
    let unfinished = root.stop(SHORT).await.unwrap_err();
    assert_eq!(unfinished.names, ["also-stuck", "raft/stuck"]);
    assert!(dropped.load(Ordering::SeqCst), "a task that was cut off lives on");
    assert!(root.unfinished().is_empty());
}

#[tokio::test]
async fn nothing_starts_after_a_stop() {
    let tasks = Tasks::root();
    let child = tasks.child("child");
    tasks.stop(LONG).await.unwrap();
    for owner in [&tasks, &child, &tasks.child("late")] {
        let (ran, handle) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (ran_too, _) = (Arc::clone(&ran), handle);
        let task = owner.spawn("late", async move { ran_too.store(true, Ordering::SeqCst) });
        task.finished().await;
        assert!(!ran.load(Ordering::SeqCst));
    }
}

#[tokio::test]
async fn a_panic_ends_its_own_task_only_and_is_counted_above() {
    let root = Tasks::root();
    let child = root.child("child");
    let (tell, told) = oneshot::channel();
    let panicking = child.spawn("panicking", async { panic!("on purpose") });
    child.spawn("other", async move { tell.send(()).unwrap() });
    panicking.finished().await;
    told.await.unwrap();
    assert_eq!((child.panics(), root.panics()), (1, 1));
    assert!(!child.is_stopping() && root.failure().is_none());
}

#[tokio::test]
async fn an_error_of_a_critical_task_stops_its_owner_and_is_told_above() {
    let root = Tasks::root();
    let (failing, other) = (root.child("failing"), root.child("other"));
    failing.spawn_critical("writer", async { anyhow::bail!("disk is gone") });
    let failure = root.failed().await;
    assert_eq!(failure.to_string(), "task `failing/writer` failed: disk is gone");
    assert!(failing.is_stopping());
    assert!(!other.is_stopping() && !root.is_stopping());
}

#[tokio::test]
async fn a_panic_of_a_critical_task_is_a_failure_and_the_first_one_counts() {
    let root = Tasks::root();
    let first = root.spawn_critical("first", async { panic!("on purpose") });
    first.finished().await;
    let second = root.spawn_critical("second", async { anyhow::bail!("later") });
    second.finished().await;
    let failure = root.failure().unwrap();
    assert_eq!(
        (failure.task.as_str(), failure.error.as_str()),
        ("first", "panic: on purpose")
    );
}

#[tokio::test]
async fn a_critical_task_that_ends_well_stops_nothing() {
    let root = Tasks::root();
    root.spawn_critical("once", async { Ok(()) }).finished().await;
    assert!(!root.is_stopping() && root.failure().is_none());
}

#[tokio::test]
async fn an_aborted_task_is_finished() {
    let root = Tasks::root();
    let handle = root.spawn("endless", std::future::pending());
    assert!(!handle.is_finished());
    handle.abort();
    handle.finished().await;
    assert!(root.unfinished().is_empty());
}

#[tokio::test]
async fn owners_that_are_gone_are_forgotten() {
    let root = Tasks::root();
    for _ in 0..100 {
        drop(root.child("connection"));
    }
    assert!(root.0.state.lock().children.len() <= 1);
}
