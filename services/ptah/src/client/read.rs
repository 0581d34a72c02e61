//! Reading stored messages by sequence.

use ptah_proto::api::v1 as pb;
use ptah_proto::api::v1::message_service_client::MessageServiceClient;
use ptah_rpc::MAX_RPC_MESSAGE_BYTES;

use super::connect::Client;
use super::error::{ClientError, Effect};
use super::types::Message;

/// Some messages of a partition in order.
#[derive(Debug)]
pub struct ReadPage {
    /// Messages; none at the end.
    pub messages: Vec<Message>,
    /// Sequence that the partition's next message gets.
    pub next_sequence: u64,
}

impl Client {
    /// Reads up to `max_messages` messages from `from_sequence` on.
    pub async fn read(
        &self,
        station: &str,
        partition: u32,
        from_sequence: u64,
        max_messages: u32,
    ) -> Result<ReadPage, ClientError> {
        let mut service =
            MessageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_RPC_MESSAGE_BYTES);
        let request = self.request(pb::ReadRequest {
            tenant: String::new(),
            station: station.to_owned(),
            partition,
            from_sequence,
            max_messages,
        });
        let response = self.call(Effect::Read, service.read(request)).await?;
        Ok(ReadPage {
            messages: response.messages.into_iter().map(Message::from).collect(),
            next_sequence: response.next_sequence,
        })
    }
}
