//! A cluster inside the simulation: metadata, control plane, three storage nodes, a gateway, and a client that checks.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ptah_metadata::store::MemoryStore;
use ptah_segment_log::SimDisk;
use ptah_service::{Blocking, ClusterConfig, Health, Metrics, Ports, Random, Secret, SeededRandom, Tasks};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::clock::SimClock;
use crate::faults::Faults;
use crate::network::{SimNetwork, Wires};
use crate::trace::Trace;
use crate::workload;

/// Storage nodes of the simulated cluster.
pub(crate) const NODES: u64 = 3;
/// Longest run, in simulated time.
const LIMIT: Duration = Duration::from_secs(600);

/// Every so many simulated milliseconds the trace gets a fingerprint of the traffic.
const FINGERPRINT_STEPS: u64 = 250;

/// What a run ended with.
#[derive(Debug)]
pub struct Outcome {
    /// Messages that were acknowledged.
    pub acknowledged: usize,
    /// Messages of which the gateway could not say whether they are stored.
    pub unknown: usize,
    /// Messages whose answers were lost with their gateway.
    pub unanswered: usize,
    /// Faults that were done.
    pub faults: usize,
}

/// What survives a crash of a storage node's process, and what tells it from its siblings.
pub(crate) struct NodeState {
    pub(crate) disk: SimDisk,
    pub(crate) clock: Arc<SimClock>,
    pub(crate) wires: Arc<Wires>,
}

/// What faults can be done to.
pub(crate) struct Hosts {
    pub(crate) nodes: Vec<NodeState>,
    pub(crate) control: Arc<Wires>,
    pub(crate) metadata: Arc<Wires>,
    pub(crate) gateway: Arc<Wires>,
}

/// Random source of one host: other hosts' use of theirs does not change it.
fn ports(seed: u64, host: u64, clock: Arc<SimClock>) -> Ports {
    let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(host);
    Ports {
        clock,
        random: Arc::new(SeededRandom::new(seed)),
        blocking: Blocking::Inline,
    }
}

fn cluster() -> ClusterConfig {
    ClusterConfig {
        secret: Secret::new("simulation-secret-0123456789".to_owned()),
    }
}

/// Runs a cluster under faults, and notes in `trace` what happens. Everything follows from `seed`.
pub fn run(seed: u64, trace: &Trace) -> anyhow::Result<Outcome> {
    run_on(seed, trace, Disks::Honest)
}

/// What the disks of the storage nodes do when they are asked to sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disks {
    /// What they are asked for.
    Honest,
    /// Nothing, and say that it is done. A run that goes well on them shows that it would not notice a lost message.
    Lying,
}

/// Like [`run`], on disks of a kind.
pub fn run_on(seed: u64, trace: &Trace, disks: Disks) -> anyhow::Result<Outcome> {
    let _guard: DefaultGuard =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(trace.clone()));
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(LIMIT)
        .tick_duration(Duration::from_millis(1))
        .min_message_latency(Duration::from_micros(200))
        .max_message_latency(Duration::from_millis(3))
        .tcp_capacity(4_096)
        .build();
    let nodes: Vec<NodeState> = (0..NODES)
        .map(|node| NodeState {
            disk: SimDisk::new(seed ^ (node + 1)),
            // Clocks differ by up to 400 ms, which is allowed.
            clock: Arc::new(SimClock::with_offset(
                (seed
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    .rotate_left(node as u32 * 8)
                    % 801) as i64
                    - 400,
            )),
            wires: Wires::new(trace),
        })
        .collect();
    for node in &nodes {
        node.disk.set_ignore_syncs(disks == Disks::Lying);
    }
    let (metadata, control, gateway) = (Wires::new(trace), Wires::new(trace), Wires::new(trace));
    metadata_host(&mut sim, seed, &metadata);
    control_host(&mut sim, seed, &control);
    for (index, state) in nodes.iter().enumerate() {
        node_host(&mut sim, seed, index as u64 + 1, state);
    }
    gateway_host(&mut sim, seed, &gateway);

    let result = Arc::new(Mutex::new(None));
    let progress = Arc::new(workload::Progress::default());
    let (told, noted, shared) = (Arc::clone(&result), trace.clone(), Arc::clone(&progress));
    sim.client("client", async move {
        let outcome = workload::run(&shared, &noted).await;
        *told.lock() = Some(outcome);
        Ok(())
    });
    let hosts = Hosts {
        nodes,
        control,
        metadata,
        gateway,
    };
    let mut faults = Faults::new(SeededRandom::new(seed), hosts, trace.clone());
    let mut steps = 0_u64;
    loop {
        let ended = sim
            .step()
            .map_err(|error| anyhow::anyhow!("simulation with seed {seed}: {error}"))?;
        if ended {
            break;
        }
        trace.set_now(sim.elapsed());
        faults.step(&mut sim, &progress);
        steps += 1;
        if steps % FINGERPRINT_STEPS == 0 {
            trace.note_fingerprint();
        }
    }
    let outcome = result.lock().take();
    let numbers = outcome.ok_or_else(|| anyhow::anyhow!("the client did not end"))??;
    Ok(Outcome {
        acknowledged: numbers.acknowledged,
        unknown: numbers.unknown,
        unanswered: numbers.unanswered,
        faults: faults.done(),
    })
}

fn metadata_host(sim: &mut turmoil::Sim<'_>, seed: u64, wires: &Arc<Wires>) {
    let wires = Arc::clone(wires);
    // The store of record is a database of its own; here it survives as memory that outlives the process.
    let clock = Arc::new(SimClock::default());
    let store = Arc::new(MemoryStore::new(&ports(seed, 101, clock.clone()), 10_000));
    let starts = Arc::new(SeededRandom::new(seed ^ (102 << 32)));
    sim.host("metadata", move || {
        let (store, ports) = (
            Arc::clone(&store),
            ports(seed ^ starts.next_u64(), 102, Arc::clone(&clock)),
        );
        let wires = Arc::clone(&wires);
        let network = SimNetwork(Arc::clone(&wires));
        let software = async move {
            let config = ptah_metadata::Config {
                grpc_listen: "0.0.0.0:6224".into(),
                cluster: cluster(),
                ..Default::default()
            };
            let deps = ptah_metadata::Deps {
                ports,
                network: Arc::new(network),
                tasks: Tasks::root(),
                metrics: Metrics::new(),
                health: Health::new("metadata"),
                store: Some(store),
            };
            let _running = ptah_metadata::start(config, deps).await?;
            std::future::pending().await
        };
        async move { wires.serve(software).await }
    });
}

fn control_host(sim: &mut turmoil::Sim<'_>, seed: u64, wires: &Arc<Wires>) {
    let wires = Arc::clone(wires);
    let clock = Arc::new(SimClock::default());
    let starts = Arc::new(SeededRandom::new(seed ^ (103 << 32)));
    sim.host("control", move || {
        let ports = ports(seed ^ starts.next_u64(), 103, Arc::clone(&clock));
        let wires = Arc::clone(&wires);
        let network = SimNetwork(Arc::clone(&wires));
        let software = async move {
            let mut config = ptah_control_plane::Config {
                grpc_listen: "0.0.0.0:6223".into(),
                metadata_addresses: ptah_service::List(vec!["metadata:6224".into()]),
                cluster: cluster(),
                ..Default::default()
            };
            config.bootstrap.root_password = Secret::new(workload::PASSWORD.to_owned());
            let deps = ptah_control_plane::Deps {
                ports,
                network: Arc::new(network),
                tasks: Tasks::root(),
                metrics: Metrics::new(),
                health: Health::new("control-plane"),
            };
            let _running = ptah_control_plane::start(config, deps).await?;
            std::future::pending().await
        };
        async move { wires.serve(software).await }
    });
}

fn node_host(sim: &mut turmoil::Sim<'_>, seed: u64, id: u64, state: &NodeState) {
    let (disk, clock, wires) = (
        state.disk.clone(),
        Arc::clone(&state.clock),
        Arc::clone(&state.wires),
    );
    let starts = Arc::new(SeededRandom::new(seed ^ (id << 32)));
    sim.host(format!("storage-{id}"), move || {
        // Another start, another stream of random numbers.
        let ports = ports(seed ^ starts.next_u64(), id, Arc::clone(&clock));
        let (disk, wires) = (disk.as_disk(), Arc::clone(&wires));
        let network = SimNetwork(Arc::clone(&wires));
        let software = async move {
            let mut config = ptah_storage_node::Config {
                node_id: id,
                name: format!("storage-{id}"),
                data_dir: PathBuf::from("/data"),
                grpc_listen: "0.0.0.0:6222".into(),
                advertise_address: format!("storage-{id}:6222"),
                cluster: cluster(),
                ..Default::default()
            };
            config.control_plane_addresses = ptah_service::List(vec!["control:6223".into()]);
            config.partition.segment_bytes = 256 << 10;
            let mut host = ptah_raft::HostOptions::for_tests();
            host.simulation = true;
            let deps = ptah_storage_node::Deps {
                ports,
                network: Arc::new(network),
                tasks: Tasks::root(),
                metrics: Metrics::new(),
                health: Health::new("storage-node"),
                disk,
                host,
            };
            let _running = ptah_storage_node::start(config, deps).await?;
            std::future::pending().await
        };
        async move { wires.serve(software).await }
    });
}

fn gateway_host(sim: &mut turmoil::Sim<'_>, seed: u64, wires: &Arc<Wires>) {
    let wires = Arc::clone(wires);
    let clock = Arc::new(SimClock::default());
    let starts = Arc::new(SeededRandom::new(seed ^ (104 << 32)));
    sim.host("gateway", move || {
        let ports = ports(seed ^ starts.next_u64(), 104, Arc::clone(&clock));
        let wires = Arc::clone(&wires);
        let network = SimNetwork(Arc::clone(&wires));
        let software = async move {
            let mut config = ptah_gateway::Config {
                grpc_listen: "0.0.0.0:5555".into(),
                metadata_addresses: ptah_service::List(vec!["metadata:6224".into()]),
                cluster: cluster(),
                ..Default::default()
            };
            config.control_plane_addresses = ptah_service::List(vec!["control:6223".into()]);
            let deps = ptah_gateway::Deps {
                ports,
                network: Arc::new(network),
                tasks: Tasks::root(),
                metrics: Metrics::new(),
                health: Health::new("gateway"),
            };
            let _running = ptah_gateway::start(config, deps).await?;
            std::future::pending().await
        };
        async move { wires.serve(software).await }
    });
}
