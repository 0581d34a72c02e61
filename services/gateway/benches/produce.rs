//! CPU per message from a decoded request to its results, with a partition that answers at once.
//!
//! Everything of the gateway is in it except sockets: decoding and encoding of the public messages, choice of partition,
//! batches with their checksums, pipeline, answers. Run with `cargo bench -p ptah-gateway`.

#![allow(clippy::print_stdout, reason = "the figures are the purpose")]
#![allow(clippy::unwrap_used, reason = "a benchmark may fail")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use prost::Message as _;
use ptah_gateway::append::link::{AppendAnswer, AppendEvent, AppendEvents, AppendTransport};
use ptah_gateway::append::pipeline::StoredAt;
use ptah_gateway::append::queue::{AppendFrame, FrameStream};
use ptah_gateway::append::{AppendParts, AppendSettings, Appends};
use ptah_gateway::catalog::{Catalog, CatalogView};
use ptah_gateway::metrics::{AppendMetrics, ProduceMetrics};
use ptah_gateway::produce::{InFlightLimit, NewMessage, Producer};
use ptah_gateway::routing::{Claim, Routing};
use ptah_partition::Door;
use ptah_proto::api::v1 as pb;
use ptah_rpc::RpcError;
use ptah_rpc::records::{
    NodeDuty, NodeRecord, PlacementRecord, Record, RecordKey, RecordValue, StationRecord,
};
use ptah_service::{SeededRandom, Tasks};
use ptah_types::{
    NodeId, PartitionKey, PartitionNumber, Principal, RaftGroupId, ReplicaCount, ReplicaId, Role, SessionId,
    StationId, StationKind, Storage, TenantName, Timestamp,
};

const PARTITIONS: u32 = 3;
const PER_REQUEST: usize = 500;

/// A node that stores nothing and says that it did.
struct Echo;

impl AppendTransport for Echo {
    fn open(
        &self,
        _address: String,
        _session: SessionId,
        frames: FrameStream,
    ) -> BoxFuture<'_, Result<Box<dyn AppendEvents>, RpcError>> {
        let events = EchoEvents {
            frames,
            greeted: false,
            next_sequence: 1,
        };
        Box::pin(async move { Ok(Box::new(events) as Box<dyn AppendEvents>) })
    }
}

struct EchoEvents {
    frames: FrameStream,
    greeted: bool,
    next_sequence: u64,
}

impl AppendEvents for EchoEvents {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<AppendEvent, RpcError>>> {
        Box::pin(async move {
            if !std::mem::replace(&mut self.greeted, true) {
                return Some(Ok(AppendEvent::default()));
            }
            loop {
                let frame = self.frames.next().await?;
                if let AppendFrame::Batch {
                    channel,
                    number,
                    count,
                    ..
                } = frame
                {
                    let stored = StoredAt {
                        base_sequence: self.next_sequence,
                        timestamp_ns: 1,
                        duplicate: false,
                    };
                    self.next_sequence += u64::from(count);
                    let answer = AppendAnswer {
                        channel,
                        number,
                        outcome: Ok(stored),
                    };
                    return Some(Ok(AppendEvent {
                        window_bytes: None,
                        answers: vec![answer],
                    }));
                }
            }
        })
    }
}

fn record(key: RecordKey, value: RecordValue) -> Record {
    Record {
        key,
        revision: 1,
        created_revision: 1,
        deleted: false,
        value,
    }
}

fn catalog() -> Catalog {
    let tenant = TenantName::default_tenant();
    let (station, node) = (StationId::new(1).unwrap(), NodeId::new(1).unwrap());
    let mut view = CatalogView::default();
    let orders = StationRecord {
        id: station,
        name: "orders".parse().unwrap(),
        kind: StationKind::Station,
        partitions: PARTITIONS,
        replicas: ReplicaCount::ONE,
        storage: Storage::File,
        max_message_bytes: 8 << 20,
        created_at: Timestamp(0),
        generation: 1,
    };
    view.apply(record(
        RecordKey::station(&tenant, &orders.name, orders.kind),
        RecordValue::Station(orders),
    ));
    for number in 1..=PARTITIONS {
        let partition = PartitionKey {
            tenant: tenant.clone(),
            station,
            partition: PartitionNumber::new(number).unwrap(),
        };
        let placement = PlacementRecord {
            partition: partition.clone(),
            group: RaftGroupId::new(number.into()).unwrap(),
            replicas: Vec::new(),
            next_replica: ReplicaId::new(1).unwrap(),
            initialized: true,
            retired: Vec::new(),
        };
        view.apply(record(
            RecordKey::placement(&partition),
            RecordValue::Placement(placement),
        ));
    }
    let storage = NodeRecord {
        node,
        name: "node".parse().unwrap(),
        address: "echo".to_owned(),
        disk_id: String::new(),
        zone: String::new(),
        duty: NodeDuty::Serving,
    };
    view.apply(record(RecordKey::node(node), RecordValue::Node(storage)));
    let catalog = Catalog::new();
    catalog.replace(view, 1, 1);
    catalog
}

fn producer(tasks: &Tasks) -> Producer {
    let (catalog, routing) = (catalog(), Routing::new());
    let node = NodeId::new(1).unwrap();
    let claim = Claim {
        term: 1,
        leader: Some(node),
        ready: true,
    };
    let claims: Vec<_> = (1..=PARTITIONS)
        .map(|group| (RaftGroupId::new(group.into()).unwrap(), claim))
        .collect();
    routing.told(node, true, &claims);
    let appends = Appends::new(AppendParts {
        settings: AppendSettings {
            window_batches: 4,
            deadline: Duration::from_secs(30),
            backlog_bytes: 64 << 20,
        },
        routing,
        catalog: catalog.clone(),
        transport: Arc::new(Echo),
        random: Arc::new(SeededRandom::new(1)),
        metrics: AppendMetrics::default(),
        tasks: tasks.clone(),
    });
    let limit = InFlightLimit {
        messages: 16_384,
        bytes: 32 << 20,
    };
    Producer::new(catalog, appends, ProduceMetrics::default(), limit)
}

fn request(with_key: bool) -> bytes::Bytes {
    let message = |n: usize| pb::NewMessage {
        payload: vec![n as u8; 128].into(),
        key: with_key.then(|| format!("key-{}", n % 64).into_bytes().into()),
        ..pb::NewMessage::default()
    };
    let batch = pb::ProduceStreamBatch {
        messages: (0..PER_REQUEST).map(message).collect(),
    };
    batch.encode_to_vec().into()
}

fn new_message(message: pb::NewMessage) -> NewMessage {
    NewMessage {
        payload: message.payload,
        headers: message
            .headers
            .into_iter()
            .map(|header| (header.name, header.value))
            .collect(),
        key: message.key,
        partition: message.partition,
        subject: message.subject,
        message_id: message.message_id,
    }
}

async fn measure(name: &str, with_key: bool) {
    let tasks = Tasks::root();
    let producer = producer(&tasks);
    let principal = Principal {
        user: "root".parse().unwrap(),
        role: Role::Root,
    };
    let (tenant, station) = (TenantName::default_tenant(), "orders".parse().unwrap());
    let mut call = producer
        .open(&principal, &tenant, &station, "bench", Door::GRPC)
        .await
        .unwrap();
    let replies = Arc::clone(call.replies());
    let results = Arc::new(Mutex::new(VecDeque::new()));
    let reader = {
        let results = Arc::clone(&results);
        tasks.spawn("results", async move {
            while let Some(Ok(taken)) = std::future::poll_fn(|cx| replies.poll_take(cx)).await {
                results.lock().push_back(taken.len());
            }
        })
    };
    let body = request(with_key);
    let (begin, cpu_begin) = (Instant::now(), cpu_nanos());
    let mut messages = 0;
    while begin.elapsed() < Duration::from_secs(3) {
        for _ in 0..20 {
            let batch = pb::ProduceStreamBatch::decode(body.clone()).unwrap();
            call.submit(batch.messages.into_iter().map(new_message).collect(), None)
                .await
                .unwrap();
            messages += PER_REQUEST;
        }
    }
    call.replies().finish();
    reader.finished().await;
    let nanos = (cpu_nanos() - cpu_begin) as f64 / messages as f64;
    let joined: usize = results.lock().iter().sum();
    println!(
        "{name}: {nanos:.0} ns per message, {:.1} messages per result",
        messages as f64 / joined as f64
    );
    drop(tasks.stop(Duration::from_secs(1)).await);
}

/// CPU time of this process so far.
fn cpu_nanos() -> u64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

fn main() {
    // One thread, so that its CPU time is that of the process.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        measure("128 B without key", false).await;
        measure("128 B with keys over 3 partitions", true).await;
    });
}
