//! Parts that several contracts share.

use ptah_types::{
    ConsumerGroupConfig, ErrorKind, NodeId, PartitionKey, PartitionNumber, StartAt, StationId, StationKind,
    Storage, VersionRange,
};

use super::ConversionError;
use crate::common::v1 as pb;

impl From<&PartitionKey> for pb::PartitionKey {
    fn from(key: &PartitionKey) -> Self {
        Self {
            tenant: key.tenant.as_str().to_owned(),
            station_id: key.station.get(),
            partition: key.partition.get(),
        }
    }
}

impl TryFrom<pb::PartitionKey> for PartitionKey {
    type Error = ConversionError;
    fn try_from(key: pb::PartitionKey) -> Result<Self, ConversionError> {
        Ok(Self {
            tenant: key.tenant.parse()?,
            station: StationId::new(key.station_id)?,
            partition: PartitionNumber::new(key.partition)?,
        })
    }
}

impl From<VersionRange> for pb::VersionRange {
    fn from(range: VersionRange) -> Self {
        Self {
            min: range.min,
            max: range.max,
        }
    }
}

impl TryFrom<pb::VersionRange> for VersionRange {
    type Error = ConversionError;
    fn try_from(range: pb::VersionRange) -> Result<Self, ConversionError> {
        if range.min == 0 || range.min > range.max {
            let why = format!("{}-{} is not a range of versions", range.min, range.max);
            return Err(ConversionError::invalid("versions", why));
        }
        Ok(Self {
            min: range.min,
            max: range.max,
        })
    }
}

impl From<StartAt> for pb::StartAt {
    fn from(start: StartAt) -> Self {
        match start {
            StartAt::First => Self::First,
            StartAt::End => Self::End,
        }
    }
}

impl From<pb::StartAt> for StartAt {
    fn from(start: pb::StartAt) -> Self {
        match start {
            pb::StartAt::Unspecified | pb::StartAt::First => Self::First,
            pb::StartAt::End => Self::End,
        }
    }
}

impl From<Storage> for pb::Storage {
    fn from(storage: Storage) -> Self {
        match storage {
            Storage::File => Self::File,
        }
    }
}

impl From<pb::Storage> for Storage {
    fn from(storage: pb::Storage) -> Self {
        match storage {
            pb::Storage::Unspecified | pb::Storage::File => Self::File,
        }
    }
}

impl From<StationKind> for pb::StationKind {
    fn from(kind: StationKind) -> Self {
        match kind {
            StationKind::Station => Self::Station,
            StationKind::Stream => Self::Stream,
        }
    }
}

impl From<pb::StationKind> for StationKind {
    fn from(kind: pb::StationKind) -> Self {
        match kind {
            pb::StationKind::Unspecified | pb::StationKind::Station => Self::Station,
            pb::StationKind::Stream => Self::Stream,
        }
    }
}

/// Reads the number of an enum; one that this build does not know is refused, not guessed.
pub(super) fn known<E: TryFrom<i32>>(field: &'static str, number: i32) -> Result<E, ConversionError> {
    E::try_from(number)
        .map_err(|_| ConversionError::invalid(field, format!("{number} is not known to this version")))
}

impl From<&ConsumerGroupConfig> for pb::ConsumerGroupConfig {
    fn from(config: &ConsumerGroupConfig) -> Self {
        Self {
            start_at: pb::StartAt::from(config.start_at).into(),
            ack_deadline_ms: config.ack_deadline_ms,
            max_in_flight: config.max_in_flight,
        }
    }
}

impl TryFrom<pb::ConsumerGroupConfig> for ConsumerGroupConfig {
    type Error = ConversionError;
    fn try_from(config: pb::ConsumerGroupConfig) -> Result<Self, ConversionError> {
        Ok(Self {
            start_at: known::<pb::StartAt>("start_at", config.start_at)?.into(),
            ack_deadline_ms: config.ack_deadline_ms,
            max_in_flight: config.max_in_flight,
        })
    }
}

impl From<(NodeId, String)> for pb::NodeAddress {
    fn from((node, address): (NodeId, String)) -> Self {
        Self {
            node_id: node.get(),
            address,
        }
    }
}

impl TryFrom<pb::NodeAddress> for (NodeId, String) {
    type Error = ConversionError;
    fn try_from(node: pb::NodeAddress) -> Result<Self, ConversionError> {
        Ok((NodeId::new(node.node_id)?, node.address))
    }
}

impl From<ErrorKind> for pb::ErrorKind {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidArgument => Self::InvalidArgument,
            ErrorKind::TooLarge => Self::TooLarge,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::AlreadyExists => Self::AlreadyExists,
            ErrorKind::Conflict => Self::Conflict,
            ErrorKind::Unauthenticated => Self::Unauthenticated,
            ErrorKind::PermissionDenied => Self::PermissionDenied,
            ErrorKind::NotLeader => Self::NotLeader,
            ErrorKind::Exhausted => Self::Exhausted,
            ErrorKind::Unavailable => Self::Unavailable,
            ErrorKind::DeadlineExceeded => Self::DeadlineExceeded,
            ErrorKind::OutcomeUnknown => Self::OutcomeUnknown,
            ErrorKind::Incompatible => Self::Incompatible,
            ErrorKind::DataDamaged => Self::DataDamaged,
            ErrorKind::Internal => Self::Internal,
        }
    }
}

impl From<pb::ErrorKind> for ErrorKind {
    fn from(kind: pb::ErrorKind) -> Self {
        match kind {
            pb::ErrorKind::Unspecified | pb::ErrorKind::Internal => Self::Internal,
            pb::ErrorKind::InvalidArgument => Self::InvalidArgument,
            pb::ErrorKind::TooLarge => Self::TooLarge,
            pb::ErrorKind::NotFound => Self::NotFound,
            pb::ErrorKind::AlreadyExists => Self::AlreadyExists,
            pb::ErrorKind::Conflict => Self::Conflict,
            pb::ErrorKind::Unauthenticated => Self::Unauthenticated,
            pb::ErrorKind::PermissionDenied => Self::PermissionDenied,
            pb::ErrorKind::NotLeader => Self::NotLeader,
            pb::ErrorKind::Exhausted => Self::Exhausted,
            pb::ErrorKind::Unavailable => Self::Unavailable,
            pb::ErrorKind::DeadlineExceeded => Self::DeadlineExceeded,
            pb::ErrorKind::OutcomeUnknown => Self::OutcomeUnknown,
            pb::ErrorKind::Incompatible => Self::Incompatible,
            pb::ErrorKind::DataDamaged => Self::DataDamaged,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_kind_survives_the_wire() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from(pb::ErrorKind::from(kind)), kind);
        }
    }

    #[test]
    fn a_start_that_a_newer_peer_means_is_refused_not_guessed() {
        let config = pb::ConsumerGroupConfig {
            start_at: 7,
            ..Default::default()
        };
        assert!(ConsumerGroupConfig::try_from(config).is_err());
    }
}
