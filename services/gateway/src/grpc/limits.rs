//! What requests may contain. Counted before they are decoded, see [`ptah_rpc::RequestLimits`].

use ptah_rpc::{MAX_RPC_MESSAGE_BYTES, RequestLimits};
use ptah_types::limits::{MAX_BATCH_MESSAGES, MAX_PARTITIONS};

/// Largest request that carries no messages.
const MAX_REQUEST_BYTES: usize = 1 << 20;
/// Most headers of all messages of a request, 16 for each of as many messages as a request may have.
const MAX_HEADERS: u32 = 16 * MAX_BATCH_MESSAGES as u32;
/// Most ranges that one request acknowledges.
pub(super) const MAX_ACK_RANGES: u32 = 4_096;

/// Limits of the public services.
pub(super) fn request_limits() -> RequestLimits {
    let messages = MAX_BATCH_MESSAGES as u32;
    RequestLimits::new(MAX_REQUEST_BYTES)
        .message("/ptah.api.v1.MessageService/Produce", MAX_RPC_MESSAGE_BYTES)
        .message("/ptah.api.v1.MessageService/ProduceStream", MAX_RPC_MESSAGE_BYTES)
        .list("ptah.api.v1.ProduceRequest.messages", messages)
        .list("ptah.api.v1.ProduceStreamBatch.messages", messages)
        .list("ptah.api.v1.NewMessage.headers", MAX_HEADERS)
        .list("ptah.api.v1.ConsumeAck.ranges", MAX_ACK_RANGES)
        .list("ptah.api.v1.PartitionAck.ranges", MAX_ACK_RANGES)
        .list("ptah.api.v1.AckRequest.acks", MAX_PARTITIONS)
        .list("ptah.api.v1.ConsumeOpen.partitions", MAX_PARTITIONS)
        .list("ptah.api.v1.PullRequest.partitions", MAX_PARTITIONS)
}
