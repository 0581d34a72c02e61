//! The leader's side of one partition, for one reign.
//!
//! Made when this node leads the partition's group and has applied everything before, dropped when that ends. Nothing in
//! here survives a change of the leader; what must survive is in the replicated partition.
//! Lock order: `appends` alone; `groups`, then a group's state, then a stream's.

mod alarm;
mod appends;
mod core;
mod groups;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use ptah_raft::{Leadership, Replica};
use ptah_service::Tasks;
use ptah_types::ConsumerGroupId;

pub(crate) use alarm::Alarm;
pub(crate) use appends::NewAppend;
pub(crate) use core::LeaderCore;
pub(crate) use groups::{GroupProgress, PartitionState};

use self::appends::Appends;
use crate::deliver::GroupDelivery;
use crate::shared::Shared;

/// Settings of a partition that the control plane may change while it is led.
#[derive(Debug)]
pub(crate) struct PartitionSettings {
    generation: AtomicU64,
    max_message_bytes: AtomicU64,
}

/// How a reign begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beginning {
    /// Who leads, as the replica says: this node.
    pub(crate) leadership: Leadership,
    /// Whether this process has begun a reign of the same term before.
    pub(crate) again: bool,
}

/// One partition, led by this node.
pub(crate) struct PartitionLeader {
    core: Arc<LeaderCore>,
    appends: Mutex<Appends>,
    /// Consumer groups that somebody reads with or acknowledges for.
    groups: RwLock<BTreeMap<ConsumerGroupId, Arc<GroupDelivery>>>,
}

impl PartitionSettings {
    /// The settings.
    pub(crate) fn new(generation: u64, max_message_bytes: u64) -> Self {
        Self {
            generation: AtomicU64::new(generation),
            max_message_bytes: AtomicU64::new(max_message_bytes),
        }
    }

    /// Changes them.
    pub(crate) fn set(&self, generation: u64, max_message_bytes: u64) {
        self.generation.store(generation, Ordering::Relaxed);
        self.max_message_bytes.store(max_message_bytes, Ordering::Relaxed);
    }

    /// Generation of the station's partition count.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Largest payload of one message.
    pub(crate) fn max_message_bytes(&self) -> u64 {
        self.max_message_bytes.load(Ordering::Relaxed)
    }
}

impl PartitionLeader {
    /// Begins a reign; its task is owned by `tasks`.
    ///
    /// Appends start from what is applied. That is right at once when nothing else can come: the log ends there, and
    /// nobody has proposed anything in this term. Otherwise they wait for a barrier first.
    pub(crate) fn begin(
        shared: Arc<Shared>,
        replica: Replica,
        settings: Arc<PartitionSettings>,
        beginning: Beginning,
        tasks: &Tasks,
    ) -> Arc<Self> {
        // In this order: what is applied by now is at least what was logged a moment ago.
        let logged = replica.status().last;
        let applied = replica.watch_applied().borrow().index;
        let sure = !beginning.again && logged <= applied;
        let appends = replica.with_partition(Appends::new);
        let leader = Arc::new(Self {
            core: Arc::new(LeaderCore::new(shared, replica, settings, beginning.leadership)),
            appends: Mutex::new(appends),
            groups: RwLock::default(),
        });
        if !sure {
            leader.make_sure();
        }
        let keeper = Arc::clone(&leader);
        tasks.spawn_critical("partition leader", async move {
            keeper.keep().await;
            Ok(())
        });
        leader
    }

    /// What the parts of the leader share.
    pub(crate) fn core(&self) -> &Arc<LeaderCore> {
        &self.core
    }

    /// Ends the reign: whoever waits is told; appends in flight are answered when the log has decided about them.
    pub(crate) fn end(&self) {
        {
            // Nothing is proposed behind this: the barrier of the next reign comes after everything of this one.
            let _proposing = self.appends.lock();
            self.core.mark_ended();
        }
        let groups = std::mem::take(&mut *self.groups.write());
        for group in groups.values() {
            group.end(&self.core.not_leader());
        }
    }

    /// The one task of a led partition: ack deadlines, collected acks, and what has to be tried again.
    async fn keep(self: Arc<Self>) {
        while self.core.due().await {
            self.tick_appends();
            let groups: Vec<_> = self.groups.read().values().cloned().collect();
            for group in groups {
                group.tick();
            }
        }
    }
}
