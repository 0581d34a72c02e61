//! The task of one partition: finds the leader, binds to its link, and gives up what is out of time.

use std::sync::Arc;
use std::time::Duration;

use ptah_service::Stopping;
use ptah_types::NodeId;
use tokio::sync::watch;
use tokio::time::Instant;

use super::answer::Reason;
use super::link::LinkStatus;
use super::partition::PartitionAppender;
use crate::routing::Route;

/// Looks again at least this often, whatever was told.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What the task waits for next.
struct Plan {
    until: Instant,
    link: Option<watch::Receiver<LinkStatus>>,
}

impl PartitionAppender {
    /// Runs until the appender is retired or the process stops.
    pub(super) async fn drive(self: Arc<Self>, stopping: Stopping) {
        let mut route = self.shared.routing.watch(self.target().group);
        while !self.is_retired() {
            self.expire(Instant::now());
            let known = *route.borrow_and_update();
            let mut plan = self.step(known);
            tokio::select! {
                () = stopping.cancelled() => return,
                () = self.wake.notified() => {}
                changed = route.changed() => if changed.is_err() { return },
                () = link_changed(&mut plan.link) => {}
                () = tokio::time::sleep_until(plan.until) => {}
            }
        }
    }

    /// Does what can be done now and says what to wait for.
    fn step(self: &Arc<Self>, route: Route) -> Plan {
        let now = Instant::now();
        let latest = now + LOOK_AGAIN;
        let until = self.deadline().map_or(latest, |deadline| deadline.min(latest));
        let plan = Plan { until, link: None };
        self.leave_old_leader(route);
        let (session, not_before) = {
            let state = self.state.lock();
            let wanted = !state.backlog.is_empty() || !state.pipeline.is_empty();
            if state.bound.is_some() || !wanted {
                return plan;
            }
            // A newer term is news: no need to wait as after a refusal.
            let not_before = state.not_before.filter(|_| route.term <= state.failed_in_term);
            (state.session, not_before)
        };
        let Some(leader) = route.leader else { return plan };
        if let Some(not_before) = not_before.filter(|time| *time > now) {
            return Plan {
                until: until.min(not_before),
                ..plan
            };
        }
        let link = self.shared.link(leader, session);
        let mut status = link.status();
        status.mark_unchanged();
        if self.bind(&link) {
            return plan;
        }
        Plan {
            until,
            link: Some(status),
        }
    }

    fn leave_old_leader(&self, route: Route) {
        let elsewhere = |node: NodeId| route.leader.is_some_and(|leader| leader != node);
        if self.bound_node().is_some_and(elsewhere) {
            let mut state = self.state.lock();
            state.pipeline.unbind();
            state.reason = Reason::unavailable("the leader changed");
            self.unbound(state, Some(Duration::ZERO));
        }
    }
}

async fn link_changed(link: &mut Option<watch::Receiver<LinkStatus>>) {
    match link {
        // A link that is gone is replaced by the next step.
        Some(status) => drop(status.changed().await),
        None => std::future::pending().await,
    }
}
