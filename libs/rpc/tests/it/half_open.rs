//! Peers that are there and say nothing: one that takes connections only, and one that fell silent later. Every kind of
//! client notices within the time that the operator is told.

use std::time::Duration;

use ptah_proto::storage::v1 as storage;
use ptah_rpc::clients::{
    ConsumerGroupRef, ListQuery, ManagementClient, MetadataClient, NodeClient, NodeRegistration,
    PartitionClient, PlacementOrder, ReplicaClient,
};
use ptah_rpc::records::RecordKind;
use ptah_rpc::{Channels, RpcChannel, RpcError};
use ptah_service::{BoxFuture, Tasks};
use ptah_types::{
    ConsumerGroupId, DISK_FORMAT, NodeId, PartitionKey, PartitionNumber, RaftGroupId, StationId, TenantName,
    WIRE_PROTOCOL,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::support::{Probe, internal, secret, tcp};

/// What the operator is told: a silent peer is found within 5 s. A busy machine adds to it.
const FOUND: Duration = Duration::from_secs(5);
const BUSY: Duration = Duration::from_secs(3);

type Call = (&'static str, BoxFuture<'static, Result<(), RpcError>>);

fn channel(address: &str) -> RpcChannel {
    Channels::new(tcp(), secret()).to(address).unwrap()
}

/// One call of every kind of client, streams included.
fn calls(channel: &RpcChannel) -> Vec<Call> {
    let metadata = MetadataClient::new(channel.clone());
    let (lister, watcher) = (metadata.clone(), metadata.clone());
    let management = ManagementClient::new(channel.clone());
    let replicas = ReplicaClient::new(channel.clone());
    let partitions = PartitionClient::new(channel.clone());
    let (appends, leaders, fetches) = (partitions.clone(), partitions.clone(), partitions.clone());
    let (delivers, acks) = (partitions.clone(), partitions);
    let nodes = NodeClient::new(channel.clone());
    vec![
        ("info", Box::pin(async move { metadata.info().await.map(drop) })),
        (
            "list",
            Box::pin(async move { lister.list(&ListQuery::all(RecordKind::Station)).await.map(drop) }),
        ),
        (
            "watch",
            Box::pin(async move { watcher.watch(0, 1, &[RecordKind::Station]).await.map(drop) }),
        ),
        (
            "describe nodes",
            Box::pin(async move {
                management
                    .describe_nodes(&"root".parse().unwrap())
                    .await
                    .map(drop)
            }),
        ),
        (
            "apply placement",
            Box::pin(async move {
                replicas
                    .apply_placement(&PlacementOrder::default())
                    .await
                    .map(drop)
            }),
        ),
        (
            "register",
            Box::pin(async move { nodes.register(&registration()).await.map(drop) }),
        ),
        (
            "append",
            Box::pin(async move { appends.append(tokio_stream::pending()).await.map(drop) }),
        ),
        (
            "deliver",
            Box::pin(async move { delivers.deliver(tokio_stream::pending()).await.map(drop) }),
        ),
        (
            "fetch",
            Box::pin(async move { fetches.fetch(storage::FetchRequest::default()).await.map(drop) }),
        ),
        (
            "watch leaders",
            Box::pin(async move { leaders.watch_leaders("test").await.map(drop) }),
        ),
        (
            "acknowledge",
            Box::pin(async move { acks.ack_messages(&group(), &[]).await }),
        ),
    ]
}

fn registration() -> NodeRegistration {
    NodeRegistration {
        node: NodeId::new(1).unwrap(),
        name: "storage-1".parse().unwrap(),
        address: "127.0.0.1:1".to_owned(),
        cluster: None,
        disk_id: "disk".to_owned(),
        wire: WIRE_PROTOCOL,
        disk: DISK_FORMAT,
        zone: String::new(),
        version: String::new(),
    }
}

fn group() -> ConsumerGroupRef {
    ConsumerGroupRef {
        partition: PartitionKey {
            tenant: TenantName::default_tenant(),
            station: StationId::new(1).unwrap(),
            partition: PartitionNumber::new(1).unwrap(),
        },
        group: RaftGroupId::new(1).unwrap(),
        consumer_group: ConsumerGroupId::new(1).unwrap(),
    }
}

/// All at once, so that the test takes as long as the slowest.
async fn every_call_fails_in_time(channel: &RpcChannel) {
    let began = Instant::now();
    let running = calls(channel).into_iter().map(|(name, call)| async move {
        let limited = tokio::time::timeout(FOUND + BUSY, call).await;
        let error = limited.unwrap_or_else(|_| panic!("{name} waits on")).unwrap_err();
        // Nothing is said that keeps callers from trying elsewhere.
        assert!(error.kind.is_retryable(), "{name}: {error:?}");
    });
    futures_util::future::join_all(running).await;
    assert!(began.elapsed() < FOUND + BUSY);
}

#[tokio::test]
async fn a_peer_that_only_takes_connections_is_found_by_every_client() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let tasks = Tasks::root();
    tasks.spawn("silent", async move {
        let mut taken = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            taken.push(stream);
        }
    });
    every_call_fails_in_time(&channel(&address)).await;
}

/// Passes bytes to and from `target` until told to pass none.
async fn relay(target: String, tasks: &Tasks) -> (String, watch::Sender<bool>) {
    let (silent, told) = watch::channel(false);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let owner = tasks.clone();
    tasks.spawn("relay", async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(&target).await.unwrap();
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = far.into_split();
            owner.spawn("there", pass(near_read, far_write, told.clone()));
            owner.spawn("back", pass(far_read, near_write, told.clone()));
        }
    });
    (address, silent)
}

async fn pass(
    from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    told: watch::Receiver<bool>,
) {
    let mut bytes = [0; 4_096];
    loop {
        if from.readable().await.is_err() {
            return;
        }
        let count = match from.try_read(&mut bytes) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => return,
        };
        // Both connections stay open, and nothing arrives any more.
        if !*told.borrow() && to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_found_by_every_client_and_by_open_streams() {
    let tasks = Tasks::root();
    let fixture = internal(Probe::ok()).await;
    let (address, silent) = relay(fixture.address(), &tasks).await;
    let channel = channel(&address);
    // The handshake is over, and a stream is open.
    let mut health = HealthClient::new(channel.clone());
    let mut told = health
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(told.message().await.unwrap().is_some());
    silent.send_replace(true);
    let began = Instant::now();
    let stream = tokio::time::timeout(FOUND + BUSY, told.message());
    let (ended, ()) = tokio::join!(stream, every_call_fails_in_time(&channel));
    let ended = ended.expect("the open stream waits on");
    assert!(ended.is_err() || matches!(ended, Ok(None)), "{ended:?}");
    assert!(began.elapsed() < FOUND + BUSY);
    // It answers again: the same channel makes a new connection by itself.
    silent.send_replace(false);
    let again = super::support::PATIENCE;
    let served = tokio::time::timeout(again, async {
        while health.check(HealthCheckRequest::default()).await.is_err() {
            tokio::task::yield_now().await;
        }
    });
    served.await.expect("the channel does not come back");
}
