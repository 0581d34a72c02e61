//! The contract of networks, for each of them.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// Everything that [`Network`] promises.
async fn keeps_the_contract(network: Arc<dyn Network>) {
    bytes_arrive_in_both_directions(&*network).await;
    port_0_gives_addresses_that_differ(&*network).await;
    an_address_is_taken_until_its_listener_is_dropped(&*network).await;
    an_address_where_nobody_listens_is_refused(&*network).await;
    a_dropped_accept_loses_no_connection(&*network).await;
    a_closed_connection_reads_as_ended(&*network).await;
}

async fn bytes_arrive_in_both_directions(network: &dyn Network) {
    let mut listener = network.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().to_string();
    let near = async {
        let mut io = network.connect(&address).await.unwrap();
        io.write_all(b"ping").await.unwrap();
        let mut answer = [0; 4];
        io.read_exact(&mut answer).await.unwrap();
        answer
    };
    let far = async {
        let (mut io, _) = listener.accept().await.unwrap();
        let mut question = [0; 4];
        io.read_exact(&mut question).await.unwrap();
        io.write_all(b"pong").await.unwrap();
        question
    };
    let (answer, question) = tokio::join!(near, far);
    assert_eq!((&question, &answer), (b"ping", b"pong"));
}

async fn port_0_gives_addresses_that_differ(network: &dyn Network) {
    let first = network.bind("127.0.0.1:0").await.unwrap();
    let second = network.bind("127.0.0.1:0").await.unwrap();
    assert_ne!(first.local_addr(), second.local_addr());
    assert_ne!(first.local_addr().port(), 0);
}

async fn an_address_is_taken_until_its_listener_is_dropped(network: &dyn Network) {
    let listener = network.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().to_string();
    let taken = bind(network, "grpc_listen", &address)
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(taken.source.kind(), io::ErrorKind::AddrInUse);
    assert!(taken.to_string().contains("setting `grpc_listen`"), "{taken}");
    drop(listener);
    network.bind(&address).await.unwrap();
}

async fn an_address_where_nobody_listens_is_refused(network: &dyn Network) {
    let listener = network.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().to_string();
    drop(listener);
    let error = network.connect(&address).await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

async fn a_dropped_accept_loses_no_connection(network: &dyn Network) {
    let mut listener = network.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().to_string();
    // Polled once and dropped.
    let polled = tokio::time::timeout(std::time::Duration::ZERO, listener.accept()).await;
    assert!(polled.is_err());
    let _near = network.connect(&address).await.unwrap();
    listener.accept().await.unwrap();
}

async fn a_closed_connection_reads_as_ended(network: &dyn Network) {
    let mut listener = network.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().to_string();
    let (near, accepted) = tokio::join!(network.connect(&address), listener.accept());
    drop(near.unwrap());
    let (mut io, _) = accepted.unwrap();
    assert_eq!(io.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn tcp_keeps_the_contract() {
    keeps_the_contract(Arc::new(TcpNetwork::new())).await;
}

#[tokio::test]
async fn pipes_keep_the_contract() {
    keeps_the_contract(Arc::new(InProcessNetwork::new())).await;
}

#[tokio::test]
async fn pipes_over_tcp_keep_the_contract() {
    let tcp = Arc::new(TcpNetwork::new());
    keeps_the_contract(Arc::new(InProcessNetwork::over(tcp))).await;
}

#[tokio::test]
async fn what_is_bound_over_tcp_is_reached_through_tcp_as_well() {
    let network = InProcessNetwork::over(Arc::new(TcpNetwork::new()));
    let mut listener = network.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().to_string();
    let tcp = TcpNetwork::new();
    let (near, accepted) = tokio::join!(tcp.connect(&address), listener.accept());
    near.unwrap();
    let (_, peer) = accepted.unwrap();
    assert_ne!(peer, listener.local_addr(), "came through the pipe");
}

#[tokio::test]
async fn what_is_not_bound_here_is_dialed_outside() {
    let mut outside = TcpNetwork::new().bind("127.0.0.1:0").await.unwrap();
    let address = outside.local_addr().to_string();
    let network = InProcessNetwork::over(Arc::new(TcpNetwork::new()));
    let (near, accepted) = tokio::join!(network.connect(&address), outside.accept());
    near.unwrap();
    accepted.unwrap();
}

#[tokio::test]
async fn pipes_know_localhost_and_addresses_bound_on_all_interfaces() {
    let network = InProcessNetwork::new();
    let mut listener = network.bind("0.0.0.0:6222").await.unwrap();
    for address in ["localhost:6222", "127.0.0.1:6222"] {
        let (near, accepted) = tokio::join!(network.connect(address), listener.accept());
        assert!(near.is_ok() && accepted.is_ok(), "{address}");
    }
    assert!(network.connect("10.0.0.1:6222").await.is_err());
}
