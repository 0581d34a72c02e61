//! A delivery stream as a gateway has it.

use std::collections::BTreeMap;

use ptah_partition::crc32c;
use ptah_proto::common::v1 as common;
use ptah_proto::storage::v1 as pb;
use ptah_proto::storage::v1::deliver_request::Request;
use ptah_proto::storage::v1::deliver_response::Response;
use ptah_rpc::{PartitionClient, wire_range};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{consumer_group, payloads, soon};

pub(crate) struct Deliverer {
    requests: mpsc::Sender<pb::DeliverRequest>,
    responses: Streaming<pb::DeliverResponse>,
    /// Parts of deliveries that are not complete, by pull.
    partial: BTreeMap<u64, Vec<u8>>,
}

/// A whole delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) pull_id: u64,
    pub(crate) first: u64,
    pub(crate) payloads: Vec<String>,
    pub(crate) delivery_count: u32,
    pub(crate) bytes: u64,
}

/// What the node says.
#[derive(Clone, Debug)]
pub(crate) enum Said {
    Messages(Received),
    Idle(pb::DeliverIdle),
    Acked(pb::DeliverAcked),
    Closed(pb::DeliverClosed),
}

impl Deliverer {
    pub(crate) async fn open(client: &PartitionClient) -> Self {
        let (requests, receiver) = mpsc::channel(1024);
        let mut responses = client.deliver(ReceiverStream::new(receiver)).await.unwrap();
        let hello = pb::DeliverHello {
            gateway: "test".to_owned(),
            wire: Some(wire_range()),
        };
        let hello = Some(Request::Hello(hello));
        requests
            .send(pb::DeliverRequest { request: hello })
            .await
            .unwrap();
        let first = soon("a welcome", responses.message()).await.unwrap().unwrap();
        assert!(matches!(first.response, Some(Response::Welcome(_))), "{first:?}");
        Self {
            requests,
            responses,
            partial: BTreeMap::new(),
        }
    }

    async fn say(&self, request: Request) {
        let request = pb::DeliverRequest {
            request: Some(request),
        };
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn pull(&self, pull_id: u64, group: u64, messages: u32, bytes: u64) {
        let open = pb::DeliverOpen {
            pull_id,
            group: Some((&consumer_group(group)).into()),
            credit_messages: messages,
            credit_bytes: bytes,
        };
        self.say(Request::Open(open)).await;
    }

    pub(crate) async fn credit(&self, pull_id: u64, messages: u32, bytes: u64) {
        self.say(Request::Credit(pb::DeliverCredit {
            pull_id,
            messages,
            bytes,
        }))
        .await;
    }

    pub(crate) async fn ack(&self, pull_id: u64, first: u64, last: u64, confirm_id: u64) {
        let ranges = vec![pb::SequenceRange { first, last }];
        self.say(Request::Ack(pb::DeliverAck {
            pull_id,
            ranges,
            confirm_id,
        }))
        .await;
    }

    pub(crate) async fn close(&self, pull_id: u64, unsent: &[(u64, u64)]) {
        let unsent = unsent
            .iter()
            .map(|(first, last)| pb::SequenceRange {
                first: *first,
                last: *last,
            })
            .collect();
        self.say(Request::Close(pb::DeliverClose { pull_id, unsent }))
            .await;
    }

    /// The next thing that the node says; parts are put together and checked.
    pub(crate) async fn next(&mut self) -> Said {
        self.try_next().await.unwrap()
    }

    /// Like `next`, when the stream may end.
    pub(crate) async fn try_next(&mut self) -> Result<Said, Status> {
        loop {
            let response = soon("a delivery", self.responses.message()).await?;
            let response = response.ok_or_else(|| Status::unavailable("stream ended"))?;
            match response.response.unwrap() {
                Response::Welcome(welcome) => panic!("welcomed twice: {welcome:?}"),
                Response::Idle(idle) => return Ok(Said::Idle(idle)),
                Response::Acked(acked) => return Ok(Said::Acked(acked)),
                Response::Closed(closed) => return Ok(Said::Closed(closed)),
                Response::Delivery(delivery) => {
                    if let Some(received) = self.take(delivery) {
                        return Ok(Said::Messages(received));
                    }
                }
            }
        }
    }

    fn take(&mut self, part: pb::Delivery) -> Option<Received> {
        let partial = self.partial.entry(part.pull_id).or_default();
        assert_eq!(part.offset as usize, partial.len(), "parts come in order");
        assert!(
            part.payload.len() <= 256 << 10,
            "a part of {} bytes",
            part.payload.len()
        );
        partial.extend_from_slice(&part.payload);
        if partial.len() < part.total_bytes as usize {
            return None;
        }
        let whole = self.partial.remove(&part.pull_id).unwrap();
        assert_eq!(crc32c(&whole), part.crc32c);
        let bytes = whole.len() as u64;
        let payloads = payloads(whole.into());
        assert_eq!(payloads.len(), part.count as usize);
        Some(Received {
            pull_id: part.pull_id,
            first: part.base_sequence,
            payloads,
            delivery_count: part.delivery_count,
            bytes,
        })
    }

    /// The next messages; what else is said meanwhile is dropped.
    pub(crate) async fn messages(&mut self) -> Received {
        loop {
            match self.next().await {
                Said::Messages(received) => return received,
                Said::Idle(_) | Said::Acked(_) => {}
                Said::Closed(closed) => panic!("pull ended: {closed:?}"),
            }
        }
    }

    /// Messages until there are `n` of them.
    pub(crate) async fn collect(&mut self, n: usize) -> Vec<Received> {
        let mut all = Vec::new();
        let mut messages = 0;
        while messages < n {
            let received = self.messages().await;
            messages += received.payloads.len();
            all.push(received);
        }
        all
    }

    pub(crate) async fn idle(&mut self) -> pb::DeliverIdle {
        loop {
            match self.next().await {
                Said::Idle(idle) => return idle,
                Said::Messages(_) | Said::Acked(_) => {}
                Said::Closed(closed) => panic!("pull ended: {closed:?}"),
            }
        }
    }

    /// The answer to a confirmed acknowledgement.
    pub(crate) async fn acked(&mut self) -> pb::DeliverAcked {
        loop {
            match self.next().await {
                Said::Acked(acked) => return acked,
                Said::Messages(_) | Said::Idle(_) => {}
                Said::Closed(closed) => panic!("pull ended: {closed:?}"),
            }
        }
    }

    /// The end of a pull, and why.
    pub(crate) async fn closed(&mut self) -> (u64, Option<common::Error>) {
        loop {
            if let Said::Closed(closed) = self.next().await {
                return (closed.pull_id, closed.error);
            }
        }
    }
}
