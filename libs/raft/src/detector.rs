//! Which nodes live, judged by their signs of life.
//!
//! Every node sends every other one a ping at a fixed interval, on a connection of its own, whether or not a group is
//! active. A node that is silent for longer than its habit allows is suspected; one whose process is certainly gone is
//! suspected at once. A suspicion alone moves nothing: see [`crate::takeover`].
//!
//! Invariant: time in which this process did not run counts as silence of nobody. It is frozen or starved itself then,
//! and its judgement worth nothing.
//!
//! Not here: sending and receiving pings (`transport`), and what follows from a suspicion.

#[cfg(test)]
mod tests;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ptah_types::NodeId;
use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::metrics::Metrics;

pub(crate) use watch::run;

/// Events that may wait for a slow listener; one that misses some looks at everything.
const EVENTS: usize = 256;
/// The habit of a node forgets this part of its worst pause with every ping: half of it in about 70 pings.
const FORGET: f64 = 0.01;
/// A node that was never heard, because it or this process has just started, is given this long.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);

/// When a silent node is suspected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How often nodes send a ping.
    pub(crate) interval: Duration,
    /// Silence of a node that is punctual otherwise.
    pub(crate) shortest: Duration,
    /// Silence of a node that is often late.
    pub(crate) longest: Duration,
}

/// What happened to a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// It is suspected to be dead or cut off.
    Suspected(NodeId),
    /// It was suspected, and is heard again.
    HeardAgain(NodeId),
    /// Another process runs in its place: the one before is gone for certain.
    Replaced(NodeId),
}

/// What is believed of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Belief {
    /// It is heard.
    Alive,
    /// It is silent for too long.
    Silent,
    /// Its process is gone for certain.
    Gone,
}

struct Peer {
    belief: Belief,
    /// The process that was heard last; `None` when none ever was.
    incarnation: Option<u64>,
    heard: Instant,
    /// Its worst pause between two pings, slowly forgotten.
    worst_pause: Duration,
}

struct State {
    peers: BTreeMap<NodeId, Peer>,
    looked: Option<Instant>,
}

/// Judges all nodes.
pub(crate) struct Detector {
    limits: Limits,
    state: Mutex<State>,
    events: broadcast::Sender<Event>,
    metrics: Arc<Metrics>,
}

impl Detector {
    pub(crate) fn new(limits: Limits, metrics: Arc<Metrics>) -> Self {
        Self {
            limits,
            state: Mutex::new(State {
                peers: BTreeMap::new(),
                looked: None,
            }),
            events: broadcast::Sender::new(EVENTS),
            metrics,
        }
    }

    /// How often a ping is due.
    pub(crate) fn interval(&self) -> Duration {
        self.limits.interval
    }

    /// What happens from now on.
    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// A ping stream of a node's process began.
    pub(crate) fn connected(&self, node: NodeId, incarnation: u64, now: Instant) {
        let (replaced, again) = {
            let mut state = self.state.lock();
            let peer = state.peers.entry(node).or_insert_with(|| Peer::unheard(now));
            let replaced = peer.incarnation.is_some_and(|old| old != incarnation);
            if replaced {
                // The process that was heard is no more; the new one has no habit yet.
                *peer = Peer::unheard(now);
            }
            let again = self.hear(peer, now);
            peer.incarnation = Some(incarnation);
            (replaced, again)
        };
        if again {
            self.tell(Event::HeardAgain(node));
        }
        if replaced {
            self.tell(Event::Replaced(node));
        }
    }

    /// A ping of a node came.
    pub(crate) fn heard(&self, node: NodeId, now: Instant) {
        let again = match self.state.lock().peers.get_mut(&node) {
            Some(peer) => self.hear(peer, now),
            None => false,
        };
        if again {
            self.tell(Event::HeardAgain(node));
        }
    }

    /// Whether it was suspected until now.
    fn hear(&self, peer: &mut Peer, now: Instant) -> bool {
        let again = peer.belief != Belief::Alive;
        if peer.belief != Belief::Alive {
            if peer.incarnation.is_some() {
                self.metrics.suspicions_withdrawn.inc();
            }
            peer.belief = Belief::Alive;
            // The silence was no habit.
            peer.heard = now;
        }
        let pause = now.saturating_duration_since(peer.heard);
        peer.worst_pause = peer.worst_pause.mul_f64(1.0 - FORGET).max(pause);
        peer.heard = peer.heard.max(now);
        again
    }

    /// Nothing listens at the node's address any more, and its connections broke.
    pub(crate) fn is_gone(&self, node: NodeId, now: Instant) {
        let news = {
            let mut state = self.state.lock();
            let peer = state.peers.entry(node).or_insert_with(|| Peer::unheard(now));
            let was = std::mem::replace(&mut peer.belief, Belief::Gone);
            if was == Belief::Alive {
                self.metrics.suspicions.inc();
            }
            was != Belief::Gone
        };
        if news {
            self.tell(Event::Suspected(node));
        }
    }

    /// Looks at all of `nodes` and forgets the others. To be called every interval, as punctually as this process can.
    pub(crate) fn look(&self, nodes: &BTreeSet<NodeId>, now: Instant) {
        let suspected = {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            let late = state
                .looked
                .replace(now)
                .map_or(Duration::ZERO, |last| now.saturating_duration_since(last))
                .saturating_sub(self.limits.interval);
            state.peers.retain(|node, _| nodes.contains(node));
            for node in nodes {
                state.peers.entry(*node).or_insert_with(|| Peer::unheard(now));
            }
            let mut suspected = Vec::new();
            let mut heard = 0;
            for (node, peer) in &mut state.peers {
                peer.heard = (peer.heard + late).min(now);
                if peer.belief == Belief::Alive && now - peer.heard > self.limits.patience_with(peer) {
                    peer.belief = Belief::Silent;
                    // Who was never heard may be of a version that says nothing.
                    if peer.incarnation.is_some() {
                        self.metrics.suspicions.inc();
                        suspected.push(*node);
                    }
                }
                heard += i64::from(peer.belief == Belief::Alive && peer.incarnation.is_some());
            }
            self.metrics.nodes_heard.set(heard);
            suspected
        };
        for node in suspected {
            tracing::warn!(%node, "node is silent and suspected to be dead or cut off");
            self.tell(Event::Suspected(node));
        }
    }

    fn tell(&self, event: Event) {
        // There may be no listener.
        let _ = self.events.send(event);
    }

    /// What is believed of a node; a node that is not known yet is believed to live.
    pub(crate) fn belief(&self, node: NodeId) -> Belief {
        let state = self.state.lock();
        state.peers.get(&node).map_or(Belief::Alive, |peer| peer.belief)
    }

    /// Whether a node is heard, for certain.
    pub(crate) fn is_heard(&self, node: NodeId) -> bool {
        let state = self.state.lock();
        let peer = state.peers.get(&node);
        peer.is_some_and(|peer| peer.belief == Belief::Alive && peer.incarnation.is_some())
    }

    /// Whether a node was heard, and is not any more.
    pub(crate) fn is_missed(&self, node: NodeId) -> bool {
        let state = self.state.lock();
        let peer = state.peers.get(&node);
        peer.is_some_and(|peer| peer.belief != Belief::Alive && peer.incarnation.is_some())
    }

    /// The process that was heard last.
    pub(crate) fn incarnation(&self, node: NodeId) -> Option<u64> {
        self.state.lock().peers.get(&node)?.incarnation
    }
}

impl Limits {
    fn patience_with(&self, peer: &Peer) -> Duration {
        if peer.incarnation.is_none() {
            return FIRST_PATIENCE;
        }
        (peer.worst_pause * 2).clamp(self.shortest, self.longest)
    }
}

impl Peer {
    fn unheard(now: Instant) -> Self {
        Self {
            belief: Belief::Alive,
            incarnation: None,
            heard: now,
            worst_pause: Duration::ZERO,
        }
    }
}
