//! Work that blocks on the disk, off the runtime's threads.

use std::io;

/// Where blocking work runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocking {
    inline: bool,
}

impl Blocking {
    /// `inline` runs the work on the calling task: a simulation's disk is memory, and threads would end determinism.
    pub(crate) fn new(inline: bool) -> Self {
        Self { inline }
    }

    /// Runs `work` and waits for it. The error means that the runtime is going down or that `work` panicked.
    pub(crate) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        if self.inline {
            return Ok(work());
        }
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| io::Error::other(format!("blocking work did not finish: {error}")))
    }
}
