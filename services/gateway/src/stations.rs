//! Managing stations: decided by the control plane, shown from the catalog and the partitions' leaders.

mod show;

use std::sync::Arc;
use std::time::Duration;

use ptah_rpc::clients::{CreateStation, DeleteStation, UpdateStation};
use ptah_types::limits::{MAX_MESSAGE_BYTES, MAX_PARTITIONS};
use ptah_types::{
    Action, ErrorKind, NodeId, Principal, ReplicaCount, StationKind, StationName, Storage, TenantName,
    authorize,
};
use tokio::time::Instant;

use crate::catalog::{Catalog, Station};
use crate::control::{Control, LIMIT};
use crate::error::GatewayError;
use crate::leaders::{Leaders, PartitionState};

/// A recorded change is in this gateway's catalog after this time, unless metadata is down.
const CATALOG_LIMIT: Duration = Duration::from_secs(5);
/// A control plane that does not answer holds up programs that make the stations they have had for long no longer.
const KNOWN_LIMIT: Duration = Duration::from_secs(1);
const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1_000;

/// Manages stations. Cheap to clone.
#[derive(Clone)]
pub struct Stations {
    /// Stations known.
    pub catalog: Catalog,
    /// Decides.
    pub control: Control,
    /// Leaders.
    pub leaders: Leaders,
    /// How long a new station may take until all partitions have leaders.
    pub create_deadline: Duration,
}

/// A station to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewStation {
    /// Name space.
    pub tenant: TenantName,
    /// Name as typed.
    pub name: StationName,
    /// Rules.
    pub kind: StationKind,
    /// Number of partitions.
    pub partitions: u32,
    /// Replicas of every partition.
    pub replicas: u32,
    /// Where messages live.
    pub storage: Storage,
    /// Largest payload in bytes.
    pub max_message_bytes: u64,
}

/// A partition as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionStatus {
    /// Number.
    pub partition: u32,
    /// Leader, if known.
    pub leader: Option<NodeId>,
    /// Nodes that hold a replica.
    pub replicas: Vec<NodeId>,
    /// Sequences, if the leader answered.
    pub state: Option<PartitionState>,
    /// Replicas that are open on a node that is alive; `None` when nobody tells.
    pub healthy: Option<u32>,
    /// Replicas that there should be.
    pub wanted: u32,
    /// What is wrong; empty when nothing is.
    pub trouble: String,
    /// What is being changed about its replicas; empty when nothing is.
    pub change: String,
}

/// A page of stations.
#[derive(Debug, Clone)]
pub struct StationPage {
    /// In order of their names.
    pub stations: Vec<Arc<Station>>,
    /// Where the next page begins; empty at the end.
    pub next_page_token: String,
}

impl NewStation {
    fn check(&self) -> Result<ReplicaCount, GatewayError> {
        if self.partitions == 0 || self.partitions > MAX_PARTITIONS {
            let given = self.partitions;
            return Err(GatewayError::invalid(format!(
                "{given} partitions are not possible; use 1 to {MAX_PARTITIONS}"
            )));
        }
        if self.kind == StationKind::Stream && self.partitions != 1 {
            let given = self.partitions;
            return Err(GatewayError::invalid(format!(
                "a stream has exactly 1 partition, not {given}"
            )));
        }
        if self.max_message_bytes == 0 || self.max_message_bytes > MAX_MESSAGE_BYTES {
            let given = self.max_message_bytes;
            return Err(GatewayError::invalid(format!(
                "a message limit of {given} bytes is not possible; use 1 to {MAX_MESSAGE_BYTES}"
            )));
        }
        ReplicaCount::new(self.replicas).map_err(|error| GatewayError::invalid(error.to_string()))
    }

    fn equals(&self, station: &Station) -> bool {
        let record = &station.record;
        (
            record.kind,
            record.partitions,
            record.replicas.get() as u64,
            record.storage,
            record.max_message_bytes,
        ) == (
            self.kind,
            self.partitions,
            u64::from(self.replicas),
            self.storage,
            self.max_message_bytes,
        )
    }
}

impl Stations {
    /// Makes a station and waits until it takes messages. True when it was made by this call.
    pub async fn create(
        &self,
        principal: &Principal,
        wanted: NewStation,
    ) -> Result<(Arc<Station>, bool), GatewayError> {
        authorize(principal, Action::CreateStation, Some(&wanted.name))?;
        let replicas = wanted.check()?;
        let request = CreateStation {
            principal: principal.user.clone(),
            tenant: wanted.tenant.clone(),
            name: wanted.name.clone(),
            kind: wanted.kind,
            partitions: wanted.partitions,
            replicas,
            storage: wanted.storage,
            max_message_bytes: wanted.max_message_bytes,
        };
        let begin = Instant::now();
        let made = match self
            .control
            .create_station(&request, self.patience(&wanted))
            .await
        {
            Ok(made) => made,
            // Programs make their stations at every start; what exists is found without the control plane.
            Err(error) if error.kind.is_retryable() => {
                let what = format!("station `{}` is not made", wanted.name);
                return self.existing(&wanted, self.control.explain(&what, error));
            }
            Err(error) => return Err(error.into()),
        };
        let in_time = self.catalog.wait_for_revision(made.revision, CATALOG_LIMIT).await;
        if !in_time && !self.catalog.with(|view| view.has_station(made.id)) {
            return Err(self.not_ready(&wanted, "this gateway has not heard of it yet"));
        }
        let station = self.catalog.station(&wanted.tenant, &wanted.name).ok();
        let station = station
            .filter(|station| station.record.id == made.id)
            .ok_or_else(|| deleted_meanwhile(&wanted.name))?;
        let left = self.create_deadline.saturating_sub(begin.elapsed());
        let gone = self
            .catalog
            .wait_for(left, |view| (!view.has_station(made.id)).then_some(()));
        tokio::select! {
            biased;
            Some(()) = gone => Err(deleted_meanwhile(&wanted.name)),
            led = self.wait_for_leaders(&station, left) => led.map(|()| (station, made.created)),
        }
    }

    /// How long to wait for the control plane: not long for a station that is known to be there.
    fn patience(&self, wanted: &NewStation) -> Duration {
        match self.catalog.station(&wanted.tenant, &wanted.name) {
            Ok(known) if wanted.equals(&known) => KNOWN_LIMIT,
            _ => LIMIT,
        }
    }

    fn existing(
        &self,
        wanted: &NewStation,
        error: GatewayError,
    ) -> Result<(Arc<Station>, bool), GatewayError> {
        let Ok(station) = self.catalog.station(&wanted.tenant, &wanted.name) else {
            return Err(error);
        };
        if wanted.equals(&station) {
            return Ok((station, false));
        }
        Err(GatewayError::Remote {
            kind: ErrorKind::AlreadyExists,
            message: format!("station `{}` exists with other settings", wanted.name).into(),
            retry_after: None,
        })
    }

    fn not_ready(&self, wanted: &NewStation, why: &str) -> GatewayError {
        let message = format!(
            "station `{}` is made but does not take messages yet: {why}; retry",
            wanted.name
        );
        GatewayError::OutcomeUnknown(message.into())
    }

    async fn wait_for_leaders(&self, station: &Station, limit: Duration) -> Result<(), GatewayError> {
        let deadline = Instant::now() + limit;
        let name = station.record.name.display();
        let mut without_leader = Vec::new();
        for partition in station.all_partitions() {
            let id = station.record.id;
            let left = deadline.saturating_duration_since(Instant::now());
            let placed = self
                .catalog
                .wait_for(left, |view| view.raft_group(id, partition))
                .await;
            let left = deadline.saturating_duration_since(Instant::now());
            let led = match placed {
                Some(group) => self
                    .leaders
                    .routing
                    .wait_for_leader(group, true, left)
                    .await
                    .is_some(),
                None => false,
            };
            if !led {
                without_leader.push(partition.to_string());
            }
        }
        if without_leader.is_empty() {
            return Ok(());
        }
        let which = without_leader.join(", ");
        let message = format!(
            "station `{name}` is made, but partitions without a leader after {} ms: {which}; retry",
            limit.as_millis()
        );
        Err(GatewayError::OutcomeUnknown(message.into()))
    }

    /// Changes settings of a station; its replicas follow in the background.
    pub async fn update(
        &self,
        principal: &Principal,
        tenant: &TenantName,
        name: &StationName,
        replicas: Option<u32>,
    ) -> Result<Arc<Station>, GatewayError> {
        authorize(principal, Action::UpdateStation, Some(name))?;
        let replicas = replicas.map(ReplicaCount::new).transpose();
        let request = UpdateStation {
            principal: principal.user.clone(),
            tenant: tenant.clone(),
            name: name.clone(),
            replicas: replicas.map_err(|error| GatewayError::invalid(error.to_string()))?,
        };
        let updated = self.control.update_station(&request).await;
        let updated = updated.map_err(|error| {
            self.control
                .explain(&format!("station `{name}` is not changed"), error)
        })?;
        if !self
            .catalog
            .wait_for_revision(updated.revision, CATALOG_LIMIT)
            .await
        {
            let message =
                format!("station `{name}` is changed, but this gateway has not heard of it yet; look again");
            return Err(GatewayError::OutcomeUnknown(message.into()));
        }
        let station = self.catalog.station(tenant, name).ok();
        station
            .filter(|station| station.record.id == updated.id)
            .ok_or_else(|| deleted_meanwhile(name))
    }

    /// Deletes a station.
    pub async fn delete(
        &self,
        principal: &Principal,
        tenant: &TenantName,
        name: &StationName,
    ) -> Result<(), GatewayError> {
        authorize(principal, Action::DeleteStation, Some(name))?;
        // Which station is meant is found out once, so that a second try after a lost answer cannot hit another one.
        let known = self.catalog.station_soon(tenant, name).await.ok();
        let request = DeleteStation {
            principal: principal.user.clone(),
            tenant: tenant.clone(),
            name: name.clone(),
            id: known.map(|station| station.record.id),
        };
        let deleted = self.control.delete_station(&request).await;
        let revision = deleted.map_err(|error| {
            self.control
                .explain(&format!("station `{name}` is not deleted"), error)
        })?;
        // It is deleted; that this gateway's copy is late does not matter to the caller.
        let _in_time = self.catalog.wait_for_revision(revision, CATALOG_LIMIT).await;
        Ok(())
    }

    /// A page of stations in order of their names. The token is the last name of the page before.
    pub fn list(
        &self,
        principal: &Principal,
        tenant: &TenantName,
        page_size: u32,
        page_token: &str,
    ) -> Result<StationPage, GatewayError> {
        authorize(principal, Action::Describe, None)?;
        if !page_token.is_empty() && page_token.parse::<StationName>().is_err() {
            return Err(GatewayError::invalid(
                "the page token is not one of an answer before; begin without a token",
            ));
        }
        let size = match page_size as usize {
            0 => DEFAULT_PAGE,
            size => size.min(MAX_PAGE),
        };
        let mut stations: Vec<_> = self.catalog.with(|view| {
            view.stations_after(tenant, page_token)
                .take(size + 1)
                .cloned()
                .collect()
        });
        let more = stations.len() > size;
        stations.truncate(size);
        let last = stations.last().filter(|_| more);
        Ok(StationPage {
            next_page_token: last
                .map(|station| station.record.name.key(station.record.kind).to_owned())
                .unwrap_or_default(),
            stations,
        })
    }
}

fn deleted_meanwhile(name: &StationName) -> GatewayError {
    GatewayError::Conflict(
        format!("station `{name}` was deleted meanwhile; make it again if it is wanted").into(),
    )
}
