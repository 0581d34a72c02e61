//! What a station is made of.

use crate::InvalidId;

/// Which rules a station follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StationKind {
    /// Made through gRPC, REST or the command line: any number of partitions, names ignore case.
    Station,
    /// Made through a stream door: exactly one partition, name kept byte for byte: `Str` and `str` are two streams.
    Stream,
}

/// Where messages live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Storage {
    /// On disk: acknowledged means fsynced on a majority.
    File,
}

/// How many replicas a partition has: 1, 3 or 5.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ReplicaCount(u8);

impl ReplicaCount {
    /// One replica: survives power loss, not the loss of its node.
    pub const ONE: Self = Self(1);
    /// Three replicas: survive the loss of one node.
    pub const THREE: Self = Self(3);
    /// Five replicas: survive the loss of two nodes.
    pub const FIVE: Self = Self(5);

    /// Makes the count.
    pub const fn new(value: u32) -> Result<Self, InvalidId> {
        match value {
            1 => Ok(Self::ONE),
            3 => Ok(Self::THREE),
            5 => Ok(Self::FIVE),
            _ => Err(InvalidId {
                what: "replica count",
                why: "use 1, 3 or 5",
            }),
        }
    }

    /// The count.
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

/// Where a new consumer group starts to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartAt {
    /// At the oldest message that is kept.
    First,
    /// Behind the newest message at the moment the group is made.
    End,
}
