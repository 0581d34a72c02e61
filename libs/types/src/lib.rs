//! Names, ids, limits, sequences and error kinds of Ptah: values only.
//!
//! Text and numbers from outside become one of these types at the edge; inside, nobody checks again.
//! Nothing here does IO, reads a clock or draws a random number.

mod auth;
mod error;
mod ids;
pub mod limits;
mod names;
mod sequence;
mod station;
mod version;

pub use auth::{Action, Denied, Principal, Role, authorize};
pub use error::{Boundary, Effect, ErrorKind};
pub use ids::{
    ClusterId, ConsumerGroupId, InvalidId, NodeId, PartitionKey, PartitionNumber, RaftGroupId, ReplicaId,
    SessionId, StationId,
};
pub use names::{GroupName, InvalidName, NodeName, StationName, TenantName, UserName};
pub use sequence::{LogId, LogIndex, Sequence, Term, Timestamp};
pub use station::{ReplicaCount, StartAt, StationKind, Storage};
pub use version::{DISK_FORMAT, VersionRange, WIRE_PROTOCOL};
