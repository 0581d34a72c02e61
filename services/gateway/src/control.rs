//! Calls to the control plane, over whichever of its processes answers.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ptah_rpc::clients::{CreateStation, EnsureConsumerGroup, NodeDescription, StationCreated};
use ptah_rpc::records::ConsumerGroupConfig;
use ptah_rpc::{Channels, ManagementClient, RetryPolicy, RpcError, retry};
use ptah_service::Random;
use ptah_types::{ConsumerGroupId, ErrorKind, Principal, StationName, TenantName, UserName};

use crate::catalog::Catalog;
use crate::consume::GroupRequest;
use crate::error::GatewayError;

/// A call is given up after this time, over all tries.
pub const LIMIT: Duration = Duration::from_secs(10);
/// Who only wants to look does not wait long for what the gateway can tell without the control plane.
const SHOW_LIMIT: Duration = Duration::from_secs(2);
/// One process that says nothing is given up after this time.
const TRY_LIMIT: Duration = Duration::from_secs(3);

/// Cheap handle on the control plane.
#[derive(Clone)]
pub struct Control {
    inner: Arc<Inner>,
}

struct Inner {
    channels: Channels,
    addresses: Vec<String>,
    /// Address that answered last.
    preferred: AtomicUsize,
    random: Arc<dyn Random>,
    catalog: Catalog,
}

impl Control {
    /// A control plane behind these addresses.
    pub fn new(
        channels: Channels,
        addresses: Vec<String>,
        random: Arc<dyn Random>,
        catalog: Catalog,
    ) -> Self {
        let inner = Inner {
            channels,
            addresses,
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
        self.call(
            limit,
            |client| async move { client.create_station(station).await },
        )
        .await
    }

    /// Deletes a station; the answer is the revision at which that is recorded.
    pub async fn delete_station(
        &self,
        principal: &UserName,
        tenant: &TenantName,
        name: &StationName,
    ) -> Result<u64, RpcError> {
        self.call(LIMIT, |client| async move {
            client.delete_station(principal, tenant, name).await
        })
        .await
    }

    /// What the control plane knows of the nodes.
    pub async fn describe_nodes(&self, principal: &UserName) -> Result<Vec<NodeDescription>, RpcError> {
        self.call(SHOW_LIMIT, |client| async move {
            client.describe_nodes(principal).await
        })
        .await
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
            .call(LIMIT, |client| async move {
                client.ensure_consumer_group(wanted).await
            })
            .await?;
        // The group is recorded; that this gateway's copy is late does not matter to the caller.
        let _in_time = self
            .inner
            .catalog
            .wait_for_revision(ensured.revision, TRY_LIMIT)
            .await;
        Ok((ensured.id, ensured.config))
    }

    /// Tries the processes in turn. Management calls name what they want, so doing one twice is the same as once.
    async fn call<T, F>(&self, limit: Duration, call: impl Fn(ManagementClient) -> F) -> Result<T, RpcError>
    where
        F: Future<Output = Result<T, RpcError>>,
    {
        let inner = &self.inner;
        let policy = RetryPolicy {
            attempts: 4 + 2 * u32::try_from(inner.addresses.len()).unwrap_or(8),
            deadline: limit,
            idempotent: true,
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
