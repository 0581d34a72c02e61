//! Work that blocks or computes for long, off the runtime's threads.

use std::io;

use tokio::runtime::{Handle, RuntimeFlavor};

/// Where such work runs; part of [`Ports`](crate::Ports).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Blocking {
    /// On threads of its own.
    #[default]
    Threads,
    /// On the calling task. For simulations: another thread would end their determinism.
    Inline,
}

impl Blocking {
    /// Runs `work` and waits for it. The error means that the runtime is going down or that `work` panicked.
    pub async fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        match self {
            Self::Inline => Ok(work()),
            Self::Threads => tokio::task::spawn_blocking(work)
                .await
                .map_err(|error| io::Error::other(format!("blocking work did not finish: {error}"))),
        }
    }
}

/// Steps about more bytes than this are worth another thread: copying them into fresh memory takes a millisecond.
const LONG_STEP_BYTES: usize = 1 << 20;

/// Runs a step of a task that copies or checks `bytes` bytes at once. While a long one runs another thread takes over
/// the other tasks of this one; otherwise they would wait for 40 ms behind a message of 64 MiB. On a runtime of one
/// thread (simulations) it is an ordinary call.
pub fn long_step<T>(bytes: usize, step: impl FnOnce() -> T) -> T {
    let beside = bytes >= LONG_STEP_BYTES
        && Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
    if beside {
        tokio::task::block_in_place(step)
    } else {
        step()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn inline_work_stays_on_the_calling_thread() {
        let here = thread::current().id();
        let there = Blocking::Inline.run(|| thread::current().id()).await;
        assert_eq!(there.expect("inline work ends"), here);
    }

    #[tokio::test]
    async fn other_work_leaves_the_calling_thread() {
        let here = thread::current().id();
        let there = Blocking::Threads.run(|| thread::current().id()).await;
        assert_ne!(there.expect("the work ends"), here);
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error() {
        let failed = Blocking::Threads.run(|| panic!("on purpose")).await;
        assert!(failed.is_err());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn other_tasks_of_the_thread_go_on_during_a_long_step() {
        let mut tasks = JoinSet::new();
        tasks.spawn(async {
            let (done, wait) = mpsc::channel();
            let mut other = JoinSet::new();
            // Woken by this task: it lies where only this thread would look for it.
            other.spawn(async move { done.send(()) });
            long_step(64 << 20, || wait.recv_timeout(Duration::from_secs(30)))
        });
        let went_on = tasks.join_next().await.expect("one task").expect("it ends");
        went_on.expect("the other task went on");
    }

    #[tokio::test]
    async fn a_long_step_on_a_runtime_of_one_thread_is_a_call() {
        assert_eq!(long_step(64 << 20, || 7), 7);
    }
}
