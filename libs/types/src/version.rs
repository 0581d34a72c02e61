//! Versions of what peers say to each other and of what is on disk.

use std::fmt;

/// Wire protocol between Ptah's processes that this build speaks.
pub const WIRE_PROTOCOL: VersionRange = VersionRange { min: 1, max: 1 };
/// Disk format that this build writes, and the oldest it reads.
pub const DISK_FORMAT: VersionRange = VersionRange { min: 1, max: 1 };

/// An inclusive range of versions that a build understands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VersionRange {
    /// Oldest.
    pub min: u32,
    /// Newest; what is written when a peer also knows it.
    pub max: u32,
}

impl VersionRange {
    /// The newest version that both know.
    pub fn agree(self, other: Self) -> Option<u32> {
        let version = self.max.min(other.max);
        (version >= self.min && version >= other.min).then_some(version)
    }

    /// Whether this build understands `version`.
    pub fn contains(self, version: u32) -> bool {
        (self.min..=self.max).contains(&version)
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_agree_on_the_newest_common_version() {
        let ours = VersionRange { min: 2, max: 4 };
        assert_eq!(ours.agree(VersionRange { min: 1, max: 3 }), Some(3));
        assert_eq!(ours.agree(VersionRange { min: 5, max: 6 }), None);
        assert_eq!(ours.agree(VersionRange { min: 1, max: 1 }), None);
    }
}
