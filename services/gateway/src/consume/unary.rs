//! Single calls: acknowledge and read.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use ptah_partition::SequenceRange;
use ptah_types::{
    Action, ConsumerGroupId, ErrorKind, PartitionNumber, Principal, StationName, TenantName, authorize,
};

use super::acks::sequences;
use super::budget::Reservation;
use super::group::partition_of;
use super::{CONCURRENT_PARTITIONS, Consumer, GroupOnPartition, GroupRequest, StoredMessages};
use crate::error::GatewayError;
use crate::leaders::ReadRange;

/// A group that was made through another gateway is known here after this time.
const GROUP_LIMIT: Duration = Duration::from_secs(2);

/// What was read, with the memory that it takes.
#[derive(Debug)]
pub struct ReadAnswer {
    /// Partition.
    pub partition: PartitionNumber,
    /// Messages.
    pub stored: StoredMessages,
    /// To be held until the answer has left.
    pub memory: Arc<Reservation>,
}

impl Consumer {
    /// Acknowledges; answers when all partitions have it on a majority.
    pub async fn ack(
        &self,
        principal: &Principal,
        request: &GroupRequest,
        acks: Vec<(u32, Vec<SequenceRange>)>,
    ) -> Result<(), GatewayError> {
        authorize(principal, Action::Consume, Some(&request.station))?;
        let station = self
            .shared
            .catalog
            .station_soon(&request.tenant, &request.station)
            .await?;
        let (id, name) = (station.record.id, &request.group);
        let find = |view: &crate::catalog::CatalogView| view.group(id, name).cloned();
        let known = self.shared.catalog.wait_for(GROUP_LIMIT, find).await;
        let id = match known {
            Some(group) => group.id,
            None => {
                return Err(GatewayError::Remote {
                    kind: ErrorKind::NotFound,
                    message: format!(
                        "consumer group `{}` not found on station `{}`; read with it first",
                        request.group, request.station
                    )
                    .into(),
                    retry_after: None,
                });
            }
        };
        let mut calls = Vec::new();
        for (number, ranges) in acks {
            let partition = partition_of(&station, number)?;
            calls.push(self.ack_partition(self.on_partition(&station, partition, id)?, ranges, request));
        }
        futures_util::stream::iter(calls)
            .buffer_unordered(CONCURRENT_PARTITIONS)
            .try_collect()
            .await
    }

    async fn ack_partition(
        &self,
        group: GroupOnPartition,
        ranges: Vec<SequenceRange>,
        request: &GroupRequest,
    ) -> Result<(), GatewayError> {
        let what = format!(
            "acknowledge on partition {} of station `{}`",
            group.partition.partition, request.station
        );
        self.shared.metrics.acks.inc_by(sequences(&ranges));
        let call = |address: String| {
            let (calls, group, ranges) = (Arc::clone(&self.leaders.calls), group.clone(), ranges.clone());
            Box::pin(async move { calls.ack(address, group, ranges).await }) as _
        };
        self.leaders
            .at_leader(group.raft_group, self.shared.settings.ack_deadline, &what, call)
            .await
    }

    /// Reads stored messages by sequence.
    pub async fn read(
        &self,
        principal: &Principal,
        tenant: &TenantName,
        name: &StationName,
        number: u32,
        from_sequence: u64,
        max_messages: u32,
    ) -> Result<ReadAnswer, GatewayError> {
        authorize(principal, Action::Consume, Some(name))?;
        let station = self.shared.catalog.station_soon(tenant, name).await?;
        let partition = partition_of(&station, number)?;
        let group = self
            .on_partition(&station, partition, ConsumerGroupId::new(1).expect("1 is not 0"))?
            .raft_group;
        let range = ReadRange {
            partition: station.partition_key(partition),
            group,
            from_sequence,
            max_messages,
            max_bytes: self.shared.settings.answer_bytes,
        };
        let largest = (self.shared.settings.answer_bytes).max(station.record.max_message_bytes);
        let memory = self
            .shared
            .budget
            .reserve(usize::try_from(largest).unwrap_or(usize::MAX))
            .await;
        let what = format!("read partition {partition} of station `{name}`");
        let call = |address: String| {
            let (calls, range) = (Arc::clone(&self.leaders.calls), range.clone());
            Box::pin(async move { calls.read(address, range).await }) as _
        };
        let stored = self
            .leaders
            .at_leader(group, self.shared.settings.ack_deadline, &what, call)
            .await?;
        Ok(ReadAnswer {
            partition,
            stored,
            memory: Arc::new(memory),
        })
    }
}
