//! Memory of all messages on their way out. What does not fit is given back to its partition, not waited for while it
//! holds up others; a client that holds memory and does not read is cut off when others wait for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use ptah_rpc::ConnectionCut;
use ptah_service::Stopping;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tracing::warn;

use crate::metrics::ConsumeMetrics;

/// How often stalled clients are looked for while somebody waits.
const LOOK: Duration = Duration::from_millis(200);

/// Bytes that messages on their way out may take in this process. Cheap to clone.
#[derive(Clone)]
pub struct ConsumeBudget {
    inner: Arc<Inner>,
}

struct Inner {
    bytes: Arc<Semaphore>,
    total: u32,
    waiting: AtomicUsize,
    holds: Mutex<Holds>,
}

#[derive(Default)]
struct Holds {
    last: u64,
    by_id: BTreeMap<u64, Hold>,
}

struct Hold {
    /// When they were handed over, or a part of them left last.
    since: Instant,
    cut: ConnectionCut,
}

/// Bytes set aside until it is dropped.
#[derive(Debug)]
pub struct Reservation(OwnedSemaphorePermit);

impl Reservation {
    /// How much is set aside.
    pub fn bytes(&self) -> usize {
        self.0.num_permits()
    }
}

/// Messages that the transport has and the client has not read yet. Dropped when they have left.
pub struct InTransport {
    inner: Arc<Inner>,
    id: u64,
    _reservations: Vec<Arc<Reservation>>,
}

impl InTransport {
    /// A part of them has left: the client reads.
    pub fn moved(&self) {
        if let Some(hold) = self.inner.holds.lock().by_id.get_mut(&self.id) {
            hold.since = Instant::now();
        }
    }
}

impl Drop for InTransport {
    fn drop(&mut self) {
        self.inner.holds.lock().by_id.remove(&self.id);
    }
}

/// Counts somebody who waits.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ConsumeBudget {
    /// A budget of that many bytes, at most 4 GiB.
    pub fn new(bytes: u64) -> Self {
        let total = u32::try_from(bytes).unwrap_or(u32::MAX);
        let inner = Inner {
            bytes: Arc::new(Semaphore::new(total as usize)),
            total,
            waiting: AtomicUsize::new(0),
            holds: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Sets bytes aside if they are free and nobody waits. More than the whole budget counts as all of it, so that one
    /// large delivery passes when nothing else is there.
    pub fn try_reserve(&self, bytes: usize) -> Option<Reservation> {
        let permits = self.clamp(bytes);
        Arc::clone(&self.inner.bytes)
            .try_acquire_many_owned(permits)
            .ok()
            .map(Reservation)
    }

    /// Waits in line for bytes.
    pub async fn reserve(&self, bytes: usize) -> Reservation {
        self.inner.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.inner.waiting);
        let permits = self.clamp(bytes);
        let permit = Arc::clone(&self.inner.bytes).acquire_many_owned(permits).await;
        Reservation(permit.expect("the budget is never closed"))
    }

    /// Bytes set aside now.
    pub fn in_use(&self) -> usize {
        self.inner.total as usize - self.inner.bytes.available_permits()
    }

    /// The transport takes messages over for a client.
    pub fn hand_over(&self, reservations: Vec<Arc<Reservation>>, cut: ConnectionCut) -> InTransport {
        let mut holds = self.inner.holds.lock();
        holds.last += 1;
        let id = holds.last;
        let hold = Hold {
            since: Instant::now(),
            cut,
        };
        holds.by_id.insert(id, hold);
        InTransport {
            inner: Arc::clone(&self.inner),
            id,
            _reservations: reservations,
        }
    }

    /// While somebody waits for memory, cuts off clients that have not read for `stall`, the longest first.
    pub async fn reap(self, stall: Duration, metrics: ConsumeMetrics, stopping: Stopping) {
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            if self.inner.waiting.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let stalled = self.longest_stalled(stall);
            if let Some((cut, waited)) = stalled {
                metrics.cut.inc();
                warn!(
                    waited_ms = waited.as_millis() as u64,
                    "client does not read and others wait for memory, cut off"
                );
                cut.cut();
            }
        }
    }

    fn longest_stalled(&self, stall: Duration) -> Option<(ConnectionCut, Duration)> {
        let now = Instant::now();
        let mut holds = self.inner.holds.lock();
        let (id, since) = holds
            .by_id
            .iter()
            .map(|(id, hold)| (*id, hold.since))
            .min_by_key(|(_, since)| *since)?;
        let waited = now.duration_since(since);
        let stalled = (waited >= stall).then(|| holds.by_id.remove(&id)).flatten()?;
        Some((stalled.cut, waited))
    }

    fn clamp(&self, bytes: usize) -> u32 {
        u32::try_from(bytes).unwrap_or(u32::MAX).min(self.inner.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(10);

    fn hand_over(budget: &ConsumeBudget) -> InTransport {
        let reservation = budget.try_reserve(10).map(Arc::new);
        budget.hand_over(reservation.into_iter().collect(), ConnectionCut::default())
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_slowly_is_not_taken_for_one_that_does_not_read() {
        let budget = ConsumeBudget::new(100);
        let slow = hand_over(&budget);
        for _ in 0..5 {
            tokio::time::advance(STALL * 9 / 10).await;
            assert!(budget.longest_stalled(STALL).is_none());
            slow.moved();
        }
        let stuck = hand_over(&budget);
        tokio::time::advance(STALL * 9 / 10).await;
        slow.moved();
        tokio::time::advance(STALL * 2 / 10).await;
        let (_, waited) = budget.longest_stalled(STALL).unwrap();
        assert_eq!(
            waited,
            STALL * 11 / 10,
            "the one that is stuck, although it came later"
        );
        assert!(budget.longest_stalled(STALL).is_none(), "it is cut once");
        drop((slow, stuck));
        assert_eq!(budget.in_use(), 0);
    }
}
