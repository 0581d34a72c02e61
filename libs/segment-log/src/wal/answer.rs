//! Who waits for an operation.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::FlushDone;

/// Who waits for an operation. Nobody waits for ever: what is dropped without an answer, as when a driver panics, fails.
pub(crate) struct Answer(Option<FlushDone>);

impl From<Option<FlushDone>> for Answer {
    fn from(done: Option<FlushDone>) -> Self {
        Self(done)
    }
}

impl Answer {
    pub(crate) fn give(mut self, result: io::Result<()>) {
        if let Some(done) = self.0.take() {
            done(result);
        }
    }

    /// The store has failed.
    pub(crate) fn fail(self, text: &str) {
        self.give(Err(io::Error::new(io::ErrorKind::BrokenPipe, text.to_owned())));
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let Some(done) = self.0.take() else { return };
        let text = "storage stopped before the operation was finished; it may have had an effect";
        let error = io::Error::new(io::ErrorKind::BrokenPipe, text);
        // Often in the middle of a panic: a second one would end the process.
        if catch_unwind(AssertUnwindSafe(|| done(Err(error)))).is_err() {
            tracing::error!("a completion panicked");
        }
    }
}
