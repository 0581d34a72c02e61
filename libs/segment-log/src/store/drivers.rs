//! The two OS threads of production: the committer and the large writer.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::shared::Shared;
use crate::types::{CommitOutcome, LargeOutcome};

/// The driver threads of a store. Dropping it lets them finish what is queued, stops and joins them.
pub struct Drivers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Drivers {
    pub(super) fn spawn(shared: Arc<Shared>) -> io::Result<Self> {
        shared.queue.restart();
        shared.large.set_stopped(false);
        let mut drivers = Self {
            shared: shared.clone(),
            threads: Vec::new(),
        };
        let for_committer = shared.clone();
        let committer = thread::Builder::new()
            .name("ptah-wal".to_owned())
            .spawn(move || run_committer(&for_committer))?;
        drivers.threads.push(committer);
        let large = thread::Builder::new()
            .name("ptah-wal-large".to_owned())
            .spawn(move || run_large(&shared))?;
        drivers.threads.push(large);
        Ok(drivers)
    }
}

impl Drop for Drivers {
    fn drop(&mut self) {
        self.shared.large.set_stopped(true);
        self.shared.queue.stop();
        for thread in self.threads.drain(..) {
            // Its panics were caught, and the store's failure tells of them.
            let _ = thread.join();
        }
    }
}

/// After a panic the store has failed. The thread goes on, so that what still comes is answered with the failure.
fn go_on<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

fn run_committer(shared: &Shared) {
    let quiet = Duration::from_millis(shared.options.seal_after_ms);
    let mut unsealed = false;
    loop {
        let ready = shared.queue.wait(unsealed.then_some(quiet));
        if ready {
            let outcome = go_on(|| shared.commit_pending());
            unsealed = matches!(outcome, Some(CommitOutcome::Committed { .. }));
        } else if shared.queue.is_stopped() {
            return;
        } else {
            // Quiet for a while: prove the last unit, so that a flipped bit in it is told from a torn write.
            go_on(|| shared.seal());
            unsealed = false;
        }
    }
}

fn run_large(shared: &Shared) {
    loop {
        let seen = shared.large.signals();
        while go_on(|| shared.write_large_pending()) == Some(LargeOutcome::Progress) {}
        if !shared.large.wait(seen) {
            return;
        }
    }
}
