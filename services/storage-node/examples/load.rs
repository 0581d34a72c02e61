//! Load on one node in this process, over gRPC on loopback, on a real disk: appends with a window, then a read of all of it
//! by a consumer group that acknowledges. `load [messages] [bytes per message] [messages per batch] [batches in flight]`.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measurement, not a product"
)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ptah_partition::{Batch, BatchBuilder, Door, MessageParts};
use ptah_proto::control::v1 as control;
use ptah_proto::control::v1::node_service_server::{NodeService, NodeServiceServer};
use ptah_proto::storage::v1 as pb;
use ptah_raft::HostOptions;
use ptah_rpc::clients::{ConsumerGroupRef, PlacementOrder, ReplicaSpec};
use ptah_rpc::records::ConsumerGroupConfig;
use ptah_rpc::{
    Channels, ClusterSecret, PartitionClient, ReplicaClient, Server, TcpNetwork, bind, wire_range,
};
use ptah_segment_log::OsDisk;
use ptah_service::{ClusterConfig, Health, List, Metrics, Ports, Secret, Tasks};
use ptah_storage_node::{Config, Deps, start};
use ptah_types::{
    ClusterId, ConsumerGroupId, NodeId, PartitionKey, PartitionNumber, RaftGroupId, ReplicaId, StartAt,
    StationId,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SECRET: &str = "a secret for measurements";

struct Load {
    messages: u64,
    message_bytes: usize,
    batch_messages: u64,
    in_flight: usize,
}

struct AnyNode;

#[tonic::async_trait]
impl NodeService for AnyNode {
    async fn register_node(
        &self,
        _: Request<control::RegisterNodeRequest>,
    ) -> Result<Response<control::RegisterNodeResponse>, Status> {
        Ok(Response::new(control::RegisterNodeResponse {
            cluster_id: ClusterId::from_random_bytes([1; 16]).to_string(),
            report_interval_ms: 1_000,
        }))
    }

    async fn report_node(
        &self,
        _: Request<control::ReportNodeRequest>,
    ) -> Result<Response<control::ReportNodeResponse>, Status> {
        Ok(Response::new(control::ReportNodeResponse { known: true }))
    }
}

fn key() -> PartitionKey {
    PartitionKey {
        tenant: "default".parse().unwrap(),
        station: StationId::new(1).unwrap(),
        partition: PartitionNumber::FIRST,
    }
}

fn group() -> RaftGroupId {
    RaftGroupId::new(1).unwrap()
}

fn main() {
    let arguments: Vec<u64> = std::env::args()
        .skip(1)
        .map(|word| word.parse().unwrap())
        .collect();
    let argument = |place: usize, default| arguments.get(place).copied().unwrap_or(default);
    let load = Load {
        messages: argument(0, 2_000_000),
        message_bytes: argument(1, 128) as usize,
        batch_messages: argument(2, 500),
        in_flight: argument(3, 2) as usize,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(measure(&load));
}

async fn measure(load: &Load) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let tasks = Tasks::root();
    let secret = ClusterSecret::new(&Secret::new(SECRET.to_owned())).unwrap();
    let listener = bind(&TcpNetwork::new(), "control", "127.0.0.1:0").await.unwrap();
    let plane = Server::internal(secret.clone()).add_service(NodeServiceServer::new(AnyNode));
    let plane = plane.serve(listener, &tasks);
    let config = Config {
        data_dir: dir.path().join("data"),
        grpc_listen: "127.0.0.1:0".to_owned(),
        control_plane_addresses: List(vec![plane.local_addr().to_string()]),
        cluster: ClusterConfig {
            secret: Secret::new(SECRET.to_owned()),
        },
        ..Config::default()
    };
    let deps = Deps {
        ports: Ports::system(),
        network: Arc::new(TcpNetwork::new()),
        tasks: tasks.clone(),
        metrics: Metrics::new(),
        health: Health::new("storage-node"),
        disk: Arc::new(OsDisk),
        host: HostOptions::default(),
    };
    let running = start(config, deps).await.unwrap();
    let channels = Channels::new(Arc::new(TcpNetwork::new()), secret);
    let channel = channels.to(&running.address().to_string()).unwrap();
    let client = PartitionClient::new(channel.clone());
    let order = order(&running.address().to_string());
    ReplicaClient::new(channel).apply_placement(&order).await.unwrap();
    while client.describe_partitions(&[group()]).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    append(&client, load).await;
    consume(&client, load).await;
    running.stop(Duration::from_secs(10)).await.unwrap();
}

fn order(address: &str) -> PlacementOrder {
    let (replica, node) = (ReplicaId::new(1).unwrap(), NodeId::new(1).unwrap());
    PlacementOrder {
        epoch: 1,
        revision: 1,
        peers: [(node, address.to_owned())].into(),
        ensure: vec![ReplicaSpec {
            partition: key(),
            group: group(),
            replica,
            members: vec![(replica, node)],
            opened: false,
            initialize: true,
            max_message_bytes: 8 << 20,
            generation: 1,
        }],
        remove: Vec::new(),
        ..PlacementOrder::default()
    }
}

fn batch(load: &Load) -> Batch {
    let payload = vec![7; load.message_bytes];
    let mut builder = BatchBuilder::new();
    for _ in 0..load.batch_messages {
        builder
            .push(&MessageParts::new(Door::GRPC, "orders", &payload), [])
            .unwrap();
    }
    builder.finish().unwrap()
}

fn partition_pb() -> Option<ptah_proto::common::v1::PartitionKey> {
    Some(ptah_proto::common::v1::PartitionKey {
        tenant: "default".to_owned(),
        station_id: 1,
        partition: 1,
    })
}

async fn append(client: &PartitionClient, load: &Load) {
    use pb::append_request::Request;
    let (requests, receiver) = mpsc::channel(1024);
    let mut responses = client.append(ReceiverStream::new(receiver)).await.unwrap();
    let say = async |request| {
        let request = pb::AppendRequest {
            request: Some(request),
        };
        requests.send(request).await.unwrap();
    };
    let hello = pb::AppendHello {
        session_id: 9,
        gateway: "load".to_owned(),
        wire: Some(wire_range()),
    };
    say(Request::Hello(hello)).await;
    let open = pb::AppendOpen {
        channel: 1,
        partition: partition_pb(),
        group_id: 1,
        generation: 1,
    };
    say(Request::Open(open)).await;
    let built = batch(load);
    let batches = load.messages / load.batch_messages;
    let (mut sent, mut answered) = (0, 0);
    let mut times = VecDeque::new();
    let mut latencies = Vec::new();
    let began = Instant::now();
    while answered < batches {
        while sent < batches && times.len() < load.in_flight {
            sent += 1;
            times.push_back(Instant::now());
            let request = pb::AppendBatch {
                channel: 1,
                number: sent,
                count: built.count,
                crc32c: built.crc,
                payload: built.payload.clone(),
                total_bytes: built.payload.len() as u32,
            };
            say(Request::Batch(request)).await;
        }
        let response = responses.message().await.unwrap().unwrap();
        for result in response.results {
            assert!(
                matches!(result.outcome, Some(pb::append_result::Outcome::Stored(_))),
                "{result:?}"
            );
            answered += 1;
            latencies.push(times.pop_front().unwrap().elapsed());
        }
    }
    let took = began.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    println!(
        "append   {} messages of {} B in batches of {}, {} in flight: {:.0} msg/s, {:.1} MB/s; batch p50 {:?} p99 {:?} max {:?}",
        load.messages,
        load.message_bytes,
        load.batch_messages,
        load.in_flight,
        (batches * load.batch_messages) as f64 / took,
        (batches * built.payload.len() as u64) as f64 / took / 1e6,
        at(0.5),
        at(0.99),
        at(1.0),
    );
}

async fn consume(client: &PartitionClient, load: &Load) {
    use pb::deliver_request::Request;
    let consumers = ConsumerGroupRef {
        partition: key(),
        group: group(),
        consumer_group: ConsumerGroupId::new(1).unwrap(),
    };
    let config = ConsumerGroupConfig {
        start: StartAt::First,
        ack_deadline_ms: 30_000,
        max_in_flight: 100_000,
    };
    client
        .ensure_group(&consumers, &"load".parse().unwrap(), &config)
        .await
        .unwrap();
    let (requests, receiver) = mpsc::channel(1024);
    let mut responses = client.deliver(ReceiverStream::new(receiver)).await.unwrap();
    let say = async |request| {
        let request = pb::DeliverRequest {
            request: Some(request),
        };
        requests.send(request).await.unwrap();
    };
    let hello = pb::DeliverHello {
        gateway: "load".to_owned(),
        wire: Some(wire_range()),
    };
    say(Request::Hello(hello)).await;
    let open = pb::DeliverOpen {
        pull_id: 1,
        group: Some((&consumers).into()),
        credit_messages: 20_000,
        credit_bytes: 16 << 20,
    };
    say(Request::Open(open)).await;
    let wanted = load.messages / load.batch_messages * load.batch_messages;
    let (mut received, mut deliveries) = (0, 0_u64);
    let began = Instant::now();
    while received < wanted {
        let response = responses.message().await.unwrap().unwrap();
        let Some(pb::deliver_response::Response::Delivery(part)) = response.response else {
            continue;
        };
        if part.offset as usize + part.payload.len() < part.total_bytes as usize {
            continue;
        }
        deliveries += 1;
        received += u64::from(part.count);
        let last = part.base_sequence + u64::from(part.count) - 1;
        let ranges = vec![pb::SequenceRange {
            first: part.base_sequence,
            last,
        }];
        say(Request::Ack(pb::DeliverAck {
            pull_id: 1,
            ranges,
            confirm_id: 0,
        }))
        .await;
        let more = pb::DeliverCredit {
            pull_id: 1,
            messages: part.count,
            bytes: u64::from(part.total_bytes),
        };
        say(Request::Credit(more)).await;
    }
    let took = began.elapsed().as_secs_f64();
    println!(
        "consume  {received} messages in {deliveries} deliveries: {:.0} msg/s",
        received as f64 / took
    );
}
