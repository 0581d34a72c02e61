//! The task of one consume stream: opens pulls at the leaders, follows leader changes, waits for memory, and gives back
//! what the client did not take in time.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use ptah_service::Stopping;
use tokio::time::Instant;

use super::budget::Reservation;
use super::session::Session;
use crate::error::GatewayError;

/// Looks again at least this often, whatever was told.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Waits for memory for the slot of that place. One at a time per stream.
type WaitForMemory = BoxFuture<'static, (usize, Reservation)>;

impl Session {
    /// Runs until the stream is closed or the process stops.
    pub(super) async fn drive(self: Arc<Self>, stopping: Stopping) {
        let mut routes = self.shared.routing.changes();
        let mut catalog = self.shared.catalog.watch();
        let mut memory: Option<WaitForMemory> = None;
        loop {
            if self.state.lock().closed {
                return;
            }
            if !self
                .shared
                .catalog
                .with(|view| view.has_station(self.spec.station_id))
            {
                self.fail(GatewayError::StationNotFound {
                    tenant: self
                        .spec
                        .partitions
                        .first()
                        .map(|group| group.partition.tenant.to_string())
                        .unwrap_or_default(),
                    station: self.spec.station.to_string(),
                });
            }
            let until = self.step(&mut memory);
            tokio::select! {
                () = stopping.cancelled() => {
                    self.fail(GatewayError::Stopping);
                    return;
                }
                () = self.wake.notified() => {}
                changed = routes.changed() => if changed.is_err() { return },
                changed = catalog.changed() => if changed.is_err() { return },
                (index, reservation) = wait(&mut memory) => {
                    memory = None;
                    self.unpark(index, reservation);
                }
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// Does what can be done now and says when to look again.
    fn step(self: &Arc<Self>, memory: &mut Option<WaitForMemory>) -> Instant {
        let now = Instant::now();
        let mut until = now + LOOK_AGAIN;
        let mut guard = self.state.lock();
        let slots = guard.slots.len();
        for index in 0..slots {
            let state = &mut *guard;
            self.tend_confirms(state, index, now);
            let slot = &mut state.slots[index];
            let deadlines = slot
                .confirms
                .first_key_value()
                .map(|(_, confirm)| confirm.deadline);
            until = deadlines
                .into_iter()
                .chain(slot.resend_confirms_at)
                .fold(until, Instant::min);
            if let Some(oldest) = slot.oldest() {
                let limit = oldest + self.spec.hold_limit;
                if limit <= now {
                    state.stalled = true;
                    state.close_pull(index);
                } else {
                    until = until.min(limit);
                }
            }
            let slot = &mut state.slots[index];
            if let Some(bytes) = slot.parked {
                if memory.is_none() {
                    let budget = self.shared.budget.clone();
                    *memory = Some(Box::pin(async move { (index, budget.reserve(bytes).await) }));
                }
                continue;
            }
            let route = self.shared.routing.route(slot.group.raft_group);
            let elsewhere = slot
                .pull
                .as_ref()
                .is_some_and(|pull| route.leader.is_some_and(|leader| leader != pull.link.node));
            if elsewhere {
                state.leave_old_leader(index);
            }
            let slot = &mut state.slots[index];
            if slot.pull.is_some() || state.stalled {
                continue;
            }
            if let Some(not_before) = slot.not_before.filter(|time| *time > now) {
                until = until.min(not_before);
                continue;
            }
            let Some(leader) = route.leader else { continue };
            let link = self.shared.link(leader);
            if let Some(pull) = link.open_pull(self, index, slot.group.clone()) {
                self.pull_opened(state, index, pull);
            } else {
                link.tell_when_open(self);
            }
        }
        until
    }

    /// There is memory now for the delivery that came too early.
    fn unpark(&self, index: usize, reservation: Reservation) {
        let mut state = self.state.lock();
        if let Some(slot) = state.slots.get_mut(index) {
            slot.parked = None;
            slot.prepaid = Some(reservation);
        }
    }
}

impl super::state::State {
    /// Another node leads now. What was delivered is still sent; the old leader's leases mean nothing any more.
    fn leave_old_leader(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        if let Some(pull) = slot.pull.take() {
            pull.link.forget(pull.id);
            pull.outbox.close_pull(pull.id, Vec::new());
        }
        slot.pull_is_over();
        self.book.unbound(index);
    }
}

async fn wait(memory: &mut Option<WaitForMemory>) -> (usize, Reservation) {
    match memory {
        Some(waiting) => waiting.await,
        None => std::future::pending().await,
    }
}
