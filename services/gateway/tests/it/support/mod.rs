//! A gateway between fakes of all other services, in one process and without ports.

pub(crate) mod control;
pub(crate) mod metadata;
pub(crate) mod node;
pub(crate) mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use argon2::{Argon2, PasswordHasher as _};
use ptah_gateway::{Config, Deps, Gateway};
use ptah_proto::api::v1 as api;
use ptah_proto::api::v1::cluster_service_client::ClusterServiceClient;
use ptah_proto::api::v1::message_service_client::MessageServiceClient;
use ptah_proto::api::v1::station_service_client::StationServiceClient;
use ptah_proto::control::v1::management_service_server::ManagementServiceServer;
use ptah_proto::metadata::v1::metadata_service_server::MetadataServiceServer;
use ptah_proto::storage::v1::partition_service_server::PartitionServiceServer;
use ptah_rpc::records::{NodeDuty, NodeRecord, RecordKey, RecordValue, UserRecord};
use ptah_rpc::{
    ChannelOptions, Channels, ClusterSecret, InProcessNetwork, MAX_RPC_MESSAGE_BYTES, Network, RpcChannel,
    Server, bind,
};
use ptah_service::{Health, Metrics, Ports, Secret, Tasks};
use ptah_types::{NodeId, Role, TenantName};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Request, Streaming};

use control::FakeControl;
use metadata::FakeMetadata;
use node::FakeNode;
use world::{Node, World};

pub(crate) const SECRET: &str = "a secret of sixteen characters and more";
/// root:memphis
pub(crate) const ROOT: &str = "Basic cm9vdDptZW1waGlz";
/// app:wrong
pub(crate) const APP: &str = "Basic YXBwOnBhc3N3b3Jk";
/// No wait in a test is longer; reached only when it fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

pub(crate) struct Cluster {
    pub(crate) world: World,
    pub(crate) metadata: FakeMetadata,
    pub(crate) control: FakeControl,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) tasks: Tasks,
    pub(crate) metrics: Metrics,
    pub(crate) health: Health,
    pub(crate) config: Config,
    gateway: Option<Gateway>,
    client: Client,
    address: String,
}

pub(crate) struct Builder {
    nodes: u64,
    config: Config,
    window_bytes: u64,
}

pub(crate) fn cluster() -> Builder {
    let mut config = Config {
        grpc_listen: "127.0.0.1:0".to_owned(),
        ..Config::default()
    };
    config.cluster.secret = Secret::new(SECRET.to_owned());
    Builder {
        nodes: 3,
        config,
        window_bytes: 0,
    }
}

impl Builder {
    pub(crate) fn config(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    pub(crate) fn window_bytes(mut self, bytes: u64) -> Self {
        self.window_bytes = bytes;
        self
    }

    pub(crate) async fn start(self) -> Cluster {
        let network: Arc<dyn Network> = Arc::new(InProcessNetwork::new());
        let tasks = Tasks::root();
        let secret = ClusterSecret::new(&Secret::new(SECRET.to_owned())).unwrap();
        let world = World::new();
        let metadata = FakeMetadata::new();
        for (name, password, role) in [("root", "memphis", Role::Root), ("app", "password", Role::Client)] {
            metadata.put(
                RecordKey::user(&TenantName::default_tenant(), &name.parse().unwrap()),
                RecordValue::User(UserRecord {
                    name: name.parse().unwrap(),
                    role,
                    password_hash: Secret::new(hash(password)),
                }),
            );
        }
        for id in 1..=self.nodes {
            let node = FakeNode {
                id,
                world: world.clone(),
                tasks: tasks.child("node"),
                window_bytes: self.window_bytes,
            };
            let service = PartitionServiceServer::new(node)
                .max_decoding_message_size(MAX_RPC_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_RPC_MESSAGE_BYTES);
            let address = serve(
                &*network,
                Server::internal(secret.clone()).add_service(service),
                &tasks,
            )
            .await;
            let known = Node {
                broken: watch::Sender::new(0),
                up: true,
            };
            world.with(|state| state.nodes.insert(id, known));
            let record = NodeRecord {
                node: NodeId::new(id).unwrap(),
                name: format!("node-{id}").parse().unwrap(),
                address,
                disk_id: String::new(),
                zone: String::new(),
                duty: NodeDuty::Serving,
            };
            metadata.put(
                RecordKey::node(NodeId::new(id).unwrap()),
                RecordValue::Node(record),
            );
        }
        let control = FakeControl {
            metadata: metadata.clone(),
            world: world.clone(),
            nodes: self.nodes,
            ids: Arc::new(AtomicU64::new(10)),
            down: watch::Sender::new(false),
            leaderless: watch::Sender::new(false),
            told: watch::Sender::new(|_| {}),
            deletions: Arc::default(),
        };
        let services =
            Server::internal(secret.clone()).add_service(MetadataServiceServer::new(metadata.clone()));
        let metadata_address = serve(&*network, services, &tasks).await;
        let services = Server::internal(secret).add_service(ManagementServiceServer::new(control.clone()));
        let control_address = serve(&*network, services, &tasks).await;
        let mut config = self.config;
        config.metadata_addresses.0 = vec![metadata_address];
        config.control_plane_addresses.0 = vec![control_address];
        let metrics = Metrics::new();
        let health = Health::new("gateway");
        let gateway = start_gateway(&config, &network, &tasks, &metrics, &health).await;
        let address = gateway.address.to_string();
        let channel = Channels::public(Arc::clone(&network)).to(&address).unwrap();
        Cluster {
            world,
            metadata,
            control,
            network,
            tasks,
            metrics,
            health,
            config,
            gateway: Some(gateway),
            client: Client { channel },
            address,
        }
    }
}

async fn start_gateway(
    config: &Config,
    network: &Arc<dyn Network>,
    tasks: &Tasks,
    metrics: &Metrics,
    health: &Health,
) -> Gateway {
    let deps = Deps {
        ports: Ports::seeded(7),
        network: Arc::clone(network),
        tasks: tasks.clone(),
        metrics: metrics.clone(),
        health: health.clone(),
    };
    let gateway = ptah_gateway::start(config.clone(), deps).await.unwrap();
    tokio::time::timeout(LIMIT, gateway.ready())
        .await
        .expect("the gateway becomes ready");
    gateway
}

async fn serve(network: &dyn Network, server: Server, tasks: &Tasks) -> String {
    let listener = bind(network, "test", "127.0.0.1:0").await.unwrap();
    server.serve(listener, tasks).local_addr().to_string()
}

fn hash(password: &str) -> String {
    // Cheap on purpose: tests sign in often.
    let cheap = argon2::Params::new(8, 1, 1, None).unwrap();
    let argon2 = Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, cheap);
    argon2.hash_password(password.as_bytes()).unwrap().to_string()
}

pub(crate) fn signed<T>(credentials: &'static str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("authorization", MetadataValue::from_static(credentials));
    request
}

pub(crate) fn message(payload: impl Into<Vec<u8>>) -> api::NewMessage {
    api::NewMessage {
        payload: payload.into().into(),
        ..api::NewMessage::default()
    }
}

pub(crate) fn keyed(key: &str, payload: impl Into<Vec<u8>>) -> api::NewMessage {
    api::NewMessage {
        key: Some(key.as_bytes().to_vec().into()),
        ..message(payload)
    }
}

/// Calls of one connection.
#[derive(Clone)]
pub(crate) struct Client {
    channel: RpcChannel,
}

impl std::ops::Deref for Cluster {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Client {
    pub(crate) fn messages(&self) -> MessageServiceClient<RpcChannel> {
        MessageServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_RPC_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_RPC_MESSAGE_BYTES)
    }

    pub(crate) fn stations(&self) -> StationServiceClient<RpcChannel> {
        StationServiceClient::new(self.channel.clone())
    }

    pub(crate) fn cluster(&self) -> ClusterServiceClient<RpcChannel> {
        ClusterServiceClient::new(self.channel.clone())
    }

    pub(crate) async fn produce(
        &self,
        station: &str,
        messages: Vec<api::NewMessage>,
    ) -> Vec<api::ProduceResult> {
        let request = api::ProduceRequest {
            tenant: String::new(),
            station: station.to_owned(),
            producer: "test".to_owned(),
            messages,
        };
        let produced = self.messages().produce(signed(ROOT, request)).await.unwrap();
        produced.into_inner().results
    }

    pub(crate) async fn produce_stream(&self, station: &str) -> ProduceStream {
        let (requests, sent) = mpsc::channel(64);
        let open = api::ProduceStreamOpen {
            tenant: String::new(),
            station: station.to_owned(),
            producer: "test".to_owned(),
        };
        requests
            .send(said(api::produce_stream_request::Request::Open(open)))
            .await
            .unwrap();
        let responses = self
            .messages()
            .produce_stream(signed(ROOT, ReceiverStream::new(sent)))
            .await
            .unwrap();
        ProduceStream {
            requests: Some(requests),
            responses: responses.into_inner(),
        }
    }

    pub(crate) async fn consume(&self, station: &str, group: &str, messages: u32) -> ConsumeStream {
        self.consume_with(station, group, messages, 0, 30_000).await
    }

    pub(crate) async fn consume_with(
        &self,
        station: &str,
        group: &str,
        messages: u32,
        bytes: u64,
        ack_deadline_ms: u32,
    ) -> ConsumeStream {
        let (requests, sent) = mpsc::channel(64);
        let open = api::ConsumeOpen {
            tenant: String::new(),
            station: station.to_owned(),
            group: group.to_owned(),
            config: Some(ptah_proto::common::v1::ConsumerGroupConfig {
                ack_deadline_ms,
                ..Default::default()
            }),
            partitions: Vec::new(),
            credit: Some(api::ConsumeCredit { messages, bytes }),
        };
        let open = api::consume_request::Request::Open(open);
        requests
            .send(api::ConsumeRequest { request: Some(open) })
            .await
            .unwrap();
        let responses = self
            .messages()
            .consume(signed(ROOT, ReceiverStream::new(sent)))
            .await
            .unwrap();
        ConsumeStream {
            requests: Some(requests),
            responses: responses.into_inner(),
        }
    }
}

impl Cluster {
    /// A client with small windows that shares its connection with nobody.
    pub(crate) fn on_own_connection(&self) -> Client {
        let options = ChannelOptions {
            stream_window_bytes: 64 << 10,
            connection_window_bytes: 64 << 10,
            ..ChannelOptions::default()
        };
        let channels = Channels::public(Arc::clone(&self.network)).with_options(options);
        Client {
            channel: channels.to(&self.address).unwrap(),
        }
    }

    /// Makes a station and returns the Raft groups of its partitions in order.
    pub(crate) async fn station(&self, name: &str, partitions: u32) -> Vec<u64> {
        let before = self
            .world
            .with(|state| state.groups.keys().copied().max().unwrap_or(0));
        let request = api::CreateStationRequest {
            tenant: String::new(),
            name: name.to_owned(),
            config: Some(api::StationConfig {
                partitions,
                replicas: 3,
                ..api::StationConfig::default()
            }),
        };
        self.stations()
            .create_station(signed(ROOT, request))
            .await
            .unwrap();
        self.world.with(|state| {
            state
                .groups
                .keys()
                .copied()
                .filter(|group| *group > before)
                .collect()
        })
    }

    /// Waits until the gateway takes no connections any more: it is stopping.
    pub(crate) fn closed_for_connections(&self) -> impl Future<Output = ()> + use<> {
        let (network, address) = (Arc::clone(&self.network), self.address.clone());
        let closed = async move {
            while network.connect(&address).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        async {
            let closed = tokio::time::timeout(LIMIT, closed).await;
            closed.expect("the gateway still takes connections");
        }
    }

    /// Stops the gateway.
    pub(crate) async fn stop_gateway(&mut self, limit: Duration) {
        self.gateway.take().unwrap().shut_down(limit).await.unwrap();
    }

    /// Starts a gateway anew, with nothing but its settings and files.
    pub(crate) async fn start_gateway(&mut self) {
        self.metrics = Metrics::new();
        self.health = Health::new("gateway");
        let gateway = start_gateway(
            &self.config,
            &self.network,
            &self.tasks,
            &self.metrics,
            &self.health,
        )
        .await;
        self.address = gateway.address.to_string();
        let channel = Channels::public(Arc::clone(&self.network))
            .to(&self.address)
            .unwrap();
        self.client = Client { channel };
        self.gateway = Some(gateway);
    }

    /// Value of a counter of the gateway.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let text = self.metrics.render();
        let line = text
            .lines()
            .find(|line| line.split([' ', '{']).next() == Some(name));
        let line = line.unwrap_or_else(|| panic!("counter {name} is not in\n{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

fn said(request: api::produce_stream_request::Request) -> api::ProduceStreamRequest {
    api::ProduceStreamRequest {
        request: Some(request),
    }
}

pub(crate) struct ProduceStream {
    pub(crate) requests: Option<mpsc::Sender<api::ProduceStreamRequest>>,
    pub(crate) responses: Streaming<api::ProduceStreamResponse>,
}

impl ProduceStream {
    pub(crate) async fn send(&self, messages: Vec<api::NewMessage>) {
        let batch = api::produce_stream_request::Request::Batch(api::ProduceStreamBatch { messages });
        self.requests.as_ref().unwrap().send(said(batch)).await.unwrap();
    }

    /// Ends the requests and returns what became of every message.
    pub(crate) async fn finish(mut self) -> BTreeMap<u64, api::ProduceResult> {
        self.requests = None;
        let mut results = BTreeMap::new();
        loop {
            let response = tokio::time::timeout(LIMIT, self.responses.message())
                .await
                .expect("every message is answered");
            let Some(response) = response.unwrap() else {
                return results;
            };
            if let Some(api::produce_stream_response::Response::Results(told)) = response.response {
                for result in told.results {
                    for offset in 0..u64::from(result.count) {
                        let single = single(&result, offset);
                        assert!(
                            results.insert(single.first, single).is_none(),
                            "a message is answered twice"
                        );
                    }
                }
            }
        }
    }
}

/// The result of one message out of a run.
pub(crate) fn single(result: &api::ProduceResult, offset: u64) -> api::ProduceResult {
    let mut single = result.clone();
    single.first += offset;
    single.count = 1;
    if let Some(api::produce_result::Outcome::Stored(stored)) = &mut single.outcome {
        stored.first_sequence += offset;
    }
    single
}

/// Partition and sequence of a stored message.
pub(crate) fn stored(result: &api::ProduceResult) -> (u32, u64) {
    match &result.outcome {
        Some(api::produce_result::Outcome::Stored(stored)) => (stored.partition, stored.first_sequence),
        other => panic!("not stored: {other:?}"),
    }
}

pub(crate) struct ConsumeStream {
    pub(crate) requests: Option<mpsc::Sender<api::ConsumeRequest>>,
    pub(crate) responses: Streaming<api::ConsumeResponse>,
}

impl ConsumeStream {
    pub(crate) async fn next(&mut self) -> api::consume_response::Response {
        let next = tokio::time::timeout(LIMIT, self.responses.message())
            .await
            .expect("the stream says something");
        next.unwrap().expect("the stream goes on").response.unwrap()
    }

    /// The error that ends the stream.
    pub(crate) async fn refused(&mut self) -> tonic::Status {
        loop {
            let next = tokio::time::timeout(LIMIT, self.responses.message()).await;
            match next.expect("the stream says something") {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without an error"),
                Err(status) => return status,
            }
        }
    }

    /// Takes messages until there are `count`.
    pub(crate) async fn take(&mut self, count: usize) -> Vec<api::Message> {
        let mut messages = Vec::new();
        while messages.len() < count {
            if let api::consume_response::Response::Batch(batch) = self.next().await {
                messages.extend(batch.messages);
            }
        }
        assert_eq!(
            messages.len(),
            count,
            "more messages came than there was credit for"
        );
        messages
    }

    pub(crate) async fn until_idle(&mut self) -> (Vec<api::Message>, u64) {
        let mut messages = Vec::new();
        loop {
            match self.next().await {
                api::consume_response::Response::Batch(batch) => messages.extend(batch.messages),
                api::consume_response::Response::Idle(idle) => return (messages, idle.unacknowledged),
                _ => {}
            }
        }
    }

    pub(crate) async fn credit(&self, messages: u32, bytes: u64) {
        let credit = api::ConsumeCredit { messages, bytes };
        self.say(api::consume_request::Request::Credit(credit)).await;
    }

    pub(crate) async fn ack(&self, message: &api::Message, confirm_id: u64) {
        let range = api::SequenceRange {
            first: message.sequence,
            last: message.sequence,
        };
        self.ack_ranges(message.partition, vec![range], confirm_id).await;
    }

    pub(crate) async fn ack_ranges(&self, partition: u32, ranges: Vec<api::SequenceRange>, confirm_id: u64) {
        let ack = api::ConsumeAck {
            partition,
            ranges,
            confirm_id,
        };
        self.say(api::consume_request::Request::Ack(ack)).await;
    }

    async fn say(&self, request: api::consume_request::Request) {
        let request = api::ConsumeRequest {
            request: Some(request),
        };
        self.requests.as_ref().unwrap().send(request).await.unwrap();
    }
}

/// Waits until `reached` is true, looking often.
pub(crate) async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let waiting = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting)
        .await
        .unwrap_or_else(|_| panic!("not reached: {what}"));
}
