//! No peer can crash or block a server, whatever it sends.

use std::time::Duration;

use ptah_rpc::{MessageBudget, Server, ServerOptions};
use ptah_types::ErrorKind;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;

use crate::support::*;

async fn public_server(options: ServerOptions) -> (MessageBudget, Fixture) {
    let budget = MessageBudget::new(128 << 20);
    let fixture = public(&budget, options, Probe::ok()).await;
    (budget, fixture)
}

async fn still_serves(fixture: &Fixture) {
    register(&fixture.public_channel(), "still there").await.unwrap();
    assert_eq!(fixture.metric("ptah_rpc_server_panics_total"), Some(0.0));
    assert_eq!(fixture.tasks.panics(), 0);
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_by_its_prefix_alone() {
    let (budget, fixture) = public_server(ServerOptions::public()).await;
    let mut client = RawClient::connect(&fixture).await;
    let (send, body) = pieces();
    // Only the prefix: the body stays open and nothing else ever comes.
    send.send(prefix(70 << 20).into()).unwrap();
    let answer = client.send(client.grpc(), body).await.unwrap();
    assert_eq!(answer.grpc_status, Some(Code::OutOfRange as i32));
    assert!(answer.message.contains("73400320"), "{answer:?}");
    assert_eq!(budget.in_use_bytes(), 0);
    still_serves(&fixture).await;
}

#[tokio::test]
async fn a_client_is_told_that_its_message_is_too_large() {
    let options = ServerOptions {
        max_message_bytes: 1 << 20,
        ..ServerOptions::public()
    };
    let (_, fixture) = public_server(options).await;
    let request = large_request(2 << 20);
    let refused = register_with(
        &fixture.public_channel(),
        request,
        PATIENCE,
        ptah_rpc::CallEffect::Write,
    )
    .await;
    assert_eq!(refused.unwrap_err().kind, ErrorKind::TooLarge);
    still_serves(&fixture).await;
}

#[tokio::test]
async fn an_internal_message_that_is_too_large_is_refused_by_its_prefix_alone() {
    let fixture = internal(Probe::ok()).await;
    let request = large_request(67 << 20);
    let refused = register_with(&fixture.channel(), request, PATIENCE, ptah_rpc::CallEffect::Write).await;
    assert_eq!(refused.unwrap_err().kind, ErrorKind::TooLarge);
    fixture.still_serves().await;
}

#[tokio::test]
async fn messages_that_are_cut_off_anywhere_are_answered_as_wrong() {
    let (budget, fixture) = public_server(ServerOptions::public()).await;
    let mut client = RawClient::connect(&fixture).await;
    let whole = framed(&request("cut"));
    for bytes in 0..whole.len() {
        let (send, body) = pieces();
        send.send(whole[..bytes].to_vec().into()).unwrap();
        drop(send);
        let answer = client.send(client.grpc(), body).await.unwrap();
        assert_ne!(answer.grpc_status, Some(0), "after {bytes} bytes");
        assert!(answer.grpc_status.is_some(), "after {bytes} bytes: {answer:?}");
    }
    until("the budget is free", || budget.in_use_bytes() == 0).await;
    still_serves(&fixture).await;
}

#[tokio::test]
async fn bytes_that_are_no_protobuf_are_answered_as_wrong() {
    let (_, fixture) = public_server(ServerOptions::public()).await;
    let mut client = RawClient::connect(&fixture).await;
    for garbage in [
        &[0xff; 40][..],
        &[0x0a, 0x7f, 0x00],
        &[0x08],
        &[0x12, 0x02, 0xc3, 0x28],
    ] {
        let (send, body) = pieces();
        let message = [prefix(garbage.len()), garbage.to_vec()].concat();
        send.send(message.into()).unwrap();
        drop(send);
        let answer = client.send(client.grpc(), body).await.unwrap();
        assert!(
            answer.grpc_status.is_some_and(|status| status != 0),
            "{garbage:?}: {answer:?}"
        );
    }
    still_serves(&fixture).await;
}

#[tokio::test]
async fn flags_of_compression_that_nobody_agreed_on_are_refused() {
    let (_, fixture) = public_server(ServerOptions::public()).await;
    let mut client = RawClient::connect(&fixture).await;
    for flag in [1, 2, 255] {
        let mut message = framed(&request("zip"));
        message[0] = flag;
        let (send, body) = pieces();
        send.send(message.into()).unwrap();
        drop(send);
        let answer = client.send(client.grpc(), body).await.unwrap();
        assert!(
            answer.grpc_status.is_some_and(|status| status != 0),
            "{flag}: {answer:?}"
        );
    }
    still_serves(&fixture).await;
}

#[tokio::test]
async fn other_content_and_unknown_methods_are_refused() {
    let (_, fixture) = public_server(ServerOptions::public()).await;
    let mut client = RawClient::connect(&fixture).await;
    let requests = [
        client.post(METHOD),
        client.post(METHOD).header("content-type", "application/json"),
        client.post(METHOD).header("content-type", "text/plain"),
        client
            .post("/nobody.Knows/This")
            .header("content-type", "application/grpc"),
        client.post("/").header("content-type", "application/grpc"),
        client
            .post("/ptah.control.v1.NodeService/Nonsense")
            .header("content-type", "application/grpc"),
    ];
    for request in requests {
        let (send, body) = pieces();
        send.send(b"{\"name\":\"x\"}".to_vec().into()).unwrap();
        drop(send);
        let answer = client.send(request, body).await.unwrap();
        let refused = answer.http != 200 || answer.grpc_status.is_some_and(|status| status != 0);
        assert!(refused, "{answer:?}");
    }
    still_serves(&fixture).await;
}

#[tokio::test]
async fn bytes_that_are_no_http2_end_their_connection_and_nothing_else() {
    let (_, fixture) = public_server(ServerOptions::public()).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let huge_frame = [&preface[..], &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1], &[0; 64]].concat();
    let garbage: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        &[0; 100],
        &[0xff; 100],
        b"PRI * HTTP/2.0\r\n\r\nSM",
        &huge_frame,
        &[&preface[..], b"not a frame at all, just text"].concat(),
    ];
    for bytes in garbage {
        let mut io = fixture.network.connect(&fixture.address()).await.unwrap();
        io.write_all(bytes).await.unwrap();
        io.shutdown().await.unwrap();
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(PATIENCE, io.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "the connection stayed open after {bytes:?}");
    }
    still_serves(&fixture).await;
    until("the connections are closed", || {
        fixture
            .metric("ptah_rpc_server_connections")
            .is_some_and(|open| open <= 1.0)
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let options = ServerOptions {
        handshake_timeout: Duration::from_millis(20),
        ..ServerOptions::public()
    };
    let (_, fixture) = public_server(options).await;
    let mut io = fixture.network.connect(&fixture.address()).await.unwrap();
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, io.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "the silent connection stayed open");
    still_serves(&fixture).await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_counted() {
    let options = ServerOptions {
        max_connections: 1,
        ..ServerOptions::public()
    };
    let (_, fixture) = public_server(options).await;
    let channel = fixture.public_channel();
    register(&channel, "first").await.unwrap();
    let mut second = fixture.network.connect(&fixture.address()).await.unwrap();
    let closed = tokio::time::timeout(PATIENCE, second.read(&mut [0; 1])).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    assert_eq!(
        fixture.metric("ptah_rpc_server_connections_refused_total"),
        Some(1.0)
    );
    register(&channel, "first again").await.unwrap();
}

#[tokio::test]
async fn calls_beyond_the_limit_are_refused_for_now() {
    let budget = MessageBudget::new(1 << 20);
    let options = ServerOptions {
        max_requests: 1,
        ..ServerOptions::public()
    };
    let started = std::sync::Arc::new(tokio::sync::Notify::new());
    let (seen, release) = (started.clone(), std::sync::Arc::new(tokio::sync::Notify::new()));
    let released = release.clone();
    let probe = Probe::new(move |_| {
        let (seen, released) = (seen.clone(), released.clone());
        async move {
            seen.notify_one();
            released.notified().await;
            Ok(())
        }
    });
    let fixture = public(&budget, options, probe).await;
    let channel = fixture.public_channel();
    let (first, second) = tokio::join!(register(&channel, "first"), async {
        started.notified().await;
        let second = register(&channel, "second").await;
        release.notify_one();
        second
    });
    first.unwrap();
    assert_eq!(second.unwrap_err().kind, ErrorKind::Exhausted);
}

#[tokio::test]
async fn headers_that_are_too_large_are_refused() {
    let (_, fixture) = public_server(ServerOptions::public()).await;
    let mut client = RawClient::connect(&fixture).await;
    let request = client.grpc().header("x-large", "x".repeat(20 << 10));
    let (send, body) = pieces();
    send.send(framed(&request_of_a_node()).into()).unwrap();
    drop(send);
    match client.send(request, body).await {
        Ok(answer) => assert_eq!(answer.http, 431, "{answer:?}"),
        Err(error) => assert!(!error.is_timeout(), "{error}"),
    }
    still_serves(&fixture).await;
}

fn request_of_a_node() -> ptah_proto::control::v1::RegisterNodeRequest {
    request("n")
}

#[tokio::test]
async fn a_client_without_the_secret_cannot_make_an_internal_port_read_its_message() {
    let fixture = start(Server::internal(secret()), Probe::ok(), tcp(), "127.0.0.1:0").await;
    let mut client = RawClient::connect(&fixture).await;
    let (send, body) = pieces();
    // Nothing of the promised 60 MiB is ever sent, and still there is an answer.
    send.send(prefix(60 << 20).into()).unwrap();
    let answer = client.send(client.grpc(), body).await.unwrap();
    assert_eq!(answer.grpc_status, Some(Code::Unauthenticated as i32));
    fixture.still_serves().await;
}
