//! One append stream to one node for one session: connects, reconnects, and hands answers to the partitions.
//!
//! Not here: order and retries of batches ([`super::pipeline`]), fairness of writing ([`super::queue`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use ptah_partition::Batch;
use ptah_rpc::RpcError;
use ptah_service::{Random, Stopping};
use ptah_types::{ErrorKind, NodeId, SessionId};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{debug, info};

use super::partition::PartitionAppender;
use super::pipeline::{BindingId, StoredAt};
use super::queue::{AppendOpening, FrameStream, SendQueue};
use crate::catalog::Catalog;
use crate::metrics::AppendMetrics;

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const FIRST_BACKOFF: Duration = Duration::from_millis(10);
const MAX_BACKOFF: Duration = Duration::from_millis(500);
/// A link without partitions ends after this time; the next batch makes a new one.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// Bytes under way for a peer that does not say how many it wants.
pub const DEFAULT_WINDOW_BYTES: usize = 16 << 20;

/// Opens append streams.
pub trait AppendTransport: Send + Sync + 'static {
    /// Greets the node at `address` for a session, and writes the frames as it takes them.
    fn open(
        &self,
        address: String,
        session: SessionId,
        frames: FrameStream,
    ) -> BoxFuture<'_, Result<Box<dyn AppendEvents>, RpcError>>;
}

/// What a node says on an append stream.
pub trait AppendEvents: Send {
    /// Next event; `None` when the node ended the stream. May be dropped while waiting.
    fn next(&mut self) -> BoxFuture<'_, Option<Result<AppendEvent, RpcError>>>;
}

/// One message of a node.
#[derive(Debug, Default)]
pub struct AppendEvent {
    /// Greeting: bytes that may be under way.
    pub window_bytes: Option<u64>,
    /// Answers; of each channel in order.
    pub answers: Vec<AppendAnswer>,
}

/// An answer to a batch, or to an opening when the number is 0.
#[derive(Debug)]
pub struct AppendAnswer {
    /// Channel.
    pub channel: u32,
    /// Number of the batch.
    pub number: u64,
    /// What happened.
    pub outcome: Result<StoredAt, AppendRefusal>,
}

/// Why a batch is not stored, or not known to be.
#[derive(Debug)]
pub struct AppendRefusal {
    /// Kind.
    pub kind: ErrorKind,
    /// Sentence.
    pub message: String,
    /// Who leads instead.
    pub leader: Option<NodeId>,
    /// Earliest useful retry.
    pub retry_after: Option<Duration>,
    /// Number that the partition expects next of the session; 0 when that is not the reason.
    pub expected_number: u64,
}

/// State of a link, for partitions that wait for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkStatus {
    /// Not connected now.
    Down,
    /// Takes channels.
    Open,
    /// Ended for good.
    Gone,
}

/// One stream to one node.
pub struct AppendLink {
    /// Node.
    pub node: NodeId,
    /// Session of its batches.
    pub session: SessionId,
    state: Mutex<State>,
    status: watch::Sender<LinkStatus>,
}

#[derive(Default)]
struct State {
    queue: Option<SendQueue>,
    channels: BTreeMap<u32, (Arc<PartitionAppender>, BindingId)>,
    next_channel: u32,
    idle_since: Option<Instant>,
}

/// A partition's place on an open link.
#[derive(Debug, Clone)]
pub struct Channel {
    queue: SendQueue,
    number: u32,
}

impl Channel {
    /// Adds a batch.
    pub fn send(&self, number: u64, batch: Batch) {
        self.queue.push(self.number, number, batch);
    }
}

impl AppendLink {
    /// A link that is not connected yet.
    pub fn new(node: NodeId, session: SessionId) -> Arc<Self> {
        Arc::new(Self {
            node,
            session,
            state: Mutex::new(State {
                next_channel: 1,
                ..State::default()
            }),
            status: watch::Sender::new(LinkStatus::Down),
        })
    }

    /// Follows the state.
    pub fn status(&self) -> watch::Receiver<LinkStatus> {
        self.status.subscribe()
    }

    /// Opens a channel for a partition. `None` while the link is down.
    pub fn open_channel(&self, appender: &Arc<PartitionAppender>, binding: BindingId) -> Option<Channel> {
        let mut state = self.state.lock();
        let queue = state.queue.clone()?;
        let number = state.next_channel;
        state.next_channel = number.checked_add(1)?;
        queue.open(AppendOpening {
            channel: number,
            partition: appender.target().partition.clone(),
            group: appender.target().group,
            generation: appender.generation(),
        });
        state.channels.insert(number, (Arc::clone(appender), binding));
        state.idle_since = None;
        Some(Channel { queue, number })
    }

    /// Ends the use of a channel.
    pub fn close_channel(&self, channel: &Channel) {
        channel.queue.close_channel(channel.number);
        self.state.lock().channels.remove(&channel.number);
    }

    fn take_answer(&self, queue: &SendQueue, answer: AppendAnswer) {
        let owner = self.state.lock().channels.get(&answer.channel).cloned();
        if answer.number != 0 {
            queue.answered(answer.channel);
        }
        if let Some((appender, binding)) = owner {
            appender.answered(binding, answer);
        }
    }

    /// Ends what used the stream that is lost.
    fn lost(&self, why: &str) {
        let channels = {
            let mut state = self.state.lock();
            if let Some(queue) = state.queue.take() {
                queue.close();
            }
            state.next_channel = 1;
            std::mem::take(&mut state.channels)
        };
        self.status.send_replace(LinkStatus::Down);
        for (appender, binding) in channels.into_values() {
            appender.link_lost(binding, why);
        }
    }

    fn is_idle(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        if !state.channels.is_empty() {
            state.idle_since = None;
            return false;
        }
        now.duration_since(*state.idle_since.get_or_insert(now)) >= IDLE_LIMIT
    }
}

/// Parts of a link's task.
pub struct LinkRunner {
    /// The link.
    pub link: Arc<AppendLink>,
    /// Opens streams.
    pub transport: Arc<dyn AppendTransport>,
    /// Tells the node's address.
    pub catalog: Catalog,
    /// For jitter.
    pub random: Arc<dyn Random>,
    /// Counters.
    pub metrics: AppendMetrics,
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
            let why = match &ended {
                Ok(()) => "the node ended the stream".to_owned(),
                Err(error) => error.to_string(),
            };
            self.metrics.links_lost.inc();
            debug!(node = %self.link.node, %why, "append stream ended");
            self.link
                .lost(&format!("node {} is not reached: {why}", self.link.node));
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
        self.link.lost("this gateway is stopping");
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
        let queue = SendQueue::new(DEFAULT_WINDOW_BYTES);
        let opening = async {
            let mut events = self
                .transport
                .open(address, self.link.session, queue.frames())
                .await?;
            let first = events.next().await.unwrap_or_else(|| {
                Err(RpcError::new(
                    ErrorKind::Unavailable,
                    "the node ended the stream before its greeting",
                ))
            })?;
            Ok::<_, RpcError>((events, first))
        };
        let Ok(opened) = timeout(CONNECT_LIMIT, opening).await else {
            return Err(RpcError::new(
                ErrorKind::Unavailable,
                format!("node {node} did not answer in 5 s"),
            ));
        };
        let (mut events, first) = opened?;
        self.take(&queue, first);
        *backoff = FIRST_BACKOFF;
        self.link.state.lock().queue = Some(queue.clone());
        self.link.status.send_replace(LinkStatus::Open);
        info!(%node, session = %self.link.session, "append stream open");
        loop {
            match timeout(IDLE_LIMIT, events.next()).await {
                Ok(None) => return Ok(()),
                Ok(Some(event)) => self.take(&queue, event?),
                Err(_silent) if self.link.is_idle(Instant::now()) => return Ok(()),
                Err(_silent) => {}
            }
        }
    }

    fn take(&self, queue: &SendQueue, event: AppendEvent) {
        if let Some(bytes) = event.window_bytes.filter(|bytes| *bytes > 0) {
            queue.set_window(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
        for answer in event.answers {
            self.link.take_answer(queue, answer);
        }
    }
}
