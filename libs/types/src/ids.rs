//! Ids: numbers and UUIDs that name things for ever.
//!
//! Every id here is allocated once and never used again, so that leftovers of a deleted thing never meet its successor.

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};

use uuid::Uuid;

use crate::TenantName;

/// A number or text that is not a valid id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what}: {why}")]
pub struct InvalidId {
    /// Which id was read.
    pub what: &'static str,
    /// What is wrong with it.
    pub why: &'static str,
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(NonZeroU64);

        impl $name {
            /// Makes the id; zero is not an id.
            pub const fn new(value: u64) -> Result<Self, InvalidId> {
                match NonZeroU64::new(value) {
                    Some(value) => Ok(Self(value)),
                    None => Err(InvalidId { what: $what, why: "must not be zero" }),
                }
            }

            /// The number.
            pub const fn get(self) -> u64 {
                self.0.get()
            }
        }

        impl TryFrom<u64> for $name {
            type Error = InvalidId;
            fn try_from(value: u64) -> Result<Self, InvalidId> {
                Self::new(value)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

number_id!(
    /// A station, for ever: a station created again under the same name has another id.
    StationId, "station id"
);
number_id!(
    /// The Raft group of one partition, unique in the cluster for ever.
    RaftGroupId, "raft group id"
);
number_id!(
    /// A consumer group, for ever: a group created again under the same name has another id.
    ConsumerGroupId, "consumer group id"
);
number_id!(
    /// One replica of a Raft group. Never used again within its group: an empty disk under an old id could
    /// replay old memberships and elect itself.
    ReplicaId, "replica id"
);
number_id!(
    /// A storage node, as configured.
    NodeId, "node id"
);
number_id!(
    /// One gateway's produce session: the scope of its append numbers.
    SessionId, "session id"
);

impl RaftGroupId {
    /// Sixteen hexadecimal digits, as used in directory names.
    pub fn to_hex(self) -> String {
        format!("{:016x}", self.get())
    }

    /// Reads [`RaftGroupId::to_hex`] back.
    pub fn from_hex(text: &str) -> Result<Self, InvalidId> {
        let invalid = InvalidId {
            what: "raft group id",
            why: "must be 16 lower-case hexadecimal digits",
        };
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() != 16 || !text.bytes().all(lower_hex) {
            return Err(invalid);
        }
        u64::from_str_radix(text, 16)
            .map_err(|_| invalid)
            .and_then(Self::new)
    }
}

/// Number of a partition within its station; the first is 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PartitionNumber(NonZeroU32);

impl PartitionNumber {
    /// The first partition.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// Makes the number; partitions are counted from 1.
    pub const fn new(value: u32) -> Result<Self, InvalidId> {
        match NonZeroU32::new(value) {
            Some(value) => Ok(Self(value)),
            None => Err(InvalidId {
                what: "partition",
                why: "partitions are numbered from 1",
            }),
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// Place in a list of partitions in order.
    pub const fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

impl fmt::Display for PartitionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Full key of one partition; travels with every internal request and file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PartitionKey {
    /// Name space of the station.
    pub tenant: TenantName,
    /// The station.
    pub station: StationId,
    /// The partition of the station.
    pub partition: PartitionNumber,
}

impl fmt::Display for PartitionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tenant, self.station, self.partition)
    }
}

/// A cluster, made once by its metadata store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClusterId(Uuid);

impl ClusterId {
    /// Wraps 16 bytes; all zero is not an id.
    pub fn from_bytes(bytes: [u8; 16]) -> Result<Self, InvalidId> {
        if bytes == [0; 16] {
            return Err(InvalidId {
                what: "cluster id",
                why: "must not be zero",
            });
        }
        Ok(Self(Uuid::from_bytes(bytes)))
    }

    /// Makes a version 4 id out of 16 random bytes.
    pub fn from_random_bytes(bytes: [u8; 16]) -> Self {
        Self(uuid::Builder::from_random_bytes(bytes).into_uuid())
    }

    /// The 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for ClusterId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let uuid = Uuid::parse_str(text).map_err(|_| InvalidId {
            what: "cluster id",
            why: "must be a UUID",
        })?;
        Self::from_bytes(*uuid.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_never_an_id() {
        assert!(StationId::new(0).is_err());
        assert!(PartitionNumber::new(0).is_err());
        assert!(ClusterId::from_bytes([0; 16]).is_err());
    }

    #[test]
    fn a_group_id_survives_its_directory_name() {
        let id = RaftGroupId::new(0xabc).unwrap();
        assert_eq!(id.to_hex(), "0000000000000abc");
        assert_eq!(RaftGroupId::from_hex(&id.to_hex()), Ok(id));
        for bad in [
            "",
            "abc",
            "0000000000000ABC",
            "0000000000000000",
            "+000000000000abc",
        ] {
            assert!(RaftGroupId::from_hex(bad).is_err(), "{bad} must be refused");
        }
    }
}
