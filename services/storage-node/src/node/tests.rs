//! Reigns over a partition of one replica, on a disk that the test can hold.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use ptah_partition::{AppendHead, BatchBuilder, Door, MessageParts, SessionNumber};
use ptah_raft::{HostOptions, HostParts, RaftHost, ReplicaSpec, ReplicaState};
use ptah_rpc::{ClusterSecret, TcpNetwork};
use ptah_segment_log::{Disk, Identity, SimDisk, SimOp};
use ptah_service::{Metrics, Ports, Secret, Tasks};
use ptah_types::{ClusterId, ErrorKind, NodeId, PartitionNumber, ReplicaId, SessionId, StationId};

use super::*;
use crate::append::{Answer, Answers, Lane, Outcome};
use crate::config::Config;
use crate::disk::DiskGuard;
use crate::leader::NewAppend;
use crate::metrics::NodeMetrics;
use crate::shared::Limits;
use ptah_types::Boundary as _;

const PATIENCE: Duration = Duration::from_secs(30);

fn group() -> RaftGroupId {
    RaftGroupId::new(1).unwrap()
}

async fn until(what: &str, mut check: impl FnMut() -> bool) {
    let waiting = async {
        while !check() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"));
}

/// A node with one replica that is alone in its group.
struct Alone {
    node: Arc<Node>,
    disk: SimDisk,
    syncs_hang: Arc<AtomicBool>,
}

/// Appends of one session.
struct Producer {
    leader: Arc<PartitionLeader>,
    session: SessionId,
    answers: Answers,
    lane: Lane,
}

impl Alone {
    async fn start(configure: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        configure(&mut config);
        let (disk, ports, metrics) = (SimDisk::new(1), Ports::system(), Metrics::new());
        let tasks = Tasks::root();
        let me = NodeId::new(1).unwrap();
        let parts = HostParts {
            disk: disk.as_disk() as Arc<dyn Disk>,
            data_dir: PathBuf::from("/data"),
            identity: Identity {
                cluster: ClusterId::from_random_bytes([1; 16]),
                node: me,
            },
            options: HostOptions::for_tests(),
            ports: ports.clone(),
            network: Arc::new(TcpNetwork::new()),
            secret: ClusterSecret::new(&Secret::new("a secret for tests only".to_owned())).unwrap(),
            tasks: tasks.clone(),
        };
        let host = RaftHost::open(parts, &metrics).await.unwrap();
        let guard = DiskGuard::new(config.disk.clone());
        let shared = Shared::new(
            ports,
            Limits::new(&config),
            NodeMetrics::register(&metrics),
            guard,
        );
        let node = Node::new(Arc::new(shared), host, Budget::new(1 << 30), tasks);
        node.configure(group(), 1, 1 << 20);
        let alone = Self {
            node: Arc::new(node),
            disk,
            syncs_hang: Arc::default(),
        };
        let hang = Arc::clone(&alone.syncs_hang);
        alone.disk.set_hook(Some(Arc::new(move |op, _| {
            while op == SimOp::Sync && hang.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
        })));
        alone
    }

    fn place(&self) {
        let replica = ReplicaId::new(1).unwrap();
        let spec = ReplicaSpec {
            key: PartitionKey {
                tenant: "default".parse().unwrap(),
                station: StationId::new(1).unwrap(),
                partition: PartitionNumber::FIRST,
            },
            group: group(),
            replica,
            members: vec![(replica, NodeId::new(1).unwrap())],
            opened: false,
            initialize: true,
            segment_bytes: 1 << 20,
        };
        self.node.host.ensure(spec).unwrap();
    }

    async fn until_ready(&self) {
        until("a leader", || {
            let replica = self.node.host.replica(group());
            replica.is_some_and(|replica| replica.leadership().ready)
        })
        .await;
    }

    fn producer(&self, session: u64) -> Producer {
        let answers = Answers::default();
        Producer {
            leader: self.node.leader(group()).unwrap(),
            session: SessionId::new(session).unwrap(),
            lane: answers.open_lane(1),
            answers,
        }
    }
}

impl Drop for Alone {
    /// A disk that hangs would keep the runtime's threads.
    fn drop(&mut self) {
        self.syncs_hang.store(false, Ordering::Release);
    }
}

impl Producer {
    /// Appends one message under a number.
    fn append(&self, number: u64) {
        let mut builder = BatchBuilder::new();
        let message = MessageParts::new(Door::GRPC, "orders", b"x");
        builder.push(&message, []).unwrap();
        let batch = builder.finish().unwrap();
        let session = SessionNumber {
            session: self.session,
            number: NonZeroU64::new(number).unwrap(),
        };
        let abandoned = PartitionError::OutcomeUnknown { group: group() };
        let len = batch.payload.len() as u64;
        self.leader.append(NewAppend {
            head: AppendHead {
                session: Some(session),
                count: 1,
            },
            crc: batch.crc,
            reply: self.answers.expect(self.lane, number, len, abandoned),
            permit: Budget::new(1 << 20).try_take(len).unwrap(),
            payload: batch.payload,
        });
    }

    async fn answer(&self) -> Answer {
        let mut taken = Vec::new();
        until("an answer", || {
            self.answers
                .poll_take(&Context::from_waker(Waker::noop()), &mut taken)
                .is_ready()
        })
        .await;
        assert_eq!(taken.len(), 1, "{taken:?}");
        taken.remove(0)
    }
}

fn base(outcome: Outcome) -> u64 {
    outcome.unwrap().base_sequence.get()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reign_that_begins_again_in_its_term_waits_for_what_is_in_flight() {
    let alone = Alone::start(|_| {}).await;
    alone.place();
    alone.until_ready().await;
    let first = alone.producer(1);
    alone.syncs_hang.store(true, Ordering::Release);
    first.append(1);
    alone.node.end(&mut alone.node.leaders.write(), group());
    // The same term goes on with a new sequencer, and message 1 is in the log, not applied.
    let second = alone.producer(2);
    second.append(1);
    let refused = second.answer().await.outcome.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    second.append(2);
    assert_eq!(
        second.answer().await.outcome.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    alone.syncs_hang.store(false, Ordering::Release);
    assert_eq!(base(first.answer().await.outcome), 1);
    let mut stored = None;
    while stored.is_none() {
        second.append(1);
        stored = second.answer().await.outcome.ok();
        tokio::task::yield_now().await;
    }
    assert_eq!(stored.unwrap().base_sequence.get(), 2);
    let replica = alone.node.host.replica(group()).unwrap();
    assert_eq!(replica.status().state, ReplicaState::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_older_look_at_the_leadership_does_not_end_a_reign() {
    let alone = Alone::start(|_| {}).await;
    let node = Arc::clone(&alone.node);
    let mut leaders = node.leaders.write();
    let (entering, entered) = std::sync::mpsc::channel();
    let late = {
        let node = Arc::clone(&node);
        std::thread::spawn(move || {
            entering.send(()).unwrap();
            node.follow(group()).is_some()
        })
    };
    // From here on the other thread waits for the lock, and nobody leads yet.
    entered.recv().unwrap();
    alone.place();
    let is_ready = |_| {
        std::thread::sleep(Duration::from_millis(2));
        node.host
            .replica(group())
            .is_some_and(|replica| replica.leadership().ready)
    };
    assert!((0..15_000).any(is_ready), "no leader within 30 s");
    let reign = node.agree(&mut leaders, group()).unwrap();
    drop(leaders);
    assert!(late.join().unwrap(), "the other thread sees who leads now");
    assert!(!reign.core().has_ended());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_retry_that_joins_an_append_that_is_late_already_is_answered_too() {
    let alone = Alone::start(|config| config.append.deadline_ms = 100).await;
    alone.place();
    alone.until_ready().await;
    let producer = alone.producer(1);
    alone.syncs_hang.store(true, Ordering::Release);
    for _ in 0..2 {
        producer.append(1);
        let unknown = producer.answer().await.outcome.unwrap_err();
        assert_eq!(unknown.kind(), ErrorKind::OutcomeUnknown, "{unknown}");
    }
    producer.append(1);
    alone.syncs_hang.store(false, Ordering::Release);
    assert_eq!(base(producer.answer().await.outcome), 1);
}
