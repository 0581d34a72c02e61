//! What a proposal costs: nodes in one process on real files and sockets, closed loops of proposals.
//!
//! With nothing in flight it tells what idle groups cost.
//!
//! `cargo run --release -p ptah-raft --example proposal_cost -- <replicas> <groups> <in flight per group> <payload bytes> <seconds>`

#![allow(clippy::print_stdout, reason = "it is a program for people")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ptah_partition::{AppendHead, Batch, BatchBuilder, Decision, Door, MessageParts, Sequencer};
use ptah_raft::{HostOptions, HostParts, RaftHost, Replica, ReplicaSpec};
use ptah_rpc::{ClusterSecret, Network, Server, ServerHandle, TcpNetwork};
use ptah_segment_log::{Identity, OsDisk};
use ptah_service::{Metrics, Ports, Secret, Tasks};
use ptah_types::{
    ClusterId, NodeId, PartitionKey, PartitionNumber, RaftGroupId, ReplicaId, StationId, Timestamp,
};
use tokio::sync::mpsc;

struct Load {
    replicas: u64,
    groups: u64,
    in_flight: usize,
    bytes: usize,
    seconds: u64,
}

fn number(place: usize, default: u64) -> u64 {
    std::env::args()
        .nth(place)
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let load = Load {
        replicas: number(1, 1),
        groups: number(2, 1),
        in_flight: number(3, 16) as usize,
        bytes: number(4, 128) as usize,
        seconds: number(5, 5),
    };
    let dir = tempfile::tempdir_in(std::env::current_dir()?)?;
    let mut nodes = Vec::new();
    let mut peers = BTreeMap::new();
    for id in 1..=load.replicas {
        let (host, server) = start(id, dir.path().join(id.to_string())).await?;
        peers.insert(NodeId::new(id)?, server.local_addr().to_string());
        nodes.push((host, server));
    }
    for (host, _) in &nodes {
        host.set_peers(peers.clone());
    }
    for group in 1..=load.groups {
        for (place, (host, _)) in nodes.iter().enumerate() {
            host.ensure(spec(
                group,
                place as u64 + 1,
                load.replicas,
                group % load.replicas + 1,
            )?)?;
        }
    }
    if load.in_flight == 0 {
        return idle(&nodes, &load).await;
    }
    let count = Arc::new(AtomicU64::new(0));
    let latencies = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let cpu = cpu_seconds();
    let started = Instant::now();
    let deadline = started + Duration::from_secs(load.seconds);
    let mut writers = tokio::task::JoinSet::new();
    for group in 1..=load.groups {
        let replica = leader(&nodes, group).await?;
        let batch = batch(load.bytes)?;
        let (count, latencies) = (Arc::clone(&count), Arc::clone(&latencies));
        writers.spawn(write(replica, batch, load.in_flight, deadline, count, latencies));
    }
    while writers.join_next().await.is_some() {}
    let elapsed = started.elapsed().as_secs_f64();
    let cpu = cpu_seconds() - cpu;
    let done = count.load(Ordering::Relaxed);
    let mut latencies = std::mem::take(&mut *latencies.lock());
    latencies.sort_unstable();
    let at = |part: f64| {
        latencies
            .get((latencies.len() as f64 * part) as usize)
            .copied()
            .unwrap_or(0)
    };
    println!(
        "{done} proposals, {:.0}/s, {:.1} us of CPU each, p50 {} us, p99 {} us",
        done as f64 / elapsed,
        cpu * 1e6 / done as f64,
        at(0.5),
        at(0.99)
    );
    for (host, _) in &nodes {
        host.stop(Duration::from_secs(5)).await?;
    }
    Ok(())
}

async fn idle(nodes: &[(RaftHost, ServerHandle)], load: &Load) -> Result<(), Box<dyn std::error::Error>> {
    for group in 1..=load.groups {
        leader(nodes, group).await?;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let cpu = cpu_seconds();
    tokio::time::sleep(Duration::from_secs(load.seconds)).await;
    let share = (cpu_seconds() - cpu) / load.seconds as f64 * 100.0;
    println!("{} idle groups take {share:.1} % of a core", load.groups);
    Ok(())
}

async fn start(
    id: u64,
    data_dir: std::path::PathBuf,
) -> Result<(RaftHost, ServerHandle), Box<dyn std::error::Error>> {
    let network: Arc<dyn Network> = Arc::new(TcpNetwork::new());
    let secret = ClusterSecret::new(&Secret::new("a secret for measuring"))?;
    let tasks = Tasks::root();
    let parts = HostParts {
        disk: Arc::new(OsDisk),
        data_dir,
        identity: Identity {
            cluster: ClusterId::from_random_bytes([1; 16]),
            node: NodeId::new(id)?,
        },
        options: HostOptions::default(),
        ports: Ports::system(),
        network: Arc::clone(&network),
        secret: secret.clone(),
        tasks: tasks.clone(),
    };
    let host = RaftHost::open(parts, &Metrics::new()).await?;
    let listener = network.bind("127.0.0.1:0").await?;
    let server = Server::internal(secret)
        .add_service(host.transport_service())
        .serve(listener, &tasks);
    Ok((host, server))
}

fn spec(group: u64, own: u64, replicas: u64, first: u64) -> Result<ReplicaSpec, Box<dyn std::error::Error>> {
    let members = (1..=replicas)
        .map(|id| Ok((ReplicaId::new(id)?, NodeId::new(id)?)))
        .collect::<Result<Vec<_>, ptah_types::InvalidId>>()?;
    Ok(ReplicaSpec {
        key: PartitionKey {
            tenant: "default".parse()?,
            station: StationId::new(group)?,
            partition: PartitionNumber::FIRST,
        },
        group: RaftGroupId::new(group)?,
        replica: ReplicaId::new(own)?,
        members,
        opened: false,
        initialize: own == first,
        segment_bytes: 64 << 20,
    })
}

fn batch(bytes: usize) -> Result<Batch, Box<dyn std::error::Error>> {
    let payload = vec![7; bytes];
    let mut builder = BatchBuilder::new();
    builder.push(
        &MessageParts::new(Door::GRPC, "subject", &payload),
        std::iter::empty(),
    )?;
    builder.finish().ok_or_else(|| "an empty batch".into())
}

async fn leader(nodes: &[(RaftHost, ServerHandle)], group: u64) -> Result<Replica, ptah_types::InvalidId> {
    let group = RaftGroupId::new(group)?;
    loop {
        let found = nodes.iter().filter_map(|(host, _)| host.replica(group));
        if let Some(replica) = found.into_iter().find(|replica| replica.leadership().ready) {
            return Ok(replica);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn write(
    replica: Replica,
    batch: Batch,
    in_flight: usize,
    deadline: Instant,
    count: Arc<AtomicU64>,
    latencies: Arc<parking_lot::Mutex<Vec<u64>>>,
) {
    let term = replica.leadership().term;
    let mut sequencer = replica.with_partition(Sequencer::new);
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut waiting = 0;
    let mut own = Vec::new();
    while Instant::now() < deadline {
        while waiting < in_flight {
            sequencer.committed(replica.with_partition(|partition| partition.next_sequence()));
            let head = AppendHead {
                session: None,
                count: 1,
            };
            let Decision::Propose(stamp) = sequencer.accept(&head, Timestamp(1)) else {
                break;
            };
            let (tell, started) = (tell.clone(), Instant::now());
            let done = Box::new(move |result: Result<_, _>| {
                // The writer may be done.
                let _ = tell.send((result.is_ok(), started.elapsed().as_micros() as u64));
            });
            if replica
                .propose_batch(term, &stamp, batch.payload.clone(), batch.crc, done)
                .is_err()
            {
                return;
            }
            waiting += 1;
        }
        let Some((ok, micros)) = told.recv().await else {
            return;
        };
        waiting -= 1;
        if !ok {
            return;
        }
        count.fetch_add(1, Ordering::Relaxed);
        own.push(micros);
    }
    latencies.lock().extend(own);
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks: f64 = [11, 12]
        .iter()
        .filter_map(|place| fields.get(*place)?.parse::<f64>().ok())
        .sum();
    ticks / 100.0
}
