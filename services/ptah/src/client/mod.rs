//! A client of the public gRPC door: the only place of this crate that sees generated types.
//!
//! A [`Client`] holds one connection. It connects before the first call, so that a server that is not there is told
//! in one clear sentence, and again by itself when the connection was lost between calls. Nothing is repeated behind
//! the caller's back: a call that may have had an effect says so.

mod connect;
mod consume;
mod error;
mod produce;
mod read;
mod stations;
mod types;
mod wire;

pub(crate) use connect::read_password;
pub use connect::{Client, Credentials, DEFAULT_ROOT_PASSWORD, ServerAddress};
pub use consume::{ConsumeEvent, ConsumeOpening, ConsumeStream};
pub use error::ClientError;
pub use produce::{Opened, Outcome, ProduceSender, ProduceStream, Stored};
pub use read::ReadPage;
pub use types::{ClusterStatus, GroupConfig, Message, NewStation, NodeStatus, PartitionStatus, Station};
pub use wire::{BatchEncoder, EncodedBatch};
