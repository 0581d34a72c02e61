//! Memory of all consume streams together. What does not fit is given back to its partition, not waited for while it
//! holds up others.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that deliveries may take in this process.
#[derive(Clone, Debug)]
pub struct ConsumeBudget {
    bytes: Arc<Semaphore>,
    total: u32,
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

impl ConsumeBudget {
    /// A budget of that many bytes, at most 4 GiB.
    pub fn new(bytes: u64) -> Self {
        let total = u32::try_from(bytes).unwrap_or(u32::MAX);
        Self {
            bytes: Arc::new(Semaphore::new(total as usize)),
            total,
        }
    }

    /// Sets bytes aside if they are free. More than the whole budget counts as all of it, so that one large delivery
    /// passes when nothing else is there.
    pub fn try_reserve(&self, bytes: usize) -> Option<Reservation> {
        let permits = self.clamp(bytes);
        Arc::clone(&self.bytes)
            .try_acquire_many_owned(permits)
            .ok()
            .map(Reservation)
    }

    /// Waits in line for bytes.
    pub async fn reserve(&self, bytes: usize) -> Reservation {
        let permits = self.clamp(bytes);
        let permit = Arc::clone(&self.bytes).acquire_many_owned(permits).await;
        Reservation(permit.expect("the budget is never closed"))
    }

    /// Bytes set aside now.
    pub fn in_use(&self) -> usize {
        self.total as usize - self.bytes.available_permits()
    }

    fn clamp(&self, bytes: usize) -> u32 {
        u32::try_from(bytes).unwrap_or(u32::MAX).min(self.total)
    }
}
