//! The client's two ways to read: by sequence, and as a consumer group.

use std::time::Duration;

use anyhow::Context;
use ptah_proto::api::v1 as api;
use ptah_proto::api::v1::message_service_client::MessageServiceClient;
use ptah_rpc::RpcChannel;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::workload::{PARTITIONS, PATIENCE, STATION, Stored, authorized};

/// Everything that is stored, read by sequence.
pub(crate) async fn read(channel: &RpcChannel) -> anyhow::Result<Stored> {
    let mut client = MessageServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
    let mut stored = Stored::new();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    for partition in 1..=PARTITIONS {
        let mut from_sequence = 0;
        loop {
            let request = api::ReadRequest {
                station: STATION.into(),
                partition,
                from_sequence,
                max_messages: 1_000,
                ..Default::default()
            };
            let answer = match client.read(authorized(request)).await {
                Ok(answer) => answer.into_inner(),
                Err(status) => {
                    anyhow::ensure!(tokio::time::Instant::now() < deadline, "read: {status}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            for message in &answer.messages {
                stored.insert((partition, message.sequence), message.payload.clone());
                from_sequence = message.sequence + 1;
            }
            if answer.messages.is_empty() || from_sequence >= answer.next_sequence {
                break;
            }
        }
    }
    Ok(stored)
}

/// Reads and acknowledges everything as a consumer group: each message once, in order, and then nothing more.
pub(crate) async fn consume(channel: &RpcChannel, stored: &Stored) -> anyhow::Result<()> {
    use api::consume_response::Response;

    let (requests, mut answers) = open(channel, "readers").await?;
    let mut read = Stored::new();
    let mut unconfirmed = 0;
    loop {
        let answer = tokio::time::timeout(PATIENCE, answers.message()).await;
        let answer = answer.with_context(|| format!("nothing came after {} messages", read.len()))??;
        match answer
            .and_then(|answer| answer.response)
            .context("consume stream ended")?
        {
            Response::Opened(_) => {}
            Response::Batch(batch) => {
                for request in take_batch(&batch, &mut read)? {
                    unconfirmed += 1;
                    requests.send(request).await?;
                }
                requests.send(credit(&batch)).await?;
            }
            Response::Acked(acked) => {
                anyhow::ensure!(acked.error.is_none(), "acknowledgement failed: {:?}", acked.error);
                unconfirmed -= 1;
            }
            Response::Idle(_) => {}
        }
        if unconfirmed == 0 && read.len() >= stored.len() {
            break;
        }
    }
    anyhow::ensure!(
        read == *stored,
        "the consumer group read something else than what is stored"
    );
    Ok(())
}

/// Notes the messages of a batch; the requests that acknowledge them.
fn take_batch(batch: &api::ConsumeBatch, read: &mut Stored) -> anyhow::Result<Vec<api::ConsumeRequest>> {
    let mut acks = Vec::new();
    for message in &batch.messages {
        let at = (message.partition, message.sequence);
        let before = read
            .range((message.partition, 0)..(message.partition, u64::MAX))
            .next_back();
        let expected = before.map_or(1, |(at, _)| at.1 + 1);
        anyhow::ensure!(
            message.sequence == expected,
            "{at:?} came where {expected} was expected"
        );
        anyhow::ensure!(
            message.delivery_count == 1,
            "{at:?} was delivered {} times",
            message.delivery_count
        );
        read.insert(at, message.payload.clone());
        acks.push(ack(at.0, at.1, read.len() as u64));
    }
    Ok(acks)
}

/// Both ends of a consume stream.
pub(crate) type Opened = (
    mpsc::Sender<api::ConsumeRequest>,
    tonic::Streaming<api::ConsumeResponse>,
);

/// Opens the stream. A control plane that has just died holds its office for some seconds: the group cannot be made.
pub(crate) async fn open(channel: &RpcChannel, group: &str) -> anyhow::Result<Opened> {
    let mut client = MessageServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let (requests, receiver) = mpsc::channel(64);
        requests.send(opening(group)).await?;
        let request = authorized(ReceiverStream::new(receiver));
        let opened = async {
            let mut answers = client.consume(request).await?.into_inner();
            // The first answer says that the group is there and the stream delivers.
            answers.message().await?;
            Ok::<_, tonic::Status>(answers)
        };
        match opened.await {
            Ok(answers) => return Ok((requests, answers)),
            Err(status) => {
                let may_retry = status.code() == tonic::Code::Unavailable;
                anyhow::ensure!(
                    may_retry && tokio::time::Instant::now() < deadline,
                    "open: {status}"
                );
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn opening(group: &str) -> api::ConsumeRequest {
    request_of(api::consume_request::Request::Open(api::ConsumeOpen {
        station: STATION.into(),
        group: group.into(),
        config: Some(ptah_proto::common::v1::ConsumerGroupConfig {
            ack_deadline_ms: 5_000,
            ..Default::default()
        }),
        credit: Some(api::ConsumeCredit {
            messages: 500,
            bytes: 0,
        }),
        ..Default::default()
    }))
}

fn request_of(request: api::consume_request::Request) -> api::ConsumeRequest {
    api::ConsumeRequest {
        request: Some(request),
    }
}

/// Acknowledges a message and asks for a confirmation.
pub(crate) fn ack(partition: u32, sequence: u64, confirm_id: u64) -> api::ConsumeRequest {
    request_of(api::consume_request::Request::Ack(api::ConsumeAck {
        partition,
        ranges: vec![api::SequenceRange {
            first: sequence,
            last: sequence,
        }],
        confirm_id,
    }))
}

/// Gives back the credit that a batch has used.
pub(crate) fn credit(batch: &api::ConsumeBatch) -> api::ConsumeRequest {
    let sizes = batch.messages.iter().map(|message| message.payload.len() as u64);
    request_of(api::consume_request::Request::Credit(api::ConsumeCredit {
        messages: batch.messages.len() as u32,
        bytes: sizes.sum(),
    }))
}
