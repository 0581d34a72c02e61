//! Calls to the control plane, over whichever of its processes answers.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ptah_rpc::clients::{
    CreateStation, DeleteStation, EnsureConsumerGroup, NodesDescribed, SetNodeDuty, StationCreated,
    StationUpdated, UpdateStation,
};
use ptah_rpc::records::ConsumerGroupConfig;
use ptah_rpc::{Channels, ManagementClient, RetryPolicy, RpcError, retry};
use ptah_service::Random;
use ptah_types::{ConsumerGroupId, ErrorKind, Principal, UserName};

use crate::catalog::Catalog;
use crate::consume::GroupRequest;
use crate::error::GatewayError;

/// A call is given up after this time, over all tries.
pub const LIMIT: Duration = Duration::from_secs(10);
/// Who only wants to look does not wait long for what the gateway can tell without the control plane.
const SHOW_LIMIT: Duration = Duration::from_secs(2);
/// One process that says nothing is given up after this time.
const TRY_LIMIT: Duration = Duration::from_secs(3);

/// Whether a call may be made again when the answer to the first one was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeat {
    /// It names what it wants, so that twice is the same as once.
    Harmless,
    /// Only when it is known that nothing happened.
    OnlyIfNothingHappened,
}

/// Cheap handle on the control plane.
#[derive(Clone)]
pub struct Control {
    inner: Arc<Inner>,
}

struct Inner {
    channels: Channels,
    addresses: Vec<String>,
    metadata_addresses: Vec<String>,
    /// Address that answered last.
    preferred: AtomicUsize,
    random: Arc<dyn Random>,
    catalog: Catalog,
}

impl Control {
    /// A control plane behind these addresses, which records what it decides at `metadata_addresses`.
    pub fn new(
        channels: Channels,
        addresses: Vec<String>,
        metadata_addresses: Vec<String>,
        random: Arc<dyn Random>,
        catalog: Catalog,
    ) -> Self {
        let inner = Inner {
            channels,
            addresses,
            metadata_addresses,
            preferred: AtomicUsize::new(0),
            random,
            catalog,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Makes a station, or finds it. Tries for at most `limit`.
    pub async fn create_station(
        &self,
        station: &CreateStation,
        limit: Duration,
    ) -> Result<StationCreated, RpcError> {
        self.call(limit, Repeat::Harmless, |client| async move {
            client.create_station(station).await
        })
        .await
    }

    /// Deletes a station; the answer is the revision at which that is recorded, or a later one.
    pub async fn delete_station(&self, station: &DeleteStation) -> Result<u64, RpcError> {
        // Without an id a second try could hit what was made under the name since.
        let repeat = match station.id {
            Some(_) => Repeat::Harmless,
            None => Repeat::OnlyIfNothingHappened,
        };
        self.call(LIMIT, repeat, |client| async move {
            client.delete_station(station).await
        })
        .await
    }

    /// Changes settings of a station.
    pub async fn update_station(&self, update: &UpdateStation) -> Result<StationUpdated, RpcError> {
        self.call(LIMIT, Repeat::Harmless, |client| async move {
            client.update_station(update).await
        })
        .await
    }

    /// Changes what a node is there for; the answer is a revision at which it is so.
    pub async fn set_node_duty(&self, change: &SetNodeDuty) -> Result<u64, RpcError> {
        self.call(LIMIT, Repeat::Harmless, |client| async move {
            client.set_node_duty(change).await
        })
        .await
    }

    /// What the control plane knows of the nodes.
    pub async fn describe_nodes(&self, principal: &UserName) -> Result<NodesDescribed, RpcError> {
        self.call(SHOW_LIMIT, Repeat::Harmless, |client| async move {
            client.describe_nodes(principal).await
        })
        .await
    }

    /// The failure of a call as its caller reads it: what is not done, who does not answer, and what to do. Refusals of
    /// the control plane name the thing themselves.
    pub fn explain(&self, what: &str, error: RpcError) -> GatewayError {
        let consequence = match error.kind {
            ErrorKind::Unavailable | ErrorKind::Exhausted | ErrorKind::NotLeader => {
                "nothing happened, existing stations go on; try again"
            }
            ErrorKind::OutcomeUnknown | ErrorKind::DeadlineExceeded => {
                "it may have happened all the same; look, or try again"
            }
            _ => return error.into(),
        };
        let why = self.why_not(&error);
        let message = format!("{what}: {why}; {consequence}");
        GatewayError::from(RpcError { message, ..error })
    }

    /// Who does not answer.
    pub fn why_not(&self, error: &RpcError) -> String {
        if error.kind == ErrorKind::Exhausted {
            return error.message.clone();
        }
        if let Some(outage) = self.metadata_outage() {
            return outage;
        }
        self.who_should_decide(error)
    }

    /// Which control planes were asked, and what was heard of the last one.
    pub fn who_should_decide(&self, error: &RpcError) -> String {
        let addresses: Vec<_> = self
            .inner
            .addresses
            .iter()
            .map(|address| format!("`{address}`"))
            .collect();
        format!("no control plane at {} decides ({error})", addresses.join(", "))
    }

    /// That the metadata service does not answer, if it does not.
    pub fn metadata_outage(&self) -> Option<String> {
        let why = self.inner.catalog.outage()?;
        let addresses = self.inner.metadata_addresses.join(", ");
        Some(format!(
            "the metadata service at `{addresses}` does not answer ({why})"
        ))
    }

    /// Makes a consumer group, or finds it. It is in the catalog afterwards.
    pub async fn ensure_consumer_group(
        &self,
        principal: &Principal,
        request: &GroupRequest,
    ) -> Result<(ConsumerGroupId, ConsumerGroupConfig), GatewayError> {
        let wanted = EnsureConsumerGroup {
            principal: principal.user.clone(),
            tenant: request.tenant.clone(),
            station: request.station.clone(),
            group: request.group.clone(),
            config: request.config,
        };
        let wanted = &wanted;
        let ensured = self
            .call(LIMIT, Repeat::Harmless, |client| async move {
                client.ensure_consumer_group(wanted).await
            })
            .await
            .map_err(|error| {
                let (group, station) = (&wanted.group, &wanted.station);
                self.explain(
                    &format!("consumer group `{group}` of station `{station}` is not made"),
                    error,
                )
            })?;
        // The group is recorded; that this gateway's copy is late does not matter to the caller.
        let _in_time = self
            .inner
            .catalog
            .wait_for_revision(ensured.revision, TRY_LIMIT)
            .await;
        Ok((ensured.id, ensured.config))
    }

    /// Tries the processes in turn.
    async fn call<T, F>(
        &self,
        limit: Duration,
        repeat: Repeat,
        call: impl Fn(ManagementClient) -> F,
    ) -> Result<T, RpcError>
    where
        F: Future<Output = Result<T, RpcError>>,
    {
        let inner = &self.inner;
        let policy = RetryPolicy {
            attempts: 4 + 2 * u32::try_from(inner.addresses.len()).unwrap_or(8),
            deadline: limit,
            idempotent: repeat == Repeat::Harmless,
            ..RetryPolicy::default()
        };
        retry(&policy, &*inner.random, |attempt| {
            let place = inner.preferred.load(Ordering::Relaxed) % inner.addresses.len().max(1);
            let call = &call;
            async move {
                let none = || RpcError::new(ErrorKind::Unavailable, "no control plane is configured");
                let address = inner.addresses.get(place).ok_or_else(none)?;
                let client = ManagementClient::new(inner.channels.to(address)?);
                let result = call(client.with_deadline(TRY_LIMIT.min(attempt.remaining))).await;
                if result.as_ref().is_err_and(|error| error.kind.is_retryable()) {
                    inner.preferred.store(place + 1, Ordering::Relaxed);
                }
                result
            }
        })
        .await
        .map_err(unknown_if_late)
    }
}

/// A call that was cut off may have been carried out.
fn unknown_if_late(error: RpcError) -> RpcError {
    match error.kind {
        ErrorKind::DeadlineExceeded => RpcError {
            kind: ErrorKind::OutcomeUnknown,
            ..error
        },
        _ => error,
    }
}
