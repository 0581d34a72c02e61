//! The two long streams to a node: log entries and heartbeats, each on its connection, each made anew when it breaks.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ptah_proto::raft::v1 as pb;
use ptah_rpc::{Channels, RpcChannel};
use ptah_types::NodeId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::client;
use super::convert::{
    beat_result_from_pb, part_to_pb, raft_id_to_pb, result_from_pb, route_to_pb, vote_to_pb,
};
use crate::transport::beats::Beat;
use crate::transport::{GREETING_DEADLINE, Peer, Transport};

/// Pause before a broken stream is made anew: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Messages that wait for the connection behind the one that it sends.
const SEND_AHEAD: usize = 2;

/// Why a stream ended; kept short, because it is logged on every attempt.
pub(super) type Broken = String;

/// Starts the streams of a node; they run until the host stops.
pub(crate) fn start_streams(transport: &Transport, peer: &Arc<Peer>) {
    let name = |what: &str| format!("{what} to node {}", peer.node);
    let (owner, to) = (transport.clone(), Arc::clone(peer));
    transport.inner.tasks.spawn_critical(name("entries"), async move {
        keep_up(
            &owner,
            to.node,
            "entries",
            LONGEST_PAUSE,
            &owner.inner.lines.entries,
            |channel| send_entries(&owner, &to, channel),
        )
        .await;
        Ok(())
    });
    let (owner, to) = (transport.clone(), Arc::clone(peer));
    transport
        .inner
        .tasks
        .spawn_critical(name("heartbeats"), async move {
            keep_up(
                &owner,
                to.node,
                "heartbeats",
                LONGEST_PAUSE,
                &owner.inner.lines.beats,
                |channel| send_beats(&owner, &to, channel),
            )
            .await;
            Ok(())
        });
}

/// Runs a stream again and again, while the node has an address.
pub(super) async fn keep_up<F, Fut>(
    transport: &Transport,
    node: NodeId,
    what: &str,
    longest_pause: Duration,
    channels: &Channels,
    mut run: F,
) where
    F: FnMut(RpcChannel) -> Fut,
    Fut: Future<Output = Broken>,
{
    let stopping = transport.inner.tasks.stopping();
    let mut addresses = transport.inner.addresses.subscribe();
    let mut pause = FIRST_PAUSE;
    loop {
        let address = addresses.borrow_and_update().get(&node).cloned();
        let attempt = async {
            let Some(address) = &address else {
                return std::future::pending().await;
            };
            match channels.to(address) {
                Ok(channel) => run(channel).await,
                Err(error) => error.to_string(),
            }
        };
        let started = tokio::time::Instant::now();
        let moved = moves(&mut addresses, node, address.as_deref());
        tokio::select! {
            () = stopping.cancelled() => return,
            () = moved => pause = FIRST_PAUSE,
            broken = attempt => {
                if started.elapsed() > longest_pause {
                    pause = FIRST_PAUSE;
                }
                transport.inner.metrics.streams_broken.inc();
                tracing::debug!(%node, what, %broken, "raft stream broke");
                let jitter = transport.inner.ports.random.below(pause.as_micros() as u64 / 2 + 1);
                tokio::select! {
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(pause + Duration::from_micros(jitter)) => {}
                }
                pause = (pause * 2).min(longest_pause);
            }
        }
    }
}

/// Resolves when the node's address is another one.
async fn moves(
    addresses: &mut tokio::sync::watch::Receiver<BTreeMap<NodeId, String>>,
    node: NodeId,
    address: Option<&str>,
) {
    while addresses.changed().await.is_ok() {
        if addresses.borrow().get(&node).map(String::as_str) != address {
            return;
        }
    }
    std::future::pending().await
}

impl Peer {
    fn forget_connection(&self, what: &str) {
        if what == "entries" {
            self.outbox.disconnect();
        } else {
            self.beats.disconnect();
        }
    }
}

/// Marks a stream's queue as disconnected whatever way its future ends.
struct Disconnect<'a>(&'a Peer, &'static str);

impl Drop for Disconnect<'_> {
    fn drop(&mut self) {
        self.0.forget_connection(self.1);
    }
}

pub(super) fn broken(error: impl ToString) -> Broken {
    error.to_string()
}

/// Waits for the greeting's answer.
pub(super) async fn greeted<T>(answer: impl Future<Output = Result<T, tonic::Status>>) -> Result<T, Broken> {
    tokio::time::timeout(GREETING_DEADLINE, answer)
        .await
        .map_err(|_| broken("no answer to the greeting"))?
        .map_err(|status| status.message().to_owned())
}

async fn send_entries(transport: &Transport, peer: &Peer, channel: RpcChannel) -> Broken {
    let (send, queue) = mpsc::channel(SEND_AHEAD);
    let greeting = pb::ReplicateRequest {
        hello: Some(transport.hello(peer.node)),
        appends: Vec::new(),
    };
    if send.send(greeting).await.is_err() {
        return broken("the stream was closed");
    }
    let mut line = client(channel);
    let answer = greeted(line.replicate(ReceiverStream::new(queue))).await;
    let mut answers = match answer {
        Ok(response) => response.into_inner(),
        Err(why) => return why,
    };
    match greeted(answers.message()).await {
        Ok(Some(first)) if first.welcome.is_some() => {}
        Ok(_) => return broken("the node does not greet"),
        Err(why) => return why,
    }
    let _disconnect = Disconnect(peer, "entries");
    peer.outbox.connect();
    tokio::select! {
        why = write_entries(peer, &send) => why,
        why = read_results(peer, &mut answers) => why,
    }
}

async fn write_entries(peer: &Peer, send: &mpsc::Sender<pb::ReplicateRequest>) -> Broken {
    loop {
        peer.outbox.until_ready().await;
        let Ok(slot) = send.reserve().await else {
            return broken("the stream was closed");
        };
        let parts = peer.outbox.take_message();
        if !parts.is_empty() {
            slot.send(pb::ReplicateRequest {
                hello: None,
                appends: parts.into_iter().map(part_to_pb).collect(),
            });
        }
    }
}

async fn read_results(peer: &Peer, answers: &mut tonic::Streaming<pb::ReplicateResponse>) -> Broken {
    loop {
        let message = match answers.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return broken("the node ended the stream"),
            Err(status) => return status.message().to_owned(),
        };
        for result in message.results {
            match result_from_pb(result) {
                Ok((session, outcome)) => peer.outbox.deliver(session, outcome),
                Err(error) => return broken(error),
            }
        }
    }
}

async fn send_beats(transport: &Transport, peer: &Peer, channel: RpcChannel) -> Broken {
    let (send, queue) = mpsc::channel(SEND_AHEAD);
    let greeting = pb::HeartbeatRequest {
        hello: Some(transport.hello(peer.node)),
        number: 0,
        beats: Vec::new(),
    };
    if send.send(greeting).await.is_err() {
        return broken("the stream was closed");
    }
    let mut line = client(channel);
    let answer = greeted(line.heartbeat(ReceiverStream::new(queue))).await;
    let mut answers = match answer {
        Ok(response) => response.into_inner(),
        Err(why) => return why,
    };
    match greeted(answers.message()).await {
        Ok(Some(first)) if first.welcome.is_some() => {}
        Ok(_) => return broken("the node does not greet"),
        Err(why) => return why,
    }
    let _disconnect = Disconnect(peer, "heartbeats");
    peer.beats.connect();
    tokio::select! {
        why = write_beats(transport, peer, &send) => why,
        why = read_beat_results(peer, &mut answers) => why,
    }
}

async fn write_beats(
    transport: &Transport,
    peer: &Peer,
    send: &mpsc::Sender<pb::HeartbeatRequest>,
) -> Broken {
    loop {
        peer.beats.until_ready().await;
        tokio::time::sleep(transport.inner.options.heartbeat_coalesce).await;
        let Ok(slot) = send.reserve().await else {
            return broken("the stream was closed");
        };
        if let Some((number, beats)) = peer.beats.take_message() {
            slot.send(pb::HeartbeatRequest {
                hello: None,
                number,
                beats: beats.iter().map(beat_to_pb).collect(),
            });
        }
    }
}

fn beat_to_pb(beat: &Beat) -> pb::Beat {
    pb::Beat {
        address: Some(route_to_pb(beat.route)),
        vote: Some(vote_to_pb(&beat.head.vote)),
        previous: raft_id_to_pb(beat.head.previous.as_ref()),
        committed: raft_id_to_pb(beat.head.committed.as_ref()),
        quiesce: beat.quiesce,
    }
}

async fn read_beat_results(peer: &Peer, answers: &mut tonic::Streaming<pb::HeartbeatResponse>) -> Broken {
    loop {
        let message = match answers.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return broken("the node ended the stream"),
            Err(status) => return status.message().to_owned(),
        };
        let outcomes: Result<Vec<_>, _> = message.results.into_iter().map(beat_result_from_pb).collect();
        match outcomes {
            Ok(outcomes) => peer.beats.deliver(message.number, outcomes),
            Err(error) => return broken(error),
        }
    }
}
