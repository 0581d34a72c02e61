//! Between generated and domain types of the public contract.

use bytes::Bytes;
use ptah_partition::{BatchView, Door, SequenceRange};
use ptah_proto::api::v1 as pb;
use ptah_proto::common::v1 as common;
use ptah_rpc::convert::{
    start_at, start_at_to_proto, station_kind, station_kind_to_proto, storage, storage_to_proto,
};
use ptah_rpc::records::ConsumerGroupConfig;
use ptah_rpc::{ConversionError, RpcError};
use ptah_types::limits::DEFAULT_MESSAGE_BYTES;
use ptah_types::{NodeId, Sequence, StationName, TenantName};
use tonic::Status;

use crate::catalog::Station;
use crate::consume::DeliveredRun;
use crate::error::GatewayError;
use crate::produce::{NewMessage, ProduceOutcome, ProduceResult};
use crate::stations::{NewStation, PartitionStatus};

/// Settings of consumer groups that say nothing.
const DEFAULT_ACK_DEADLINE_MS: u32 = 30_000;
const DEFAULT_MAX_IN_FLIGHT: u32 = 16_384;

/// The error as gRPC tells it.
pub(super) fn status(error: &GatewayError) -> Status {
    rpc_error(error).into()
}

fn rpc_error(error: &GatewayError) -> RpcError {
    let told = RpcError::of(error);
    match error.retry_after() {
        Some(after) => told.with_retry_after(after),
        None => told,
    }
}

pub(super) fn error_to_proto(error: &GatewayError) -> common::Error {
    rpc_error(error).to_proto()
}

impl From<ConversionError> for GatewayError {
    fn from(error: ConversionError) -> Self {
        Self::invalid(error.to_string())
    }
}

pub(super) fn new_message(message: pb::NewMessage) -> NewMessage {
    NewMessage {
        payload: message.payload,
        headers: message
            .headers
            .into_iter()
            .map(|header| (header.name, header.value))
            .collect(),
        key: message.key,
        partition: message.partition,
        subject: message.subject,
        message_id: message.message_id,
    }
}

pub(super) fn result_to_proto(result: ProduceResult) -> pb::ProduceResult {
    let outcome = match result.outcome {
        ProduceOutcome::Stored(stored) => pb::produce_result::Outcome::Stored(pb::Stored {
            partition: stored.partition,
            first_sequence: stored.first_sequence,
            timestamp_ns: stored.timestamp_ns,
            duplicate: stored.duplicate,
        }),
        ProduceOutcome::Failed(error) => pb::produce_result::Outcome::Error(error_to_proto(&error)),
    };
    pb::ProduceResult {
        first: result.first,
        count: result.count,
        outcome: Some(outcome),
    }
}

/// Adds the messages of a run, without copying payloads, keys and headers.
pub(super) fn push_messages(run: &DeliveredRun, messages: &mut Vec<pb::Message>) {
    for index in run.range.clone() {
        let place = (
            run.base_sequence + index as u64,
            run.timestamp_ns,
            run.delivery_count,
        );
        messages.extend(message_to_proto(&run.view, index, run.partition.get(), place));
    }
}

/// One message of a batch, with its sequence, time and delivery count.
pub(super) fn message_to_proto(
    view: &BatchView,
    index: usize,
    partition: u32,
    (sequence, timestamp_ns, delivery_count): (u64, u64, u32),
) -> Option<pb::Message> {
    let message = view.message(index)?;
    let share = |bytes: &[u8]| -> Bytes { view.payload().slice_ref(bytes) };
    let header = |(name, value): (&[u8], &[u8])| common::Header {
        name: share(name),
        value: share(value),
    };
    Some(pb::Message {
        partition,
        sequence,
        timestamp_ns,
        payload: message.payload_bytes(),
        headers: message.headers().map(header).collect(),
        key: message.key().map(share),
        subject: message.subject().to_owned(),
        message_id: message
            .id()
            .map(|id| String::from_utf8_lossy(id).into_owned())
            .unwrap_or_default(),
        producer: message.producer().unwrap_or_default().to_owned(),
        door: door_to_proto(message.door()).into(),
        delivery_count,
    })
}

fn door_to_proto(door: Door) -> common::Door {
    match door {
        Door::GRPC => common::Door::Grpc,
        Door::REST => common::Door::Rest,
        Door::SDK => common::Door::SdkTcp,
        Door::INTERNAL => common::Door::Internal,
        _ => common::Door::Unspecified,
    }
}

pub(super) fn ranges(ranges: Vec<pb::SequenceRange>) -> Result<Vec<SequenceRange>, GatewayError> {
    let range = |range: pb::SequenceRange| {
        let ends = Sequence::new(range.first).zip(Sequence::new(range.last));
        ends.and_then(|(first, last)| SequenceRange::new(first, last))
            .ok_or_else(|| {
                let (first, last) = (range.first, range.last);
                GatewayError::invalid(format!(
                    "sequences {first} to {last} are no range; count from 1, first before last"
                ))
            })
    };
    ranges.into_iter().map(range).collect()
}

/// Settings of a group; what is not set gets its default.
pub(super) fn group_config(
    config: Option<common::ConsumerGroupConfig>,
) -> Result<ConsumerGroupConfig, GatewayError> {
    let config = config.unwrap_or_default();
    let or = |value: u32, default: u32| if value == 0 { default } else { value };
    Ok(ConsumerGroupConfig {
        start: start_at(config.start_at)?,
        ack_deadline_ms: or(config.ack_deadline_ms, DEFAULT_ACK_DEADLINE_MS),
        max_in_flight: or(config.max_in_flight, DEFAULT_MAX_IN_FLIGHT),
    })
}

pub(super) fn group_config_to_proto(config: ConsumerGroupConfig) -> common::ConsumerGroupConfig {
    common::ConsumerGroupConfig {
        start_at: start_at_to_proto(config.start).into(),
        ack_deadline_ms: config.ack_deadline_ms,
        max_in_flight: config.max_in_flight,
    }
}

pub(super) fn new_station(
    tenant: TenantName,
    name: &str,
    config: Option<pb::StationConfig>,
) -> Result<NewStation, GatewayError> {
    let name: StationName = name.parse()?;
    let config = config.unwrap_or_default();
    Ok(NewStation {
        tenant,
        name,
        kind: station_kind(config.kind)?,
        partitions: config.partitions.max(1),
        replicas: config.replicas.max(1),
        storage: storage(config.storage)?,
        max_message_bytes: match config.max_message_bytes {
            0 => DEFAULT_MESSAGE_BYTES,
            bytes => bytes,
        },
    })
}

pub(super) fn station_to_proto(station: &Station) -> pb::Station {
    let record = &station.record;
    pb::Station {
        tenant: station.tenant.to_string(),
        name: record.name.display().to_owned(),
        id: record.id.get(),
        config: Some(pb::StationConfig {
            partitions: record.partitions,
            replicas: u32::try_from(record.replicas.get()).unwrap_or(u32::MAX),
            storage: storage_to_proto(record.storage).into(),
            max_message_bytes: record.max_message_bytes,
            kind: station_kind_to_proto(record.kind).into(),
        }),
        created_at_ms: record.created_at.as_millis(),
        revision: station.revision,
    }
}

pub(super) fn partition_to_proto(status: PartitionStatus) -> pb::PartitionStatus {
    pb::PartitionStatus {
        partition: status.partition,
        leader_node_id: status.leader.map_or(0, NodeId::get),
        replica_node_ids: status.replicas.into_iter().map(NodeId::get).collect(),
        first_sequence: status.state.map_or(0, |state| state.first_sequence),
        next_sequence: status.state.map_or(0, |state| state.next_sequence),
        trouble: status.trouble,
        healthy_replicas: status.healthy,
        change: status.change,
        wanted_replicas: status.wanted,
    }
}
