//! Signs of life between nodes: a stream of pings to every other node, each on a connection that carries nothing else
//! of weight, so that a ping never waits behind data.

use std::time::Duration;

use ptah_proto::raft::v1 as pb;
use ptah_rpc::RpcChannel;
use ptah_types::NodeId;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::client;
use super::streams::{Broken, broken, greeted, keep_up};
use crate::transport::Transport;

/// Longest pause before a broken stream is made anew: a node that comes back shall be heard soon.
const LONGEST_PAUSE: Duration = Duration::from_millis(150);
/// Pings that wait for the connection. A ping that is late says as much as the next one: what does not fit is left out.
const SEND_AHEAD: usize = 2;

/// Pings a node until the host stops.
pub(crate) async fn keep_pinging(transport: Transport, node: NodeId) {
    let line = &transport.inner.lines.pings;
    keep_up(&transport, node, "pings", LONGEST_PAUSE, line, |channel| {
        send_pings(&transport, node, channel)
    })
    .await;
}

async fn send_pings(transport: &Transport, node: NodeId, channel: RpcChannel) -> Broken {
    let (send, queue) = mpsc::channel(SEND_AHEAD);
    let greeting = pb::PingRequest {
        hello: Some(transport.hello(node)),
        incarnation: transport.inner.incarnation,
    };
    if send.send(greeting).await.is_err() {
        return broken("the stream was closed");
    }
    let mut line = client(channel);
    let mut answers = match greeted(line.ping(ReceiverStream::new(queue))).await {
        Ok(response) => response.into_inner(),
        Err(why) => return why,
    };
    match greeted(answers.message()).await {
        Ok(Some(first)) if first.welcome.is_some() => {}
        Ok(_) => return broken("the node does not greet"),
        Err(why) => return why,
    }
    let mut due = tokio::time::interval(transport.inner.detector.interval());
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = due.tick() => match send.try_send(pb::PingRequest::default()) {
                Ok(()) | Err(TrySendError::Full(_)) => {}
                Err(TrySendError::Closed(_)) => return broken("the stream was closed"),
            },
            end = answers.message() => return match end {
                Ok(_) => broken("the node ended the stream"),
                Err(status) => status.message().to_owned(),
            },
        }
    }
}

/// Listens to a node's pings until the stream ends. `answers` keeps the other direction open.
pub(super) async fn listen(
    transport: &Transport,
    from: NodeId,
    incarnation: u64,
    mut requests: tonic::Streaming<pb::PingRequest>,
    answers: mpsc::Sender<Result<pb::PingResponse, Status>>,
) {
    let detector = &transport.inner.detector;
    detector.connected(from, incarnation, Instant::now());
    loop {
        tokio::select! {
            () = answers.closed() => return,
            ping = requests.message() => match ping {
                Ok(Some(_)) => detector.heard(from, Instant::now()),
                Ok(None) | Err(_) => return,
            },
        }
    }
}
