//! Stops that finish what was accepted, and channels that come back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ptah_rpc::{Channels, InProcessNetwork, Network, Server, retry};
use ptah_rpc::{RetryPolicy, RpcError};
use ptah_service::SeededRandom;
use ptah_types::ErrorKind;
use tokio::sync::Notify;

use crate::support::*;

/// A probe that tells when it was called and answers when it is let go.
fn held() -> (Arc<Notify>, Arc<Notify>, Probe) {
    let (called, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (Arc::clone(&called), Arc::clone(&go));
    let probe = Probe::new(move |_| {
        let (tell, wait) = (Arc::clone(&tell), Arc::clone(&wait));
        async move {
            tell.notify_one();
            wait.notified().await;
            Ok(())
        }
    });
    (called, go, probe)
}

#[tokio::test]
async fn a_stop_finishes_accepted_calls_and_takes_no_new_ones() {
    let (called, go, probe) = held();
    let fixture = internal(probe).await;
    let channel = fixture.channel();
    let call = register(&channel, "accepted");
    let stop = async {
        called.notified().await;
        let stopping = fixture.server.stop(PATIENCE);
        let refused = async {
            until("nobody accepts connections", || {
                fixture.tasks.unfinished().len() == 2
            })
            .await;
            let late = fixture.network.connect(&fixture.address()).await;
            assert!(late.is_err(), "a connection was accepted while stopping");
            go.notify_one();
        };
        tokio::join!(stopping, refused).0
    };
    let (answer, stopped) = tokio::join!(call, stop);
    answer.unwrap();
    stopped.unwrap();
    assert!(fixture.tasks.unfinished().is_empty());
}

#[tokio::test]
async fn a_stop_ends_by_its_deadline_and_names_what_was_cut_off() {
    let (called, _never, probe) = held();
    let fixture = internal(probe).await;
    let channel = fixture.channel();
    let deadline = Duration::from_millis(50);
    let (answer, stopped) = tokio::join!(register(&channel, "stuck"), async {
        called.notified().await;
        let began = Instant::now();
        let stopped = fixture.server.stop(deadline).await;
        (stopped, began.elapsed())
    });
    assert_eq!(answer.unwrap_err().kind, ErrorKind::OutcomeUnknown);
    let (stopped, took) = stopped;
    let names = stopped.unwrap_err().names;
    assert!(names.contains(&"grpc-server/call".to_owned()), "{names:?}");
    assert!(took >= deadline && took < PATIENCE, "{took:?}");
    assert!(fixture.tasks.unfinished().is_empty());
}

#[tokio::test]
async fn stopping_the_owner_stops_the_server() {
    let fixture = internal(Probe::ok()).await;
    register(&fixture.channel(), "n").await.unwrap();
    fixture.tasks.stop(PATIENCE).await.unwrap();
    assert!(fixture.network.connect(&fixture.address()).await.is_err());
}

async fn comes_back(network: Arc<dyn Network>) {
    let first = start(
        Server::internal(secret()),
        Probe::ok(),
        Arc::clone(&network),
        "127.0.0.1:0",
    )
    .await;
    let address = first.address();
    let channel = Channels::new(Arc::clone(&network), secret())
        .to(&address)
        .unwrap();
    register(&channel, "before").await.unwrap();
    first.server.stop(PATIENCE).await.unwrap();
    let down = register(&channel, "while it is down").await.unwrap_err();
    assert_eq!(down.kind, ErrorKind::Unavailable);
    let _second = start(Server::internal(secret()), Probe::ok(), network, &address).await;
    // The very next call connects again: no restart of the client, no waiting.
    register(&channel, "after").await.unwrap();
}

#[tokio::test]
async fn a_channel_comes_back_after_its_server_over_tcp() {
    comes_back(tcp()).await;
}

#[tokio::test]
async fn a_channel_comes_back_after_its_server_within_a_process() {
    comes_back(Arc::new(InProcessNetwork::new())).await;
}

#[tokio::test]
async fn a_channel_comes_back_after_its_server_was_killed() {
    let network = tcp();
    let first = start(
        Server::internal(secret()),
        Probe::ok(),
        Arc::clone(&network),
        "127.0.0.1:0",
    )
    .await;
    let address = first.address();
    let channel = Channels::new(Arc::clone(&network), secret())
        .to(&address)
        .unwrap();
    register(&channel, "before").await.unwrap();
    // Cut off without a word to the client.
    let _ = first.server.stop(Duration::ZERO).await;
    let _second = start(Server::internal(secret()), Probe::ok(), network, &address).await;
    let policy = RetryPolicy {
        idempotent: true,
        deadline: PATIENCE,
        ..RetryPolicy::default()
    };
    let random = SeededRandom::new(1);
    let answer: Result<(), RpcError> = retry(&policy, &random, |_| register(&channel, "after")).await;
    answer.unwrap();
}

#[tokio::test]
async fn channels_are_shared_by_address_until_they_are_forgotten() {
    let fixture = internal(Probe::ok()).await;
    let channels = Channels::new(tcp(), secret());
    for _ in 0..5 {
        register(&channels.to(&fixture.address()).unwrap(), "n")
            .await
            .unwrap();
    }
    assert_eq!(fixture.metric("ptah_rpc_server_connections"), Some(1.0));
    channels.forget(&fixture.address());
    until("the connection is closed", || {
        fixture.metric("ptah_rpc_server_connections") == Some(0.0)
    })
    .await;
}
