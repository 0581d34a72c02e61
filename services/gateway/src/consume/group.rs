//! Consumer groups: found or made, and put on every partition before the first message is read.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use ptah_rpc::records::ConsumerGroupConfig;
use ptah_types::{Action, ConsumerGroupId, PartitionNumber, Principal, authorize};

use super::{CONCURRENT_PARTITIONS, Consumer, GroupOnPartition, GroupRequest, ReadyGroup};
use crate::catalog::Station;
use crate::error::GatewayError;

/// Consumer groups that are remembered as being on all their partitions; more are asked for again.
const MAX_ENSURED: usize = 16_384;

impl Consumer {
    /// Makes sure that the group exists and is on every partition of its station, and says where it is.
    pub async fn ready(
        &self,
        principal: &Principal,
        request: &GroupRequest,
    ) -> Result<ReadyGroup, GatewayError> {
        authorize(principal, Action::Consume, Some(&request.station))?;
        let station = self
            .shared
            .catalog
            .station_soon(&request.tenant, &request.station)
            .await?;
        let wanted = wanted_partitions(&station, &request.partitions)?;
        let known = self
            .shared
            .catalog
            .with(|view| view.group(station.record.id, &request.group).cloned());
        let (id, config) = match known {
            Some(group) => (group.id, group.config),
            None => self.control.ensure_consumer_group(principal, request).await?,
        };
        let all = station
            .all_partitions()
            .map(|partition| self.on_partition(&station, partition, id));
        let all = all.collect::<Result<Vec<_>, _>>()?;
        self.ensure_on(&all, request, config).await?;
        let partitions = all
            .into_iter()
            .filter(|group| wanted.contains(&group.partition.partition))
            .collect();
        Ok(ReadyGroup {
            station,
            config,
            partitions,
        })
    }

    pub(super) fn on_partition(
        &self,
        station: &Station,
        partition: PartitionNumber,
        consumer_group: ConsumerGroupId,
    ) -> Result<GroupOnPartition, GatewayError> {
        let raft_group = self
            .shared
            .catalog
            .with(|view| view.raft_group(station.record.id, partition));
        let raft_group = raft_group.ok_or_else(|| GatewayError::NotPlaced {
            station: station.record.name.display().to_owned(),
            partition: partition.get(),
        })?;
        Ok(GroupOnPartition {
            partition: station.partition_key(partition),
            raft_group,
            consumer_group,
        })
    }

    /// Puts the group on the partitions where this gateway has not seen it yet. All must have it before the first message
    /// is read, or a group that starts at the end would start at different moments.
    async fn ensure_on(
        &self,
        partitions: &[GroupOnPartition],
        request: &GroupRequest,
        config: ConsumerGroupConfig,
    ) -> Result<(), GatewayError> {
        let missing: Vec<_> = {
            let ensured = self.ensured.lock();
            let is_missing =
                |group: &&GroupOnPartition| !ensured.contains(&(group.consumer_group, group.raft_group));
            partitions.iter().filter(is_missing).cloned().collect()
        };
        let calls = missing.into_iter().map(|group| async move {
            let what = format!(
                "make consumer group `{}` on partition {} of station `{}`",
                request.group, group.partition.partition, request.station
            );
            let calls = &self.leaders.calls;
            let call = |address: String| {
                let (calls, group, name) = (Arc::clone(calls), group.clone(), request.group.clone());
                Box::pin(async move { calls.ensure_group(address, group, name, config).await }) as _
            };
            let () = self
                .leaders
                .at_leader(group.raft_group, self.shared.settings.ack_deadline, &what, call)
                .await?;
            let mut ensured = self.ensured.lock();
            if ensured.len() >= MAX_ENSURED {
                ensured.clear();
            }
            ensured.insert((group.consumer_group, group.raft_group));
            Ok::<_, GatewayError>(())
        });
        futures_util::stream::iter(calls)
            .buffer_unordered(CONCURRENT_PARTITIONS)
            .try_collect()
            .await
    }
}

pub(super) fn partition_of(station: &Station, number: u32) -> Result<PartitionNumber, GatewayError> {
    station
        .partition(number)
        .ok_or_else(|| GatewayError::PartitionNotFound {
            station: station.record.name.display().to_owned(),
            partition: number,
            partitions: station.partitions.get(),
        })
}

fn wanted_partitions(station: &Station, numbers: &[u32]) -> Result<BTreeSet<PartitionNumber>, GatewayError> {
    if numbers.is_empty() {
        return Ok(station.all_partitions().collect());
    }
    numbers
        .iter()
        .map(|number| partition_of(station, *number))
        .collect()
}
