//! Between generated and domain types.

use ptah_partition::SequenceRange;
use ptah_proto::common::v1 as common;
use ptah_proto::storage::v1 as pb;
use ptah_rpc::RpcError;
use ptah_types::{
    ConsumerGroupId, ErrorKind, InvalidId, PartitionKey, PartitionNumber, RaftGroupId, Sequence, StationId,
};
use tonic::Status;

use crate::error::PartitionError;

/// A consumer group on a partition.
pub(super) struct GroupOnPartition {
    pub(super) key: PartitionKey,
    pub(super) group: RaftGroupId,
    pub(super) consumer_group: ConsumerGroupId,
}

/// A request that is wrong.
pub(super) fn invalid(why: impl std::fmt::Display) -> Status {
    RpcError::new(ErrorKind::InvalidArgument, why.to_string()).into()
}

pub(super) fn id<T: TryFrom<u64, Error = InvalidId>>(value: u64) -> Result<T, Status> {
    T::try_from(value).map_err(invalid)
}

pub(super) fn partition_key(key: Option<common::PartitionKey>) -> Result<PartitionKey, Status> {
    let key = key.ok_or_else(|| invalid("partition is missing"))?;
    Ok(PartitionKey {
        tenant: key.tenant.parse().map_err(invalid)?,
        station: StationId::new(key.station_id).map_err(invalid)?,
        partition: PartitionNumber::new(key.partition).map_err(invalid)?,
    })
}

pub(super) fn group_ref(group: Option<pb::ConsumerGroupRef>) -> Result<GroupOnPartition, Status> {
    let group = group.ok_or_else(|| invalid("group is missing"))?;
    Ok(GroupOnPartition {
        key: partition_key(group.partition)?,
        group: id(group.group_id)?,
        consumer_group: id(group.consumer_group_id)?,
    })
}

pub(super) fn ranges(ranges: &[pb::SequenceRange]) -> Result<Vec<SequenceRange>, Status> {
    let range = |range: &pb::SequenceRange| {
        let ends = Sequence::new(range.first).zip(Sequence::new(range.last));
        ends.and_then(|(first, last)| SequenceRange::new(first, last))
            .ok_or_else(|| {
                invalid(format!(
                    "{}-{} is not a range of sequences",
                    range.first, range.last
                ))
            })
    };
    ranges.iter().map(range).collect()
}

pub(super) fn error(error: PartitionError) -> common::Error {
    RpcError::from(error).to_proto()
}

pub(super) fn status(error: PartitionError) -> Status {
    RpcError::from(error).into()
}
