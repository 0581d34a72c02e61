//! Single calls to the leader of a partition: finds it, follows hints, tries again until the time is over.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use ptah_partition::SequenceRange;
use ptah_rpc::RpcError;
use ptah_rpc::records::ConsumerGroupConfig;
use ptah_service::Random;
use ptah_types::{ErrorKind, GroupName, RaftGroupId};
use tokio::time::{Instant, timeout_at};

use crate::catalog::Catalog;
use crate::consume::{GroupOnPartition, StoredMessages};
use crate::error::GatewayError;
use crate::routing::Routing;

const FIRST_BACKOFF: Duration = Duration::from_millis(5);
const MAX_BACKOFF: Duration = Duration::from_millis(200);
/// A node that says nothing is given up for this try.
const TRY_LIMIT: Duration = Duration::from_secs(5);

/// State of a partition, as its leader tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionState {
    /// Its Raft group.
    pub group: RaftGroupId,
    /// Oldest message that is kept.
    pub first_sequence: u64,
    /// Sequence that the next message gets.
    pub next_sequence: u64,
}

/// What to read.
#[derive(Debug, Clone)]
pub struct ReadRange {
    /// Where.
    pub partition: ptah_types::PartitionKey,
    /// Its Raft group.
    pub group: RaftGroupId,
    /// First sequence; 0 for the oldest.
    pub from_sequence: u64,
    /// Most messages.
    pub max_messages: u32,
    /// Most bytes; one message may be larger.
    pub max_bytes: u64,
}

/// Single calls to a storage node at an address. All of them may be repeated without harm.
pub trait NodeCalls: Send + Sync + 'static {
    /// Makes a consumer group on a partition, or finds that it is there.
    fn ensure_group(
        &self,
        address: String,
        group: GroupOnPartition,
        name: GroupName,
        config: ConsumerGroupConfig,
    ) -> BoxFuture<'_, Result<(), RpcError>>;
    /// Acknowledges; answers after commit.
    fn ack(
        &self,
        address: String,
        group: GroupOnPartition,
        ranges: Vec<SequenceRange>,
    ) -> BoxFuture<'_, Result<(), RpcError>>;
    /// Reads stored messages.
    fn read(&self, address: String, range: ReadRange) -> BoxFuture<'_, Result<StoredMessages, RpcError>>;
    /// States of those of the groups that the node leads.
    fn describe(
        &self,
        address: String,
        groups: Vec<RaftGroupId>,
    ) -> BoxFuture<'_, Result<Vec<PartitionState>, RpcError>>;
}

/// Calls leaders.
#[derive(Clone)]
pub struct Leaders {
    /// Who leads.
    pub routing: Routing,
    /// Where nodes are.
    pub catalog: Catalog,
    /// For jitter.
    pub random: Arc<dyn Random>,
    /// The nodes.
    pub calls: Arc<dyn NodeCalls>,
}

impl Leaders {
    /// Does `call` at the group's leader, again and again until it works, fails for good, or `limit` is over. `what` names
    /// it for people: "acknowledge on partition 3 of station `x`".
    pub async fn at_leader<T>(
        &self,
        group: RaftGroupId,
        limit: Duration,
        what: &str,
        call: impl Fn(String) -> BoxFuture<'static, Result<T, RpcError>>,
    ) -> Result<T, GatewayError> {
        let deadline = Instant::now() + limit;
        let mut last = RpcError::new(ErrorKind::Unavailable, "no leader is known");
        let mut in_doubt = false;
        let mut backoff = FIRST_BACKOFF;
        while Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(leader) = self.routing.wait_for_leader(group, false, left).await else {
                break;
            };
            let address = self
                .catalog
                .with(|view| view.node(leader).map(|node| node.address.clone()));
            let result = match address {
                Some(address) => {
                    let until = deadline.min(Instant::now() + TRY_LIMIT);
                    let silent =
                        RpcError::new(ErrorKind::OutcomeUnknown, format!("node {leader} did not answer"));
                    timeout_at(until, call(address)).await.unwrap_or(Err(silent))
                }
                None => Err(RpcError::new(
                    ErrorKind::Unavailable,
                    format!("node {leader} is not registered"),
                )),
            };
            match result {
                Ok(done) => return Ok(done),
                Err(error) if !may_try_again(error.kind) => return Err(error.into()),
                Err(error) => last = error,
            }
            in_doubt |= last.kind == ErrorKind::OutcomeUnknown;
            if let Some((other, _)) = &last.leader {
                self.routing.hinted(group, leader, *other);
            }
            let pause =
                backoff / 2 + Duration::from_micros(self.random.below(backoff.as_micros() as u64 / 2 + 1));
            tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
        let message = format!(
            "could not {what} in {} ms ({}); retry",
            limit.as_millis(),
            last.message
        );
        Err(if in_doubt {
            GatewayError::OutcomeUnknown(message.into())
        } else {
            GatewayError::Unavailable(message.into())
        })
    }
}

/// Whether another try, perhaps at another node, can help. "Not found" may be a node that lost or did not get the replica.
fn may_try_again(kind: ErrorKind) -> bool {
    kind.is_retryable()
        || matches!(
            kind,
            ErrorKind::NotFound | ErrorKind::Conflict | ErrorKind::Unauthenticated
        )
}
