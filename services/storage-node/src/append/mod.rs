//! Append streams: from what a gateway sends to batches at the leader, and the answers back.
//!
//! Invariants: every batch is answered exactly once; answers of a channel leave in the order in which its batches came;
//! the bytes that a stream may hold are bounded by its window.
//! Not here: what is decided about a batch (`leader`), the wire form (`grpc`).

mod answers;
mod assembly;
mod session;

pub(crate) use answers::{Answer, Answers, Reply, Stored};
#[cfg(test)]
pub(crate) use answers::{Lane, Outcome};
pub(crate) use session::{AppendSession, BatchPart, ChannelOpening};
