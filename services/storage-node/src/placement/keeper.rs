//! Carries the placement out: one task owns it, takes orders one after the other, and notes what replicas have become.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use ptah_raft::{RemoveError, ReplicaSpec, ReplicaState, ReplicaStatus};
use ptah_rpc::clients::PlacementOrder;
use ptah_service::{Blocking, Component, Stopping};
use ptah_types::{Boundary, ErrorKind, RaftGroupId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::order::{MergeError, merge};
use super::{Fence, Placement, PlacementFile, PlacementFileError, Removal};
use crate::node::Node;

/// Orders that may wait for the one before them.
const MAX_WAITING_ORDERS: usize = 16;
/// Time before a removal that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Longest time that orders wait for removals; what takes longer goes on later.
const REMOVE_DEADLINE: Duration = Duration::from_secs(3);
/// Removals of one turn.
const REMOVALS_AT_ONCE: usize = 32;
/// Longest time that a caller waits for its order.
const ORDER_DEADLINE: Duration = Duration::from_secs(30);

/// Why an order is not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OrderError {
    /// The order itself is refused.
    #[error(transparent)]
    Refused(#[from] MergeError),
    /// The disk did not take it.
    #[error(transparent)]
    File(#[from] PlacementFileError),
    /// Too many orders wait.
    #[error("too many placement orders wait on this node; retry")]
    Busy,
    /// The node stops.
    #[error("storage node stops; retry")]
    Stopping,
    /// It takes too long.
    #[error("placement order was not carried out in {ORDER_DEADLINE:?}; it may still be")]
    Late,
}

impl Boundary for OrderError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(_) => ErrorKind::Conflict,
            Self::File(_) | Self::Stopping => ErrorKind::Unavailable,
            Self::Busy => ErrorKind::Exhausted,
            Self::Late => ErrorKind::OutcomeUnknown,
        }
    }
}

type Order = (PlacementOrder, oneshot::Sender<Result<(), OrderError>>);

/// Handle of the task that owns the placement. Cheap to clone.
#[derive(Clone)]
pub(crate) struct PlacementKeeper {
    orders: mpsc::Sender<Order>,
    view: Arc<Mutex<View>>,
}

/// What reports say of the placement.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// Newest order carried out.
    pub(crate) fence: Fence,
    /// Groups that could not be opened at all, and why.
    pub(crate) troubles: BTreeMap<RaftGroupId, String>,
}

/// The task's part.
pub(crate) struct PlacementTask {
    file: PlacementFile,
    node: Arc<Node>,
    blocking: Blocking,
    segment_bytes: u64,
    placement: Placement,
    orders: mpsc::Receiver<Order>,
    view: Arc<Mutex<View>>,
    ready: Component,
    /// Whether replicas that were here at the start are still being opened.
    starting: bool,
    /// When removals that failed are tried again.
    remove_again: BTreeMap<Removal, Instant>,
}

impl PlacementKeeper {
    /// A keeper of `placement`, and the task that has to be run.
    pub(crate) fn new(
        file: PlacementFile,
        node: Arc<Node>,
        blocking: Blocking,
        segment_bytes: u64,
        placement: Placement,
        ready: Component,
    ) -> (Self, PlacementTask) {
        let (sender, orders) = mpsc::channel(MAX_WAITING_ORDERS);
        let view = Arc::new(Mutex::new(View {
            fence: placement.fence,
            troubles: BTreeMap::new(),
        }));
        let keeper = Self {
            orders: sender,
            view: Arc::clone(&view),
        };
        let task = PlacementTask {
            file,
            node,
            blocking,
            segment_bytes,
            placement,
            orders,
            view,
            ready,
            starting: true,
            remove_again: BTreeMap::new(),
        };
        (keeper, task)
    }

    /// Carries an order out; it is on disk when this returns, and replicas are being opened and removed.
    pub(crate) async fn carry_out(&self, order: PlacementOrder) -> Result<(), OrderError> {
        let (sender, receiver) = oneshot::channel();
        self.orders
            .try_send((order, sender))
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => OrderError::Busy,
                mpsc::error::TrySendError::Closed(_) => OrderError::Stopping,
            })?;
        match tokio::time::timeout(ORDER_DEADLINE, receiver).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(OrderError::Stopping),
            Err(_) => Err(OrderError::Late),
        }
    }

    /// What reports say.
    pub(crate) fn view(&self) -> View {
        self.view.lock().clone()
    }
}

impl PlacementTask {
    /// Opens what the file says, then follows orders until the node stops.
    pub(crate) async fn run(mut self, stopping: Stopping) {
        self.open();
        let mut replicas = self.node.host.watch_replicas();
        loop {
            self.remove().await;
            self.note_states().await;
            let retry = self.next_removal();
            let retry = async {
                match retry {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                order = self.orders.recv() => match order {
                    Some((order, reply)) => {
                        // A caller that has gone does not need the answer.
                        drop(reply.send(self.take(order).await));
                    }
                    None => return,
                },
                changed = replicas.changed() => if changed.is_err() {
                    return;
                },
                () = retry => {}
            }
        }
    }

    async fn take(&mut self, mut order: PlacementOrder) -> Result<(), OrderError> {
        let members = std::mem::take(&mut order.members);
        let yielding = std::mem::take(&mut order.yielding);
        let merged = merge(&self.placement, order)?;
        if merged != self.placement {
            self.store(merged).await?;
        }
        self.view.lock().fence = self.placement.fence;
        self.node.membership.follow(members, yielding);
        self.open();
        Ok(())
    }

    /// Makes `placement` the durable one.
    async fn store(&mut self, placement: Placement) -> Result<(), PlacementFileError> {
        let file = self.file.clone();
        let stored = self
            .blocking
            .run(move || file.store(&placement).map(|()| placement))
            .await;
        self.placement = stored.map_err(|source| self.file.interrupted(source))??;
        Ok(())
    }

    /// Lets the host open what is placed. Cheap for what is open.
    fn open(&self) {
        let node = &self.node;
        node.host.set_peers(self.placement.peers.clone());
        node.shared.set_peers(self.placement.peers.clone());
        let mut troubles = BTreeMap::new();
        for (group, placed) in &self.placement.replicas {
            // What was here before has to be gone first.
            if self
                .placement
                .removals
                .keys()
                .any(|removal| removal.group == *group)
            {
                continue;
            }
            node.configure(*group, placed.generation, placed.max_message_bytes);
            let spec = ReplicaSpec {
                key: placed.key.clone(),
                group: *group,
                replica: placed.replica,
                members: placed.members.clone(),
                opened: placed.opened,
                initialize: placed.initialize,
                segment_bytes: self.segment_bytes,
            };
            if let Err(error) = node.host.ensure(spec) {
                troubles.insert(*group, error.to_string());
            }
        }
        let mut view = self.view.lock();
        for (group, trouble) in &troubles {
            if view.troubles.get(group) != Some(trouble) {
                tracing::warn!(%group, %trouble, "replica cannot be opened");
            }
        }
        view.troubles = troubles;
    }

    /// When the next removal is due.
    fn next_removal(&self) -> Option<Instant> {
        let due = |removal| self.remove_again.get(removal).copied();
        let removals = self.placement.removals.keys();
        removals
            .map(|removal| due(removal).unwrap_or_else(Instant::now))
            .min()
    }

    /// Removes what has a tombstone, and forgets the tombstones of what is gone. One replica that does not end must not
    /// keep the others from being opened and removed.
    async fn remove(&mut self) {
        let (now, again) = (Instant::now(), &self.remove_again);
        let due = |removal: &&Removal| again.get(removal).is_none_or(|at| *at <= now);
        let due: Vec<Removal> = self
            .placement
            .removals
            .keys()
            .filter(due)
            .take(REMOVALS_AT_ONCE)
            .copied()
            .collect();
        let removing = due.into_iter().map(|removal| {
            let removing = tokio::time::timeout(REMOVE_DEADLINE, self.remove_one(removal));
            async move { (removal, removing.await) }
        });
        let results = join_all(removing).await;
        let mut left = self.placement.clone();
        for (removal, result) in results {
            let Removal { group, replica } = removal;
            let trouble = match result {
                Ok(Ok(())) => {
                    let revision = left.removals.remove(&removal);
                    self.remove_again.remove(&removal);
                    tracing::info!(%group, ?replica, revision, "replica removed");
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("not done in {REMOVE_DEADLINE:?}"),
            };
            tracing::warn!(%group, ?replica, trouble, "replica cannot be removed yet");
            self.remove_again.insert(removal, Instant::now() + RETRY);
        }
        if left != self.placement {
            self.store_quietly(left).await;
            // Another replica of a group may have waited for the one that is gone.
            self.open();
        }
    }

    async fn remove_one(&self, removal: Removal) -> Result<(), RemoveError> {
        let group = removal.group;
        let Some(replica) = removal.replica else {
            self.node.forget(group);
            return self.node.host.remove(group).await;
        };
        if self
            .node
            .host
            .replica(group)
            .is_some_and(|here| here.id() == replica)
        {
            self.node.forget(group);
        }
        self.node.host.remove_replica(group, replica).await
    }

    /// The node is ready once every replica that it had at its start is open, or is known not to open. What is placed
    /// later does not make it unready.
    fn note_readiness(&mut self, statuses: &[ReplicaStatus]) {
        if !self.starting {
            return;
        }
        let opening = statuses
            .iter()
            .filter(|status| status.state == ReplicaState::Opening)
            .count();
        if opening == 0 {
            self.starting = false;
            self.ready.ready();
        } else {
            let of = statuses.len();
            self.ready
                .not_ready(format!("{opening} of {of} replicas are being opened"));
        }
    }

    /// Notes that replicas were open here and that their groups are initialised, so that neither is done anew.
    async fn note_states(&mut self) {
        let mut noted = self.placement.clone();
        let statuses = self.node.host.replicas();
        self.note_readiness(&statuses);
        for status in statuses {
            let Some(placed) = noted.replicas.get_mut(&status.group) else {
                continue;
            };
            if status.state == ReplicaState::Running && status.replica == Some(placed.replica) {
                placed.opened = true;
                placed.initialized |= status.initialized;
                placed.initialize &= !status.initialized;
            }
        }
        self.store_quietly(noted).await;
    }

    async fn store_quietly(&mut self, placement: Placement) {
        if placement == self.placement {
            return;
        }
        if let Err(error) = self.store(placement).await {
            tracing::error!(%error, "placement cannot be noted");
        }
    }
}
