//! One delivery stream to one node: connects, reconnects, and hands what comes to the consume streams.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use ptah_rpc::RpcError;
use ptah_service::{Random, Stopping};
use ptah_types::{ErrorKind, NodeId};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{debug, info};

use super::outbox::{CommandStream, GroupOnPartition, Outbox};
use super::session::Session;
use crate::catalog::Catalog;

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const FIRST_BACKOFF: Duration = Duration::from_millis(10);
const MAX_BACKOFF: Duration = Duration::from_millis(500);
const IDLE_LIMIT: Duration = Duration::from_secs(60);

/// Opens delivery streams.
pub trait DeliverTransport: Send + Sync + 'static {
    /// Greets the node at `address` and writes the commands as it takes them.
    fn open(
        &self,
        address: String,
        commands: CommandStream,
    ) -> BoxFuture<'_, Result<Box<dyn DeliverEvents>, RpcError>>;
}

/// What a node says on a delivery stream.
pub trait DeliverEvents: Send {
    /// Next event; `None` when the node ended the stream. May be dropped while waiting.
    fn next(&mut self) -> BoxFuture<'_, Option<Result<DeliverEvent, RpcError>>>;
}

/// One message of a node.
#[derive(Debug)]
pub enum DeliverEvent {
    /// Answers the greeting.
    Welcome,
    /// Messages of a pull, or a part of them.
    Delivery(u64, DeliveryPart),
    /// A confirmed acknowledgement of a pull.
    Acked(u64, u64, Option<RpcError>),
    /// Everything there is was delivered; delivered and unacknowledged messages.
    Idle(u64, u64),
    /// The pull ended.
    Closed(u64, Option<RpcError>),
}

/// A delivery or a part of one.
#[derive(Debug, Clone)]
pub struct DeliveryPart {
    /// Sequence of the first message.
    pub base_sequence: u64,
    /// Messages in the whole delivery.
    pub count: u32,
    /// Time of the messages in nanoseconds.
    pub timestamp_ns: u64,
    /// CRC32C of the whole.
    pub crc: u32,
    /// Whole or a part.
    pub payload: Bytes,
    /// Length of the whole.
    pub total_bytes: u32,
    /// Place of `payload` in the whole.
    pub offset: u32,
    /// How many times the messages were handed out.
    pub delivery_count: u32,
}

/// State of a link, for streams that wait for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkStatus {
    /// Not connected now.
    Down,
    /// Takes pulls.
    Open,
    /// Ended for good.
    Gone,
}

/// One stream to one node.
pub struct DeliverLink {
    /// Node.
    pub node: NodeId,
    state: Mutex<State>,
    status: watch::Sender<LinkStatus>,
}

#[derive(Default)]
struct State {
    outbox: Option<Outbox>,
    pulls: BTreeMap<u64, (Arc<Session>, usize)>,
    last_pull: u64,
    /// Streams that found the link down.
    waiting: Vec<std::sync::Weak<Session>>,
    idle_since: Option<Instant>,
}

/// A pull on an open link.
#[derive(Clone)]
pub struct Pull {
    /// The link.
    pub link: Arc<DeliverLink>,
    /// Where commands go.
    pub outbox: Outbox,
    /// Id on the stream.
    pub id: u64,
}

impl DeliverLink {
    /// A link that is not connected yet.
    pub fn new(node: NodeId) -> Arc<Self> {
        Arc::new(Self {
            node,
            state: Mutex::default(),
            status: watch::Sender::new(LinkStatus::Down),
        })
    }

    /// Follows the state.
    pub fn status(&self) -> watch::Receiver<LinkStatus> {
        self.status.subscribe()
    }

    /// Starts a pull for a partition of a consume stream. `None` while the link is down.
    pub fn open_pull(
        self: &Arc<Self>,
        session: &Arc<Session>,
        slot: usize,
        group: GroupOnPartition,
    ) -> Option<Pull> {
        let mut state = self.state.lock();
        let outbox = state.outbox.clone()?;
        state.last_pull += 1;
        let id = state.last_pull;
        outbox.open(id, group);
        state.pulls.insert(id, (Arc::clone(session), slot));
        state.idle_since = None;
        Some(Pull {
            link: Arc::clone(self),
            outbox,
            id,
        })
    }

    /// Wakes the stream's task when the link is open.
    pub fn tell_when_open(&self, session: &Arc<Session>) {
        let mut state = self.state.lock();
        let known = |weak: &std::sync::Weak<Session>| std::ptr::eq(weak.as_ptr(), Arc::as_ptr(session));
        if state.outbox.is_some() {
            session.wake.notify_one();
        } else if !state.waiting.iter().any(known) {
            state.waiting.push(Arc::downgrade(session));
        }
    }

    fn opened(&self, outbox: Outbox) {
        let waiting = {
            let mut state = self.state.lock();
            state.outbox = Some(outbox);
            std::mem::take(&mut state.waiting)
        };
        self.status.send_replace(LinkStatus::Open);
        for session in waiting.iter().filter_map(std::sync::Weak::upgrade) {
            session.wake.notify_one();
        }
    }

    /// Forgets a pull; what comes for it later is passed over.
    pub fn forget(&self, pull: u64) {
        self.state.lock().pulls.remove(&pull);
    }

    fn take(&self, event: DeliverEvent) {
        let owner = |pull: u64| self.state.lock().pulls.get(&pull).cloned();
        match event {
            DeliverEvent::Welcome => {}
            DeliverEvent::Delivery(pull, part) => {
                if let Some((session, slot)) = owner(pull) {
                    session.delivered(slot, pull, part);
                }
            }
            DeliverEvent::Acked(pull, confirm, error) => {
                if let Some((session, slot)) = owner(pull) {
                    session.ack_confirmed(slot, pull, confirm, error);
                }
            }
            DeliverEvent::Idle(pull, unacknowledged) => {
                if let Some((session, slot)) = owner(pull) {
                    session.idle(slot, pull, unacknowledged);
                }
            }
            DeliverEvent::Closed(pull, error) => {
                if let Some((session, slot)) = owner(pull) {
                    self.forget(pull);
                    session.pull_ended(slot, pull, error);
                }
            }
        }
    }

    fn lost(&self, why: &RpcError) {
        let pulls = {
            let mut state = self.state.lock();
            if let Some(outbox) = state.outbox.take() {
                outbox.close();
            }
            std::mem::take(&mut state.pulls)
        };
        self.status.send_replace(LinkStatus::Down);
        for (pull, (session, slot)) in pulls {
            session.pull_ended(slot, pull, Some(why.clone()));
        }
    }

    fn is_idle(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        if !state.pulls.is_empty() {
            state.idle_since = None;
            return false;
        }
        now.duration_since(*state.idle_since.get_or_insert(now)) >= IDLE_LIMIT
    }
}

/// Parts of a link's task.
pub struct LinkRunner {
    /// The link.
    pub link: Arc<DeliverLink>,
    /// Opens streams.
    pub transport: Arc<dyn DeliverTransport>,
    /// Tells the node's address.
    pub catalog: Catalog,
    /// For jitter.
    pub random: Arc<dyn Random>,
}

impl LinkRunner {
    /// Connects again and again until the link was idle for long or the process stops.
    pub async fn run(self, stopping: Stopping) {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let ended = tokio::select! {
                () = stopping.cancelled() => break,
                ended = self.connection(&mut backoff) => ended,
            };
            let ended_by_node = || RpcError::new(ErrorKind::Unavailable, "the node ended the stream");
            let why = ended.err().unwrap_or_else(ended_by_node);
            debug!(node = %self.link.node, %why, "delivery stream ended");
            self.link.lost(&why);
            if self.link.is_idle(Instant::now()) {
                break;
            }
            let jitter = Duration::from_millis(self.random.below(backoff.as_millis() as u64 + 1));
            tokio::select! {
                () = stopping.cancelled() => break,
                () = tokio::time::sleep(backoff + jitter) => {}
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
        self.link
            .lost(&RpcError::new(ErrorKind::Unavailable, "this gateway is stopping"));
        self.link.status.send_replace(LinkStatus::Gone);
    }

    async fn connection(&self, backoff: &mut Duration) -> Result<(), RpcError> {
        let node = self.link.node;
        let address = self
            .catalog
            .with(|view| view.node(node).map(|record| record.address.clone()));
        let Some(address) = address else {
            return Err(RpcError::new(
                ErrorKind::Unavailable,
                format!("node {node} is not registered"),
            ));
        };
        let outbox = Outbox::new();
        let opening = async {
            let mut events = self.transport.open(address, outbox.commands()).await?;
            match events.next().await {
                Some(Ok(DeliverEvent::Welcome)) => Ok(events),
                Some(Err(error)) => Err(error),
                _ => Err(RpcError::new(ErrorKind::Unavailable, "the node did not greet")),
            }
        };
        let Ok(opened) = timeout(CONNECT_LIMIT, opening).await else {
            return Err(RpcError::new(
                ErrorKind::Unavailable,
                format!("node {node} did not answer in 5 s"),
            ));
        };
        let mut events = opened?;
        *backoff = FIRST_BACKOFF;
        self.link.opened(outbox);
        info!(%node, "delivery stream open");
        loop {
            match timeout(IDLE_LIMIT, events.next()).await {
                Ok(None) => return Ok(()),
                Ok(Some(event)) => self.link.take(event?),
                Err(_silent) if self.link.is_idle(Instant::now()) => return Ok(()),
                Err(_silent) => {}
            }
        }
    }
}
