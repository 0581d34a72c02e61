//! Message budget: how many bytes of incoming messages may be in memory at once, over all clients of a port.
//!
//! A gRPC message says its length in its first five bytes. Before more of it is read, the whole length is taken from
//! the budget, at once: two half-read messages never wait for each other. While the budget is used up nothing more
//! is read, and HTTP/2 flow control holds the client back. What is in memory beyond the budget is what flow control
//! had already let in: at most one stream window per stream and one connection window per connection. So that this is
//! bounded over all clients too, few messages wait at a time; further ones are refused for now. Of one connection fewer
//! still: what waits fills the connection's window, and those that were granted room must get through it.
//!
//! What a message becomes when it is decoded is bounded too, before that happens: [`RequestLimits`] holds its lists
//! down, and about as much memory as they will take is taken from a second part of the budget before the last bytes are
//! handed out. Who waits for that part holds bytes of the first; who holds both waits for neither, so that nobody
//! waits for ever.
//!
//! The bytes of a call with one message go back when its handler has answered. Those of a message on a stream go back
//! when the stream is asked for the next one, or when it ends. A handler that keeps them for longer takes the permit
//! along: [`CurrentMessage::take`].

mod body;
mod limits;
mod messages;
mod scan;

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(crate) use body::{MeterSettings, MeteredBody};
pub use limits::RequestLimits;
pub(crate) use limits::{RequestShape, Shapes};
pub use messages::{IncomingMessages, RequestBody};

/// Messages that wait for room at a time, over all clients.
const WAITING_MESSAGES: usize = 256;

/// What decoded lists may take beside the bytes that they came in: this part of the budget is added to it.
const DECODED_PART: usize = 4;

/// A budget. Clones share it.
#[derive(Clone)]
pub struct MessageBudget {
    free: Arc<Semaphore>,
    total: usize,
    /// For what messages become when they are decoded.
    decoded: Arc<Semaphore>,
    queue: WaitingPlaces,
}

/// Places for messages that wait for room. Clones share them.
#[derive(Clone)]
pub(crate) struct WaitingPlaces(Arc<Semaphore>);

impl WaitingPlaces {
    pub(crate) fn new(places: usize) -> Self {
        Self(Arc::new(Semaphore::new(places)))
    }

    /// A place, until it is dropped.
    fn take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().ok()
    }
}

/// A part of the budget; goes back when it is dropped.
#[derive(Debug)]
pub struct BudgetPermit {
    _received: OwnedSemaphorePermit,
    decoded: Option<OwnedSemaphorePermit>,
}

/// The permit of the message that a call read last. Found in the extensions of requests on a port with a budget.
#[derive(Clone, Debug, Default)]
pub struct CurrentMessage(Arc<Mutex<Option<BudgetPermit>>>);

impl MessageBudget {
    /// A budget of `total_bytes`. Messages larger than that are refused whatever the limit of the port says.
    pub fn new(total_bytes: usize) -> Self {
        let total = total_bytes.min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
        Self {
            free: Arc::new(Semaphore::new(total)),
            total,
            decoded: Arc::new(Semaphore::new(total / DECODED_PART)),
            queue: WaitingPlaces::new(WAITING_MESSAGES),
        }
    }

    /// All bytes of the budget.
    pub fn total_bytes(&self) -> usize {
        self.total
    }

    /// Permits for a decoded message. One that needs more than there is waits for all of it.
    fn decoded_permits(&self, memory: u64) -> u32 {
        let most = (self.total / DECODED_PART) as u64;
        u32::try_from(memory.min(most)).unwrap_or(u32::MAX)
    }

    /// Bytes that messages hold now, with what is set aside for the one that has waited longest.
    pub fn in_use_bytes(&self) -> usize {
        self.total.saturating_sub(self.free.available_permits())
    }
}

impl CurrentMessage {
    /// Takes the permit of the message that was read last, to be kept as long as its bytes are. `None` when it was
    /// taken already.
    pub fn take(&self) -> Option<BudgetPermit> {
        self.0.lock().take()
    }

    fn set(&self, permit: OwnedSemaphorePermit) {
        *self.0.lock() = Some(BudgetPermit {
            _received: permit,
            decoded: None,
        });
    }

    fn add_decoded(&self, permit: OwnedSemaphorePermit) {
        if let Some(current) = self.0.lock().as_mut() {
            current.decoded = Some(permit);
        }
    }
}

impl fmt::Debug for MessageBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageBudget")
            .field("total_bytes", &self.total)
            .field("in_use_bytes", &self.in_use_bytes())
            .finish()
    }
}
