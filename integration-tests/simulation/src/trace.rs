//! What happened in a run, as text: every event that any service logs, with simulated time.
//!
//! Two runs of one seed must give the same text, down to the last line.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Collects events of a run.
#[derive(Clone, Default)]
pub struct Trace {
    lines: Arc<Mutex<Vec<String>>>,
    muted: Arc<AtomicBool>,
    sent: Arc<Mutex<DefaultHasher>>,
    now: Arc<Mutex<Duration>>,
}

impl Trace {
    /// Adds a line of the test's own.
    pub fn note(&self, text: impl Into<String>) {
        self.push(&text.into());
    }

    /// Everything so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().clone()
    }

    /// Notes that a host has sent `bytes`, as part of the fingerprint.
    pub(crate) fn sent(&self, bytes: &[u8]) {
        let mut sent = self.sent.lock();
        sent.write(bytes);
        let at = self.now();
        sent.write_u128(at.as_nanos());
    }

    /// Adds a line that stands for every byte that any host has sent so far, and for when.
    pub(crate) fn note_fingerprint(&self) {
        self.note(format!("sent: {:016x}", self.sent.lock().finish()));
    }

    /// Runs `act` without taking notes of events: what is torn down by a crash says nothing any more.
    pub(crate) fn without_events(&self, act: impl FnOnce()) {
        self.muted.store(true, Ordering::SeqCst);
        act();
        self.muted.store(false, Ordering::SeqCst);
    }

    /// Tells the time to whoever is outside of the hosts.
    pub(crate) fn set_now(&self, now: Duration) {
        *self.now.lock() = now;
    }

    fn now(&self) -> Duration {
        turmoil::sim_elapsed().unwrap_or_else(|| *self.now.lock())
    }

    fn push(&self, text: &str) {
        let at = self.now();
        self.lines
            .lock()
            .push(format!("{:>12.6} {text}", at.as_secs_f64()));
    }
}

impl<S: Subscriber> Layer<S> for Trace {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if self.muted.load(Ordering::SeqCst) || !event.metadata().target().starts_with("ptah") {
            return;
        }
        let mut text = Line(format!(
            "{} {}",
            event.metadata().level(),
            event.metadata().target()
        ));
        event.record(&mut text);
        self.push(&text.0);
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}
