//! Work that blocks or computes for long, off the runtime's threads.

use std::io;

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

#[cfg(test)]
mod tests {
    use std::thread;

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
}
