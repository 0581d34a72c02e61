//! An append stream as a gateway has it.

use std::collections::VecDeque;

use ptah_partition::Batch;
use ptah_proto::common::v1 as common;
use ptah_proto::storage::v1 as pb;
use ptah_proto::storage::v1::append_request::Request;
use ptah_proto::storage::v1::append_result::Outcome;
use ptah_rpc::{PartitionClient, wire_range};
use ptah_types::RaftGroupId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{key_pb, soon};

pub(crate) struct Appender {
    requests: mpsc::Sender<pb::AppendRequest>,
    responses: Streaming<pb::AppendResponse>,
    results: VecDeque<pb::AppendResult>,
    pub(crate) window_bytes: u64,
}

/// A refusal as the gateway sees it.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) number: u64,
    pub(crate) kind: common::ErrorKind,
    pub(crate) error: common::Error,
    pub(crate) expected_number: u64,
}

impl Appender {
    pub(crate) async fn open(client: &PartitionClient, session_id: u64) -> Self {
        let (requests, receiver) = mpsc::channel(1024);
        let mut responses = client.append(ReceiverStream::new(receiver)).await.unwrap();
        let hello = pb::AppendHello {
            session_id,
            gateway: "test".to_owned(),
            wire: Some(wire_range()),
        };
        let hello = Some(Request::Hello(hello));
        requests.send(pb::AppendRequest { request: hello }).await.unwrap();
        let first = soon("a welcome", responses.message()).await.unwrap().unwrap();
        Self {
            requests,
            responses,
            results: first.results.into(),
            window_bytes: first.welcome.unwrap().window_bytes,
        }
    }

    pub(crate) async fn say(&self, request: Request) {
        let request = pb::AppendRequest {
            request: Some(request),
        };
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn channel(&self, channel: u32, group: RaftGroupId) {
        self.channel_of(channel, group, 1).await;
    }

    pub(crate) async fn channel_of(&self, channel: u32, group: RaftGroupId, generation: u64) {
        let open = pb::AppendOpen {
            channel,
            partition: Some(key_pb()),
            group_id: group.get(),
            generation,
        };
        self.say(Request::Open(open)).await;
    }

    pub(crate) async fn send(&self, channel: u32, number: u64, batch: &Batch) {
        self.say(Request::Batch(whole(channel, number, batch))).await;
    }

    /// Sends in parts of `part_bytes`.
    pub(crate) async fn send_in_parts(&self, channel: u32, number: u64, batch: &Batch, part_bytes: usize) {
        let mut first = whole(channel, number, batch);
        first.payload = batch.payload.slice(..part_bytes);
        self.say(Request::Batch(first)).await;
        let mut sent = part_bytes;
        while sent < batch.payload.len() {
            let end = (sent + part_bytes).min(batch.payload.len());
            let payload = batch.payload.slice(sent..end);
            self.say(Request::Fragment(pb::AppendFragment { channel, payload }))
                .await;
            sent = end;
        }
    }

    pub(crate) async fn try_result(&mut self) -> Result<pb::AppendResult, Status> {
        loop {
            if let Some(result) = self.results.pop_front() {
                return Ok(result);
            }
            let response = soon("an append response", self.responses.message()).await?;
            let response = response.ok_or_else(|| Status::unavailable("stream ended"))?;
            self.results.extend(response.results);
        }
    }

    pub(crate) async fn result(&mut self) -> pb::AppendResult {
        self.try_result().await.unwrap()
    }

    /// The next answer, which must be that a batch is stored: its number and place.
    pub(crate) async fn stored(&mut self) -> (u64, pb::AppendStored) {
        let result = self.result().await;
        match result.outcome {
            Some(Outcome::Stored(stored)) => (result.number, stored),
            other => panic!("append {} was not stored: {other:?}", result.number),
        }
    }

    /// The next answer, which must be a refusal.
    pub(crate) async fn refused(&mut self) -> Refused {
        let result = self.result().await;
        let Some(Outcome::Refused(refused)) = result.outcome else {
            panic!("append {} was not refused: {:?}", result.number, result.outcome);
        };
        let error = refused.error.unwrap();
        Refused {
            number: result.number,
            kind: error.kind(),
            error,
            expected_number: refused.expected_number,
        }
    }
}

pub(crate) fn whole(channel: u32, number: u64, batch: &Batch) -> pb::AppendBatch {
    pb::AppendBatch {
        channel,
        number,
        count: batch.count,
        crc32c: batch.crc,
        payload: batch.payload.clone(),
        total_bytes: batch.payload.len() as u32,
    }
}
