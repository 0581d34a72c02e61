//! Credentials, versions, errors and deadlines of calls.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ptah_rpc::{
    BoxIo, CallEffect, ChannelOptions, Channels, InProcessNetwork, Listener, MessageBudget, Network, Peer,
    RpcError, Server, ServerOptions,
};
use ptah_service::{BoxFuture, Health};
use ptah_types::{ErrorKind, NodeId};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::support::*;

fn budget() -> MessageBudget {
    MessageBudget::new(128 << 20)
}

#[tokio::test]
async fn callers_with_the_secret_are_served() {
    let fixture = internal(Probe::ok()).await;
    register(&fixture.channel(), "n").await.unwrap();
}

#[tokio::test]
async fn callers_with_another_secret_or_none_are_refused_before_the_handler() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let probe = Probe::new(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok(()) }
    });
    let fixture = internal(probe).await;
    let stranger = Channels::new(Arc::clone(&fixture.network), other_secret());
    for channel in [stranger.to(&fixture.address()).unwrap(), fixture.public_channel()] {
        let refused = register(&channel, "n").await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Unauthenticated);
        assert!(refused.message.contains("cluster.secret"), "{}", refused.message);
    }
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn callers_of_another_version_are_told_in_one_sentence() {
    let fixture = internal(Probe::ok()).await;
    let mut client = RawClient::connect(&fixture).await;
    let proof = proof_of_the_cluster().await;
    let request = client
        .grpc()
        .header("ptah-cluster-proof", proof)
        .header("ptah-wire", "7-9");
    let (_, body) = pieces();
    let answer = client.send(request, body).await.unwrap();
    assert_eq!(answer.grpc_status, Some(Code::FailedPrecondition as i32));
    let told = answer.message.replace("%20", " ").replace("%3B", ";");
    assert_eq!(
        told,
        concat!(
            "the caller speaks wire protocol 7-9 and this process (ptah ",
            env!("CARGO_PKG_VERSION"),
            ") 1-1; upgrade this process"
        )
    );
}

/// The header that channels of the cluster send, as a server of the cluster sees it.
async fn proof_of_the_cluster() -> String {
    let (seen, mut proofs) = tokio::sync::mpsc::unbounded_channel();
    let probe = Probe::new(move |request| {
        let proof = request.metadata().get("ptah-cluster-proof").unwrap();
        seen.send(proof.to_str().unwrap().to_owned()).unwrap();
        async { Ok(()) }
    });
    let fixture = internal(probe).await;
    register(&fixture.channel(), "n").await.unwrap();
    proofs.recv().await.unwrap()
}

#[tokio::test]
async fn every_kind_of_error_arrives_as_it_was_sent() {
    for kind in ErrorKind::ALL {
        let sent = RpcError::new(kind, format!("about {kind}, with ümlauts"))
            .with_leader(NodeId::new(3).unwrap(), "127.0.0.1:6222")
            .with_retry_after(Duration::from_millis(150));
        let error = sent.clone();
        let fixture = internal(Probe::new(move |_| {
            let status = Status::from(error.clone());
            async { Err(status) }
        }))
        .await;
        assert_eq!(register(&fixture.channel(), "n").await.unwrap_err(), sent);
    }
}

#[tokio::test]
async fn a_panic_is_answered_and_the_server_goes_on() {
    let fixture = internal(Probe::new(|request| async move {
        assert_ne!(request.into_inner().name, "panic", "on purpose");
        Ok(())
    }))
    .await;
    let error = register(&fixture.channel(), "panic").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Internal);
    assert!(
        !error.message.contains("on purpose"),
        "the panic's text left the process"
    );
    fixture.still_serves().await;
    assert_eq!(fixture.metric("ptah_rpc_server_panics_total"), Some(1.0));
}

#[tokio::test]
async fn the_deadline_reaches_the_server_which_drops_the_handler() {
    let (started, dropped) = tokio::sync::oneshot::channel::<()>();
    let slot = parking_lot::Mutex::new(Some(started));
    let fixture = internal(Probe::new(move |_| {
        let held = slot.lock().take();
        async move {
            std::future::pending::<()>().await;
            drop(held);
            Ok(())
        }
    }))
    .await;
    let mut client = RawClient::connect(&fixture).await;
    let proof = proof_of_the_cluster().await;
    let request = client
        .grpc()
        .header("ptah-cluster-proof", proof)
        .header("ptah-wire", "1-1")
        .header("grpc-timeout", "20m");
    let (send, body) = pieces();
    send.send(framed(&request_message()).into()).unwrap();
    drop(send);
    let answer = client.send(request, body).await.unwrap();
    assert_eq!(answer.grpc_status, Some(Code::DeadlineExceeded as i32));
    // The sender went with the handler.
    assert!(dropped.await.is_err());
}

fn request_message() -> ptah_proto::control::v1::RegisterNodeRequest {
    request("n")
}

#[tokio::test]
async fn a_late_answer_is_unknown_for_a_write_and_no_effect_for_a_read() {
    let fixture = internal(Probe::new(|_| std::future::pending())).await;
    let channel = fixture.channel();
    let deadline = Duration::from_millis(30);
    for (effect, expected) in [
        (CallEffect::Write, ErrorKind::OutcomeUnknown),
        (CallEffect::Read, ErrorKind::DeadlineExceeded),
    ] {
        let error = register_with(&channel, request("n"), deadline, effect)
            .await
            .unwrap_err();
        assert_eq!(error.kind, expected);
    }
}

#[tokio::test]
async fn a_malformed_deadline_is_refused() {
    let budget = budget();
    let fixture = public(&budget, ServerOptions::public(), Probe::ok()).await;
    let mut client = RawClient::connect(&fixture).await;
    let request = client.grpc().header("grpc-timeout", "soon");
    let (_, body) = pieces();
    let answer = client.send(request, body).await.unwrap();
    assert_eq!(answer.grpc_status, Some(Code::InvalidArgument as i32));
}

#[tokio::test]
async fn a_refused_connection_certainly_had_no_effect() {
    let fixture = internal(Probe::ok()).await;
    let channel = fixture.channel();
    fixture.server.stop(PATIENCE).await.unwrap();
    let error = register(&channel, "n").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains(&fixture.address()), "{}", error.message);
}

/// A network on which nothing ever answers.
struct BlackHole;

impl Network for BlackHole {
    fn connect<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<BoxIo>> {
        Box::pin(std::future::pending())
    }
    fn bind<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn a_connection_that_is_never_made_is_given_up_without_effect() {
    let options = ChannelOptions {
        connect_timeout: Duration::from_millis(20),
        ..ChannelOptions::default()
    };
    let channels = Channels::new(Arc::new(BlackHole), secret()).with_options(options);
    let channel = channels.to("10.0.0.1:1").unwrap();
    let error = register(&channel, "n").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("10.0.0.1:1"), "{}", error.message);
}

#[tokio::test]
async fn a_connection_that_breaks_during_a_write_leaves_its_outcome_unknown() {
    let started = Arc::new(tokio::sync::Notify::new());
    let seen = Arc::clone(&started);
    let fixture = internal(Probe::new(move |_| {
        seen.notify_one();
        std::future::pending()
    }))
    .await;
    let channel = fixture.channel();
    let (answer, ()) = tokio::join!(register(&channel, "n"), async {
        started.notified().await;
        fixture.server.stop(Duration::ZERO).await.unwrap_err();
    });
    assert_eq!(answer.unwrap_err().kind, ErrorKind::OutcomeUnknown);
}

#[tokio::test]
async fn services_in_one_process_reach_each_other_without_a_port() {
    let network = Arc::new(InProcessNetwork::new());
    let fixture = start(Server::internal(secret()), Probe::ok(), network, "127.0.0.1:6224").await;
    register(&fixture.channel(), "n").await.unwrap();
    let tcp = ptah_rpc::TcpNetwork::new().connect("127.0.0.1:6224").await;
    assert!(tcp.is_err(), "a port was opened");
}

#[tokio::test]
async fn handlers_know_where_a_call_comes_from() {
    let fixture = internal(Probe::new(|request| {
        let peer = request.extensions().get::<Peer>().copied();
        async move {
            let Peer(address) = peer.ok_or_else(|| Status::internal("unknown"))?;
            assert!(address.ip().is_loopback());
            Ok(())
        }
    }))
    .await;
    register(&fixture.channel(), "n").await.unwrap();
}

#[tokio::test]
async fn health_is_that_of_the_process_and_needs_the_secret_on_an_internal_port() {
    let health = Health::new("test");
    let component = health.component("routing");
    let server = Server::internal(secret()).health(&health);
    let fixture = start(server, Probe::ok(), tcp(), "127.0.0.1:0").await;
    let mut client = HealthClient::new(fixture.channel());
    let check = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    let mut updates = client.watch(check("")).await.unwrap().into_inner();
    let mut status = async || updates.message().await.unwrap().unwrap().status();
    while status().await != ServingStatus::NotServing {}
    component.ready();
    while status().await != ServingStatus::Serving {}
    let named = client.check(check("ptah.control.v1.NodeService")).await;
    assert_eq!(named.unwrap().into_inner().status(), ServingStatus::Serving);
    let refused = HealthClient::new(fixture.public_channel()).check(check("")).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn health_and_reflection_of_a_public_port_are_open_and_tell_only_what_is_served() {
    let fixture = public(&budget(), ServerOptions::public(), Probe::ok()).await;
    let mut health = HealthClient::new(fixture.public_channel());
    let request = HealthCheckRequest::default();
    // The reporting task says so a moment after the start.
    let mut updates = health.watch(request).await.unwrap().into_inner();
    while updates.message().await.unwrap().unwrap().status() != ServingStatus::Serving {}
    let mut reflection = ServerReflectionClient::new(fixture.public_channel());
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers = reflection
        .server_reflection_info(tokio_stream::once(list))
        .await
        .unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(listed)) = answer.message_response else {
        panic!("no list: {answer:?}");
    };
    let mut names: Vec<_> = listed.service.into_iter().map(|service| service.name).collect();
    names.sort();
    assert_eq!(names, ["grpc.health.v1.Health", "ptah.control.v1.NodeService"]);
}

#[tokio::test]
async fn calls_are_counted_by_service_and_outcome_and_strangers_make_no_labels() {
    let fixture = internal(Probe::new(|request| async move {
        match request.into_inner().name.as_str() {
            "bad" => Err(Status::not_found("x")),
            _ => Ok(()),
        }
    }))
    .await;
    register(&fixture.channel(), "good").await.unwrap();
    register(&fixture.channel(), "bad").await.unwrap_err();
    register(&fixture.public_channel(), "good").await.unwrap_err();
    let mut client = RawClient::connect(&fixture).await;
    let (_, body) = pieces();
    client
        .send(client.post("/made.up.Service/Call"), body)
        .await
        .unwrap();
    let count = |service: &str, outcome: &str| {
        fixture.metric(&format!(
            "ptah_rpc_server_calls_total{{service=\"{service}\",outcome=\"{outcome}\"}}"
        ))
    };
    let service = "ptah.control.v1.NodeService";
    assert_eq!(count(service, "answered"), Some(1.0));
    assert_eq!(count(service, "failed"), Some(1.0));
    assert_eq!(count(service, "refused"), Some(1.0));
    assert_eq!(count("other", "refused"), Some(1.0));
    assert!(!fixture.metrics.render().contains("made.up"));
}
