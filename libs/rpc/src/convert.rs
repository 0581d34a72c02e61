//! Parts of messages that several contracts share: to and from domain types.
//!
//! Both sides of these conversions are types of other crates, so they are functions. Outward cannot fail, inward
//! can: a missing or impossible field is the peer's fault and is answered, never fatal.

use ptah_proto::common::v1 as pb;
use ptah_types::{
    Boundary, ErrorKind, InvalidId, InvalidName, NodeId, PartitionKey, PartitionNumber, StartAt, StationId,
    StationKind, Storage,
};
use tonic::Status;

use crate::{RpcError, to_status};

/// A message from outside that does not make sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConversionError {
    /// A field that must be set is not.
    #[error("field `{0}` is missing")]
    Missing(&'static str),
    /// A field has a value that it cannot have.
    #[error("field `{field}` is invalid: {why}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A name breaks the rules of names.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// An id is not one.
    #[error(transparent)]
    Id(#[from] InvalidId),
}

impl ConversionError {
    /// A field that must be set is not.
    pub const fn missing(field: &'static str) -> Self {
        Self::Missing(field)
    }

    /// A field has a value that it cannot have.
    pub fn invalid(field: &'static str, why: impl Into<String>) -> Self {
        Self::Invalid {
            field,
            why: why.into(),
        }
    }
}

impl Boundary for ConversionError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

impl From<ConversionError> for Status {
    fn from(error: ConversionError) -> Self {
        to_status(&error)
    }
}

/// A client that cannot read an answer talks to a server of another make.
impl From<ConversionError> for RpcError {
    fn from(error: ConversionError) -> Self {
        Self::new(ErrorKind::Internal, format!("answer cannot be read: {error}"))
    }
}

/// Reads the number of an enum; one that this build does not know is refused, not guessed.
pub fn known<E: TryFrom<i32>>(field: &'static str, number: i32) -> Result<E, ConversionError> {
    E::try_from(number)
        .map_err(|_| ConversionError::invalid(field, format!("{number} is not known to this version")))
}

/// Takes a field that must be set.
pub fn required<T>(field: &'static str, value: Option<T>) -> Result<T, ConversionError> {
    value.ok_or(ConversionError::Missing(field))
}

/// Reads a partition's key.
pub fn partition_key(key: pb::PartitionKey) -> Result<PartitionKey, ConversionError> {
    Ok(PartitionKey {
        tenant: key.tenant.parse()?,
        station: StationId::new(key.station_id)?,
        partition: PartitionNumber::new(key.partition)?,
    })
}

/// Writes a partition's key.
pub fn partition_key_to_proto(key: &PartitionKey) -> pb::PartitionKey {
    pb::PartitionKey {
        tenant: key.tenant.as_str().to_owned(),
        station_id: key.station.get(),
        partition: key.partition.get(),
    }
}

/// Reads a node and its address.
pub fn node_address(node: pb::NodeAddress) -> Result<(NodeId, String), ConversionError> {
    Ok((NodeId::new(node.node_id)?, node.address))
}

/// Writes a node and its address.
pub fn node_address_to_proto(node: NodeId, address: &str) -> pb::NodeAddress {
    pb::NodeAddress {
        node_id: node.get(),
        address: address.to_owned(),
    }
}

/// Reads where a consumer group starts.
pub fn start_at(number: i32) -> Result<StartAt, ConversionError> {
    Ok(match known::<pb::StartAt>("start_at", number)? {
        pb::StartAt::Unspecified | pb::StartAt::First => StartAt::First,
        pb::StartAt::End => StartAt::End,
    })
}

/// Writes where a consumer group starts.
pub fn start_at_to_proto(start: StartAt) -> pb::StartAt {
    match start {
        StartAt::First => pb::StartAt::First,
        StartAt::End => pb::StartAt::End,
    }
}

/// Reads where messages live.
pub fn storage(number: i32) -> Result<Storage, ConversionError> {
    Ok(match known::<pb::Storage>("storage", number)? {
        pb::Storage::Unspecified | pb::Storage::File => Storage::File,
    })
}

/// Writes where messages live.
pub fn storage_to_proto(storage: Storage) -> pb::Storage {
    match storage {
        Storage::File => pb::Storage::File,
    }
}

/// Reads a station's kind.
pub fn station_kind(number: i32) -> Result<StationKind, ConversionError> {
    Ok(match known::<pb::StationKind>("kind", number)? {
        pb::StationKind::Unspecified | pb::StationKind::Station => StationKind::Station,
        pb::StationKind::Stream => StationKind::Stream,
    })
}

/// Writes a station's kind.
pub fn station_kind_to_proto(kind: StationKind) -> pb::StationKind {
    match kind {
        StationKind::Station => pb::StationKind::Station,
        StationKind::Stream => pb::StationKind::Stream,
    }
}

/// Reads the kind of an error. One that this build does not know says neither that nothing happened nor that a
/// retry helps.
pub fn kind_from_proto(number: i32) -> ErrorKind {
    match pb::ErrorKind::try_from(number) {
        Ok(pb::ErrorKind::InvalidArgument) => ErrorKind::InvalidArgument,
        Ok(pb::ErrorKind::TooLarge) => ErrorKind::TooLarge,
        Ok(pb::ErrorKind::NotFound) => ErrorKind::NotFound,
        Ok(pb::ErrorKind::AlreadyExists) => ErrorKind::AlreadyExists,
        Ok(pb::ErrorKind::Conflict) => ErrorKind::Conflict,
        Ok(pb::ErrorKind::Unauthenticated) => ErrorKind::Unauthenticated,
        Ok(pb::ErrorKind::PermissionDenied) => ErrorKind::PermissionDenied,
        Ok(pb::ErrorKind::NotLeader) => ErrorKind::NotLeader,
        Ok(pb::ErrorKind::Exhausted) => ErrorKind::Exhausted,
        Ok(pb::ErrorKind::Unavailable) => ErrorKind::Unavailable,
        Ok(pb::ErrorKind::DeadlineExceeded) => ErrorKind::DeadlineExceeded,
        Ok(pb::ErrorKind::OutcomeUnknown) => ErrorKind::OutcomeUnknown,
        Ok(pb::ErrorKind::Incompatible) => ErrorKind::Incompatible,
        Ok(pb::ErrorKind::DataDamaged) => ErrorKind::DataDamaged,
        Ok(pb::ErrorKind::Unspecified | pb::ErrorKind::Internal) | Err(_) => ErrorKind::Internal,
    }
}

/// Writes the kind of an error.
pub const fn kind_to_proto(kind: ErrorKind) -> pb::ErrorKind {
    match kind {
        ErrorKind::InvalidArgument => pb::ErrorKind::InvalidArgument,
        ErrorKind::TooLarge => pb::ErrorKind::TooLarge,
        ErrorKind::NotFound => pb::ErrorKind::NotFound,
        ErrorKind::AlreadyExists => pb::ErrorKind::AlreadyExists,
        ErrorKind::Conflict => pb::ErrorKind::Conflict,
        ErrorKind::Unauthenticated => pb::ErrorKind::Unauthenticated,
        ErrorKind::PermissionDenied => pb::ErrorKind::PermissionDenied,
        ErrorKind::NotLeader => pb::ErrorKind::NotLeader,
        ErrorKind::Exhausted => pb::ErrorKind::Exhausted,
        ErrorKind::Unavailable => pb::ErrorKind::Unavailable,
        ErrorKind::DeadlineExceeded => pb::ErrorKind::DeadlineExceeded,
        ErrorKind::OutcomeUnknown => pb::ErrorKind::OutcomeUnknown,
        ErrorKind::Incompatible => pb::ErrorKind::Incompatible,
        ErrorKind::DataDamaged => pb::ErrorKind::DataDamaged,
        ErrorKind::Internal => pb::ErrorKind::Internal,
    }
}
