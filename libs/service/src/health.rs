//! Health: what of a process is ready, and what it wants to tell about itself.
//!
//! Parts of a service hold a [`Component`] each and say when they are ready and why not. The process is ready when
//! every component is and no stop was announced. Reporting is cheap and may be done from anywhere.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use ptah_types::{DISK_FORMAT, WIRE_PROTOCOL};
use serde_json::{Value, json};
use tokio::sync::watch;

/// Health of a process. Clones and scopes tell about the same process.
#[derive(Clone)]
pub struct Health {
    inner: Arc<Inner>,
    scope: Option<Arc<str>>,
}

struct Inner {
    service: &'static str,
    state: watch::Sender<State>,
    providers: Mutex<BTreeMap<String, Arc<Provider>>>,
}

type Provider = dyn Fn() -> Value + Send + Sync;

#[derive(Default)]
struct State {
    /// Why a component is not ready; `None` when it is. By name and number, so that names may repeat.
    components: BTreeMap<(String, u64), Option<String>>,
    addresses: BTreeMap<String, String>,
    next_id: u64,
    stopping: bool,
}

/// A part that is ready or not. Dropping it takes it off the list.
#[derive(Debug)]
pub struct Component {
    health: Health,
    key: (String, u64),
}

/// A component that is not ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReady {
    /// Its name.
    pub component: String,
    /// Why.
    pub reason: String,
}

impl Health {
    /// Health of a process that runs `service`.
    pub fn new(service: &'static str) -> Self {
        let inner = Inner {
            service,
            state: watch::Sender::new(State::default()),
            providers: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
            scope: None,
        }
    }

    /// The same health; names told through the result start with `name` and `/`.
    #[must_use]
    pub fn scope(&self, name: &str) -> Self {
        Self {
            scope: Some(self.scoped(name).into()),
            inner: Arc::clone(&self.inner),
        }
    }

    fn scoped(&self, name: &str) -> String {
        match &self.scope {
            Some(scope) => format!("{scope}/{name}"),
            None => name.to_owned(),
        }
    }

    /// A new component, not ready because it is starting.
    pub fn component(&self, name: &str) -> Component {
        let name = self.scoped(name);
        let mut id = 0;
        self.inner.state.send_modify(|state| {
            id = state.next_id;
            state.next_id += 1;
            let starting = Some("starting".to_owned());
            state.components.insert((name.clone(), id), starting);
        });
        Component {
            health: self.clone(),
            key: (name, id),
        }
    }

    /// Adds a part to `/status`; `tell` is called for every request and must be quick.
    pub fn provide(&self, name: &str, tell: impl Fn() -> Value + Send + Sync + 'static) {
        self.inner
            .providers
            .lock()
            .insert(self.scoped(name), Arc::new(tell));
    }

    /// Tells an address that was bound.
    pub fn set_address(&self, name: &str, address: impl ToString) {
        let name = self.scoped(name);
        self.inner.state.send_modify(|state| {
            state.addresses.insert(name, address.to_string());
        });
    }

    /// Addresses that were bound, by name.
    pub fn addresses(&self) -> BTreeMap<String, String> {
        self.inner.state.borrow().addresses.clone()
    }

    /// Whether everything is ready.
    pub fn is_ready(&self) -> bool {
        self.inner.state.borrow().is_ready()
    }

    /// What is not ready, in order of names.
    pub fn not_ready(&self) -> Vec<NotReady> {
        self.inner.state.borrow().not_ready()
    }

    /// Waits until everything is ready.
    pub async fn until_ready(&self) {
        self.until(true).await;
    }

    /// Waits until readiness is `wanted`.
    pub async fn until(&self, wanted: bool) {
        let mut state = self.inner.state.subscribe();
        // The sender lives as long as `self`: the wait cannot fail.
        let _ = state.wait_for(|state| state.is_ready() == wanted).await;
    }

    /// From here on the process is not ready, whatever its components say.
    pub fn set_stopping(&self) {
        self.inner.state.send_modify(|state| state.stopping = true);
    }

    /// The process as JSON, for `/status`.
    pub fn status(&self) -> Value {
        let providers: Vec<_> = {
            let providers = self.inner.providers.lock();
            providers
                .iter()
                .map(|(name, tell)| (name.clone(), Arc::clone(tell)))
                .collect()
        };
        // Outside the locks: a provider may look at this health.
        let details: serde_json::Map<String, Value> =
            providers.into_iter().map(|(name, tell)| (name, tell())).collect();
        let state = self.inner.state.borrow();
        json!({
            "service": self.inner.service,
            "version": env!("CARGO_PKG_VERSION"),
            "wire_protocol": {"min": WIRE_PROTOCOL.min, "max": WIRE_PROTOCOL.max},
            "disk_format": {"min": DISK_FORMAT.min, "max": DISK_FORMAT.max},
            "ready": state.is_ready(),
            "stopping": state.stopping,
            "addresses": state.addresses,
            "components": state.components_json(),
            "details": details,
        })
    }
}

impl State {
    fn is_ready(&self) -> bool {
        !self.stopping && self.components.values().all(Option::is_none)
    }

    fn not_ready(&self) -> Vec<NotReady> {
        let stopping = self.stopping.then(|| NotReady {
            component: "process".to_owned(),
            reason: "stopping".to_owned(),
        });
        let waiting = self.components.iter().filter_map(|((name, _), reason)| {
            let reason = reason.clone()?;
            Some(NotReady {
                component: name.clone(),
                reason,
            })
        });
        stopping.into_iter().chain(waiting).collect()
    }

    fn components_json(&self) -> Vec<Value> {
        let tell = |((name, _), reason): (&(String, u64), &Option<String>)| match reason {
            None => json!({"name": name, "ready": true}),
            Some(reason) => json!({"name": name, "ready": false, "reason": reason}),
        };
        self.components.iter().map(tell).collect()
    }
}

impl Component {
    /// The component works.
    pub fn ready(&self) {
        self.set(None);
    }

    /// The component does not work; `reason` says why, for an operator.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()));
    }

    fn set(&self, reason: Option<String>) {
        let mut was = None;
        let mut stopping = false;
        self.health.inner.state.send_if_modified(|state| {
            stopping = state.stopping;
            let slot = state.components.entry(self.key.clone()).or_default();
            let changed = *slot != reason;
            if changed {
                was = Some(std::mem::replace(slot, reason.clone()));
            }
            changed
        });
        match (was, reason) {
            (Some(_), None) => tracing::info!(component = %self.key.0, "component is ready"),
            // A component that starts or stops is expected not to be ready.
            (Some(None), Some(reason)) if !stopping => {
                tracing::warn!(component = %self.key.0, %reason, "component is not ready");
            }
            _ => {}
        }
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        self.health.inner.state.send_modify(|state| {
            state.components.remove(&self.key);
        });
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health")
            .field("service", &self.inner.service)
            .field("not_ready", &self.not_ready())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ready_when_all_its_components_are() {
        let health = Health::new("gateway");
        let (routing, grpc) = (health.component("routing"), health.component("grpc"));
        assert!(!health.is_ready());
        routing.ready();
        grpc.not_ready("no leader table yet");
        let expected = NotReady {
            component: "grpc".to_owned(),
            reason: "no leader table yet".to_owned(),
        };
        assert_eq!(health.not_ready(), [expected]);
        grpc.ready();
        assert!(health.is_ready());
    }

    #[test]
    fn two_components_of_one_name_do_not_hide_each_other() {
        let health = Health::new("gateway");
        let (first, _second) = (health.component("node"), health.component("node"));
        first.ready();
        assert!(!health.is_ready());
    }

    #[test]
    fn a_dropped_component_does_not_hold_the_process_back() {
        let health = Health::new("gateway");
        drop(health.component("routing"));
        assert!(health.is_ready());
    }

    #[test]
    fn a_stopping_process_is_not_ready_and_says_so() {
        let health = Health::new("gateway");
        health.set_stopping();
        assert!(!health.is_ready());
        assert_eq!(health.not_ready()[0].reason, "stopping");
    }

    #[test]
    fn the_status_tells_versions_addresses_components_and_details() {
        let health = Health::new("storage-node");
        let node = health.scope("node-1");
        node.component("store").ready();
        let _store = node.component("store");
        node.set_address("grpc", "127.0.0.1:6222");
        node.provide("groups", || json!(3));
        let status = health.status();
        assert_eq!(status["service"], "storage-node");
        assert_eq!(status["wire_protocol"]["max"], WIRE_PROTOCOL.max);
        assert_eq!(status["disk_format"]["max"], DISK_FORMAT.max);
        assert_eq!(status["addresses"]["node-1/grpc"], "127.0.0.1:6222");
        assert_eq!(
            status["components"][0],
            json!({"name": "node-1/store", "ready": false, "reason": "starting"})
        );
        assert_eq!(status["details"]["node-1/groups"], 3);
    }

    #[tokio::test]
    async fn waiting_for_readiness_ends_when_the_last_component_is_ready() {
        let health = Health::new("gateway");
        let routing = health.component("routing");
        let (_, ()) = tokio::join!(health.until_ready(), async { routing.ready() });
        assert!(health.is_ready());
    }
}
